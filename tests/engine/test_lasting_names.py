"""A name in a header leads to the very file that QEMU has open, when it is written and when the guest is paused."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd.core.pivot import Outcome, Pivot
from pivotd.core.request import CopyOptions, Kind, PivotRequest, Requester, Sync, Target
from pivotd.core.verdict import Presence
from pivotd.errors import BadRequestError, QmpRefusedError
from pivotd.host import files, held
from pivotd.planning.plan import plan
from pivotd.qmp import rollback
from tests.conftest import QemuFactory
from tests.support.file_systems import subvolumes
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .storage import header_chain

pytestmark = pytest.mark.qemu
WHO = Requester(0, 0, 1)
NAMES = ("low.qcow2", "base.qcow2", "mid.qcow2", "top.qcow2")


def lay(directory: Path, *, relative: bool = False) -> list[Path]:
    """Create a chain of four images, the lowest first."""
    paths = [directory / name for name in NAMES]
    create_image(paths[0])
    for below, path in itertools.pairwise(paths):
        name = below.name if relative else str(below)
        create_image(path, options=f"backing_file={name},backing_fmt=qcow2")
    return paths


def remove(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


def replaced(path: Path) -> None:
    remove(path)
    create_image(path)


def directory(path: Path) -> None:
    remove(path)
    path.mkdir()


def link(path: Path) -> None:
    remove(path)
    path.symlink_to(create_image(path.with_suffix(".other")))


def back(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.with_suffix(".away").rename(path)


SAID = {remove: "deleted or renamed", replaced: "another file", directory: "a directory", link: "another file"}


async def planned(engine: Engine, kind: Kind, target: Target, **options: object) -> Pivot:
    """Plan alone: nothing is recorded."""
    session = engine.host.get("web1").session
    assert session is not None
    request = PivotRequest("web1", kind, (target,), CopyOptions(**options))  # type: ignore[arg-type]
    return await plan(request, session, [], pivot="01K9ABCDEFGHJKMNPQRSTV0000", who=WHO)


@pytest.mark.parametrize("how", SAID)
async def test_no_header_names_a_file_that_is_lost(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, how: Callable[[Path], None]
):
    """Every verb, with each layer of the chain lost in turn; what is taken out of the chain may be lost."""
    layers = lay(tmp_path)
    low, base, mid, top = layers
    new = Target("disk0", str(tmp_path / "new.qcow2"))
    verbs: dict[str, tuple[Kind, Target, dict[str, object], set[Path]]] = {
        "snapshot": (Kind.SNAPSHOT, new, {}, {low, base, mid, top}),
        "sync top": (Kind.COPY, new, {"sync": Sync.TOP}, {low, base, mid}),
        "copy": (Kind.COPY, new, {}, set()),
        "pull": (Kind.PULL, Target("disk0"), {}, {top}),
        "pull to base": (Kind.PULL, Target("disk0", base=str(base)), {}, {low, base, top}),
        "commit": (Kind.COMMIT, Target("disk0", base=str(base)), {}, {low, base}),
        "inner commit": (Kind.COMMIT, Target("disk0", top=str(mid), base=str(base)), {}, {low, base, top}),
    }
    qemu_factory([Disk(top)], paused=True)
    supervisor = await engine.connect(Qemu(tmp_path))
    assert supervisor.session is not None
    for verb, (kind, target, options, _) in verbs.items():
        assert (await planned(engine, kind, target, **options)).disks, verb
    for lost in layers:
        how(lost)
        for verb, (kind, target, options, needed) in verbs.items():
            for force in (False, True):
                if lost in needed:
                    with pytest.raises(BadRequestError) as caught:
                        await planned(engine, kind, target, **options, force=force)
                    assert str(lost) in str(caught.value), (verb, lost)
                    assert SAID[how] in str(caught.value), (verb, lost)
                    assert "\n" not in str(caught.value)
                else:
                    source = (await planned(engine, kind, target, **options, force=force)).disks[0].source
                    assert (source.file_id == files.LOST) is (lost == top), (verb, lost)
        back(lost)
    assert engine.journal.last_seq == 0


@pytest.mark.parametrize("relative", [True, False])
async def test_layers_of_one_chain_that_have_changed_their_names(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, *, relative: bool
):
    """Each name leads to a file that QEMU has open, but not as this layer."""
    low, base, mid, top = lay(tmp_path, relative=relative)
    qemu_factory([Disk(top)], paused=True)
    await engine.connect(Qemu(tmp_path))
    new = Target("disk0", str(tmp_path / "new.qcow2"))
    for one, other in ((base, mid), (low, base), (mid, top)):
        swap(one, other)
        with pytest.raises(BadRequestError, match="another file at this name now"):
            await planned(engine, Kind.SNAPSHOT, new)
        swap(one, other)
    assert (await planned(engine, Kind.SNAPSHOT, new)).disks


def swap(one: Path, other: Path) -> None:
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("named", [True, False])
async def test_a_data_file_that_the_header_does_not_lead_to(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, *, named: bool
):
    """QEMU was given another one: no header may name the image. A full copy saves the data."""
    image = create_image(tmp_path / "old.qcow2", options=f"data_file={tmp_path / 'theirs.raw'}")
    given = create_image(tmp_path / "given.raw", image_format="raw")
    if not named:
        subprocess.run(["qemu-img", "amend", "-q", "-f", "qcow2", "-o", "data_file=", image], check=True)
    data = {"driver": "file", "filename": str(given), "node-name": "data"}
    qemu_factory([Disk(image, node={"data-file": "data"}, before=(data,))], paused=True)
    await engine.connect(Qemu(tmp_path))
    new = Target("disk0", str(tmp_path / "new.qcow2"), "qcow2")
    for force in (False, True):
        with pytest.raises(BadRequestError, match="external") as caught:
            await planned(engine, Kind.SNAPSHOT, new, force=force)
        assert str(image) in str(caught.value)
    pivot = await planned(engine, Kind.COPY, new)
    assert pivot.disks[0].source.file_id == files.LOST


async def test_a_copy_that_is_kept_never_vouches_for_a_source_that_is_lost(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """A copy saves the data of a deleted image; until it has, no file at that name is the right one."""
    source = create_image(tmp_path / "old.qcow2")
    qemu_factory([Disk(source)], paused=True)
    await engine.connect(Qemu(tmp_path))
    replaced(source)
    pivot = await planned(engine, Kind.COPY, Target("disk0", str(tmp_path / "new.qcow2")))
    assert files.presence(pivot.disks[0].source, sees_all=False) is Presence.REPLACED
    with pytest.raises(QmpRefusedError, match="leads to another file"):
        await rollback._source(pivot.disks[0], "again")
    with pytest.raises(BadRequestError, match="leave out --keep-synced"):
        await planned(engine, Kind.COPY, Target("disk0", str(tmp_path / "new.qcow2")), keep_synced=True)
    source.unlink()
    assert files.presence(pivot.disks[0].source, sees_all=False) is Presence.GONE


async def test_where_pivotd_may_not_see_what_qemu_has_open(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """QEMU's lock on a file shows that it is open; a file without one is refused, or forced."""
    source = create_image(tmp_path / "old.qcow2")
    qemu = qemu_factory([Disk(source)], paused=True)
    seen, unseen = held.look(qemu.pid), held.Held(qemu.pid, None, is_qemu=False)
    other = held.Held(1, frozenset(), is_qemu=False)
    assert seen.is_qemu
    for look in (seen, unseen, other):
        assert held.astray(str(source), look) is None
    (tmp_path / "alias.qcow2").hardlink_to(source)
    (tmp_path / "link.qcow2").symlink_to(source)
    for name in ("alias.qcow2", "link.qcow2"):
        assert held.astray(str(tmp_path / name), seen) is None
        assert held.astray(str(tmp_path / name), unseen) is None
    relative = held.astray(source.name, unseen)  # to a directory of QEMU's that pivotd may not see either
    assert relative is not None
    assert relative.fleeting
    replaced(source)
    for look in (unseen, other):
        found = held.astray(str(source), look)
        assert found is not None
        assert found.unseen
    definite = held.astray(str(source), seen)
    assert definite is not None
    assert not definite.unseen


