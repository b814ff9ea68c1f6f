"""Health is ``degraded`` while something that pivotd should do is not done, and says which."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.app.domains import Domains
from pivotd.app.health import Health
from pivotd.app.start import Starter
from pivotd.app.status import Status
from pivotd.client.answers import FailingPivot
from pivotd.core.phases import is_resting
from pivotd.core.pivot import Pivot
from pivotd.core.request import Kind, PivotRequest, Target
from pivotd.errors import JournalError
from pivotd.planning.plan import plan
from tests.app.conftest import WHO, NoHistory
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.qemu import Disk, create_image

pytestmark = pytest.mark.qemu


async def no_history(_: str) -> list[Pivot]:
    return []


def health_of(engine: Engine) -> Health:
    return Health(engine.host, engine.journal, Starter(engine.host, engine.journal, NoHistory()))


async def test_an_open_pivot_without_a_driver(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However it has come to that, it is said."""
    monkeypatch.setattr(limits, "DRIVER_STARTS_S", 0.0)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    supervisor = await engine.connect(qemu)
    health = health_of(engine)
    number = f"01K9ABCDEFGHJKMNPQRSTV{1:04d}"
    target = Target("disk0", str(tmp_path / "new.qcow2"))
    request = PivotRequest("web1", Kind.COPY, (target,))
    assert supervisor.session is not None
    planned = await plan(request, supervisor.session, [], pivot=number, who=WHO)
    pivot, _ = await engine.journal.accept(replace(planned, created_at="2026-11-23T09:00:00.000000Z"), {})
    report = health.report()
    assert (report.status, report.domains.pivots_without_driver) == ("degraded", (pivot.id,))
    await engine.closed(supervisor.start(pivot))
    assert health.report().status == "ok"


async def test_a_driver_that_fails_again_and_again(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is listed with the reason, which the view of its domain has, too."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    health, domains = health_of(engine), Domains(engine.host, engine.journal, no_history)
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, pivot=False)
    await engine.until(driver, is_resting)
    assert (health.report().status, (await domains.one("web1")).detail) == ("ok", None)

    async def fail() -> None:
        raise JournalError("the journal takes no record")

    monkeypatch.setattr(driver, "_step", fail)
    driver.wake()
    async with asyncio.timeout(60):
        while driver.failing is None:
            await asyncio.sleep(0.01)
    report = health.report()
    failing = FailingPivot("web1", driver.pivot.id, "the journal takes no record")
    assert (report.status, report.domains.failing) == ("degraded", (failing,))
    view = await domains.one("web1")
    assert (view.connection, view.detail) == ("connected", f"pivot {driver.pivot.id}: the journal takes no record")


async def test_a_domain_whose_qemu_is_gone_says_why(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """In one sentence."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    supervisor = await engine.connect(qemu)
    qemu.kill()
    while supervisor.connection != "unreachable":
        await supervisor.tried()
        await asyncio.sleep(0.001)
    view = await Domains(engine.host, engine.journal, no_history).one("web1")
    assert view.connection == "unreachable"
    assert str(qemu.qmp) in str(view.detail)


async def test_a_wrong_image(engine: Engine, qemu_factory: QemuFactory, tmp_path: Path):
    """It degrades the health, with the reason, and stands in the line that `systemctl status` shows."""
    supervisor = await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]))
    health, status = health_of(engine), Status(engine.host, engine.journal)
    assert (health.report().status, status.text) == ("ok", "supervising 1 domain, 1 connected, 0 open pivots")
    supervisor.alarms = {"disk0": "disk0 runs on /old"}
    report = health.report()
    assert report.status == "degraded"
    assert [(one.domain, one.disk, one.reason) for one in report.domains.wrong_images] == [
        ("web1", "disk0", "disk0 runs on /old")
    ]
    assert status.text.endswith("; ON A WRONG IMAGE: 1")
