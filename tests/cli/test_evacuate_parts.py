"""The parts of `pivotctl evacuate` that need no guest: places and names, the time to begin, the table on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from msgspec.structs import replace
from rich.console import Console

from pivotd.cli.complaints import UsageError
from pivotd.cli.context import App
from pivotd.cli.evacuate_at import At, last_and_next, sleep_until
from pivotd.cli.evacuate_places import UNFINISHED, Places
from pivotd.cli.several_running import Running, totals
from pivotd.cli.several_table import Table
from pivotd.client import Progress
from tests.cli.test_render import pivot

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two old places, a new one, and a link to the first."""
    for name in ("old/sub", "other", "new"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("old")
    return tmp_path


def places(tree: Path, *old: str, to: str = "new") -> Places:
    return Places([str(tree / name) for name in old or ("old",)], str(tree / to))


def goes(tree: Path, found: Places, image: str, **formats: str) -> str | None:
    target = found.target(str(tree / image), formats.get("old", "qcow2"), formats.get("new"))
    return None if target is None else str(Path(target).relative_to(tree))


def test_an_image_keeps_its_path_below_the_old_place(tree: Path) -> None:
    """So two images of one name in two directories do not collide, and the target never depends on other images."""
    found = places(tree)
    assert goes(tree, found, "old/disk.qcow2") == "new/disk.qcow2"
    assert goes(tree, found, "old/sub/disk.qcow2") == "new/sub/disk.qcow2"
    assert goes(tree, found, "older/disk.qcow2") is None
    assert goes(tree, found, "old") is None


def test_links_lead_to_the_old_place_and_from_it(tree: Path) -> None:
    """An image that QEMU has by another name of the place, --from by a link, and a link in the place to elsewhere."""
    (tree / "old/there.qcow2").symlink_to(tree / "other/real.qcow2")
    (tree / "other/here.qcow2").symlink_to(tree / "old/sub/real.qcow2")
    for found in (places(tree), places(tree, "link")):
        assert goes(tree, found, "link/disk.qcow2") == "new/disk.qcow2"
        assert goes(tree, found, "old/disk.qcow2") == "new/disk.qcow2"
        assert goes(tree, found, "old/there.qcow2") == "new/there.qcow2"
        assert goes(tree, found, "other/here.qcow2") == "new/sub/real.qcow2"
        assert goes(tree, found, "other/real.qcow2") is None


def test_dots_lead_where_the_directories_lead(tree: Path) -> None:
    """``..`` after a link is not what the text says."""
    (tree / "deep").symlink_to("old/sub")
    found = places(tree)
    assert goes(tree, found, "deep/../disk.qcow2") == "new/disk.qcow2"
    assert goes(tree, found, "old/../other/disk.qcow2") is None


def test_a_place_twice_and_a_place_in_a_place_count_once(tree: Path) -> None:
    """The outer one counts, so that a name does not depend on the order of --from."""
    one, other = places(tree, "old/sub", "old", "link", "old"), places(tree, "old")
    assert list(one.roots) == list(other.roots)
    assert goes(tree, one, "old/sub/disk.qcow2") == "new/sub/disk.qcow2"
    assert one.mark == other.mark


def test_what_has_arrived_in_a_new_place_inside_the_old_one_stays(tree: Path) -> None:
    """And the other way round everything moves up."""
    found = places(tree, to="old/sub")
    assert goes(tree, found, "old/disk.qcow2") == "old/sub/disk.qcow2"
    assert goes(tree, found, "old/sub/disk.qcow2") is None
    assert found.has_arrived(str(tree / "link/sub/disk.qcow2"))
    up = places(tree, "old/sub", to="old")
    assert goes(tree, up, "old/sub/disk.qcow2") == "old/disk.qcow2"
    with pytest.raises(UsageError, match="are one directory"):
        places(tree, to="link")


def test_a_name_says_the_new_format(tree: Path) -> None:
    """Only where it said the old one."""
    found = places(tree)
    assert goes(tree, found, "old/a.qcow2", new="raw") == "new/a.raw"
    assert goes(tree, found, "old/a.raw", old="raw", new="qcow2") == "new/a.qcow2"
    assert goes(tree, found, "old/a.img", old="raw", new="qcow2") == "new/a.img"
    assert goes(tree, found, "old/a.qcow2", new="qcow2") == "new/a.qcow2"


def test_what_is_no_file(tree: Path) -> None:
    """Exports and QEMU's descriptions have no place; a description of a file has that of the file."""
    found = places(tree)
    assert not found.holds("nbd://store:10809/web1")
    assert not found.holds('json:{"driver":"null-co"}')
    assert found.holds(f'json:{{"driver":"raw","offset":512,"file":{{"driver":"file","filename":"{tree}/old/a"}}}}')


def test_directories_are_made_like_the_old_ones(tree: Path) -> None:
    """With owner and mode, also where a kill has left one half made; one that somebody has made stays as it is."""
    (tree / "old/a/b").mkdir(parents=True)
    (tree / "old/a").chmod(0o2770)
    (tree / "old/a/b").chmod(0o751)
    (tree / "new/a").mkdir(mode=UNFINISHED)
    found = places(tree)
    image = str(tree / "old/a/b/disk.qcow2")
    found.make_directory(str(tree / "new/a/b/disk.qcow2"), image)
    assert [(tree / f"new/{name}").stat().st_mode & 0o7777 for name in ("a", "a/b")] == [0o2770, 0o751]
    (tree / "new/a/b").chmod(0o755)
    found.make_directory(str(tree / "new/a/b/disk.qcow2"), image)
    assert (tree / "new/a/b").stat().st_mode & 0o7777 == 0o755


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time zone of the process has summer time."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("at", "now", "last", "then"),
    [
        ("22:00", "2026-11-30T21:59", "2026-11-29T22:00+01:00", "2026-11-30T22:00+01:00"),
        ("22:00", "2026-11-30T22:00", "2026-11-30T22:00+01:00", "2026-12-01T22:00+01:00"),
        ("6:05", "2026-10-24T22:00", "2026-10-24T06:05+02:00", "2026-10-25T06:05+01:00"),
        ("2:30", "2026-10-25T02:10+02:00", "2026-10-24T02:30+02:00", "2026-10-25T02:30+02:00"),
        ("2:30", "2026-10-25T02:10+01:00", "2026-10-24T02:30+02:00", "2026-10-25T02:30+01:00"),
        ("20270131T2200", "2026-11-30T10:00", "2027-01-31T22:00+01:00", "2027-01-31T22:00+01:00"),
        ("2027-01-31T22:00", "2026-11-30T10:00", "2027-01-31T22:00+01:00", "2027-01-31T22:00+01:00"),
        ("2027-01-31 22:00+00:00", "2026-11-30T10:00", "2027-01-31T23:00+01:00", "2027-01-31T23:00+01:00"),
    ],
)
def test_the_time_is_that_of_the_clock_on_the_wall(berlin: None, at: str, now: str, last: str, then: str) -> None:
    """Also on the day on which the clock is put back."""
    found = last_and_next(at, datetime.fromisoformat(now).astimezone())
    assert found == (datetime.fromisoformat(last), datetime.fromisoformat(then))


