"""Whether this process sees at a path what QEMU sees there: a sandbox or another mount namespace can stand between.

Where nobody may look, nothing is claimed: "cannot look" is neither "the same" nor "not there".
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from pivotd.host import mounts

_PRIVATE = re.compile(r"/systemd-private-[^/]+/tmp$")
_INACCESSIBLE = "/inaccessible/"
_HOMES = ("/home", "/root", "/run/user")


def hidden(path: str) -> str | None:
    """Return one sentence on which setting of the unit hides a path from this process, None if none does.

    Looks at no storage. Source: systemd.exec(5), and mountinfo as systemd 252 and 257 leave it (test_systemd.py).
    """
    setting, place = _over(os.path.normpath(path))
    if setting is None:
        return None
    no = setting in {"ProtectHome", "PrivateDevices"}
    relief = f"{setting}=no" if no else f"BindPaths={os.path.dirname(path)}"  # noqa: PTH120
    return (
        f"pivotd's sandbox hides {place} ({setting}=): use another place, or `systemctl edit pivotd` with [Service] "
        f"{relief}, then `systemctl restart pivotd`"
    )


def other_directory(pid: int, directory: str) -> str | None:
    """Return one sentence if QEMU certainly has another directory of this name than this process, else None."""
    ours, its = _both(pid, directory)
    if ours is None or its is None or ours == its:
        return None
    why = f"QEMU (process {pid}) runs in another mount namespace"
    where = f"use a place that both see, or give it to both with BindPaths={directory}"
    if its == _NOTHING:
        return f"{why}, in which there is no directory {directory}: {where}"
    if ours == _NOTHING:
        return f"{why}: it has a directory {directory}, and pivotd has none: {where}"
    return f"{why}: its {directory} is another directory than pivotd's: {where}"


def same_directory(pid: int, directory: str) -> bool:
    """Return whether QEMU certainly has the same directory of this name."""
    ours, its = _both(pid, directory)
    return ours is not None and ours == its


def _both(pid: int, directory: str) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Return what this process and QEMU have at a path, None for what nobody can know."""
    # /proc may hide the process, or show it without letting anybody in.
    if pid <= 0 or _identity(f"/proc/{pid}/root/") in {None, _NOTHING}:
        return None, None
    real = os.path.realpath(directory)
    if _is_link_below(f"/proc/{pid}/root", real):
        return None, None
    return _identity(real), _identity(f"/proc/{pid}/root{real}")


def _is_link_below(root: str, real: str) -> bool:
    """Return whether a part of this path is a link there: it would lead on from this process's own root."""
    return any(os.path.islink(f"{root}{part}") for part in (*Path(real).parents, real))  # noqa: PTH114


_NOTHING = (-1, -1)
"""There is certainly nothing."""


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and inode, _NOTHING if there is none, None if this process may not look."""
    try:
        found = os.stat(path)  # noqa: PTH116 - one system call, no object
    except (FileNotFoundError, NotADirectoryError):
        return _NOTHING
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _over(path: str) -> tuple[str | None, str]:
    """Return the setting behind the mount that a path is on, None if it hides nothing, and the mount point."""
    under = [point for point in _mounts() if path == point or path.startswith(f"{point.rstrip('/')}/")]
    point = max(under, key=len, default="/")
    return _mounts().get(point), point


@cache
def _mounts() -> dict[str, str | None]:
    """Return each mount point of this process with the setting that hides what is below it.

    Read once: systemd makes the sandbox before the program starts.
    """
    try:
        lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")
    except OSError:
        return {}
    return dict(map(_mount, filter(None, lines)))


def _mount(line: str) -> tuple[str, str | None]:
    """Return the mount point of a line of mountinfo, and the setting. Source: proc(5)."""
    fields = line.split(" ")
    root, point, options = fields[3], mounts.plain(fields[4]), fields[5].split(",")
    home = point in _HOMES
    if _PRIVATE.search(root):
        return point, "PrivateTmp"
    if _INACCESSIBLE in root:
        return point, "ProtectHome" if home else "InaccessiblePaths"
    if home and "ro" in options and fields[fields.index("-") + 1] == "tmpfs":
        return point, "ProtectHome"
    if point == "/dev" and "ro" in options and fields[fields.index("-") + 1] == "tmpfs":
        return point, "PrivateDevices"
    return point, None
