"""libvirt's states of a domain in QEMU's words, by the constants of the binding that is installed."""

from __future__ import annotations

import pytest

from pivotd.core.observation import LEAVING, OUR_PAUSE
from pivotd.errors import QmpError
from pivotd.libvirt import library, run_states
from pivotd.libvirt.domain_session import LibvirtSession
from pivotd.libvirt.line import Line
from pivotd.libvirt.passthrough import Passthrough

MAY_BE_OURS = {"UNKNOWN", "USER", "DUMP", "FROM_SNAPSHOT", "SNAPSHOT", "STARTING_UP"}
"""Of the others libvirt itself says that something else keeps the guest."""


def test_only_a_pause_that_may_be_pivotds_looks_so():
    """A guest whose post-copy migration has failed is half on another host: `cont` would let it run on both."""
    api = library.load().api
    reasons = {name.removeprefix("VIR_DOMAIN_PAUSED_") for name in dir(api) if name.startswith("VIR_DOMAIN_PAUSED_")}
    states = {
        reason: run_states.of(api, api.VIR_DOMAIN_PAUSED, getattr(api, f"VIR_DOMAIN_PAUSED_{reason}"))
        for reason in reasons - {"LAST"}
    }
    assert {reason for reason, state in states.items() if state in OUR_PAUSE} <= MAY_BE_OURS
    assert states["POSTCOPY"] in LEAVING
    assert states["POSTCOPY_FAILED"] not in LEAVING, "neither host has the whole guest: nobody is to claim it"


def test_a_guest_that_ended_by_a_migration_has_left():
    """Its libvirt may end it between the event of its stop and pivotd's question."""
    api = library.load().api
    reasons = {name for name in dir(api) if name.startswith("VIR_DOMAIN_SHUTOFF_")}
    states = {name: run_states.of(api, api.VIR_DOMAIN_SHUTOFF, getattr(api, name)) for name in reasons}
    assert {name for name, state in states.items() if state in LEAVING} == {"VIR_DOMAIN_SHUTOFF_MIGRATED"}


async def test_a_guest_that_has_ended_is_in_no_run_state():
    """Whoever took it for one that is still here would forget that its release is owed. By libvirt's test driver."""
    connection = library.load().api.open("test:///default")
    domain, line = connection.lookupByName("test"), Line("test")
    session = LibvirtSession(
        Passthrough(line, connection, domain, 1), "test:///default", domain, domain.UUIDString(), ""
    )
    try:
        assert await session.run_state() == "running"
        domain.destroy()
        with pytest.raises(QmpError, match="has ended"):
            await session.run_state()
    finally:
        await session.close()
        line.end()
