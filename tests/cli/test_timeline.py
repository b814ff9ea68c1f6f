"""`pivot show --timeline`: phases and pauses to scale, in the terminal and in a pipe."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pivotd.cli.timeline import of_pivot
from pivotd.client import PivotWithRecords, Record, shown
from pivotd.errors import JournalCorruptError
from tests.cli.conftest import Bench
from tests.cli.ctl import COMMAND, ctl, environment
from tests.cli.every_kind import fill
from tests.journal.samples import make_pivot

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kinds")
    asyncio.run(fill(path))
    return path


def drawn(state_dir: Path, pivot: str, columns: int = 60) -> list[str]:
    answer = ctl("--offline", state_dir, "pivot", "show", pivot, "--timeline", env={"COLUMNS": str(columns)})
    assert (answer.status, answer.stderr) == (0, "")
    return answer.stdout.splitlines()


def test_six_milliseconds_in_three_hours_are_seen(state_dir: Path) -> None:
    """A mark where they were, and an enlargement in which they take their share: 6.2 of 8.2 ms."""
    lines = drawn(state_dir, "three-hours")
    assert any(line.split()[:3] == ["copying", "3", "h"] for line in lines)
    whole = next(line for line in lines if line.startswith("guest paused"))
    assert whole.split()[2:] == ["6.2", "ms", "|"]
    assert len(whole) == 60, "it was at the end, and the scale ends with the line"
    enlarged = [line for line in lines if line.startswith("guest paused")][1]
    assert 0.7 < enlarged.count("#") / (60 - len("guest paused  6.2 ms ")) < 0.8
    assert [line.split()[0] for line in lines[lines.index("pause 1, attempt 1: 6.2 ms, switched") + 2 :]] == [
        "pausing",
        "guest",
        "switched",
        "resumed",
    ]


def test_every_attempt_is_shown(state_dir: Path) -> None:
    """Five pauses, each where it was, and each enlarged; the last words are how it ended."""
    lines = drawn(state_dir, "kept-after-attempts", 100)
    assert next(line for line in lines if line.startswith("pausing x5")).count("|") == 5
    titles = [line for line in lines if line.startswith("pause ")]
    assert titles == [
        *(f"pause {number}, attempt {number}: 501 ms, gave up, ready again" for number in (1, 2, 3, 4)),
        "pause 5, attempt 5: 620 ms, kept",
    ]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_it_fits(state_dir: Path, columns: int) -> None:
    """No line is longer than the terminal, or than can be taken in; a pipe gets plain ASCII without trailing spaces."""
    for pivot in ("open", "kept-after-attempts"):
        lines = drawn(state_dir, pivot, columns)
        assert max(map(len, lines)) <= min(columns, 100)
        assert all(line.isascii() and line == line.rstrip() for line in lines)


def test_what_came_after_the_end_does_not_stretch_it(state_dir: Path) -> None:
    """A person's word nine hours later is told, and the scale stays that of the pivot."""
    lines = drawn(state_dir, "accepted")
    assert lines[3] == "timeline, 1 min 30 s from 2026-11-29 10:09:24Z"
    assert lines[-1].startswith("after its end: image-accepted, 2026-11-29 19:10:54Z")


def test_an_open_pivot_says_so(state_dir: Path) -> None:
    """Offline the scale ends with the last record: nobody knows how long ago that was."""
    assert drawn(state_dir, "open")[3].endswith(", still open")


def test_json_has_the_pivot_and_its_timeline(state_dir: Path) -> None:
    """The pivot as ever, and in it what the terminal draws."""
    plain = ctl("--offline", state_dir, "--json", "pivot", "show", "three-hours").json
    found = ctl("--offline", state_dir, "--json", "pivot", "show", "three-hours", "--timeline").json
    timeline = found.pop("timeline")
    assert found == plain
    assert [span["phase"] for span in timeline["spans"]] == ["preparing", "copying", "ready", "pausing", "decided"]
    assert [pause["pause_ms"] for pause in timeline["pauses"]] == [6.2]


def test_a_terminal_gets_blocks(state_dir: Path) -> None:
    """Blocks and colour on a terminal, no line longer than it."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, "--offline", str(state_dir), "pivot", "show", "three-hours", "--timeline"]
    more = {"COLUMNS": "60", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment(more))
    os.close(theirs)
    said = b""
    while got := _read(ours):
        said += got
    assert done.wait() == 0
    assert "█" in said.decode()
    assert "\x1b[" in said.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # so Linux tells the end of a terminal
        return b""


def pivot_of(*records: tuple[str, str | None, float, dict[str, Any]], **more: Any) -> PivotWithRecords:
    """Return a pivot with records: event, phase, seconds after noon, facts."""
    plain = shown.pivot_with_records(make_pivot(1), [])
    rows = [
        Record(seq, (NOON + timedelta(seconds=at)).isoformat(), "web1", "P0001", event, phase, facts)  # type: ignore[arg-type]
        for seq, (event, phase, at, facts) in enumerate(records, 1)
    ]
    fields = {name: getattr(plain, name) for name in plain.__struct_fields__}
    return PivotWithRecords(**{**fields, "created": NOON.isoformat(), "records": tuple(rows), **more})


def test_a_clock_that_goes_back_shortens_nothing_below_zero() -> None:
    """Every span keeps its order and is at least nothing; that the clock went back is said."""
    pivot = pivot_of(("accepted", "preparing", 0, {}), ("copying", "copying", 5, {}), ("ready", "ready", -3600, {}))
    timeline = of_pivot(pivot, None)
    assert timeline.clock_went_back
    assert [(span.phase, span.length_s) for span in timeline.spans] == [("preparing", 5), ("copying", 0), ("ready", 0)]


def test_an_open_pivot_reaches_to_now() -> None:
    """A copy that has been running for an hour without a record is an hour long, also if the clock is behind it."""
    pivot = pivot_of(("accepted", "preparing", 0, {}), ("copying", "copying", 1, {}))
    assert of_pivot(pivot, NOON + timedelta(hours=1)).spans[-1].length_s == 3599
    assert of_pivot(pivot, NOON - timedelta(hours=1)).length_s == 1


def test_no_records_and_no_length_can_be_drawn() -> None:
    """A pivot that has just been accepted has no length yet."""
    timeline = of_pivot(pivot_of(), None)
    assert (timeline.length_s, timeline.spans, timeline.scale.fraction(NOON)) == (0, (), 0)


@pytest.mark.parametrize("at", ["", "yesterday", "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none(at: str) -> None:
    """One clear error, as for any other damage."""
    with pytest.raises(JournalCorruptError, match="is no time"):
        of_pivot(pivot_of(created=at), None)


@pytest.mark.qemu
def test_a_real_pivot(bench: Bench) -> None:
    """A real copy: every phase is there, its pause is the one that is told, and the guest's pause lies in the attempt."""
    bench.json("copy", "web1", f"disk0={bench.image()}", "--id", "drawn")
    found = bench.json("pivot", "show", "drawn", "--timeline").json
    timeline, (pause,) = found["timeline"], found["timeline"]["pauses"]
    assert [span["phase"] for span in timeline["spans"]] == ["preparing", "copying", "ready", "pausing", "decided"]
    assert pause["pause_ms"] == found["pause_ms"]
    moments = {one["event"]: one["at"] for one in pause["moments"]}
    assert moments["pausing"] <= pause["begin"] <= moments["switched"] <= pause["end"] <= moments["resumed"]
    answer = bench.ctl("pivot", "show", "drawn", "--timeline")
    assert (answer.status, answer.stderr) == (0, "")
    assert "switched" in answer.stdout
