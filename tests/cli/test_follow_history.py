"""A follower with a long history: every pivot in order, in memory that does not grow; every outcome there is."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd.cli.decided_pivot import decided_pivot, is_decision
from pivotd.client import Record, shown
from pivotd.core.pivot import Outcome, Phase, PivotDisk, outcome_of
from pivotd.journal.journal import Journal
from tests.cli.ctl import environment
from tests.cli.following import Following, end
from tests.journal.samples import make_pivot
from tests.support.daemon import Daemon
from tests.support.waiting import until

PIVOTS = 1000
EARLY = 200
GROWTH_BYTES_MAX = 4 << 20
OUTCOMES = (*((one, one) for one in Outcome), (Outcome.SWITCHED, Outcome.KEPT), (Outcome.SWITCHED, Outcome.UNKNOWN))
AT = "2026-11-23T09:00:01.000000Z"
LATER = "2026-11-24T09:00:00.000000Z"


def two_disks(number: int) -> tuple[PivotDisk, PivotDisk]:
    (first,) = make_pivot(number).disks
    return first, replace(first, disk=f"other{number}", index=1, job="second")


async def fill(state_dir: Path, pivots: int) -> None:
    """Make a journal of closed pivots of two disks each, with every pair of OUTCOMES in turn."""
    journal = Journal.open(state_dir)

    async def one(number: int) -> None:
        pivot, _ = await journal.accept(replace(make_pivot(number), disks=two_disks(number)), {})
        pair = OUTCOMES[number % len(OUTCOMES)]
        disks: tuple[PivotDisk, ...] = tuple(
            replace(disk, outcome=outcome) for disk, outcome in zip(pivot.disks, pair, strict=True)
        )
        event = outcome_of(disks)
        assert event is not None
        changes = {"phase": Phase.DECIDED, "disks": disks, "decided_at": AT}
        pivot = await journal.advance(pivot, event, {"reason": "as asked", "padding": "x" * 2000}, **changes)
        pivot = await journal.advance(pivot, "resumed", {})
        await journal.advance(pivot, "closed", {}, phase=Phase.CLOSED, closed_at=AT)

    for number in range(pivots):
        await one(number)
    await journal.close()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        daemon = Daemon(Path(name), {}, environment=environment())
        asyncio.run(fill(daemon.state_dir, PIVOTS))
        with daemon:
            yield daemon


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """Return the most memory that a process has had resident so far."""
    line = next(row for row in Path(f"/proc/{process.pid}/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.long
def test_a_thousand_pivots_in_order_in_bounded_memory(daemon: Daemon, tmp_path: Path) -> None:
    """Each once; from the two hundredth to the last one the follower's peak grows by less than the history is long."""
    follower = Following(tmp_path, daemon.socket, line=f"tee -a {tmp_path / 'log'}")
    process = follower.start("--after", "0")
    try:
        assert until(lambda: follower.log.exists() and len(follower.ids()) >= EARLY), follower.said()
        early = peak_bytes(process)
        assert until(lambda: len(follower.ids()) >= PIVOTS), follower.said()
        late = peak_bytes(process)
    finally:
        end(process, 9)
    assert follower.ids() == [f"P{number:04}" for number in range(PIVOTS)]
    assert late - early < GROWTH_BYTES_MAX, f"{early} bytes, then {late}"


def test_a_persons_word_names_its_disk_and_its_image() -> None:
    """Some time after the pivot: the other disk of the pivot is not in it, and the pivot's own outcome is not either."""
    number = 3
    pivot = shown.pivot(replace(make_pivot(number), disks=two_disks(number), phase=Phase.CLOSED, decided_at=AT))
    facts = {"disk": "other3", "image": "/restored.raw", "format": "raw", "reason": "from Monday's backup", "uid": 7}
    word = Record(seq=9, at=LATER, domain="web1", pivot=pivot.id, event="image-accepted", phase="closed", facts=facts)
    assert is_decision(word)
    found = decided_pivot(pivot, word)
    assert (found.seq, found.outcome, found.decided, found.reason) == (9, "accepted", LATER, "from Monday's backup")
    (disk,) = found.disks
    assert (disk.disk, disk.outcome, disk.image, disk.format) == ("other3", "accepted", "/restored.raw", "raw")


def test_every_outcome_is_delivered(daemon: Daemon, tmp_path: Path) -> None:
    """Also ``unknown``, which names no image, and pivots whose disks differ."""
    follower = Following(tmp_path, daemon.socket)
    follower.log.touch()
    with follower.running("--after", "0"):
        assert until(lambda: len(follower.documents()) >= len(OUTCOMES)), follower.said()
    found = follower.documents()[: len(OUTCOMES)]
    assert [document["outcome"] for document in found] == ["switched", "kept", "merged", "unknown", "split", "unknown"]
    for number, (document, pair) in enumerate(zip(found, OUTCOMES, strict=True)):
        source, destination = f"/images/source{number}.qcow2", f"/images/destination{number}.qcow2"
        images = {"switched": destination, "kept": source, "merged": source, "unknown": None}
        assert [disk["outcome"] for disk in document["disks"]] == list(pair)
        assert [disk["image"] for disk in document["disks"]] == [images[outcome] for outcome in pair]
        assert [disk["format"] for disk in document["disks"]] == [images[one] and "qcow2" for one in pair]
