"""What history says of an image, from the last pivots that knew it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pivotd.core import verdict
from pivotd.core.pivot import Accepted, Image, Outcome, Phase, Pivot, PivotDisk
from pivotd.core.request import CopyOptions, Kind, Sync
from pivotd.core.standing import Asked, Finding, History, Standing
from tests.core.build import disk, pivot

AT = "2026-11-23T09:00:01.000000Z"
Moved = tuple[Pivot, PivotDisk]


def moved(
    number: int, source: str, destination: str, outcome: Outcome | None, kind: Kind = Kind.COPY, **more: object
) -> Moved:
    """Return a closed pivot of disk0 from one image to another, or an open one without an outcome."""
    options = CopyOptions(sync=more.pop("sync", Sync.FULL))  # type: ignore[arg-type]
    one = replace(
        disk(0, outcome),
        source=Image(source, "qcow2", f"s{number}", more.pop("source_id", None)),  # type: ignore[arg-type]
        destination=Image(destination, "qcow2", f"d{number}" if destination != source else f"s{number}", f"9:{number}"),
        **more,  # type: ignore[arg-type]
    )
    phase = Phase.CLOSED if outcome is not None else Phase.COPYING
    known = pivot(phase, kind=kind, options=options, disks=(one,), decided_at=AT if outcome else None)
    return replace(known, id=f"P{number}"), one


def says(image: str, *history: Moved) -> Finding:
    """Return what the history says of an image; oldest first."""

    def find(name: str) -> Moved | None:
        asked = Asked(frozenset({name}))
        return next((one for one in reversed(history) if asked.is_named(one)), None)

    right = verdict.of_pivot(*history[-1])
    known = find(image)
    assert known is not None
    return History(right, find).of_image(Asked(frozenset({image})), known)


COPIED = moved(1, "/a", "/b", Outcome.SWITCHED)
SNAPSHOT = moved(1, "/a", "/b", Outcome.SWITCHED, Kind.SNAPSHOT)


@pytest.mark.parametrize(
    ("image", "history", "standing", "by"),
    [
        ("/b", [COPIED], Standing.CURRENT, "P1"),
        ("/a", [COPIED], Standing.STALE, "P1"),
        ("/a", [moved(1, "/a", "/b", Outcome.KEPT)], Standing.CURRENT, "P1"),
        ("/b", [moved(1, "/a", "/b", Outcome.KEPT)], Standing.UNUSED, "P1"),
        ("/b", [moved(1, "/a", "/b", None)], Standing.DESTINATION, "P1"),
        ("/a", [moved(1, "/a", "/b", Outcome.UNKNOWN)], Standing.UNKNOWN, "P1"),
        ("/b", [moved(1, "/a", "/b", Outcome.UNKNOWN)], Standing.UNKNOWN, "P1"),
        ("/a", [SNAPSHOT], Standing.BASE, "P1"),
        ("/a", [SNAPSHOT, moved(2, "/b", "/c", Outcome.SWITCHED, Kind.SNAPSHOT)], Standing.BASE, "P2"),
        ("/a", [SNAPSHOT, moved(2, "/b", "/c", Outcome.SWITCHED)], Standing.STALE, "P2"),
        ("/a", [SNAPSHOT, moved(2, "/b", "/c", Outcome.SWITCHED, sync=Sync.TOP)], Standing.BASE, "P2"),
        ("/b", [SNAPSHOT, moved(2, "/b", "/c", Outcome.SWITCHED, sync=Sync.TOP)], Standing.STALE, "P2"),
        ("/a", [SNAPSHOT, moved(2, "/b", "/c", Outcome.KEPT)], Standing.BASE, "P2"),
        ("/b", [COPIED, moved(2, "/b", "/a", Outcome.SWITCHED)], Standing.STALE, "P2"),
        ("/a", [COPIED, moved(2, "/b", "/a", Outcome.SWITCHED)], Standing.CURRENT, "P2"),
        ("/a", [COPIED, moved(2, "/x", "/y", Outcome.SWITCHED)], Standing.STALE, "P1"),
        ("/b", [COPIED, moved(2, "/x", "/y", Outcome.SWITCHED)], Standing.STALE, "P2"),
    ],
)  # fmt: skip
def test_an_image_of_a_copy_or_a_snapshot(image: str, history: list[Moved], standing: Standing, by: str):
    """The pivot is the one by which the image has got this standing."""
    found = says(image, *history)
    assert (found.standing, found.pivot) == (standing, by), found


TOP, MIDDLE, BASE = Image("/top", "qcow2", "t"), "/middle", Image("/base", "qcow2", "b")


@pytest.mark.parametrize(
    ("kind", "image", "standing"),
    [
        (Kind.COMMIT, "/top", Standing.STALE),
        (Kind.COMMIT, "/middle", Standing.STALE),
        (Kind.COMMIT, "/base", Standing.BASE),
        (Kind.COMMIT, "/a", Standing.CURRENT),
        (Kind.PULL, "/top", Standing.RELEASED),
        (Kind.PULL, "/middle", Standing.RELEASED),
        (Kind.PULL, "/base", Standing.BASE),
    ],
)
def test_a_layer_that_was_merged(kind: Kind, image: str, standing: Standing):
    """A commit changes the base, so that what was above it is wrong; a pull changes no layer but the active one."""
    merged = moved(1, "/a", "/a", Outcome.MERGED, kind, top=TOP, between=(MIDDLE,), base=BASE)
    assert says(image, merged).standing is standing


def test_a_person_overrules_the_outcome():
    """Of an accepted image the disk's data is on it, and the images of the pivot are out of date."""
    word = Accepted("/c", "qcow2", AT, 0, "compared")
    known, one = moved(1, "/a", "/b", Outcome.UNKNOWN)
    accepted = replace(one, accepted=word)
    history = replace(known, disks=(accepted,)), accepted
    assert [says(image, history).standing for image in ("/c", "/b", "/a")] == [
        Standing.CURRENT,
        Standing.STALE,
        Standing.STALE,
    ]


