"""How often a guest of libvirt's has written: counted in its pause, before libvirt is asked to move a disk.

Whoever finds the same count later knows that the guest has not run meanwhile. A count that is older than it need be
does no harm: it is lower, and then no disk is taken back.
"""

from __future__ import annotations

from pivotd.core.request import Manager
from pivotd.engine.driver_state import DriverState, GuestWrites
from pivotd.engine.ports import Session


def begin(state: DriverState, session: Session) -> None:
    """Have the writes counted as soon as libvirt has paused the guest: the question waits in the domain's thread.

    Right before the call to pause it; an abort needs no count.
    """
    needed = state.pivot.manager is Manager.LIBVIRT and not state.pivot.options.abort
    state.counting = state.beside(count(state, session)) if needed else None


async def counted(state: DriverState, session: Session) -> GuestWrites:
    """Return the count that was begun with this pause, else count now. Raises: QmpError."""
    counting, state.counting = state.counting, None
    return await (count(state, session) if counting is None else counting)


async def count(state: DriverState, session: Session) -> GuestWrites:
    """Return how often the guest has written to each disk. Raises: QmpError."""
    found = await session.writes(state.pivot)
    return tuple((disk.disk, found[disk.qdev][1]) for disk in state.pivot.disks if disk.qdev in found)
