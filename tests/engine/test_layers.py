"""Backing chains of real disks: snapshots, commits and pulls, on real QEMU without a guest kernel."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd.core import kinds
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Kind, Requester, Target
from pivotd.engine.inbox import Cancel
from pivotd.errors import BadRequestError, JournalFullError, NotFoundError, QmpUnknownError
from pivotd.host import files
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, Qemu, create_image

from .conftest import Engine
from .test_copy import assert_clean, content, write

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu

LAYERS = ("base", "one", "two", "top")


def chain(directory: Path, *, prefix: str = "", relative: bool = True) -> list[Path]:
    """Create a chain of images, the lowest first, each with a pattern of its own in its own block."""
    images = [directory / f"{prefix}{name}.qcow2" for name in LAYERS]
    create_image(images[0])
    for below, image in itertools.pairwise(images):
        backing = below.name if relative else str(below)
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", str(image)]
        subprocess.run(command, check=True, cwd=directory)
    for number, image in enumerate(images):
        subprocess.run(["qemu-io", "-c", f"write -q -P {number + 1} {number}M 64k", str(image)], check=True)
    return images


def shown_chain(qemu: Qemu, disk: str = "disk0") -> list[str]:
    """Return the file names that QEMU shows, the active image first."""
    image = next(e for e in qemu.spy("query-block") if disk in e["qdev"])["inserted"]["image"]
    names = []
    while image is not None:
        names.append(Path(files.resolve(image["filename"], None).path or "").name)
        image = image.get("backing-image")
    return names


def written_backing_file(image: Path) -> str | None:
    """Return what the image itself names as its backing file."""
    shown = subprocess.run(["qemu-img", "info", "-U", str(image)], check=True, capture_output=True, text=True).stdout
    line = next((row for row in shown.splitlines() if row.startswith("backing file:")), None)
    return None if line is None else line.removeprefix("backing file: ").partition(" (")[0]


@pytest.mark.parametrize("linked", [False, True])
async def test_layers_with_relative_names_have_normal_paths(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, *, linked: bool
):
    """QEMU shows ``sub/../base.qcow2``: the journal has the path of the file, also where ``sub`` is a link."""
    place = tmp_path / "place"
    (place / "real").mkdir(parents=True)
    (tmp_path / "sub").symlink_to("place/real") if linked else (tmp_path / "sub").mkdir()
    base = create_image((place if linked else tmp_path) / "base.qcow2")
    top = tmp_path / "sub" / "top.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "../base.qcow2", "-F", "qcow2", str(top)]
    subprocess.run(command, check=True, cwd=tmp_path)
    await engine.connect(qemu_factory([Disk(top)], paused=True))
    pivot = await engine.closed(await engine.start(Kind.COMMIT, "web1", Target("disk0")))
    assert pivot.outcome == Outcome.SWITCHED
    assert [disk.destination.filename for disk in pivot.disks] == [str(base)]
    assert [disk.base and disk.base.filename for disk in pivot.disks] == [str(base)]


async def test_the_active_layer_is_committed_and_the_guest_moves_to_the_base(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """The root is the base with all data, the guest was paused, the other layers are gone from QEMU and still files."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    before = content(images[-1], "qcow2")
    pivot = await engine.closed(await engine.start(Kind.COMMIT, "web1", Target("disk0")))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert pivot.pause_ms is not None
    assert shown_chain(qemu) == ["base.qcow2"]
    assert kinds.of(pivot).stale(pivot, pivot.disks[0]) == [str(image) for image in reversed(images[1:])]
    assert qemu.run_state() == "running"
    assert_clean(qemu)
    assert content(images[0], "qcow2") == before
    assert all(image.exists() for image in images)


