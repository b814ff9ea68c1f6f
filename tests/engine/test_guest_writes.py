"""Whether a guest has written since libvirt was asked: by a count for one pause alone, or by a fresh overlay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from pivotd.core.pivot import Pivot
from pivotd.core.request import Kind, Manager, Requester
from pivotd.engine import guest_writes
from pivotd.engine.driver_state import DriverState
from pivotd.errors import QmpUnknownError
from pivotd.qmp.session import Session
from tests.conftest import QemuFactory
from tests.journal.samples import make_pivot
from tests.support.qemu import Disk, create_image

from .test_copy import qemu_io_name, write

NONE = cast("Any", None)


class NothingAsked:
    """A journal in which nobody has asked for anything."""

    def asked_of(self, _pivot: str) -> Mapping[str, Requester]:
        return {}


JOURNAL = cast("Any", NothingAsked())


class Guest:
    """A session that counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.silent = False

    async def writes(self, pivot: Pivot) -> Mapping[str, tuple[int, int]]:
        self.asked += 1
        if self.silent:
            raise QmpUnknownError("no answer")
        return {pivot.disks[0].qdev: (0, self.asked)}


@pytest.fixture
def state() -> DriverState:
    """The state of the driver of a guest of libvirt's."""
    return DriverState(replace(make_pivot(1), manager=Manager.LIBVIRT), NONE, JOURNAL, NONE, NONE)


async def test_it_is_asked_for_once_in_a_pause_and_anew_after_that(state: DriverState):
    """A count of an earlier pause would be lower than need be, and no disk would be taken back."""
    guest: Any = Guest()
    disk = state.pivot.disks[0].disk
    guest_writes.begin(state, guest)
    assert await guest_writes.counted(state, guest) == ((disk, 1),)
    assert await guest_writes.counted(state, guest) == ((disk, 2),)
    guest_writes.begin(state, guest)
    guest_writes.begin(state, guest)
    assert await guest_writes.counted(state, guest) == ((disk, 4),)


async def test_no_answer_is_told_where_the_count_is_needed(state: DriverState):
    """Not while the guest is being paused; the next one is asked for then."""
    guest: Any = Guest()
    guest.silent = True
    guest_writes.begin(state, guest)
    with pytest.raises(QmpUnknownError):
        await guest_writes.counted(state, guest)
    guest.silent = False
    assert (await guest_writes.counted(state, guest))[0][1] == 2


async def test_nothing_is_counted_where_nothing_is_switched(state: DriverState):
    """Of an abort, a snapshot, and a guest that pivotd stops by itself: the pause would be longer."""
    guest: Any = Guest()
    abort = replace(state.pivot, options=replace(state.pivot.options, abort=True))
    snapshot = replace(state.pivot, kind=Kind.SNAPSHOT)
    for pivot in (abort, snapshot, replace(state.pivot, manager=Manager.PIVOTD)):
        state.pivot = pivot
        guest_writes.begin(state, guest)
        assert state.counting is None
    assert guest.asked == 0


@pytest.mark.qemu
@pytest.mark.parametrize("then", ["write -q -P 5 0 4k", "write -q -z 1M 64k"], ids=["data", "zeroes"])
async def test_an_overlay_is_unwritten_until_its_guest_writes(qemu_factory: QemuFactory, tmp_path: Path, then: str):
    """Whatever the guest has written to the image below; also after a flush."""
    old, new = create_image(tmp_path / "old.qcow2"), create_image(tmp_path / "new.qcow2")
    qemu = qemu_factory([Disk(old)], paused=True)
    write(qemu, "disk0", 5)
    qemu.spy("blockdev-add", **overlay_node(new))
    (source,) = (block["inserted"]["node-name"] for block in qemu.spy("query-block") if "inserted" in block)
    qemu.spy("blockdev-snapshot", node=source, overlay="over")
    pivot = replace(make_pivot(1), kind=Kind.SNAPSHOT, manager=Manager.LIBVIRT)
    state = DriverState(replace(pivot, disks=(replace(pivot.disks[0], disk="disk0"),)), NONE, JOURNAL, NONE, NONE)
    session = await Session.connect(str(qemu.qmp))
    name = qemu_io_name(qemu, "disk0")
    try:
        for command in ("flush", "read -q 0 64k"):
            qemu.spy("human-monitor-command", {"command-line": f'qemu-io {name} "{command}"'})
        assert await guest_writes.none_since(state, session, ["disk0"])
        qemu.spy("human-monitor-command", {"command-line": f'qemu-io {name} "{then}"'})
        assert not await guest_writes.none_since(state, session, ["disk0"])
    finally:
        await session.close()


def overlay_node(image: Path) -> dict[str, Any]:
    """Return the arguments that open an overlay for a snapshot."""
    file = {"driver": "file", "filename": str(image)}
    return {"driver": "qcow2", "node-name": "over", "file": file, "backing": None}
