"""Whether a guest of libvirt's has written since libvirt was asked to move its disks: only then a move must stay.

The writes of a copy or a commit are counted in the pause, before libvirt is asked. Whoever finds the same count later
knows that the guest has not run meanwhile. A count that is older than it need be does no harm: it is lower, and then no
disk is taken back. Of a snapshot nothing needs to be counted: the overlay was new, and QEMU knows whether anything was
ever written to it.
"""

from __future__ import annotations

from collections.abc import Collection

from pivotd.core import kinds
from pivotd.core.request import Manager
from pivotd.engine.driver_state import DriverState, GuestWrites
from pivotd.engine.ports import Session


def begin(state: DriverState, session: Session) -> None:
    """Have the writes counted as soon as libvirt has paused the guest: the question waits in the domain's thread.

    Right before the call to pause it; an abort and a snapshot need no count.
    """
    pivot = state.pivot
    needed = pivot.manager is Manager.LIBVIRT and not pivot.options.abort and kinds.of(pivot).has_jobs
    state.counting = state.beside(count(state, session)) if needed else None


async def counted(state: DriverState, session: Session) -> GuestWrites:
    """Return the count that was begun with this pause, else count now. Raises: QmpError."""
    counting, state.counting = state.counting, None
    return await (count(state, session) if counting is None else counting)


async def count(state: DriverState, session: Session) -> GuestWrites:
    """Return how often the guest has written to each disk. Raises: QmpError."""
    found = await session.writes(state.pivot)
    return tuple((disk.disk, found[disk.qdev][1]) for disk in state.pivot.disks if disk.qdev in found)


async def none_since(state: DriverState, session: Session, disks: Collection[str]) -> bool:
    """Return whether the guest has certainly written to none of the disks since libvirt was asked. Raises: QmpError."""
    if not kinds.of(state.pivot).has_jobs:
        return (await session.unwritten(state.pivot)).issuperset(disks)
    before, now = dict(state.pivot.options.guest_writes), dict(await count(state, session))
    return all(disk in before and before[disk] == now.get(disk) for disk in disks)