@pytest.mark.parametrize("legacy", [False, True], ids=["blockdev", "drive"])
async def test_the_active_layer_can_be_committed_to_any_layer(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, legacy: bool
):
    """--base in the middle of the chain."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk(images[-1], legacy=legacy)])
    await engine.connect(qemu)
    pivot = await engine.closed(await engine.start(Kind.COMMIT, "web1", Target("disk0", base=str(images[1]))))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert shown_chain(qemu) == ["one.qcow2", "base.qcow2"]
    assert qemu.jobs() == {}


async def test_a_commit_that_is_taken_back_leaves_no_layer_behind(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """The top is opened again above the base; those between, and the top's first file, would stay if nobody knew them."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk.of_named_nodes(images)])
    await engine.connect(qemu)
    driver = await engine.start(Kind.COMMIT, "web1", Target("disk0"), pivot=False)
    pivot = await engine.resting(driver)
    (disk,) = pivot.disks
    session = engine.host.get("web1").session
    assert session is not None
    driver.end()  # the rest of the pause is played without it
    while engine.host.get("web1").drivers:
        await asyncio.sleep(0)
    qemu.spy("stop")
    qemu.spy("job-complete", id=disk.job)
    qemu.await_event("JOB_STATUS_CHANGE", id=disk.job, status="pending")
    await session.finalize(pivot, [disk.job])
    assert await session.reverse(pivot, disk, session.resumes)
    kept = replace(pivot, phase=Phase.DECIDED, disks=(replace(disk, outcome=Outcome.KEPT),))
    assert await session.clean_up(kept) == []
    assert shown_chain(qemu) == ["top.qcow2", "base.qcow2"]
    assert len(qemu.nodes()) == 4
    assert qemu.jobs() == {}


