"""libvirt's states of a domain in QEMU's words, by the constants of the binding that is installed."""

from __future__ import annotations

from pivotd.core.observation import LEAVING, OUR_PAUSE
from pivotd.libvirt import library, run_states

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