def test_a_time_has_a_time_of_day() -> None:
    """In each form of ISO 8601; midnight has to be said."""
    for text in ("22:00", "2027-01-31T22:00", "20270131T2200", "2027-01-31T22", "2027-01-31T00:00Z"):
        assert At().convert(text, None, None) == text
    for text in ("2027-01-31", "20270131"):
        with pytest.raises(click.BadParameter, match="has no time of day: give 22:00, or"):
            At().convert(text, None, None)


def test_the_clock_is_looked_at_again_and_again() -> None:
    """A sleep is short, whatever it is until then; a time that is over is not waited for."""
    slept: list[float] = []

    def stop(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        sleep_until(datetime.now(UTC) + timedelta(hours=5), stop)
    assert max(slept) <= 30
    sleep_until(datetime.now(UTC) - timedelta(days=1), stop)


def running(name: str) -> Running:
    known = Progress("copying", 512 * MIB, 1024 * MIB, "copying", 512 * MIB, copy_bytes_per_s=100 * MIB)
    return Running(name, pivot("copying", None), 0, known)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits(width: int) -> None:
    """A line for each domain with bar, rate and time left, as many as there is room for, and the sum below."""
    console = Console(width=width, height=8, force_terminal=True, color_system=None, legacy_windows=False)
    table = Table(App("/nowhere.sock"), console)
    shown = [running("web1"), running("a-domain-with-a-very-long-name-indeed"), *map(running, "abcdef")]
    waits = running("stuck")
    assert waits.progress is not None
    waits.progress = replace(waits.progress, detail="waits for room on the file system of the new image " * 3)
    everything = [waits, *shown]
    summed = totals(everything, waiting=[MIB], done=[1024 * MIB, 1024 * MIB], failed=1)
    with console.capture() as capture:
        console.print(table.table(everything, summed))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 8
    assert lines[0].startswith("stuck")
    assert "waits for room" in lines[0]
    assert "50 %" in lines[1]
    assert "100 MiB/s" in lines[1]
    assert lines[-2].strip() == "and 4 more"
    assert lines[-1].startswith("3 of 13 ended, 1 failed, 6.5 GiB of 11.0 GiB")
