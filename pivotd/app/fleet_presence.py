"""Shows in the fleet that pivotd runs on this host, for people; nothing is decided by that."""

from __future__ import annotations

import asyncio
import contextlib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pivotd import __version__, limits
from pivotd.errors import FleetError
from pivotd.journal.changes import utc_now
from pivotd.log import get_logger

if TYPE_CHECKING:
    from pivotd.fleet.late import LateFleet

log = get_logger()


async def show(fleet: LateFleet) -> None:
    """Show this host until cancelled; an orderly end removes it at once, if etcd answers at once."""
    module: Any = await asyncio.to_thread(import_module, "pivotd.fleet.presence")
    presence = module.Presence(await fleet.store(), __version__, utc_now(), _tell)
    try:
        await presence.run()
    finally:
        with contextlib.suppress(FleetError, TimeoutError):
            async with asyncio.timeout(limits.FLEET_HOST_END_S):
                await presence.end()


def _tell(error: FleetError | None) -> None:
    if error is None:
        log.info("fleet.answers")
    else:
        log.warning("fleet.not-usable", error=error.message)
