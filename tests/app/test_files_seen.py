"""Which file a name has to lead to: by its number in this boot, by its time of birth also after a boot of the host."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd.core.pivot import Accepted, Image, Phase
from pivotd.core.verdict import Presence
from pivotd.host import files
from tests.core.build import disk, pivot
from tests.support.file_systems import subvolumes


@pytest.mark.parametrize("booted", [False, True])
def test_a_file_that_was_restored_under_its_name(tmp_path: Path, booted: bool) -> None:
    """Its number counts in one boot; its time of birth for ever."""
    path, kept = tmp_path / "new.qcow2", tmp_path / "kept"
    path.write_text("data")
    seen = files.seen_now(str(path))
    if seen is None or seen.born is None:
        pytest.skip("this file system tells no times of birth")
    if booted:
        seen = replace(seen, boot_id="before", file_id="1:1")
    known = replace(disk(0), file_seen=seen)
    image, birth = files.last_seen(Image(str(path), "qcow2", ""), pivot(Phase.CLOSED, disks=(known,)), known)
    assert files.presence(image, sees_all=True, birth=birth) is Presence.THERE
    path.rename(kept)
    while files.made(str(path)) in {None, seen.born}:  # as below
        path.unlink(missing_ok=True)
        shutil.copyfile(kept, path)
    assert files.presence(image, sees_all=True, birth=birth) is Presence.REPLACED


def test_a_name_that_has_led_to_another_file_does_so_after_a_boot() -> None:
    """No file at that name is the right one, whichever boot it is."""
    lost = Image("/images/old.qcow2", "qcow2", "", files.LOST)
    other_boot = pivot(Phase.CLOSED, disks=(replace(disk(0), source=lost),))
    assert files.of_boot(lost, other_boot).file_id == files.LOST
    assert files.of_boot(replace(lost, file_id="1:2"), other_boot).file_id is None


@pytest.mark.parametrize("known", ["born", "decided", "accepted"])
def test_a_file_that_no_look_has_seen(tmp_path: Path, known: str) -> None:
    """Its time of birth was noted with the pivot; else it was there when that was decided, or a person accepted it."""
    path = tmp_path / "new.qcow2"
    path.write_text("data")
    if (at := files.made(str(path))) is None:
        pytest.skip("this file system tells no times of birth")
    image = Image(str(path), "qcow2", "", born=at if known == "born" else None)
    word = Accepted(str(path), "qcow2", at, 0, "") if known == "accepted" else None
    decided = "2021-03-04T05:06:07.000000Z" if known == "accepted" else at
    moved = replace(disk(0), accepted=word)
    image, birth = files.last_seen(image, pivot(Phase.CLOSED, disks=(moved,), decided_at=decided), moved)
    assert files.presence(image, sees_all=True, birth=birth) is Presence.THERE
    path.rename(tmp_path / "kept")
    while files.made(str(path)) in {None, at}:  # the clock of a file system has a resolution of some milliseconds
        path.unlink(missing_ok=True)
        path.write_text("data")
    assert files.presence(image, sees_all=True, birth=birth) is Presence.REPLACED


def test_a_device_has_no_time_of_birth() -> None:
    """Its node in /dev is made anew with each boot."""
    assert files.made("/dev/null") is None


def test_a_snapshot_in_the_place_of_a_subvolume(tmp_path: Path) -> None:
    """Its files have the numbers and the times of birth of the others, and older data: the device number tells."""
    with subvolumes(tmp_path) as (one, two):
        path = one / "new.raw"
        path.write_text("data")
        seen = files.seen_now(str(path))
        assert seen is not None
        known = replace(disk(0), file_seen=seen)
        image, birth = files.last_seen(Image(str(path), "raw", ""), pivot(Phase.CLOSED, disks=(known,)), known)
        assert files.presence(image, sees_all=True, birth=birth) is Presence.THERE
        number = path.stat().st_ino
        subprocess.run(["btrfs", "subvolume", "snapshot", one, two / "snapshot"], check=True, capture_output=True)
        one.rename(two / "before")
        (two / "snapshot").rename(one)
        assert (path.stat().st_ino, files.made(str(path))) == (number, seen.born)
        assert files.presence(image, sees_all=True, birth=birth) is Presence.REPLACED
