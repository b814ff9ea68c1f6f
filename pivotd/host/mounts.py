"""The other names that a file has because a part of its file system is mounted at several places."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class _Mount:
    """``root``: what of the file system is at ``point``. ``device``: the number of the file system."""

    device: str
    root: str
    point: str


def plain(text: str) -> str:
    """Return a path of mountinfo without its escapes. Source: proc(5)."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def other_names(path: str) -> list[str]:
    """Return the other names of a file by mounts of this process; ``path``: an absolute one without links.

    Not those below a mount that hides them. It looks at storage, so it may block.
    """
    try:
        every = _mounts(Path("/proc/self/mountinfo").read_bytes())
    except OSError:
        return []
    mount = max((one for one in every if _leads(one.point, path)), key=lambda one: len(one.point), default=None)
    if mount is None:
        return []
    inside = _moved(path, mount.point, mount.root)
    names = [
        _moved(inside, one.root, one.point) for one in every if one.device == mount.device and _leads(one.root, inside)
    ]
    return [name for name in dict.fromkeys(names) if name != path and _may_be_one(name, path)]


@lru_cache(maxsize=1)
def _mounts(text: bytes) -> list[_Mount]:
    """Return the mounts, the last one of each place: it hides the others."""
    fields = [line.split(" ") for line in filter(None, os.fsdecode(text).split("\n"))]
    return list({plain(one[4]): _Mount(one[2], plain(one[3]), plain(one[4])) for one in fields}.values())


def _leads(place: str, path: str) -> bool:
    return path == place or path.startswith(f"{place.rstrip('/')}/")


def _moved(path: str, place: str, other: str) -> str:
    return os.path.normpath(Path(other, os.path.relpath(path, place)))


def _may_be_one(name: str, path: str) -> bool:
    """Return whether two names may lead to one file: nobody may look, or they do."""
    try:
        return os.path.samefile(name, path)  # noqa: PTH121
    except FileNotFoundError:
        return False
    except OSError:
        return True
