"""An image whose name is gone ends with QEMU: the guest is never moved to one. tp-libvirt's irregular operations, for chains."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd.core.request import Kind, Sync, Target
from pivotd.errors import BadRequestError
from tests.chaos.process import call
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.ported_cases.fixture import Bed, written_chain
from tests.support.daemon import Daemon
from tests.support.moves import Move
from tests.support.proxy import Direction, KillAt, Message, When
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu


class Once:
    """A hook that does one thing after the nth message with this label."""

    def __init__(self, label: str, nth: int, what: Callable[[], object]) -> None:
        self.label, self.nth, self.what = label, nth, what
        self.done = False

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if (message.label, message.nth, when) == (self.label, self.nth, When.AFTER):
            self.what()
            self.done = True


@pytest.mark.parametrize("label", ["return:blockdev-create", "command:blockdev-add"])
@pytest.mark.parametrize("kind", [Kind.SNAPSHOT, Kind.COPY])
async def test_a_new_image_is_deleted_as_soon_as_it_is_there(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, kind: Kind, label: str
):
    """Deleted before pivotd has ever looked at the file: kept, the reason says so, nothing is left in QEMU."""
    new = tmp_path / "new.qcow2"
    # The second creation is that of the format; of the openings the second is of the file, the third of the format.
    last = Once(label, 2 if label == "return:blockdev-create" else 3, new.unlink)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=Qemu.proxy_for(tmp_path, on_message=last))
    await engine.connect(qemu)
    pivot = await engine.closed(await engine.start(kind, "web1", Target("disk0", str(new))))
    assert last.done
    assert pivot.outcome == "kept", pivot.error
    assert "was deleted" in (pivot.error or "")
    assert (qemu.root().filename, qemu.run_state(), qemu.jobs()) == (str(tmp_path / "old.qcow2"), "running", {})
    assert len(qemu.nodes()) == 2


@pytest.mark.parametrize(
    ("move", "label"),
    [("snapshot", "command:transaction"), ("copy", "command:job-complete"), ("copy", "command:job-finalize")],
)
def test_a_new_image_is_deleted_while_pivotd_is_dead(qemu_factory: QemuFactory, tmp_path: Path, move: str, label: str):
    """Killed in its pause, the image deleted, started again: kept, and the guest runs on with the source."""
    strike = KillAt(lambda: [daemon.pid], When.BEFORE, label=label, direction=Direction.TO_QEMU)
    new, old = tmp_path / "new.qcow2", create_image(tmp_path / "old.qcow2")
    qemu = qemu_factory([Disk(old)], proxy=Qemu.proxy_for(tmp_path, on_message=strike))
    with Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        # Slow to give up; but below 100 ms stop and job-complete are not sent as one.
        max_pause_ms = 99 if label == "command:job-complete" else 2000
        body = {"disks": [{"disk": "disk0", "image": str(new)}], "max_pause_ms": max_pause_ms, "attempts": 100}
        call(daemon, "POST", f"/v1/domains/web1/{move}", body, **{"Idempotency-Key": "move"})
        assert strike.struck.wait(60)
        daemon.wait()
        assert qemu.run_state() == "paused"
        new.unlink()
        daemon.start()
        shown = call(daemon, "GET", "/v1/pivots/move/wait?timeout_s=60", timeout_s=90)
        assert (shown["phase"], shown["outcome"]) == ("closed", "kept"), shown["error"]
        assert "was deleted" in shown["error"]
        assert (qemu.root().filename, qemu.run_state(), qemu.jobs()) == (str(old), "running", {})


@pytest.mark.parametrize("move", [Move.COMMIT, Move.INNER_COMMIT])
async def test_a_base_that_was_deleted_or_replaced(bed: Bed, move: Move):
    """QEMU writes into the file that it has open, whatever is at its name by now: refused, and a pull saves the data."""
    images = bed.chain("base.qcow2", "one.qcow2", "top.qcow2")
    await bed.guest(images[-1])
    images[0].rename(bed.directory / "elsewhere.qcow2")
    with pytest.raises(BadRequestError, match="was deleted or renamed"):
        await bed.move(move, images)
    create_image(images[0])
    with pytest.raises(BadRequestError, match="was replaced"):
        await bed.move(move, images)
    assert bed.engine.journal.last_seq == 0
    pivot = await bed.engine.closed(await bed.pull())
    bed.assert_merged(pivot)
    await bed.acks()
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
async def test_the_base_is_deleted_or_replaced_while_it_is_committed_to(bed: Bed, replaced: bool):
    """Kept: the guest stays on the active image."""
    images = bed.chain("base.qcow2", "top.qcow2", fill="4M")
    await bed.guest(images[-1])
    driver = await bed.to_moving(Move.COMMIT, images)
    images[0].rename(bed.directory / "elsewhere.qcow2")
    if replaced:
        create_image(images[0])
    bed.hurry(driver)
    pivot = await bed.engine.closed(driver)
    bed.assert_kept(pivot)
    assert "base.qcow2 was" in (pivot.error or "")
    (bed.directory / "elsewhere.qcow2").replace(images[0])
    await bed.acks()
    bed.assert_holds_all(pivot)


# -- relative names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", ["commit", "pull"])
async def test_a_relative_name_with_a_colon(bed: Bed, move: str):
    """What is before a colon would be a protocol to QEMU: the image above keeps a name that leads to its base."""
    names = ("monday:base.qcow2", "one.qcow2", "two.qcow2", "top.qcow2")
    images = [bed.directory / name for name in names]
    create_image(images[0])
    for below, image in itertools.pairwise(images):
        name = f"./{below.name}" if ":" in below.name else below.name
        create_image(image, options=f"backing_file={name},backing_fmt=qcow2")
    await bed.domain(images[-1])
    started = bed.commit(top=images[2], base=images[0]) if move == "commit" else bed.pull(base=images[0])
    bed.assert_merged(await bed.engine.closed(await started))
    bed.assert_chain(images[0], images[-1])


async def test_a_relative_name_through_a_symbolic_link(bed: Bed):
    """The new image of an active layer lies behind a link to a deeper directory: from there its name leads to the base."""
    deep = bed.directory / "far" / "away"
    deep.mkdir(parents=True)
    (bed.directory / "link").symlink_to(deep)
    images = bed.chain("base.qcow2", "top.qcow2", relative=True)
    await bed.domain(images[-1])
    new = bed.directory / "link" / "new.qcow2"
    bed.assert_switched(await bed.engine.closed(await bed.copy(new, sync=Sync.TOP)))
    assert bed.shown_chain() == [str(new), str(images[0])]
    assert written_chain(new) == [str(deep / "new.qcow2"), str(images[0])]
