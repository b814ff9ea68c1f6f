"""What people read: sizes, times, names that must not do harm, and the end of a pivot."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from rich.cells import cell_len

from pivotd.cli import fitting, render
from pivotd.cli.progress import describe
from pivotd.cli.waiting import complaint, exit_status
from pivotd.client import Pivot, Progress, shown
from pivotd.errors import EXIT_DONE, EXIT_KEPT, EXIT_UNKNOWN
from tests.journal.samples import make_pivot


def pivot(phase: str, outcome: str | None, *, hold: bool = False) -> Pivot:
    plain = msgspec.to_builtins(shown.pivot(make_pivot(1)))
    changed = {"id": "P1", "domain": "web1", "phase": phase, "outcome": outcome, "hold": hold, "error": "too slow"}
    return msgspec.convert(plain | changed, Pivot)


@pytest.mark.parametrize(
    ("phase", "outcome", "hold", "status"),
    [
        ("closed", "switched", False, EXIT_DONE),
        ("closed", "kept", False, EXIT_KEPT),
        ("closed", "unknown", False, EXIT_UNKNOWN),
        ("closed", "split", False, EXIT_UNKNOWN),
        ("closed", None, False, EXIT_UNKNOWN),
        ("ready", None, True, EXIT_DONE),
        ("ready", "kept", True, EXIT_KEPT),
    ],
)
def test_exit_status(phase: str, outcome: str | None, hold: bool, status: int) -> None:
    """The exit status follows from how the pivot rests."""
    found = pivot(phase, outcome, hold=hold)
    assert found.rests
    assert exit_status(found) == status


@pytest.mark.parametrize(
    ("phase", "hold"), [("ready", False), ("pausing", False), ("decided", False), ("copying", True)]
)
def test_not_at_rest(phase: str, hold: bool) -> None:
    """Ready on its way to the pause, and decided but not closed, is not the end."""
    assert not pivot(phase, None, hold=hold).rests


def test_failed_attempts_can_be_tried_again() -> None:
    """A pivot that gave up at ready tells why, and how to try again."""
    said = complaint(pivot("ready", "kept", hold=True))
    assert "too slow" in said
    assert "`pivotctl pivot complete P1` tries again" in said


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1 << 20, "1 MiB"), (1536 << 20, "1.5 GiB"), (1 << 60, "1048576 TiB")],
)
def test_size(size_bytes: int | None, expected: str) -> None:
    """Sizes are in binary units."""
    assert render.size(size_bytes) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(None, "-"), (0.4, "0 s"), (61, "1 min 1 s"), (7200, "2 h"), (90061, "1 d 1 h")]
)
def test_duration(seconds: float | None, expected: str) -> None:
    """A length of time has its two largest units."""
    assert render.duration(seconds) == expected


def test_hostile_name() -> None:
    """A file name cannot move the cursor, start a line or hide behind a missing character."""
    assert render.text("a\x1b[2J\nb\udcff") == "a\\x1b[2J\\x0ab\\xdcff"


def test_describe() -> None:
    """A line of progress has the phase, the bytes and what is waited for."""
    progress = Progress("copying", 1 << 20, 4 << 20, "QEMU is silent")
    assert describe(pivot("copying", None), progress) == "copying, 1.0 MiB of 4.0 MiB (25 %), QEMU is silent"
    assert describe(pivot("preparing", None), None) == "preparing"
    measured = Progress("ready", None, None, dirty_bytes_per_s=0, copy_bytes_per_s=3 << 20, expected_pause_ms=4.25)
    said = "ready, the guest writes 0 MiB/s, the destination takes 3.0 MiB/s, expected pause 4.2 ms"
    assert describe(pivot("ready", None), measured) == said


def test_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A table in a pipe is one line for each row, in columns."""
    render.table(("A", "LONG"), [("aaa", None), ("b", "x\ny")])
    assert capsys.readouterr().out == "A    LONG\naaa  -\nb    x\\x0ay\n"


@pytest.mark.parametrize(
    "path", ["/images/ab,c=c.qcow2-abcdefghijklmnop", "/images/日本日本日本/日本日本日本日本日本日本.qcow2"]
)
def test_a_table_loses_no_character(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    """Whatever the width of the terminal: a path that is folded is whole, and no line is wider."""
    columns = ("DOMAIN", "DISK", "OUTCOME", "IMAGE", "FORMAT", "SINCE")
    rows = [("web1", "disk0", "switched", path, "qcow2", "2026-11-30 15:05:17Z"),
            ("db1", "/machine/peripheral-anon/device[0]/virtio-backend", "not certain", "-", "raw", "-")]  # fmt: skip
    for width in range(40, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        fitting.show(columns, rows, (), headed=True)
        lines = capsys.readouterr().out.splitlines()
        assert max(cell_len(line.rstrip()) for line in lines) <= width
        assert "IMAGE" not in lines[0] or not Counter(path) - Counter("".join(lines[1:])), (width, lines)