async def test_two_disks_are_committed_as_one(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """All or none, in one pause."""
    chains = [chain(tmp_path, prefix=f"d{number}") for number in range(2)]
    qemu = qemu_factory([Disk(images[-1]) for images in chains])
    await engine.connect(qemu)
    pivot = await engine.closed(await engine.start(Kind.COMMIT, "web1", Target("disk0"), Target("disk1")))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert len(pivot.pauses) == 1
    assert [shown_chain(qemu, f"disk{number}") for number in range(2)] == [["d0base.qcow2"], ["d1base.qcow2"]]


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
async def test_inner_layers_are_committed(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, relative: bool):
    """The same image on a shorter chain; what it names as its backing file stays relative if it was."""
    images = chain(tmp_path, relative=relative)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    before = content(images[-1], "qcow2")
    target = Target("disk0", top=str(images[2]), base=str(images[0]))
    pivot = await engine.closed(await engine.start(Kind.COMMIT, "web1", target))
    assert pivot.outcome == Outcome.MERGED, pivot.error
    assert shown_chain(qemu) == ["top.qcow2", "base.qcow2"]
    assert kinds.of(pivot).stale(pivot, pivot.disks[0]) == [str(images[2]), str(images[1])]
    assert written_backing_file(images[-1]) == ("base.qcow2" if relative else str(images[0]))
    assert qemu.jobs() == {}
    assert qemu.run_state() == "running"
    qemu.kill()
    assert content(images[-1], "qcow2") == before


@pytest.mark.parametrize("paused", [False, True], ids=["running", "not started"])
async def test_everything_is_pulled_into_the_active_image(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, paused: bool
):
    """No backing file is left, and all data is there also if QEMU is killed at once: by itself it would not be."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk(images[-1])], paused=paused)
    await engine.connect(qemu)
    before = content(images[-1], "qcow2")
    pivot = await engine.closed(await engine.start(Kind.PULL, "web1", Target("disk0")))
    assert pivot.outcome == Outcome.MERGED, pivot.error
    assert shown_chain(qemu) == ["top.qcow2"]
    assert written_backing_file(images[-1]) is None
    assert_clean(qemu)
    assert qemu.run_state() == ("prelaunch" if paused else "running")
    qemu.kill()
    assert content(images[-1], "qcow2") == before


async def test_layers_down_to_a_base_are_pulled(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """--base stays below, named as relatively as before."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    pivot = await engine.closed(await engine.start(Kind.PULL, "web1", Target("disk0", base=str(images[0]))))
    assert pivot.outcome == Outcome.MERGED, pivot.error
    assert shown_chain(qemu) == ["top.qcow2", "base.qcow2"]
    assert written_backing_file(images[-1]) == "base.qcow2"


async def test_overlays_are_put_on_all_disks_at_once(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The roots are the overlays over the old images, in one pause; the old images do not change any more."""
    sources = [create_image(tmp_path / f"old{number}.qcow2") for number in range(3)]
    qemu = qemu_factory([Disk(source) for source in sources])
    await engine.connect(qemu)
    write(qemu, "disk1", 5)
    targets = [Target(f"disk{number}", str(tmp_path / f"over{number}.qcow2")) for number in range(3)]
    pivot = await engine.closed(await engine.start(Kind.SNAPSHOT, "web1", *targets))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert len(pivot.pauses) == 1
    before = [content(source, "qcow2") for source in sources]
    write(qemu, "disk1", 9)
    assert [content(source, "qcow2") for source in sources] == before
    assert shown_chain(qemu, "disk1") == ["over1.qcow2", "old1.qcow2"]
    assert written_backing_file(tmp_path / "over1.qcow2") == str(sources[1])
    assert qemu.run_state() == "running"
    assert qemu.jobs() == {}


async def test_snapshot_commit_snapshot_again(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """The same overlay name serves again once its file is gone."""
    source = create_image(tmp_path / "old.qcow2")
    overlay = tmp_path / "over.qcow2"
    qemu = qemu_factory([Disk(source)])
    await engine.connect(qemu)
    for number in range(3):
        pivot = await engine.closed(await engine.start(Kind.SNAPSHOT, "web1", Target("disk0", str(overlay))))
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        write(qemu, "disk0", 10 + number)
        pivot = await engine.closed(await engine.start(Kind.COMMIT, "web1", Target("disk0")))
        assert pivot.outcome == Outcome.SWITCHED, pivot.error
        assert shown_chain(qemu) == ["old.qcow2"]
        overlay.unlink()
    assert_clean(qemu)


@pytest.mark.parametrize("kind", ["commit", "inner commit", "pull"])
async def test_a_flush_that_failed_ends_a_merge(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """Of the layer that has taken the others' data: they stay in the chain, as nobody can tell what it still has."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    inner = Target("disk0", top=str(images[2]), base=str(images[0]))
    target = inner if kind == "inner commit" else Target("disk0")
    takes = images[-1] if kind == "pull" else images[0]
    driver = await engine.start(Kind.PULL if kind == "pull" else Kind.COMMIT, "web1", target, pivot=False)
    await engine.resting(driver)
    fdatasync, failed = os.fdatasync, list[str]()

    def fails_once(descriptor: int) -> None:
        fdatasync(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        if name == takes and not failed:
            failed.append(str(name))
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails_once)
    await driver.complete(WHO)
    pivot = await engine.closed(driver)
    assert (pivot.outcome, failed) == (Outcome.KEPT, [str(takes)]), pivot.error
    assert f"{takes} failed to make durable what it had taken" in str(pivot.error)
    assert shown_chain(qemu) == [image.name for image in reversed(images)]
    assert qemu.jobs() == {}


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.SNAPSHOT])
async def test_a_paused_guest_stays_paused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, kind: Kind):
    """Somebody else's pause is left alone."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    qemu.spy("stop")
    target = Target("disk0", str(tmp_path / "over.qcow2") if kind is Kind.SNAPSHOT else "")
    pivot = await engine.closed(await engine.start(kind, "web1", target))
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert qemu.run_state() == "paused"


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.PULL])
async def test_a_cancelled_merge_leaves_the_chain_as_it_was(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, kind: Kind
):
    """Slow enough to be caught at it: kept, the chain unchanged, no job left."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk(images[-1])])
    await engine.connect(qemu)
    driver = await engine.start(kind, "web1", Target("disk0"), bandwidth_bytes_per_s=1)
    await engine.until(driver, lambda pivot: pivot.phase is Phase.COPYING)
    driver.state.inbox.post(Cancel(WHO))
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT
    assert shown_chain(qemu) == ["top.qcow2", "two.qcow2", "one.qcow2", "base.qcow2"]
    assert qemu.jobs() == {}
    assert qemu.run_state() == "running"


