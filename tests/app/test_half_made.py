"""After a pivot that ended before it copied anything, the same command works: the image that it made is used again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pivotd.app.reads import Reads
from pivotd.app.start import Starter
from pivotd.core.actions import Step
from pivotd.core.pivot import Outcome, Pivot, PivotDisk
from pivotd.core.request import CopyOptions, Kind, PivotRequest, Target
from pivotd.errors import BadRequestError
from pivotd.qmp.session import Session
from tests.app.conftest import WHO
from tests.app.test_alarms import reads
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.qemu import Disk, Qemu, create_image

__all__ = ["reads"]
pytestmark = pytest.mark.qemu

Ask = Callable[..., Any]


@pytest.fixture
def ask(engine: Engine, reads: Reads) -> Ask:
    """Return how to ask for a copy, and wait for its end."""

    async def run(targets: dict[str, Path], **options: Any) -> Pivot:
        image_format = options.pop("image_format", "qcow2")
        kind = options.pop("kind", Kind.COPY)
        wanted = tuple(Target(disk, str(path), image_format) for disk, path in targets.items())
        request = PivotRequest("web1", kind, wanted, CopyOptions(**options))
        pivot = await Starter(engine.host, engine.journal, reads).start(request, WHO)
        driver = engine.host.driver(pivot.id)
        return pivot if driver is None else await engine.closed(driver)

    return run


def in_the_way(qemu: Qemu, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Let another client put a job on a disk, once, right before pivotd starts its own."""
    prepare, done = Session.prepare, []

    async def wrapped(session: Session, pivot: Pivot, disk: PivotDisk, step: Step) -> None:
        if step is Step.START_JOB and disk.index == index and not done:
            done.append(pivot.id)
            qemu.spy("blockdev-mirror", job_id="theirs", device=f"src{index}", target="theirs", sync="none")
        await prepare(session, pivot, disk, step)

    qemu.spy("blockdev-add", driver="null-co", node_name="theirs", size=1 << 20, read_zeroes=True)
    monkeypatch.setattr(Session, "prepare", wrapped)


def theirs_ends(qemu: Qemu) -> None:
    qemu.spy("block-job-cancel", device="theirs", force=True)
    qemu.await_event("BLOCK_JOB_CANCELLED", device="theirs")


async def kept(qemu: Qemu, ask: Ask, monkeypatch: pytest.MonkeyPatch, new: dict[str, Path], **options: Any) -> Pivot:
    in_the_way(qemu, monkeypatch, len(new) - 1)
    pivot: Pivot = await ask(new, **options)
    assert pivot.outcome == Outcome.KEPT
    for path in new.values():
        assert path.exists()
        assert f"{path}" in (pivot.error or "")
    assert "the same command will use it again" in (pivot.error or "")
    theirs_ends(qemu)
    return pivot


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
async def test_the_same_command_works_again(
    engine: Engine,
    ask: Ask,
    qemu_factory: QemuFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image_format: str,
):
    """Of two disks, of which one was being copied already; also to a directory."""
    qemu = qemu_factory([Disk(create_image(tmp_path / f"old{i}.qcow2", size="1M")) for i in range(2)])
    await engine.connect(qemu)
    (tmp_path / "new").mkdir()
    new = {f"disk{i}": tmp_path / "new" / f"old{i}.qcow2" for i in range(2)}
    await kept(qemu, ask, monkeypatch, new, image_format=image_format)
    pivot = await ask(dict.fromkeys(new, f"{tmp_path}/new/"), image_format=image_format)
    assert pivot.outcome == Outcome.SWITCHED, pivot.error
    assert [qemu.root(disk).filename for disk in new] == [str(path) for path in new.values()]
    qemu.stop()
    for path in new.values():
        subprocess.run(["qemu-img", "compare", "-q", tmp_path / path.name, path], check=True)


async def test_a_file_that_somebody_has_touched_is_not_taken(
    engine: Engine, ask: Ask, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Written to, also under its old time of change; another file under its name; copied to and then kept."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old0.qcow2", size="1M"))])
    await engine.connect(qemu)
    new = tmp_path / "new.qcow2"
    await kept(qemu, ask, monkeypatch, {"disk0": new})
    before = new.stat()
    with new.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"somebody's")
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BadRequestError, match="exists already"):
        await ask({"disk0": new})
    new.unlink()
    create_image(new, size="1M")
    with pytest.raises(BadRequestError, match="exists already"):
        await ask({"disk0": new})
    assert qemu.root().node == "src0"


async def test_a_file_that_is_written_to_after_the_plan(
    engine: Engine, ask: Ask, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In place, right before QEMU would make it again: the pivot ends, and what was written is there."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old0.qcow2", size="1M"))])
    await engine.connect(qemu)
    new = tmp_path / "new.qcow2"
    await kept(qemu, ask, monkeypatch, {"disk0": new})
    prepare = Session.prepare

    async def wrapped(session: Session, pivot: Pivot, disk: PivotDisk, step: Step) -> None:
        if step is Step.CREATE_FILE:
            new.write_bytes(b"somebody's")
        await prepare(session, pivot, disk, step)

    monkeypatch.setattr(Session, "prepare", wrapped)
    pivot = await ask({"disk0": new})
    assert pivot.outcome == Outcome.KEPT
    assert "was written to" in (pivot.error or "")
    assert new.read_bytes() == b"somebody's"


async def test_a_copy_that_had_begun_is_not_overwritten_unasked(
    engine: Engine, ask: Ask, qemu_factory: QemuFactory, tmp_path: Path
):
    """It holds part of the disk: --reuse says that it may be overwritten."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old0.qcow2", size="1M"))])
    await engine.connect(qemu)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, pivot=False)
    await engine.resting(driver)
    await driver.cancel(WHO)
    await engine.closed(driver)
    with pytest.raises(BadRequestError, match="exists already"):
        await ask({"disk0": tmp_path / "new.qcow2"})
