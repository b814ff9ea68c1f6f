"""The progress that pivotctl shows: true from the first moment on, in one unit, and no wider than the terminal."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from pivotd.cli.bar import Bar
from pivotd.cli.progress import describe, percent, time_left_s
from pivotd.client import Client, CopyDisk, CopyRequest, Progress
from tests.cli.conftest import Bench
from tests.cli.test_render import pivot

MIB = 1 << 20
COUNTING = Progress("copying", None, None, "copying")
HALF = Progress("copying", 512 * MIB, 1024 * MIB, "copying", 512 * MIB, dirty_bytes_per_s=0, copy_bytes_per_s=100 * MIB)
LAST = Progress("ready", 2047 * MIB, 2048 * MIB, "too much is left to copy " * 4, MIB, expected_pause_ms=4.0)


def drawn(progress: Progress, width: int) -> list[str]:
    """Return the lines that a terminal of this width gets."""
    bar = Bar()
    bar.show(pivot(progress.phase, None), progress)
    console = Console(width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(bar.renderable)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("progress", [COUNTING, HALF, LAST])
def test_the_bar_fits(width: int, progress: Progress):
    """No line is wider than the terminal; the bar and the phase are whole on the first."""
    lines = drawn(progress, width)
    assert max(map(len, lines)) <= width
    assert progress.phase in lines[0]
    assert lines[0].count("━") + lines[0].count("╸") + lines[0].count("╺") >= 15


def test_a_job_that_has_not_counted_has_no_percentage():
    """Nor has it a time left, in the bar and in a line."""
    assert percent(COUNTING) is None
    assert "%" not in "".join(drawn(COUNTING, 80))
    assert describe(pivot("copying", None), COUNTING) == "copying"


def test_figures_in_one_unit():
    """What is compared has one unit, and the time left follows from the rates."""
    assert drawn(HALF, 60)[1].rstrip() == "512 of 1024 MiB, 100 MiB/s, 5 s left"
    assert set(re.findall(r"[KMGT]i?B", describe(pivot("copying", None), HALF))) == {"MiB"}


def test_a_hundred_percent_means_that_nothing_is_left():
    """Whatever is left is below it."""
    assert percent(LAST) == 99


def test_no_time_left_where_nobody_knows_it():
    """The guest writes as fast as the destination takes it."""
    losing = Progress("copying", 0, MIB, None, MIB, dirty_bytes_per_s=5, copy_bytes_per_s=5)
    assert time_left_s(losing) is None


@pytest.mark.qemu
def test_progress_of_a_copy(bench: Bench):
    """From the first answer on: not finished before it is, never less than before, and an idle guest writes nothing."""
    write = 'qemu-io -d /machine/peripheral/disk0/virtio-backend "write -q -P 7 0 48M"'
    bench.qemu.spy("human-monitor-command", {"command-line": write})
    client = Client(str(bench.daemon.socket))
    request = CopyRequest(disks=[CopyDisk(disk="disk0", image=str(bench.image()))], bandwidth_bytes_per_s=4 * MIB)
    started = client.start("web1", request)
    seen: list[Progress] = []
    limitless = False
    while not client.wait(started.id, 0.05).rests:
        found = client.progress(started.id)
        if found is not None and found.phase == "copying":
            seen.append(found)
            if found.copy_bytes_per_s and not limitless:
                limitless = client.set_bandwidth(started.id, 0).id == started.id
    known = [(row.copied_bytes or 0, row.total_bytes) for row in seen if row.total_bytes is not None]
    assert known == sorted(known)
    assert {total for _, total in known} == {48 * MIB}
    assert known[0][0] < 48 * MIB
    assert {row.dirty_bytes_per_s for row in seen} <= {None, 0}
    assert any(row.copy_bytes_per_s for row in seen)
