"""Refuses to switch a disk to which something else than its guest may write: a pause does not hold that still."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pivotd.core.pivot import PivotDisk
from pivotd.errors import ConflictError


def refuse_second_writer(planned: Iterable[PivotDisk], writers: Mapping[str, tuple[str, ...]]) -> None:
    """Raises: ConflictError. ``writers``: by disk, in words. A merge switches nothing, so nothing can be missing."""
    for disk in planned:
        for writer in writers.get(disk.disk, ()) if disk.switches else ():
            raise ConflictError(
                f"{writer} may write to {disk.disk}, and no pause of the guest stops it, so no image would be complete "
                "at the switch: remove it first, or make it read-only; --force moves the disk all the same",
                disk=disk.disk,
                writer=writer,
            )
