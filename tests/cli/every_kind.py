"""A journal with a pivot of every kind and every end, as pages and timelines have to show them.

The journal is a real one, written through its API; only the clock is set, so that a copy takes three hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pivotd.core.pivot import Accepted, FleetStage, Image, Outcome, Pause, Phase, Pivot, PivotDisk
from pivotd.core.request import CopyOptions, Kind, Manager
from pivotd.journal import changes
from pivotd.journal.journal import Journal
from tests.journal.samples import make_pivot

REASONS = {
    "switched": "every disk has its destination as root",
    "merged": "every chain is as it was asked for",
    "gave-up": "the deadline passed before the jobs could end",
}
BEGIN = datetime(2026, 11, 28, 22, 0, tzinfo=UTC)
HOSTILE = (
    "/images/<script>alert(1)</script>.qcow2",
    "/images/\"'><img src=x onerror=alert(1)>&amp;.qcow2",
    "/images/two\nlines\r\tand a tab.qcow2",
    "/images/right\u202e2wocq.to left\u200b.qcow2",
    "/images/不明な名前の非常に長いイメージファイルで端まで届いてさらに続くもの.qcow2",
    f"/images/{'a-very-long-directory-name/' * 6}{'long' * 30}.qcow2",
    'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/x/<b>\'"}}',
    "nbd://backup.example:10809/</style><script>alert(2)</script>",
)
"""Names that would break a page into which they were put as they are."""


class Clock:
    """The time of the records, moved by hand."""

    def __init__(self) -> None:
        self.now = BEGIN

    def __call__(self) -> str:
        return self.now.isoformat(timespec="microseconds").replace("+00:00", "Z")

    def later(self, **length: float) -> None:
        self.now += timedelta(**length)


@contextmanager
def clock_of_the_journal() -> Iterator[Clock]:
    """Set the clock by which the journal writes records."""
    clock, real = Clock(), changes.utc_now
    changes.utc_now = clock
    try:
        yield clock
    finally:
        changes.utc_now = real


def disk(name: str, source: str, destination: str | None = None, index: int = 0, **more: Any) -> PivotDisk:
    """Return a disk of a pivot; without a destination it keeps its image."""
    image = Image(source, "qcow2", f"node-{name}-old")
    to = image if destination is None else Image(destination, "qcow2", f"node-{name}-new")
    return PivotDisk(name, index, f"/qdev/{name}", 40 << 30, image, to, f"job-{name}", **more)


def layer(name: str) -> Image:
    return Image(name, "qcow2", "")


class Story:
    """Writes pivots, one after the other, an hour apart."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self.journal, self.clock, self.number = journal, clock, 0

    async def begin(self, request_id: str, *disks: PivotDisk, kind: Kind = Kind.COPY, **more: Any) -> Pivot:
        self.number += 1
        self.clock.later(hours=1)
        of_kind = {"kind": kind, "disks": disks, "created_at": self.clock(), "request_id": request_id, **more}
        pivot, _ = await self.journal.accept(replace(make_pivot(self.number), **of_kind), {"force": False})
        self.clock.later(milliseconds=150)
        return await self.journal.advance(pivot, "copying", {}, phase=Phase.COPYING)

    async def ready(self, pivot: Pivot, **copied: float) -> Pivot:
        self.clock.later(**(copied or {"seconds": 90}))
        return await self.journal.advance(pivot, "ready", {}, phase=Phase.READY, hold=not pivot.options.pivot)

    async def pause(self, pivot: Pivot, pause_ms: float, outcome: str, **more: Any) -> Pivot:
        """One attempt: intent, outcome or gave-up, resume."""
        self.clock.later(milliseconds=10)
        attempt = pivot.attempt + 1
        facts = {"backlog_bytes": 0, "flush_ms": 1.9, "run_state": "running"}
        pivot = await self.journal.advance(
            pivot, "pausing", facts, phase=Phase.PAUSING, attempt=attempt, run_state_before="running", owes_resume=True
        )
        self.clock.later(milliseconds=2 + pause_ms * 0.8)
        pivot = await self._outcome(pivot, outcome, **more)
        self.clock.later(milliseconds=pause_ms * 0.2)
        ended = outcome if outcome != "gave-up" else "ready"
        pauses = (*pivot.pauses, Pause(attempt, pause_ms, ended))
        return await self.journal.advance(
            pivot, "resumed", {"pause_ms": pause_ms}, phase=pivot.phase, owes_resume=False, pauses=pauses
        )

    async def _outcome(self, pivot: Pivot, outcome: str, **more: Any) -> Pivot:
        ends = [Outcome(outcome if outcome in set(Outcome) else "kept")] * len(pivot.disks)
        if outcome == "split":
            ends[0] = Outcome.SWITCHED
        roots = {
            one.disk: "destination" if end is Outcome.SWITCHED else "source"
            for one, end in zip(pivot.disks, ends, strict=True)
        }
        seen = {
            "reason": REASONS.get(outcome, more.get("error") or "every disk has its source as root"),
            "qemu": "replaced" if outcome == "unknown" else "same",
            "run_state": "running" if outcome == "unknown" else "paused",
            "roots": {} if outcome == "unknown" else roots,
            "jobs": {one.job: {"status": "concluded", "error": None} for one in pivot.disks},
        }
        if outcome == "gave-up":
            return await self.journal.advance(pivot, "gave-up", seen, phase=Phase.READY)
        disks = tuple(replace(one, outcome=end) for one, end in zip(pivot.disks, ends, strict=True))
        return await self.journal.advance(
            pivot, outcome, seen, phase=Phase.DECIDED, disks=disks, decided_at=self.clock(), **more
        )

    async def decide(self, pivot: Pivot, outcome: str, **more: Any) -> Pivot:
        """An outcome without a pause."""
        return await self._outcome(pivot, outcome, **more)

    async def close(self, pivot: Pivot) -> Pivot:
        self.clock.later(milliseconds=18)
        return await self.journal.advance(pivot, "closed", {}, phase=Phase.CLOSED, closed_at=self.clock())