@pytest.mark.parametrize(
    ("kind", "top", "base", "error", "words"),
    [
        (Kind.COMMIT, None, "elsewhere.qcow2", NotFoundError, "is not in the chain"),
        (Kind.COMMIT, "base.qcow2", "two.qcow2", BadRequestError, "is not below"),
        (Kind.COMMIT, None, "top.qcow2", BadRequestError, "is not below"),
        (Kind.PULL, None, "two.qcow2", BadRequestError, "nothing to pull"),
        (Kind.PULL, None, "top.qcow2", BadRequestError, "nothing to pull"),
    ],
)
async def test_a_wrong_layer_is_refused(
    engine: Engine,
    qemu_factory: QemuFactory,
    tmp_path: Path,
    kind: Kind,
    top: str | None,
    base: str | None,
    error: type[Exception],
    words: str,
):
    """The message says what is wrong with it."""
    images = chain(tmp_path)
    await engine.connect(qemu_factory([Disk(images[-1])]))
    paths = [None if name is None else str(tmp_path / name) for name in (top, base)]
    with pytest.raises(error, match=words):
        await engine.start(kind, "web1", Target("disk0", top=paths[0], base=paths[1]))


async def test_a_base_below_two_disks_is_refused(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """Committing into it would change the other disk."""
    images = chain(tmp_path)
    other = tmp_path / "other.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "one.qcow2", "-F", "qcow2", str(other)]
    subprocess.run(command, check=True, cwd=tmp_path)
    await engine.connect(qemu_factory([Disk(images[-1]), Disk(other)]))
    with pytest.raises(BadRequestError, match="also below disk1"):
        await engine.start(Kind.COMMIT, "web1", Target("disk0"))


@pytest.mark.parametrize("hangs", [False, True], ids=["full", "hangs"])
async def test_a_guest_that_another_client_had_resumed_runs_on_without_a_journal(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
):
    """The intent found the guest paused, so the pause that interrupts it must be recorded; if it cannot be, it ends."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk(images[-1])], paused=True)
    session = (await engine.connect(qemu)).session
    assert session is not None
    advance, stop, stopped, back = engine.journal.advance, session.stop, asyncio.Event(), asyncio.Event()

    async def take_no_record(before: Pivot, event: str, *args: object, **changes: object) -> Pivot:
        if before.phase is Phase.PAUSING and not back.is_set():
            if not hangs:
                raise JournalFullError("no space left")
            await back.wait()
        return await advance(before, event, *args, **changes)

    async def stop_late(*args: object) -> object:
        qemu.spy("cont")
        answer = await stop(*args)  # type: ignore[arg-type]
        stopped.set()
        return answer

    monkeypatch.setattr(engine.journal, "advance", take_no_record)
    monkeypatch.setattr(session, "stop", stop_late)
    driver = await engine.start(Kind.COMMIT, "web1", Target("disk0", top=str(images[2]), base=str(images[0])))
    async with asyncio.timeout(60):
        await stopped.wait()
        while qemu.run_state() != "running":
            await asyncio.sleep(0.05)
    back.set()
    await engine.closed(driver)
    assert qemu.run_state() == "running"


async def test_a_guest_that_another_client_had_resumed_runs_on_after_a_stop_without_an_answer(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The next `stop` finds it paused, and only the RESUME that came before tells that the first one has paused it."""
    images = chain(tmp_path)
    qemu = qemu_factory([Disk(images[-1])], paused=True)
    session = (await engine.connect(qemu)).session
    assert session is not None
    stop, stops = session.stop, 0

    async def unheard_once(*args: object) -> object:
        nonlocal stops
        stops += 1
        if stops == 1:
            qemu.spy("cont")
        answer = await stop(*args)  # type: ignore[arg-type]
        if stops == 1:
            raise QmpUnknownError("no answer in time")
        return answer

    monkeypatch.setattr(session, "stop", unheard_once)
    driver = await engine.start(Kind.COMMIT, "web1", Target("disk0", top=str(images[2]), base=str(images[0])))
    pivot = await engine.closed(driver)
    assert (pivot.outcome, stops, qemu.run_state()) == ("merged", 2, "running")
