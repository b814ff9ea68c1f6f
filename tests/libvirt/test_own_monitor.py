"""A pivotd that starts while libvirtd hangs finds the monitor that a guest has for it in the journal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pivotd.app.libvirt_domains import LibvirtConnector
from pivotd.journal.reader import Reader
from pivotd.libvirt import own_monitor
from tests.libvirt.domain import Domain
from tests.libvirt.guarding import Guarded, guard
from tests.libvirt.libvirtd import Libvirtd

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["installed"])
def test_the_monitor_of_the_intent_is_used_where_the_process_does_not_tell(
    libvirtd: Libvirtd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The shipped unit hides the command line of QEMU from pivotd."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False, pivotds_monitor=True).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        domain.copy()
        assert daemon.ctl("libvirt", "pivot", "web1", "vda").json["outcome"] == "switched"
    reader = Reader.attach(tmp_path / "state" / "journal.db")
    (pivot,) = reader.pivots()
    reader.close()
    monkeypatch.setattr(own_monitor, "_of_process", lambda _pid: None)

    async def beside() -> str:
        connector = LibvirtConnector(libvirtd.uri, "web1")
        session = await connector.beside(pivot)
        assert session is not None
        state = (await session.look(pivot)).run_state
        await session.close()
        return state

    assert asyncio.run(beside()) == "running"
