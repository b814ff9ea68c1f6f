"""The hook before a domain starts: no start from an image that pivotd's journal calls stale, and no other refusal."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pivotd import libvirt_hook
from pivotd.core.pivot import Accepted, Image, Outcome, Phase, Pivot
from pivotd.core.request import Manager
from pivotd.host import files
from pivotd.host.process import boot_id
from pivotd.journal.changes import utc_now
from pivotd.journal.journal import Journal
from tests.journal.samples import make_pivot

DOMAIN = "<domain><name>web1</name><devices>{}</devices></domain>"
DISK = "<disk type='file' device='disk'><source file='{}'/><target dev='{}'/></disk>"
CDROM = "<disk type='file' device='cdrom'><source file='/images/source1.qcow2'/><target dev='vda'/></disk>"
SOURCE, DESTINATION = "/images/source1.qcow2", "/images/destination1.qcow2"

Start = Callable[..., int]


def definition(image: str = SOURCE, disk: str = "vda", *, more: str = "") -> str:
    return DOMAIN.format(DISK.format("/images/other", "vdb") + more + DISK.format(image, disk))


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return a function that runs the hook for a start of web1 with a definition, as root."""
    monkeypatch.setattr(libvirt_hook, "JOURNAL", tmp_path / "state" / "journal.db")
    for name in ("CONFIG_DIR", "SNAPSHOT_DIR", "STATE_DIR"):
        monkeypatch.setattr(libvirt_hook, name, tmp_path / name)
    monkeypatch.setattr(libvirt_hook.os, "geteuid", lambda: 0)
    monkeypatch.setattr(libvirt_hook.Caller, "pid", os.getppid())
    (tmp_path / "CONFIG_DIR").mkdir()

    def run(text: str, *, config: str | None = None, domain: str = "web1") -> int:
        (tmp_path / "CONFIG_DIR" / f"{domain}.xml").write_text(text if config is None else config)
        return libvirt_hook.prepare(domain, text.encode())

    return run


async def moved(tmp_path: Path, disk: str = "vda", **new: object) -> Pivot:
    """Write a journal in which a pivot of web1 has come so far, and close it."""
    state_dir = tmp_path / "state"
    state_dir.mkdir(exist_ok=True)
    journal = Journal.open(state_dir)
    try:
        await journal.check_file()
        pivot = replace(make_pivot(1, disk=disk), manager=new.pop("manager", Manager.LIBVIRT))
        before, _ = await journal.accept(pivot, {})
        outcome = new.pop("outcome", None)
        accepted = new.pop("accepted", None)
        disks = (replace(before.disks[0], outcome=outcome, accepted=accepted),)
        return await journal.advance(before, "decided", {}, disks=disks, **new)
    finally:
        await journal.close()


