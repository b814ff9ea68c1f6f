"""Another QEMU answers at the monitor right after a look at the first one."""

from __future__ import annotations

from typing import Any

import pytest

from pivotd.core.pivot import Phase
from pivotd.engine import driver as drivers
from tests.app.conftest import WHO, engine
from tests.app.test_holders import Desk, desk
from tests.app.test_meanwhile import request, until
from tests.conftest import QemuFactory
from tests.support.qemu import Disk, Qemu

__all__ = ["desk", "engine"]
pytestmark = pytest.mark.qemu


async def test_the_guest_is_started_again_on_another_image_right_after_the_first_look(
    desk: Desk, qemu_factory: QemuFactory, monkeypatch: pytest.MonkeyPatch
):
    """The pivot was planned for the first QEMU: it leaves no mark in the second one, and no disk of that moves."""
    images = [desk.image("a.qcow2"), desk.image("x.qcow2")]
    qemu = qemu_factory([Disk(images[0])])
    await desk.engine.connect(qemu)
    supervisor, went_on, others = desk.engine.host.get("web1"), drivers.progress_notes.went_on, list[Qemu]()

    async def then_it_starts_again(*facts: Any) -> None:
        await went_on(*facts)
        if not others:
            session = supervisor.session
            qemu.kill()
            others.append(qemu_factory([Disk(images[1])]))
            await until(lambda: supervisor.session not in {None, session})

    monkeypatch.setattr(drivers.progress_notes, "went_on", then_it_starts_again)
    pivot = await desk.starter.start(request("web1", desk.directory / "b.qcow2"), WHO)
    driver = desk.engine.host.driver(pivot.id)
    assert driver is not None
    closed = await desk.engine.closed(driver)
    assert (closed.phase, closed.outcome) == (Phase.CLOSED, "kept")
    (other,) = others
    assert pivot.identity.nonce not in {one["name"] for one in other.spy("qom-list", path="/objects")}
    assert other.spy("query-block")[0]["inserted"]["file"] == str(images[1])