async def fill(state_dir: Path) -> None:
    """Write the journal."""
    with clock_of_the_journal() as clock:
        journal = Journal.open(state_dir)
        try:
            await _tell(Story(journal, clock), clock, journal)
        finally:
            await journal.close()


async def _tell(story: Story, clock: Clock, journal: Journal) -> None:
    three = [disk(f"disk{index}", f"/old/web1-{index}.qcow2", f"/new/web1-{index}.qcow2", index) for index in range(3)]
    pivot = await story.ready(await story.begin("three-hours", *three), hours=3)
    await story.close(await story.pause(pivot, 6.2, "switched"))

    pivot = await story.begin("snapshot", disk("disk0", "/new/web1-0.qcow2", "/new/snap.qcow2"), kind=Kind.SNAPSHOT)
    await story.close(await story.pause(await story.ready(pivot, milliseconds=2), 4.4, "switched"))

    inner = disk(
        "disk0", "/new/top.qcow2", top=layer("/new/b.qcow2"), base=layer("/new/a.qcow2"), between=("/new/m.qcow2",)
    )
    pivot = await story.ready(await story.begin("commit-inner", inner, kind=Kind.COMMIT))
    await story.close(await story.pause(pivot, 8.0, "merged", error="every chain is as it was asked for"))

    active = disk(
        "disk0", "/new/top.qcow2", "/new/a.qcow2", top=layer("/new/top.qcow2"), base=layer("/new/a.qcow2"),
        between=("/new/mid.qcow2",),
    )  # fmt: skip
    pivot = await story.ready(await story.begin("commit-active", active, kind=Kind.COMMIT))
    await story.close(await story.pause(pivot, 12.0, "switched"))

    pull = disk("disk1", "/new/web1-1.qcow2", top=layer("/new/under.qcow2"), between=("/new/deep.qcow2",))
    pivot = await story.ready(await story.begin("pull", pull, kind=Kind.PULL))
    await story.close(await story.pause(pivot, 3.0, "merged"))

    pivot = await story.ready(await story.begin("cancelled", disk("disk1", "/new/web1-1.qcow2", "/new/x.qcow2")))
    pivot = await journal.advance(pivot, "cancel-requested", {"uid": 1000}, phase=Phase.READY)
    pivot = await journal.advance(
        pivot, "cancelling", {"reason": "cancelled"}, phase=Phase.CANCELLING, error="cancelled"
    )
    await story.close(await story.decide(pivot, "kept"))

    busy = disk("disk2", "/new/web1-2.qcow2", "/slow/web1-2.qcow2")
    pivot = await story.ready(await story.begin("kept-after-attempts", busy))
    for _ in range(4):
        pivot = await story.pause(pivot, 501.3, "gave-up")
        clock.later(seconds=5)
    why = "the deadline passed in each of 5 attempts"
    await story.close(await story.pause(pivot, 620.0, "kept", error=why))

    pivot = await story.ready(await story.begin("unknown", disk("disk2", "/new/web1-2.qcow2", "/other/web1-2.qcow2")))
    why = "another QEMU uses the destination; there is no `switched` record"
    await story.close(await story.decide(pivot, "unknown", error=why))

    pivot = await story.ready(await story.begin("accepted", disk("sda", "/new/sda.qcow2", "/other/sda.qcow2")))
    pivot = await story.close(await story.decide(pivot, "unknown", error=why))
    clock.later(hours=9)
    word = Accepted("/other/sda.qcow2", "qcow2", clock(), 1000, "compared <both>, the newer one boots")
    facts = {"disk": "sda", "image": word.filename, "format": "qcow2", "reason": word.reason, "uid": 1000}
    await journal.advance(
        pivot, "image-accepted", facts, disks=tuple(replace(one, accepted=word) for one in pivot.disks)
    )

    two = [
        disk(f"vd{letter}", f"/old/{letter}.qcow2", f"/new/{letter}.qcow2", index) for index, letter in enumerate("ab")
    ]
    pivot = await story.ready(await story.begin("split", *two))
    await story.close(await story.pause(pivot, 480.0, "split", error="job-vdb failed, and vda could not be taken back"))

    pivot = await story.begin("adopted", disk("sdb", "/old/b.raw", "/new/b.raw"), options=CopyOptions(adopted=True))
    await story.close(await story.pause(await story.ready(pivot), 5.0, "switched"))

    pivot = await story.begin("libvirt", disk("vdx", "/old/x.qcow2", "/new/x2.qcow2"), manager=Manager.LIBVIRT)
    await story.close(await story.pause(await story.ready(pivot), 30.0, "switched", asking=False))

    pivot = await story.begin("fleet", disk("vdf", "/shared/old.qcow2", "/shared/new.qcow2"))
    pivot = await story.ready(pivot)
    await story.close(await story.pause(pivot, 9.5, "switched", fleet=FleetStage.TOLD, fleet_epoch=4))

    synced = CopyOptions(keep_synced=True)
    pivot = await story.begin("synced", disk("vdu", "/old/u.qcow2", "/new/u.qcow2"), options=synced)
    pivot = await story.close(await story.pause(await story.ready(pivot), 7.0, "switched"))
    back = disk("vdu", "/new/u.qcow2", "/old/u.qcow2")
    undo = await story.begin("undo", back, undo_of=pivot.id, options=CopyOptions(reuse=True))
    await story.close(await story.pause(await story.ready(undo, milliseconds=3), 6.4, "switched"))

    for index, name in enumerate(HOSTILE):
        pivot = await story.begin(f"hostile-{index}", disk(f"odd{index}", f"/images/odd{index}.qcow2", name))
        await story.close(await story.pause(await story.ready(pivot), 5.5, "switched", error=f"so said {name}"))

    await story.ready(
        await story.begin("open", disk("vdo", "/old/o.qcow2", "/new/o.qcow2"), options=CopyOptions(pivot=False))
    )


async def fill_many(state_dir: Path, pivots: int) -> None:
    """Write a journal of a night in which many guests were moved, with pauses of all lengths."""
    with clock_of_the_journal() as clock:
        journal = Journal.open(state_dir)
        story = Story(journal, clock)
        try:
            for number in range(pivots):
                domain, image = f"vm{number % 40:02}", f"vm{number % 40:02}-{number // 40}.qcow2"
                clock.later(minutes=-57)
                moved = disk(f"disk{number // 40}", f"/old/{image}", f"/new/{image}")
                pivot = await story.begin(f"CHG-{1000 + number}", moved, domain=domain)
                pivot = await story.ready(pivot, seconds=20 + number % 17 * 9)
                kept = number % 23 == 22
                pause_ms = 503.0 if kept else 3 + number % 7 * 2.5 + number % 31 * 6.0
                pivot = await story.pause(pivot, pause_ms, "kept" if kept else "switched")
                await story.close(pivot)
        finally:
            await journal.close()
