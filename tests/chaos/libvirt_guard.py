"""Kills libvirtd, pivotd and QEMU at random in the pivots of libvirt that pivotd guards, under a writing guest.

    .venv/bin/python -m tests.chaos.libvirt_guard --rounds 30 --seed 7

One host lives through all rounds. In each a block job of libvirt waits, pivotd is asked for its end, and at a random
instant of the request or of the pause libvirtd gets SIGKILL (A), pivotd too (B), QEMU too (C). What was killed is
started again. Right is a round after which QEMU, both definitions of libvirt and the verdict name one image, that image holds every write
which the guest was told is on disk, and the guest goes on; after C it is started by libvirt, and has to come up on that
image. The next round is the proof that libvirt can end another job. Without the hook a guest may also stay paused, with
the sentence that says what to do: such rounds are counted apart, and have to end right once that was done.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pivotd.client import (
    AdoptDisk,
    AdoptRequest,
    Client,
    NewPivot,
    Pivot,
    SnapshotDisk,
    SnapshotRequest,
    new_request_id,
)
from pivotd.errors import ClientError, UnknownError
from tests.libvirt.domain import Domain
from tests.libvirt.guarding import guard, settled_verdict
from tests.libvirt.libvirtd import Libvirtd, missing
from tests.libvirt.tiny_domain import TinyDomain
from tests.support.daemon import Daemon
from tests.support.seeds import drawn
from tests.support.waiting import until

WHO = {"A": "libvirtd", "B": "libvirtd and pivotd", "C": "libvirtd, pivotd and QEMU"}
KINDS = {
    "pivot": ("copy", False),
    "abort": ("copy", True),
    "commit": ("commit", False),
    "commit-abort": ("commit", True),
}
"""The job that waits when a round begins, and whether it is to end without a switch."""
GUESTS = {"tiny": TinyDomain, "linux": lambda libvirtd: Domain(libvirtd, rate_per_s=200)}
SETTLE_S = 180.0
CALIBRATIONS = 2
STARTS_MAX = 5
OVERSHOOT = 1.1
"""The last kills come after the end."""
SHARE_FROM_STOP = 0.75
RIGHT, WAITS, WRONG = "right", "guest waits for the hook", "WRONG"


class BrokenPromiseError(AssertionError):
    """What a round shows that must not be; the message says what."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One round. ``at``: when the kill comes, as a share of an undisturbed pause or of a request up to its end."""

    kind: str
    who: str
    from_stop: bool
    at: float

    def __str__(self) -> str:
        return f"{self.kind}, {WHO[self.who]} killed at {self.at:.3f} of the {'pause' if self.from_stop else 'request'}"


UNDISTURBED = Plan("pivot", "A", from_stop=True, at=0.0)


