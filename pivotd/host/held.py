"""Whether the name of an image leads to the very file that QEMU has open.

A file that was renamed, deleted or replaced lives on in QEMU alone: its old name leads nowhere, or elsewhere. Where
pivotd may not see QEMU's files, a file at this name that some QEMU has locked is taken for the one. Less is no proof.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from pivotd.core.image_names import describe
from pivotd.host import files, locks, view
from pivotd.host.threads import look_at


@dataclass(frozen=True, slots=True)
class Held:
    """The files that QEMU has open, as Image.file_id. ``opened`` None: pivotd may not see them.

    ``is_qemu``: whether this process is certainly a QEMU, and not one that has listened in its place.
    """

    pid: int
    opened: frozenset[str] | None
    is_qemu: bool


@dataclass(frozen=True, slots=True)
class Astray:
    """Why a name leads elsewhere, in one clause.

    ``gone``: there is nothing. ``fleeting``: no name leads to it. ``unseen``: pivotd could not look, and the name may
    be right after all.
    """

    why: str
    gone: bool = False
    fleeting: bool = False
    unseen: bool = False


def look(pid: int) -> Held:
    """Return what a process has open; this looks at files, so it may block."""
    opened = files.opened(pid)
    return Held(pid, opened, opened is not None and _holds_locks(pid))


def astray(filename: str, held: Held) -> Astray | None:
    """Return why this name does not lead to a file that QEMU has open, None if it does or is no path."""
    image = describe(filename)
    if image.fleeting is not None:
        return Astray(image.fleeting, fleeting=True)
    if image.path is None:
        return None  # QEMU opens what is no path by the words that it shows
    path = filename = image.path
    hidden = view.hidden(filename)
    if hidden is not None:
        return Astray(hidden, unseen=True)
    directory = os.path.dirname(filename)  # noqa: PTH120
    other = view.other_directory(held.pid, directory)
    if other is not None:
        path = f"/proc/{held.pid}/root{os.path.realpath(filename)}"
    look_at(path)
    try:
        found = os.stat(path)  # noqa: PTH116 - one system call, no object
    except (FileNotFoundError, NotADirectoryError):
        if held.opened is None and not os.path.isdir(directory):  # noqa: PTH112
            return Astray("its directory is not there, or QEMU has it in a mount namespace of its own", unseen=True)
        return Astray("there is nothing at this name any more", gone=True)
    except OSError as error:
        return Astray(f"pivotd may not look at it ({error.strerror})", unseen=True)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
        return Astray(f"there is {'a directory' if stat.S_ISDIR(found.st_mode) else 'no image'} at this name now")
    return _is_held(path, found, held)


def data_astray(data_file: str, directory: Path | None, held: Held) -> Astray | None:
    """Return why the external data file that a header names is not one that QEMU has open, None if it is.

    QEMU looks for a relative name from its own working directory, and not from the image's.
    """
    found = astray(describe(data_file, None if directory is None else str(directory)).text, held)
    return None if found is None else replace(found, why=f"of its external data file {data_file}, {found.why}")


def _is_held(path: str, found: os.stat_result, held: Held) -> Astray | None:
    """Return why QEMU does not have this file open, None if it has."""
    if held.opened is not None and files.identify(found) in held.opened:
        return None
    if held.is_qemu:
        return Astray("there is another file at this name now")
    if locks.is_locked(path, found):
        return None
    return Astray("pivotd cannot see whether QEMU has this file or another one open", unseen=True)


def _holds_locks(pid: int) -> bool:
    """Return whether a process has locked an image as QEMU does."""
    try:
        entries = list(Path(f"/proc/{pid}/fdinfo").iterdir())
    except OSError:
        return False
    return any(locks.listed(entry) for entry in entries)