async def test_a_stale_image_is_refused_and_the_right_one_is_named(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guest would lose what it has written since the pivot."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    before = {path.name for path in (tmp_path / "state").iterdir()}
    assert start(definition()) == libvirt_hook.REFUSED
    said = capsys.readouterr().err
    assert f"web1 is not started: vda must start from {DESTINATION}, not from {SOURCE}" in said
    assert "pivotctl verdict accept web1 vda" in said
    assert start(definition(DESTINATION)) == 0
    assert {path.name for path in (tmp_path / "state").iterdir()} == before, "a look leaves no trace"


@pytest.mark.parametrize(
    ("new", "refused"),
    [
        ({"phase": Phase.CLOSED, "outcome": Outcome.KEPT}, {DESTINATION}),
        ({"phase": Phase.COPYING}, {DESTINATION}),
        ({"phase": Phase.PAUSING}, {DESTINATION}),
        ({"phase": Phase.PAUSING, "asking": True}, {SOURCE, DESTINATION}),
        ({"phase": Phase.PAUSING, "manager": Manager.PIVOTD}, {SOURCE, DESTINATION}),
        ({"phase": Phase.CANCELLING}, {DESTINATION}),
        ({"phase": Phase.CANCELLING, "asking": True}, {SOURCE, DESTINATION}),
        ({"phase": Phase.DECIDED, "outcome": Outcome.SWITCHED}, {SOURCE}),
        ({"phase": Phase.CLOSED, "outcome": Outcome.UNKNOWN}, {DESTINATION, SOURCE}),
        (
            {
                "phase": Phase.CLOSED,
                "outcome": Outcome.UNKNOWN,
                "accepted": Accepted(DESTINATION, "qcow2", "2026-11-23T09:00:00Z", 0, "compared"),
            },
            {SOURCE},
        ),
    ],
    ids=[
        "kept",
        "copying",
        "libvirt was not asked",
        "libvirt was asked",
        "pivotd may have switched",
        "given up before libvirt was asked",
        "given up, and libvirt was asked",
        "decided",
        "unknown",
        "accepted by a person",
    ],
)
async def test_what_each_state_of_a_pivot_refuses(tmp_path: Path, start: Start, new: dict, refused: set[str]) -> None:
    """The image that holds the data starts, the other one does not, and neither while nobody knows."""
    await moved(tmp_path, **new)
    for image in (SOURCE, DESTINATION):
        assert (start(definition(image)) == libvirt_hook.REFUSED) == (image in refused), image


async def test_a_pivot_that_is_being_decided_is_said(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a wrong image, but a question that pivotd answers once it runs."""
    await moved(tmp_path, phase=Phase.PAUSING, asking=True)
    start(definition())
    assert "pivot P0001 of vda is being decided: start pivotd" in capsys.readouterr().err


async def test_the_journal_of_an_older_pivotd_counts_too(tmp_path: Path, start: Start) -> None:
    """The package was updated, and pivotd was not restarted: its journal has no column for other images yet."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    with closing(sqlite3.connect(tmp_path / "state" / "journal.db")) as connection:
        for trigger in ("pivot_disk_latest", "disk_latest_accepted"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for trigger in ("disk_latest_file", "disk_latest_file_accepted"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for column in (
            "ran_on_by_fleet",
            "ran_on_at",
            "ran_on_format",
            "ran_on",
            "file_name",
            "file_id",
            "file_boot_id",
            "file_born",
        ):
            connection.execute(f"ALTER TABLE disk_latest DROP COLUMN {column}")
        for column in ("source_born", "destination_born", "top_born", "base_born"):
            connection.execute(f"ALTER TABLE pivot_disk DROP COLUMN {column}")
    assert start(definition()) == libvirt_hook.REFUSED
    assert start(definition(DESTINATION)) == 0


async def test_a_guest_that_has_run_on_another_image_starts_from_neither(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Either may lack writes; a person's word ends that."""
    pivot = await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    journal = Journal.open(tmp_path / "state")
    other = "/images/restored.qcow2"
    assert await journal.ran_on(pivot, pivot.disks[0], (other, "qcow2"))
    await journal.close()
    for image in (SOURCE, DESTINATION, other):
        assert start(definition(image)) == libvirt_hook.REFUSED, image
        assert f"vda has run on {other}, where {DESTINATION} is right" in capsys.readouterr().err
    assert start(definition("/images/new-choice.qcow2")) == 0
    journal = Journal.open(tmp_path / "state")
    word = Accepted(other, "qcow2", "2026-11-23T09:00:00Z", 0, "compared")
    await journal.advance(pivot, "image-accepted", {}, disks=(replace(pivot.disks[0], accepted=word),))
    await journal.close()
    assert start(definition(other)) == 0
    assert start(definition(DESTINATION)) == libvirt_hook.REFUSED


@pytest.mark.parametrize(
    ("image_format", "by_fleet", "said"),
    [
        ("qcow2", False, "another file of that name"),
        ("raw", False, "it as raw"),
        ("qcow2", True, "another host had moved"),
    ],
)
async def test_why_the_right_image_is_in_doubt(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str], image_format: str, by_fleet: bool, said: str
) -> None:
    """Its file was replaced, or used in another format, or another host of the fleet had moved the disk on."""
    pivot = await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    journal = Journal.open(tmp_path / "state")
    await journal.ran_on(pivot, pivot.disks[0], (DESTINATION, image_format), by_fleet=by_fleet)
    await journal.close()
    assert start(definition(DESTINATION)) == libvirt_hook.REFUSED
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("known", ["switched", "kept", "seen", "accepted", "after a boot"])
async def test_a_file_that_was_replaced_under_its_name(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str], known: str
) -> None:
    """As `image` and `guard` say: by its number in this boot, and by its time of birth for ever."""
    path, other = tmp_path / "right.qcow2", tmp_path / "other.qcow2"
    for one in (other, path):
        one.write_text("data")
    if (born := files.made(str(path))) is None:
        pytest.skip("this file system tells no times of birth")
    await is_right(tmp_path, path, known)
    assert libvirt_hook._born(str(path)) == born
    assert start(definition(str(path))) == 0
    path.rename(tmp_path / "kept")
    other.rename(path)
    if known == "after a boot":
        path.unlink()
        while files.made(str(path)) in {None, born}:  # the clock of a file system has a resolution of milliseconds
            path.unlink(missing_ok=True)
            path.write_text("data")
    assert start(definition(str(path))) == libvirt_hook.REFUSED
    assert f"{path} leads to another file now than the one of vda" in capsys.readouterr().err
    (tmp_path / "kept").rename(path)
    assert start(definition(str(path))) == 0
    path.unlink()
    assert start(definition(str(path))) == 0, "QEMU tells of a file that is not there"


async def is_right(tmp_path: Path, path: Path, known: str) -> None:
    """Write a journal by which the file at a path is the right image."""
    (tmp_path / "state").mkdir(exist_ok=True)
    journal = Journal.open(tmp_path / "state")
    await journal.check_file()
    planned, here = make_pivot(1, disk="vda"), boot_id() if known != "after a boot" else "before"
    image = files.with_file(Image(str(path), "qcow2", "n"))
    if known in {"seen", "accepted"}:
        image = replace(image, file_id=None, born=None)
    sides = {"source" if known == "kept" else "destination": image}
    outcome = Outcome.KEPT if known == "kept" else Outcome.SWITCHED
    planned = replace(
        planned,
        disks=(replace(planned.disks[0], **sides),),
        manager=Manager.LIBVIRT,
        identity=replace(planned.identity, boot_id=here),
    )
    before, _ = await journal.accept(planned, {})
    disks = (replace(before.disks[0], outcome=outcome),)
    now = {"phase": Phase.CLOSED, "decided_at": utc_now(), "closed_at": utc_now()}
    pivot = await journal.advance(before, "decided", {}, disks=disks, **now)
    if known == "seen":
        await journal.saw_file(pivot.id, "web1", "vda", files.seen_now(str(path)))
    if known == "accepted":
        word, file = Accepted(str(path), "qcow2", utc_now(), 0, "compared"), files.seen_now(str(path))
        await journal.accept_image(pivot, pivot.disks[0], word, {}, mark=None, fleet_epoch=None, file=file)
    await journal.close()


@pytest.mark.parametrize(
    "text",
    [
        definition("/images/new-choice.qcow2"),
        definition(SOURCE, "vdc"),
        DOMAIN.format(CDROM),
        DOMAIN.format(""),
    ],
    ids=["an image that the journal does not know", "another disk", "a CD", "no disk"],
)
async def test_what_the_journal_does_not_know_starts(tmp_path: Path, start: Start, text: str) -> None:
    """Somebody's new image for a disk is theirs to choose."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    assert start(text) == 0


async def test_another_domain_starts(tmp_path: Path, start: Start) -> None:
    """The journal speaks of web1."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    assert start(definition(), domain="web2") == 0


def test_without_a_journal_everything_starts(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever uses the hook without pivotd hears nothing."""
    assert start(definition()) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["is no database", "is a restored copy", "has a guest that has left"])
async def test_a_journal_in_doubt_refuses_nothing(
    tmp_path: Path, start: Start, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A journal that may lack the last pivots is not certain, and one that cannot be read says nothing."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    path = tmp_path / "state" / "journal.db"
    if damage == "is no database":
        path.write_bytes(b"x" * 8192)
    elif damage == "is a restored copy":
        shutil.copy(path, tmp_path / "copy")
        (tmp_path / "copy").rename(path)
    else:
        journal = Journal.open(tmp_path / "state")
        await journal.left("web1")
        await journal.close()
    assert start(definition()) == 0
    assert ("allowed without a look" in capsys.readouterr().err) == (damage == "is no database")


async def test_a_journal_in_use_is_read(tmp_path: Path, start: Start) -> None:
    """The daemon runs, and its last records are in the WAL."""
    await moved(tmp_path, phase=Phase.COPYING)
    journal = Journal.open(tmp_path / "state")
    try:
        (pivot,) = journal.open_pivots()
        disks = (replace(pivot.disks[0], outcome=Outcome.SWITCHED),)
        await journal.advance(pivot, "switched", {}, phase=Phase.DECIDED, disks=disks)
        assert start(definition()) == libvirt_hook.REFUSED
        assert start(definition(DESTINATION)) == 0
    finally:
        await journal.close()


async def test_a_wal_without_its_index_is_read_in_a_copy(tmp_path: Path, start: Start) -> None:
    """The host has crashed: SQLite would have to write, so it gets a copy."""
    await moved(tmp_path, phase=Phase.COPYING)
    state = tmp_path / "state"
    journal = Journal.open(state)
    (pivot,) = journal.open_pivots()
    disks = (replace(pivot.disks[0], outcome=Outcome.SWITCHED),)
    await journal.advance(pivot, "switched", {}, phase=Phase.DECIDED, disks=disks)
    shutil.copy(state / "journal.db-wal", tmp_path / "wal")
    main = (state / "journal.db").read_bytes()
    await journal.close()
    (state / "journal.db").write_bytes(main)
    shutil.move(tmp_path / "wal", state / "journal.db-wal")
    before = sorted(path.name for path in state.iterdir())
    assert "journal.db-shm" not in before
    assert start(definition()) == libvirt_hook.REFUSED
    assert sorted(path.name for path in state.iterdir()) == before


@pytest.mark.parametrize("operation", ["restore", "migrate"])
async def test_a_restore_and_a_migration_are_never_refused(tmp_path: Path, start: Start, operation: str) -> None:
    """Their images belong to a state that was saved, or that another host has; the next start is an ordinary one."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    assert libvirt_hook.main(["qemu", "web1", operation, "begin", "-"]) == 0
    assert start(definition()) == 0
    assert start(definition()) == libvirt_hook.REFUSED


async def test_a_pass_is_for_one_domain_and_one_libvirtd_and_a_minute(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that failed before its start leaves no door open."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    libvirt_hook.main(["qemu", "web2", "restore", "begin", "-"])
    assert start(definition()) == libvirt_hook.REFUSED
    libvirt_hook.main(["--parent", "1", "qemu", "web1", "restore", "begin", "-"])
    monkeypatch.setattr(libvirt_hook.Caller, "pid", os.getppid())
    assert start(definition()) == libvirt_hook.REFUSED
    libvirt_hook.main(["qemu", "web1", "restore", "begin", "-"])
    monkeypatch.setattr(libvirt_hook, "PASS_BOUND_S", 0.0)
    assert start(definition()) == libvirt_hook.REFUSED


async def test_a_snapshot_is_never_refused(tmp_path: Path, start: Start) -> None:
    """Going back is a decision: the definition of the snapshot is started, which the host's own may be as well."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    assert start(definition(), config=definition(DESTINATION)) == 0
    kept = tmp_path / "SNAPSHOT_DIR" / "web1"
    kept.mkdir(parents=True)
    (kept / "before.xml").write_text(f"<domainsnapshot>{definition()}</domainsnapshot>")
    assert start(definition()) == 0
    ET.fromstring((kept / "before.xml").read_text())
    (kept / "before.xml").write_text(f"<domainsnapshot>{definition(DESTINATION)}</domainsnapshot>")
    assert start(definition()) == libvirt_hook.REFUSED


@pytest.mark.parametrize("operation", ["reconnect", "start", "started", "stopped", "release", "attach"])
async def test_no_other_operation_is_refused(tmp_path: Path, start: Start, operation: str) -> None:
    """At `reconnect`, libvirt would kill the guest."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    assert libvirt_hook.main(["qemu", "web1", operation, "begin", "-"]) == 0


def test_a_fault_of_the_hook_lets_the_domain_start(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guests matter more than a check that cannot be made."""
    monkeypatch.setattr(libvirt_hook, "journal_refuses", lambda *_: 1 / 0)
    assert start(definition()) == 0
    assert "web1: allowed without a look into pivotd's journal: division by zero" in capsys.readouterr().err


async def test_a_person_accepts_other_images_between_the_disks(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The definition has the new image of one disk and the old one of the other: that was right at no moment."""
    (tmp_path / "state").mkdir()
    journal, loop, judged = Journal.open(tmp_path / "state"), asyncio.get_running_loop(), libvirt_hook._disk_refuses
    await journal.check_file()
    pivots = []
    for number, disk in ((1, "vda"), (2, "vdb")):
        pivot, _ = await journal.accept(make_pivot(number, disk=disk), {})
        disks = (replace(pivot.disks[0], outcome=Outcome.SWITCHED),)
        pivots.append(await journal.advance(pivot, "decided", {}, disks=disks, phase=Phase.CLOSED))

    async def accept_the_old_ones() -> None:
        while pivots:
            pivot = pivots.pop()
            word = Accepted(pivot.disks[0].source.filename, "qcow2", "2026-11-23T09:00:00Z", 0, "restored")
            await journal.advance(pivot, "image-accepted", {}, disks=(replace(pivot.disks[0], accepted=word),))

    def then_they_are_accepted(*facts: Any) -> str | None:
        found = judged(*facts)
        asyncio.run_coroutine_threadsafe(accept_the_old_ones(), loop).result()
        return found

    monkeypatch.setattr(libvirt_hook, "_disk_refuses", then_they_are_accepted)
    text = DOMAIN.format(DISK.format(DESTINATION, "vda") + DISK.format("/images/source2.qcow2", "vdb"))
    assert await asyncio.to_thread(start, text) == libvirt_hook.REFUSED
    assert not pivots
    await journal.close()


async def test_what_a_dead_pivotd_has_written_is_durable_before_a_guest_starts_by_it(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the write of a record and its fsync, a start by that record, and a power cut: it would be lost."""
    await moved(tmp_path, phase=Phase.CLOSED, outcome=Outcome.SWITCHED)
    journal = Journal.open(tmp_path / "state")  # so that there are records in its WAL
    await journal.note("domain-added", {}, domain="web2")
    made: list[str] = []
    monkeypatch.setattr(
        libvirt_hook.os, "fsync", lambda handle: made.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
    )
    assert start(definition(DESTINATION)) == 0
    assert made == [str(tmp_path / "state" / "journal.db-wal")]
    await journal.close()
