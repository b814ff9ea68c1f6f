"""Another client puts another file below a destination in the last moment before the pause."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pivotd.core import names
from pivotd.core.pivot import Outcome
from pivotd.core.request import Requester
from pivotd.qmp.session import Session
from tests.conftest import QemuFactory
from tests.support.moves import Move
from tests.support.qemu import create_image

from .conftest import Engine
from .test_internal_snapshots import a_chain_at_ready, waits_for

pytestmark = pytest.mark.qemu
WHO = Requester(0, 0, 1)


async def test_the_look_right_before_the_intent_sees_it(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No pause begins; the pivot waits, and says for what, until it is cancelled."""
    qemu, driver = await a_chain_at_ready(engine, qemu_factory, tmp_path, Move.COPY)
    other = create_image(tmp_path / "other.qcow2")
    node = names.destination_node(driver.pivot.id, 0)

    def exchange() -> None:
        if "exchanged" not in qemu.nodes():
            qemu.spy("blockdev-add", driver="file", filename=str(other), **{"node-name": "exchanged"})
            reopened = {"driver": "qcow2", "node-name": node, "file": "exchanged", "backing": None, "read-only": False}
            qemu.spy("blockdev-reopen", options=[reopened])

    async def facts(session: Session) -> dict[str, Any]:
        await asyncio.to_thread(exchange)
        return {"chardevs": await session.chardevs()}

    monkeypatch.setattr(Session, "intent_facts", facts)
    await driver.complete(WHO)
    assert await waits_for(driver, "another client has put another file below node")
    assert driver.pivot.attempt == 0
    assert (await driver.cancel(WHO)).outcome in {None, Outcome.KEPT}
    await engine.closed(driver)