@pytest.mark.parametrize(
    ("born", "boot", "found"),
    [
        ("2026-11-23T08:00:00.000000Z", "boot", True),
        ("2026-11-24T08:00:00.000000Z", "boot", False),
        (None, "boot", False),
        ("2026-11-23T08:00:00.000000Z", "later", False),
    ],
    ids=["older than the pivot", "made later", "nobody knows when", "after a boot"],
)
def test_a_file_under_another_name(born: str | None, boot: str, found: bool):
    """A number of a file tells only within one boot, and only if the file is older than the pivot that knew it."""
    known = moved(1, "/a", "/b", Outcome.SWITCHED, source_id="8:77")
    assert Asked(frozenset({"/new"}), "8:77", boot, born).is_file(known) is found


@pytest.mark.parametrize(
    ("born", "noted", "found"),
    [
        ("2026-11-23T09:00:00.500000Z", "2026-11-23T09:00:00.500000Z", True),
        ("2026-11-23T09:00:00.700000Z", "2026-11-23T09:00:00.500000Z", False),
        ("2026-11-23T09:00:00.700000Z", None, True),
        ("2026-11-23T09:00:01.500000Z", None, False),
    ],
    ids=["the same", "a new file, and a clock that was set back", "not noted", "not noted, and younger"],
)
def test_a_file_is_known_by_its_number_and_its_birth(born: str, noted: str | None, found: bool):
    """A file system gives the number of a deleted file to a new one, at whatever time the clock of the host shows."""
    one, disk = COPIED
    disk = replace(disk, destination=replace(disk.destination, born=noted))
    asked = Asked(frozenset({"/other"}), disk.destination.file_id, one.identity.boot_id, born)
    assert asked.is_file((one, disk)) is found
