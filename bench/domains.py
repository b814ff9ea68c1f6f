"""Many domains at once: how soon all are connected, what they cost when idle, how soon open pivots are reconciled.

python -m bench.domains [--domains 1000] [--seconds 20]

The QEMUs are the tests' model behind real QMP sockets (bench/fake_qemus.py). The journal with the open pivots is
written by pivotd's own code: each is in its pause, the intent recorded, the job pending. Times count from the start of
the daemon's process; its own processor time is shown beside them, which depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bench.fake_qemus import images_of, monitor_of, pivot_of
from bench.idle import cpu_s, resident_mb
from pivotd.core import names
from pivotd.core.pivot import Identity, Image, Phase, Pivot, PivotDisk
from pivotd.core.request import CopyOptions, Kind, Requester
from pivotd.host import files, process
from pivotd.journal.journal import Journal
from tests.support.daemon import Daemon

CREATED_AT = "2026-11-23T09:00:00.000000Z"
SIZE_BYTES = 1 << 30
PER_PROCESS = 50
WINDOW_S = 3.0
SETTLED_CPU_S = 0.01
"""Idling begins after a window that used less: pivotd has looked once at what each new QEMU has open."""
SETTLE_MOST_S = 120.0


class Fakes:
    """The processes that serve the monitors, and one for each domain."""

    def __init__(self, running: list[subprocess.Popen[str]]) -> None:
        self._processes = running
        self._pids = [int(pid) for one in running for pid in _await_words(one, "ready")[1:]]

    def pid(self, number: int) -> int:
        """Return the process of a domain."""
        return self._pids[number]

    def await_word(self, word: str) -> float:
        """Return the monotonic clock of when it was so for the last domain."""
        return max(float(_await_words(one, word)[0]) for one in self._processes)


def _await_words(running: subprocess.Popen[str], word: str) -> list[str]:
    """Return what follows this word on the next line."""
    assert running.stdout is not None
    said = running.stdout.readline().split()
    assert said[:1] == [word], f"the monitors said {said} instead of {word}"
    return said[1:]


@contextmanager
def fakes(directory: Path, count: int, *options: str) -> Iterator[Fakes]:
    """Run the monitors."""
    command = [sys.executable, "-m", "bench.fake_qemus", str(directory)]
    with ExitStack() as stack:
        running = []
        for first in range(0, count, PER_PROCESS):
            numbers = [str(first), str(min(PER_PROCESS, count - first))]
            words = [*command, *numbers, *options]
            one = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
            stack.callback(one.kill)
            running.append(one)
        yield Fakes(running)


def daemon(directory: Path, count: int) -> Daemon:
    return Daemon(directory, {f"d{number}": monitor_of(directory, number) for number in range(count)})


def idle(count: int, seconds: float) -> None:
    """Measure connecting and idling."""
    with tempfile.TemporaryDirectory(prefix="pb", dir="/var/tmp") as name, fakes(Path(name), count) as monitors:
        pivotd = daemon(Path(name), count)
        try:
            began_s = time.monotonic()
            pivotd.start(wait=False)
            connected_s = monitors.await_word("connected") - began_s
            connecting_cpu_s = cpu_s(pivotd.pid)
            pivotd.await_ready(timeout_s=60)
            settled_cpu_s = _settle(pivotd.pid)
            before_s, began_s = cpu_s(pivotd.pid), time.monotonic()
            time.sleep(seconds)
            percent = 100 * (cpu_s(pivotd.pid) - before_s) / (time.monotonic() - began_s)
            memory_mb = resident_mb(pivotd.pid)
            print(f"{count} domains: connected after {connected_s:.2f} s ({connecting_cpu_s:.2f} s of a processor)")
            looking_s = settled_cpu_s - connecting_cpu_s
            print(f"{count} domains: each looked at once for {looking_s:.2f} s of a processor more")
            print(f"{count} domains, nothing to do: {percent:.2f} % of a core, {memory_mb:.0f} MB resident")
        finally:
            pivotd.kill()


def _settle(pid: int) -> float:
    """Wait until a process has nothing to do, and return the processor time that it has used, in seconds."""
    give_up_s, used_s = time.monotonic() + SETTLE_MOST_S, cpu_s(pid)
    while time.monotonic() < give_up_s:
        before_s = used_s
        time.sleep(WINDOW_S)
        used_s = cpu_s(pid)
        if used_s - before_s < SETTLED_CPU_S:
            return used_s
    raise TimeoutError(f"still busy after {SETTLE_MOST_S:.0f} s, and {used_s:.1f} s of a processor")


def paused_pivot(directory: Path, number: int, identity: Identity) -> Pivot:
    """Return the pivot whose intent is recorded last."""
    pivot, (old, new) = pivot_of(number), images_of(directory, number)
    for image in (old, new):
        image.touch()
    disk = PivotDisk(
        disk="disk0", index=0, qdev="/machine/peripheral/disk0/virtio-backend", size_bytes=SIZE_BYTES,
        source=Image(str(old), "qcow2", "src0", files.file_id(str(old))),
        destination=Image(str(new), "qcow2", names.destination_node(pivot, 0), files.file_id(str(new))),
        job=names.mirror_job(pivot, 0),
    )  # fmt: skip
    return Pivot(
        id=pivot, request_id=pivot, domain=f"d{number}", qmp=str(monitor_of(directory, number)), kind=Kind.COPY,
        phase=Phase.PREPARING, requested_by=Requester(0, 0, 1), options=CopyOptions(), disks=(disk,),
        created_at=CREATED_AT, identity=replace(identity, nonce=names.nonce_object(pivot)),
    )  # fmt: skip


async def write_journal(directory: Path, count: int, monitors: Fakes) -> None:
    """Record the intents."""
    state = directory / "state"
    state.mkdir()
    journal = Journal.open(state)

    async def record(number: int) -> None:
        pid = monitors.pid(number)
        identity = Identity(process.boot_id(), pid, process.start_ticks(pid), "")
        pivot, _ = await journal.accept(paused_pivot(directory, number, identity), {})
        for phase in (Phase.COPYING, Phase.READY):
            pivot = await journal.advance(pivot, phase.value, {}, phase=phase)
        await journal.advance(
            pivot, "pausing", {}, phase=Phase.PAUSING, run_state_before="running", owes_resume=True, attempt=1,
            pausing_since=CREATED_AT,
        )  # fmt: skip

    await asyncio.gather(*map(record, range(count)))
    await journal.close()


def reconcile(count: int) -> None:
    """Measure the recovery of one open intent in each domain."""
    with (
        tempfile.TemporaryDirectory(prefix="pb", dir="/var/tmp") as name,
        fakes(Path(name), count, "--pivots") as monitors,
    ):
        asyncio.run(write_journal(Path(name), count, monitors))
        pivotd = daemon(Path(name), count)
        try:
            began_s = time.monotonic()
            pivotd.start(wait=False)
            monitors.await_word("connected")
            resumed_s = monitors.await_word("resumed") - began_s
            used_s = cpu_s(pivotd.pid)
            pivotd.await_ready(timeout_s=60)
            outcomes = {pivot["outcome"] for pivot in pivotd.ctl("pivot", "ls").json}
            assert outcomes == {"switched"}, outcomes
            memory_mb = resident_mb(pivotd.pid)
            cost = f"{resumed_s:.2f} s ({used_s:.2f} s of a processor)"
            print(f"{count} open intents: the last guest runs again after {cost}")
            print(f"{count} open intents, reconciled and served: {memory_mb:.0f} MB resident")
        finally:
            pivotd.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure pivotd with many domains.")
    parser.add_argument("--domains", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    idle(options.domains, options.seconds)
    reconcile(options.domains)


if __name__ == "__main__":
    main()
