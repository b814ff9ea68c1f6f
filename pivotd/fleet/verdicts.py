"""Asking the fleet before a host's word on its images counts, and telling it first what it does not know."""

from __future__ import annotations

from collections.abc import Sequence

from pivotd.core.rules.fleet_local import DiskHere, Together, alone, together, unanswered, unknown_here
from pivotd.core.rules.fleet_pivots import Here
from pivotd.core.verdict import Verdict
from pivotd.errors import FleetError, FleetRefusedError
from pivotd.fleet.late import LateFleet


async def in_fleet(fleet: LateFleet, domain: str, disks: Sequence[DiskHere], now: str, *, every: bool) -> Together:
    """Return the verdicts on disks of one domain together with the fleet's word; ``disks`` were read before this call.

    One that is certain may be acted upon: the fleet knows of it. ``every``: with the disks that only the fleet knows.

    Raises: FleetError.
    """
    view = await fleet.read(domain, fleet.timeout_s)
    known = [*disks, *(unknown_here(view, disks) if every else [])]
    found = together(view, Here(fleet.host, fleet.boot_id, now), known)
    if found.tell is not None:
        await fleet.write(view, found.tell, fleet.timeout_s)
    return found


def without_fleet(disks: Sequence[DiskHere], error: FleetError, *, local: bool) -> list[Verdict]:
    """Return the verdicts if the fleet does not answer. ``local``: somebody knows that no host has taken the guest."""
    if local:
        return [alone(disk, error.message) for disk in disks]
    return [unanswered(disk, error.message, again=not isinstance(error, FleetRefusedError)) for disk in disks]


async def knows(fleet: LateFleet, domain: str) -> bool:
    """Return whether the fleet knows a domain. Raises: FleetError."""
    return (await fleet.read(domain, fleet.timeout_s)).known
