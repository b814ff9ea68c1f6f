"""One QEMU has one pause at a time, though two domains have open pivots there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.observation import Root
from pivotd.core.phases import is_resting
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Requester
from pivotd.engine.processes import Processes
from pivotd.qmp.session import Session
from tests.conftest import QemuFactory
from tests.engine.conftest import TIMEOUT_S, Engine
from tests.support.qemu import Disk, create_image

pytestmark = pytest.mark.qemu


async def test_two_domains_with_open_pivots_in_one_qemu(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both end, one after the other: the `cont` of the one must not let the guest run before the record of the other."""
    disks = [Disk(create_image(tmp_path / f"{name}.qcow2")) for name in "ab"]
    qemu = qemu_factory(disks, extra=["-qmp", f"unix:{tmp_path}/web2.qmp,server=on,wait=off"])
    with monkeypatch.context() as patch:
        patch.setattr(Processes, "take", _nothing)  # as a pivotd that takes them for two guests
        await engine.connect(qemu)
        await engine.add("web2", tmp_path / "web2.qmp")
        drivers = [
            await engine.copy(name, {disk: tmp_path / f"{disk}.new"}, pivot=False, max_pause_ms=60_000)
            for name, disk in (("web1", "disk0"), ("web2", "disk1"))
        ]
    first, second = drivers
    for driver in drivers:
        await engine.until(driver, is_resting)
    finalize, phases = Session.finalize, list[Phase]()

    async def then_the_other_one(session: Session, pivot: Pivot, jobs: Any) -> Mapping[str, Root]:
        if pivot.id == first.pivot.id:
            await second.complete(Requester(0, 0, 1))
            pause = engine.host.processes.pause(pivot.identity.process)
            async with asyncio.timeout(TIMEOUT_S):
                while second.pivot.phase is Phase.READY and " waiters:1" not in repr(pause):
                    await asyncio.sleep(0)
            phases.append(second.pivot.phase)
        return await finalize(session, pivot, jobs)

    monkeypatch.setattr(Session, "finalize", then_the_other_one)
    await first.complete(Requester(0, 0, 1))
    for driver in drivers:
        assert [disk.outcome for disk in (await engine.closed(driver)).disks] == [Outcome.SWITCHED]
    assert phases == [Phase.READY]
    events = [event["event"] for event in qemu.spy_events() if event["event"] in {"STOP", "RESUME"}]
    assert events == ["STOP", "RESUME"] * 2


async def _nothing(*_: object) -> None:
    pass
