"""What a guest sees of libvirt's own pivot, of the same one guarded by pivotd, and of pivotd's own, in turn in one run.

The bare client (bench.libvirt_bare) makes the calls that no guard can leave out, one after the other.

python -m bench.libvirt_pause [--rounds 12] [--busy] [--tree .cache/libvirts/trixie]

The stall is the longest gap between two writes that the guest was told are on disk, around the switch; without any
switch it is that of a quiet time as long. The call is `virDomainBlockJobAbort`, as virsh makes it; the pause is what
pivotd reports. ``--tree``: libvirt and QEMU of another release, as `make libvirts` fetches them. Needs root, libvirt
and the test guest.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from pivotd.libvirt.library import load
from tests.libvirt.domain import Domain
from tests.libvirt.guarding import guard, until
from tests.libvirt.libvirtd import Libvirtd, missing
from tests.support.daemon import Daemon
from tests.support.guest import Guest, serial_log
from tests.support.guest_assets import build
from tests.support.qemu import Disk, create_image

QUIET_S = 0.5


class Acks:
    """The times at which the guest's acknowledgements of one disk came, from its serial port."""

    def __init__(self, serial: Path, disk: str) -> None:
        self._word = f"ACK {disk} ".encode()
        self._times: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tail, args=[serial], daemon=True)
        self._thread.start()

    def _tail(self, serial: Path) -> None:
        with serial.open("rb") as file:
            file.seek(0, 2)
            while not self._stop.is_set():
                if file.read().count(self._word):
                    self._times.append(time.monotonic())
                time.sleep(0.0005)

    def stall_ms(self, began_s: float, ended_s: float) -> float:
        """Return the longest gap around a stretch of time."""
        near = [at for at in self._times if began_s - 0.05 <= at <= ended_s + 0.05]
        return max((later - at for at, later in pairwise(near)), default=0.0) * 1e3

    def end(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()


def of_libvirt(rounds: int, rate_per_s: int, tree: Path | None, found: dict[str, list[float]]) -> None:
    """Measure libvirt's own pivot and the guarded one in turn on one guest, each on a disk of its own.

    pivotd takes a disk that it has moved, and that somebody then moves without it, for one in doubt.
    """
    with Libvirtd(tree) as libvirtd, tempfile.TemporaryDirectory() as directory:
        libvirtd.start(shim=False)
        domain = Domain(libvirtd, disks=2, rate_per_s=rate_per_s).define().boot()
        both = {"vda": Acks(domain.serial, "disk0"), "vdb": Acks(domain.serial, "disk1")}
        api = load().api
        connection = api.open(libvirtd.uri)
        own = connection.lookupByName(domain.name)
        with guard(Path(directory), libvirtd) as daemon:
            until(lambda: daemon.ctl("disk", "ls", domain.name).status == 0)
            for number in range(1, 4 * rounds + 1):
                target = "vda" if number % 2 else "vdb"
                acks = both[target]
                domain.copy(target, number)
                began_s = time.monotonic()
                time.sleep(QUIET_S)
                found["quiet: stall"].append(acks.stall_ms(began_s, time.monotonic()))
                began_s = time.monotonic()
                if number % 2 and number % 4 == 1:
                    own.blockJobAbort(target, api.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                    took_s, name = time.monotonic() - began_s, "libvirt"
                    found["libvirt: call"].append(took_s * 1e3)
                elif number % 2:
                    name = "bare"
                    found["bare: pause"].append(bare_pause_ms(libvirtd, domain, target))
                else:
                    answer = daemon.ctl("libvirt", "pivot", domain.name, target)
                    assert answer.json.get("outcome") == "switched", answer
                    name = "guard"
                    found["guard: pause"].append(answer.json["pause_ms"])
                ended_s = time.monotonic()
                time.sleep(QUIET_S)
                found[f"{name}: stall"].append(acks.stall_ms(began_s, ended_s))
        connection.close()
        for acks in both.values():
            acks.end()


def bare_pause_ms(libvirtd: Libvirtd, domain: Domain, target: str) -> float:
    """Have a bare client guard a pivot; return how long its pause is."""
    arguments = [libvirtd.uri, domain.name, target, str(domain.config_file())]
    command = [sys.executable, "-m", "bench.libvirt_bare", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def of_pivotd(rounds: int, rate_per_s: int, found: dict[str, list[float]]) -> None:
    """Measure pivotd's own pivot of the same guest."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/var/tmp") as name:
        directory = Path(name)
        image = create_image(directory / "0.qcow2", size="64M")
        guest = Guest(build(), rate_per_s=rate_per_s)
        disks = [Disk(image, cache="none")]
        with (
            guest.qemu(directory, disks) as qemu,
            Daemon(directory, {"web1": qemu.qmp}) as daemon,
        ):
            guest.judge(qemu).await_ready()
            acks = Acks(serial_log(directory, qemu.name), "disk0")
            for number in range(1, rounds + 1):
                held = daemon.ctl("copy", "web1", f"disk0={directory / f'{number}.qcow2'}", "--no-pivot").json
                time.sleep(QUIET_S)
                began_s = time.monotonic()
                answer = daemon.ctl("pivot", "complete", held["id"])
                assert answer.json["outcome"] == "switched", answer
                ended_s = time.monotonic()
                time.sleep(QUIET_S)
                found["pivotd: pause"].append(answer.json["pause_ms"])
                found["pivotd: stall"].append(acks.stall_ms(began_s, ended_s))
            acks.end()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--busy", action="store_true", help="the guest writes as fast as it can")
    parser.add_argument("--tree", type=Path, help="the libvirt of another release")
    options = parser.parse_args()
    if (why := missing()) is not None:
        print(f"skipped: {why}")
        return
    found: dict[str, list[float]] = defaultdict(list)
    rate_per_s = 0 if options.busy else 200
    of_libvirt(options.rounds, rate_per_s, options.tree and options.tree.resolve(), found)
    of_pivotd(options.rounds, rate_per_s, found)
    print(f"{'':<16}{'median':>8}{'least':>8}{'lower 1/4':>11}{'p90':>8}{'worst':>8}{'n':>5}   ms")
    for name, values in found.items():
        quarter, p90 = (sorted(values)[len(values) * share // 20] for share in (5, 18))
        line = f"{name:<16}{statistics.median(values):>8.1f}{min(values):>8.1f}{quarter:>11.1f}{p90:>8.1f}"
        print(f"{line}{max(values):>8.1f}{len(values):>5}")
    call = found["libvirt: call"]
    for name, words in (("guard: pause", "the guarded pause"), ("bare: pause", "the bare client's")):
        ratio, least = statistics.median(found[name]) / statistics.median(call), min(found[name]) / min(call)
        print(f"{words} is {ratio:.2f} of libvirt's own call; of the least values {least:.2f}")


if __name__ == "__main__":
    main()