async def test_locks_on_a_file_system_whose_device_stat_does_not_show(qemu_factory: QemuFactory, tmp_path: Path):
    """On btrfs the lock of the file itself counts, and not that of a file with its number in another subvolume."""
    with subvolumes(tmp_path) as (one, two):
        images = [create_image(place / "a.qcow2") for place in (one, two)]
        assert images[0].stat().st_ino == images[1].stat().st_ino
        qemu = qemu_factory([Disk(images[0])], paused=True)
        unseen = held.Held(qemu.pid, None, is_qemu=False)
        assert held.astray(str(images[0]), unseen) is None
        found = held.astray(str(images[1]), unseen)
        assert found is not None
        assert found.unseen
        qemu.stop()


@pytest.mark.parametrize("verb", ["snapshot", "sync top", "pull", "inner commit"])
async def test_the_file_is_lost_after_the_plan(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, verb: str):
    """Looked at again before the intent: kept, and the chain is as it was."""
    layers = lay(tmp_path)
    _, base, mid, top = layers
    qemu = qemu_factory([Disk(top)])
    await engine.connect(qemu)
    new = Target("disk0", str(tmp_path / "new.qcow2"))
    kind, target, lost, sync = {
        "snapshot": (Kind.SNAPSHOT, new, top, Sync.FULL),
        "sync top": (Kind.COPY, new, mid, Sync.TOP),
        "pull": (Kind.PULL, Target("disk0", base=str(base)), base, Sync.FULL),
        "inner commit": (Kind.COMMIT, Target("disk0", top=str(mid), base=str(base)), base, Sync.FULL),
    }[verb]
    driver = await engine.start(kind, "web1", target, pivot=False, sync=sync)
    await engine.resting(driver)
    replaced(lost)
    await driver.complete(WHO)
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT, pivot.error
    assert f"{lost} was replaced" in (pivot.error or "")
    assert qemu.root().filename == str(top)
    back(lost)
    assert [name for name, _ in header_chain(top)] == [str(path) for path in reversed(layers)]


async def test_a_relative_name_leads_to_the_base_from_behind_a_link(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """The new image is made through a dangling link: its header leads right by the link, and by its own name."""
    *_, mid, top = lay(tmp_path, relative=True)
    (tmp_path / "far" / "away").mkdir(parents=True)
    there, link_to = tmp_path / "far" / "away" / "new.qcow2", tmp_path / "new.qcow2"
    link_to.symlink_to(there)
    qemu_factory([Disk(top)], paused=True)
    await engine.connect(Qemu(tmp_path))
    driver = await engine.start(Kind.COPY, "web1", Target("disk0", str(link_to)), sync=Sync.TOP)
    assert (await engine.closed(driver)).outcome == Outcome.SWITCHED
    for name in (there, link_to):
        assert header_chain(name)[1][0] == str(mid)
    assert driver.pivot.disks[0].backing_file == str(mid)
