"""Whether the new place has room for what an evacuation copies."""

from __future__ import annotations

import os

from pivotd.cli import render
from pivotd.cli.complaints import NoRoomError
from pivotd.cli.evacuate_plan import Plan, allocated_bytes


def needed_bytes(plan: Plan) -> int:
    """Return how much more room the new images will take, at most; the guests may write more meanwhile."""
    disks = [disk for move in plan.moves for disk in move.disks]
    return sum(max(0, disk.copy_bytes - (allocated_bytes(disk.target) or 0)) for disk in disks)


def free_bytes(place: str) -> int | None:
    """Return how much room a directory has, None if pivotctl cannot see that, or its file system does not say."""
    try:
        found = os.statvfs(place)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def words(plan: Plan, place: str) -> str:
    """Return one line: how much there is to copy, and how much room there is for it."""
    disks, free = [disk for move in plan.moves for disk in move.disks], free_bytes(place)
    room = f"{place} has {render.size(free)} free" if free is not None else f"the room in {place} is not known"
    domains = len({move.domain for move in plan.moves})
    what = f"{len(disks)} disk{'' if len(disks) == 1 else 's'} of {domains} domain{'' if domains == 1 else 's'}"
    return f"{what}, at most {render.size(plan.copy_bytes)} to copy; {room}"


def lacks_room(plan: Plan, place: str) -> bool:
    """Return whether the new place certainly has less room than may be needed."""
    free = free_bytes(place)
    return free is not None and needed_bytes(plan) > free


def refuse_without(plan: Plan, place: str) -> None:
    """Raises: NoRoomError: a place that fills up makes copies wait, and guests that use it stop."""
    if lacks_room(plan, place):
        needed, free = needed_bytes(plan), free_bytes(place)
        raise NoRoomError(
            f"{place} has room for {render.size(free)}, and the images may take {render.size(needed)}: make room, "
            "evacuate some domains only (--domain), or begin all the same with --overcommit",
            needed_bytes=needed,
            free_bytes=free,
        )