def plans(rng: random.Random, kinds: list[str]) -> Iterator[Plan]:
    """Yield rounds for ever: who dies goes in turn, then which kind."""
    number = 0
    while True:
        from_stop, at = rng.random() < SHARE_FROM_STOP, rng.uniform(0.0, OVERSHOOT)
        yield Plan(kinds[number // len(WHO) % len(kinds)], "ABC"[number % len(WHO)], from_stop, at)
        number += 1


class GuardedHost:
    """A host whose guest moves from image to image; a context manager that ends everything."""

    def __init__(self, libvirtd: Libvirtd, *, guest: str = "tiny", hook: bool = True) -> None:
        libvirtd.clear()
        self.libvirtd, self.hook = libvirtd, hook
        if hook:
            libvirtd.install_hook()
        libvirtd.start()
        self.domain: Domain = GUESTS[guest](libvirtd)
        self.domain.define().boot()
        self._spy = self.domain.spy()
        self.directory = Path(tempfile.mkdtemp(prefix="pivotd-guard-"))
        self.daemon: Daemon = guard(self.directory, libvirtd)
        self.client = Client(str(self.daemon.socket), patience_s=SETTLE_S)
        self.image, self._next = self.domain.image("vda", 0), 1
        self.pause_s, self.request_s = float("inf"), float("inf")
        """Of the shortest guarded pivot that nobody has disturbed: its pause, and from its acceptance to its end."""
        self.met = Counter[str]()
        """The last record of the journal when the kills came."""

    def __enter__(self) -> Self:
        self.daemon.start()
        assert until(self._is_connected), "pivotd does not connect"
        for _ in range(CALIBRATIONS):
            pivot = self.move(UNDISTURBED)
            assert pivot.pause_ms is not None
            assert pivot.closed is not None
            took = datetime.fromisoformat(pivot.closed) - datetime.fromisoformat(pivot.created)
            self.request_s = min(self.request_s, took.total_seconds())
            self.pause_s = min(self.pause_s, pivot.pause_ms / 1000)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spy.close()
        self.daemon.kill()
        self.libvirtd.clear_processes()
        shutil.rmtree(self.directory)

    # --- one round

    def move(self, plan: Plan) -> Pivot:
        """Let a job end with nobody killed, and return its pivot. Raises: BrokenPromiseError."""
        self._settle_libvirt()
        asked = self._ask(plan)
        pivot = self._ended(asked)
        assert pivot is not None, self.client.pivot(asked)
        self._judge_images(pivot)
        return pivot

    def play(self, plan: Plan) -> tuple[str, str]:
        """Play one round; return one word for what came of it, and the facts."""
        self._settle_libvirt()
        asked = self._ask(plan)
        self._await_instant(plan)
        killed = datetime.now(UTC)
        self.libvirtd.kill()
        if plan.who in "BC":
            self.daemon.kill()
        if plan.who == "C":
            self._spy.close()
            self.domain.kill_qemu()
        self.libvirtd.start()
        if plan.who in "BC":
            self.daemon.start()
        word, facts = RIGHT, ""
        try:
            pivot = self._ended(asked)
            if pivot is None:
                facts = self._waits(asked)
                word = WAITS
                pivot = self._ended(asked)
            if pivot is None:
                raise BrokenPromiseError(f"the pivot does not end: {self.client.pivot(asked)}")
            facts = f"{self._where(asked, killed)}: {pivot.outcome}{f', {pivot.error}' if pivot.error else ''}{facts}"
            if plan.who == "C":
                self._judge_next_boot(pivot)
            self._judge_images(pivot)
        except (AssertionError, ClientError) as error:
            return WRONG, f"{facts}: {error}; {self.domain.believe()}; hook: {self.libvirtd.hook_said().strip()}"
        return word, facts

    def _await_instant(self, plan: Plan) -> None:
        if not plan.from_stop:
            time.sleep(plan.at * self.request_s)
            return
        self._spy.await_event("STOP", timeout_s=SETTLE_S)
        time.sleep(plan.at * self.pause_s)

    def _ask(self, plan: Plan) -> str:
        """Let libvirt bring a job to its end, ask pivotd to guard that, and return the pivot."""
        job, abort = KINDS[plan.kind]
        number, self._next = self._next, self._next + 1
        if job == "copy":
            self.domain.copy("vda", number)
        else:
            overlay = self.domain.image("vda", number)
            snapshot = SnapshotRequest(disks=[SnapshotDisk(disk="vda", image=str(overlay))])
            asked = self._start(snapshot)
            done = self._ended(asked)
            assert done is not None, self.client.pivot(asked)
            assert done.outcome == "switched", done
            self.image = overlay
            self.domain.commit()
        self._spy.events()
        return self._start(AdoptRequest(disks=[AdoptDisk(disk="vda")], abort=abort))

    def _start(self, request: NewPivot) -> str:
        """Return the pivot of a request; on busy cores libvirt may answer too late, and it is asked once more."""
        key = new_request_id()
        for _ in range(STARTS_MAX):
            try:
                return self.client.start(self.domain.name, request, request_id=key).id
            except UnknownError as error:
                refused = error
        raise refused

    def _settle_libvirt(self) -> None:
        """Bring libvirt to where it starts another job, and delete the images that the disk needs no more."""
        mirror = self.domain.believe().mirror
        if mirror == "yes":
            self.libvirtd.ask("blockjob", self.domain.name, "vda", "--abort")
        elif mirror is not None:
            # pivotd has said that libvirt is stuck with its last job, and that this helps.
            self._repair()
        chain = subprocess.run(
            ["qemu-img", "info", "-U", "--backing-chain", "--output=json", self.image],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        needed = {Path(layer["filename"]).name for layer in json.loads(chain.stdout)}
        for image in self.image.parent.glob("web1-vda-*"):
            if image.name not in needed:
                image.unlink()

    def _repair(self) -> None:
        self.libvirtd.install_hook()
        self.libvirtd.stop()
        self.libvirtd.start()
        assert until(lambda: self.domain.believe().mirror in {None, "yes"}), (
            f"libvirt stays stuck: {self.domain.believe()}"
        )

    def _where(self, pivot: str, killed: datetime) -> str:
        """Return what the journal had of the pivot when the kill began; the pauses to come are as short as this one."""
        shown = self.client.pivot(pivot)
        events = [record.event for record in shown.records if datetime.fromisoformat(record.at) < killed]
        self.met[events[-1]] += 1
        if events[-1] in {"resumed", "closed"} and shown.pause_ms is not None:
            self.pause_s = min(self.pause_s, shown.pause_ms / 1000)
        return f"after {events[-1]}, pause {shown.pause_ms or 0:.0f} ms"

    # --- what has to be so

    def _waits(self, pivot: str) -> str:
        """Hold a guest that stays paused to what it is promised, and do what pivotd says. Raises: BrokenPromiseError."""
        shown = self.client.pivot(pivot)
        (row,) = (row for row in self.client.domains() if row.name == self.domain.name)
        told = f"{row.detail} {shown.error}"
        if self.hook or "restart libvirtd" not in told or self._run_state() != "paused":
            raise BrokenPromiseError(f"the guest is {self._run_state()}: {shown.phase}, {told}")
        self._repair()
        return f"; waited: {told}"

    def _judge_next_boot(self, pivot: Pivot) -> None:
        """QEMU is dead: the definition names the image of the verdict, and the guest comes up on it."""
        image = self._right_image()
        if self.domain.believe().next_boot != image.name:
            raise BrokenPromiseError(f"the verdict is {image.name}, the next boot is {self.domain.believe().next_boot}")
        if lost := self.domain.missing(image):
            raise BrokenPromiseError(f"{image.name} lacks {lost[:8]} of {len(lost)}: {pivot.outcome}")
        self.domain.boot()
        self._spy = self.domain.spy()
        assert until(self._is_connected), "pivotd does not see the guest again"

    def _judge_images(self, pivot: Pivot) -> None:
        """Root, both definitions and the verdict are one image, it is complete, and the guest runs."""
        self.image = image = self._right_image()
        believed, root = self.domain.believe(), self.domain.root(monitor=self._spy)
        if not (root == believed.live == believed.next_boot == image.name):
            raise BrokenPromiseError(f"QEMU uses {root}, the verdict is {image.name}, libvirt has {believed}")
        if self._run_state() != "running" or not self.domain.writes_go_on():
            raise BrokenPromiseError(f"the guest does not go on: {self._run_state()}")
        if (pivot.outcome == "kept") != (str(image) == pivot.disks[0].source):
            raise BrokenPromiseError(f"{pivot.outcome}, but the disk is on {image}, and was on {pivot.disks[0].source}")
        self.libvirtd.ask("suspend", self.domain.name)
        lost = self.domain.missing(image)
        self.libvirtd.ask("resume", self.domain.name)
        if lost:
            raise BrokenPromiseError(f"{image.name} lacks {lost[:8]} of {len(lost)}")

    # --- asking

    def _is_connected(self) -> bool:
        return any(row.name == self.domain.name and row.connection == "connected" for row in self.client.domains())

    def _ended(self, pivot: str) -> Pivot | None:
        """Return the pivot once it is closed, None if that does not come."""
        found = self.client.wait(pivot, SETTLE_S)
        return found if found.phase == "closed" else None

    def _right_image(self) -> Path:
        verdict = settled_verdict(self.client, self.domain.name, "vda", SETTLE_S)
        if not verdict.certain or verdict.image is None:
            raise BrokenPromiseError(f"no certain verdict: {verdict}")
        return Path(verdict.image)

    def _run_state(self) -> str:
        return str(self._spy.execute("query-status")["status"])


def campaign(
    libvirtd: Libvirtd, asked: Iterator[Plan], rounds: int, *, guest: str, hook: bool, keep: Path
) -> tuple[Counter[str], Counter[str]]:
    """Play so many rounds; return how often each word was said of whom, and which record the kills came after.

    After a wrong round the next one has a new host.
    """
    words, met = Counter[str](), Counter[str]()
    number = 0
    while number < rounds:
        with GuardedHost(libvirtd, guest=guest, hook=hook) as host:
            print(f"libvirt {libvirtd.version()}, undisturbed {host.pause_s * 1000:.0f} ms paused", flush=True)
            word = ""
            while number < rounds and word != WRONG:
                plan = next(asked)
                word, facts = host.play(plan)
                words[f"{WHO[plan.who]}: {word}"] += 1
                print(f"{number:>4}  {plan}: {word}: {facts}", flush=True)
                number += 1
            met.update(host.met)
            if word == WRONG:
                keep.mkdir(exist_ok=True)
                shutil.copytree(host.directory, keep / str(number), ignore=shutil.ignore_patterns("*.sock"))
                (keep / str(number) / "libvirtd.log").write_text(libvirtd.said())
                print(f"      journal and logs are in {keep / str(number)}")
    return words, met


def main() -> int:
    """Play the rounds and count; 1 if any was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="0: a random one")
    parser.add_argument("--hook", action="store_true", help="install pivotd's hook first")
    parser.add_argument("--guest", choices=GUESTS, default="tiny", help="tiny boots at once, linux in seconds")
    parser.add_argument("--kind", action="append", choices=KINDS, help="in turn; by default pivot alone")
    parser.add_argument("--tree", type=Path, help="a libvirt that `make libvirts` has fetched")
    parser.add_argument("--keep", type=Path, help="where journal and logs of wrong rounds go")
    options = parser.parse_args()
    if (why := missing()) is not None:
        print(f"skipped: {why}")
        return 0
    seed, began_s = drawn(options.seed), time.monotonic()
    asked = plans(random.Random(seed), options.kind or ["pivot"])
    keep = options.keep or Path(tempfile.mkdtemp(prefix="pivotd-guard-wrong-"))
    with Libvirtd(options.tree and options.tree.resolve()) as libvirtd:
        words, met = campaign(libvirtd, asked, options.rounds, guest=options.guest, hook=options.hook, keep=keep)
    with contextlib.suppress(OSError):
        keep.rmdir()
    for name, count in sorted(words.items()):
        print(f"{count:>4}  {name}")
    print("killed after the record: " + ", ".join(f"{name} {count}" for name, count in met.most_common()))
    print(f"{options.rounds} rounds, seed {seed}, {time.monotonic() - began_s:.0f} s")
    return int(any(name.endswith(WRONG) for name in words))


if __name__ == "__main__":
    sys.exit(main())
