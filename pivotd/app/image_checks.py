"""Looks of `pivotctl doctor` at the images of one disk, as pivotd's user sees them from inside its sandbox.

What cannot be looked at is told as that: it is never taken for sound.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pivotd import limits
from pivotd.client import checks
from pivotd.client.answers import DoctorFinding
from pivotd.core.image_names import describe
from pivotd.host import held, process, view
from pivotd.host.threads import in_thread, look_at
from pivotd.qmp.blocks import DiskSeen

UNREAD = (
    "files: `setfacl -m u:pivotd:r IMAGE`, and search permission on each directory above it; devices and more: "
    "docs/install.md, part 5. Without it pivotd flushes inside the pause, and cannot find storage that hangs before it"
)
ELSEWHERE = "copy the disk with `pivotctl copy` while this QEMU lives: its data may end with it"


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of one file system, with the path by which it was found."""

    path: str
    free_bytes: int
    size_bytes: int


@dataclass(slots=True)
class Seen:
    """What was found out about images; ``rooms`` is by device number."""

    findings: list[DoctorFinding] = field(default_factory=list)
    rooms: dict[int, Room] = field(default_factory=dict)


async def look(subject: str, disk: DiskSeen, pid: int) -> Seen:
    """Look at every image of a disk; storage that hangs costs limits.FILE_TIMEOUT_S and is a finding."""
    names = [layer.filename for layer in disk.layers]
    try:
        return await in_thread(limits.FILE_TIMEOUT_S, _look, subject, disk, pid, paths=names)
    except TimeoutError as error:
        also = ("image-astray", "image-hidden", "image-unreadable", "storage-room")
        remedy = "mend the storage or the network to it; pivotd begins no pivot there, and a guest may hang in its I/O"
        return Seen([checks.found("storage-hangs", subject, str(error), remedy, also=also)])


def of_rooms(rooms: Iterable[Room]) -> list[DoctorFinding]:
    """Return the file systems without room for what guests still write."""
    remedy = "free some room, or move disks elsewhere: a guest whose image cannot grow stops, or sees errors"
    found = []
    for room in rooms:
        if room.free_bytes >= limits.DOCTOR_STORAGE_BYTES_MIN:
            continue
        severity = checks.ERROR if room.free_bytes < limits.DOCTOR_STORAGE_BYTES_ERROR else checks.WARNING
        what = f"{room.free_bytes >> 20} MiB of {room.size_bytes >> 20} MiB are free"
        found.append(checks.found("storage-room", os.path.dirname(room.path), what, remedy, severity=severity))  # noqa: PTH120
    return found


def _look(subject: str, disk: DiskSeen, pid: int) -> Seen:
    seen, has, directory = Seen(), held.look(pid), process.working_directory(pid)
    where = None if directory is None else str(directory)
    names = dict.fromkeys(layer.filename for layer in disk.layers)
    files = dict.fromkeys(layer.data_file for layer in disk.layers if layer.data_file)
    for name in (*names, *files):
        image = describe(name, where)
        if where is None and image.path is None and _RELATIVE.fullmatch(name):
            why = f"{name}: QEMU opened it by a relative name, and pivotd may not see from which directory"
            remedy = "a drop-in with ProtectProc=default lets pivotd see that"
            seen.findings.append(checks.unseen(("image-astray", *_OTHERS), subject, why, remedy))
        if image.fleeting is not None or image.path is None:
            continue  # a network address, or what has no name at all and is refused as such
        _look_at(seen, subject, image.path, has)
    return seen


_OTHERS = ("image-unreadable", "storage-room")
_RELATIVE = re.compile(r"[^:/][^:]*|[^:/]+/.*")
"""A name that QEMU takes for a path, and that starts where QEMU does."""


def _look_at(seen: Seen, subject: str, path: str, has: held.Held) -> None:
    """Look at one image that has a path."""
    found = seen.findings
    look_at(path)
    hidden = view.hidden(path) or view.other_directory(has.pid, os.path.dirname(path))  # noqa: PTH120
    if hidden is not None:
        what = f"{path}: {hidden}"
        remedy = "give pivotd the same place, or move the disk to one that it sees: it neither flushes nor checks there"
        found.append(checks.found("image-hidden", subject, what, remedy, also=("image-astray", *_OTHERS)))
        return
    astray = held.astray(path, has)
    if astray is not None and not astray.unseen:
        what = f"{path}: {astray.why}"
        found.append(checks.found("image-astray", subject, what, ELSEWHERE, also=_OTHERS))
        return
    look_at(path)
    unread = _unread(path)
    if unread is not None:
        also = ("image-astray",) if astray is not None else ()
        found.append(checks.found("image-unreadable", subject, f"{path}: {unread}", UNREAD, also=also))
    elif astray is not None:
        remedy = "a drop-in with ProtectProc=default lets pivotd see which files QEMU has open"
        found.append(checks.unseen(("image-astray",), subject, f"{path}: {astray.why}", remedy))
    if path.startswith("/dev/"):
        return
    try:
        device, room = os.stat(os.path.dirname(path)).st_dev, os.statvfs(os.path.dirname(path))  # noqa: PTH116, PTH120
    except OSError as error:
        why = f"{path}: pivotd cannot see how much room there is: {error.strerror}"
        found.append(checks.unseen(("storage-room",), subject, why, "let pivotd's user search its directory"))
    else:
        seen.rooms[device] = Room(path, room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize)


def _unread(path: str) -> str | None:
    """Return why this process may not read a file, None if it may."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except PermissionError as error:
        closed = _closed(Path(path).parents)
        return f"pivotd may not enter {closed}" if closed else f"pivotd may not read it ({error.strerror})"
    except OSError as error:
        return f"pivotd cannot open it ({error.strerror})"
    return None


def _closed(directories: Sequence[Path]) -> Path | None:
    """Return the uppermost directory that this process may not search, None if it may search all."""
    return next((one for one in reversed(directories) if not os.access(one, os.X_OK)), None)
