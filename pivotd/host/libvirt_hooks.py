"""Installing the hook for libvirt below /etc/libvirt/hooks, and removing it; files of others are left alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pivotd
from pivotd.host.fsync import fsync_directory, fsync_file

HOOKS = Path("etc/libvirt/hooks")
MARK = b"pivotd-libvirt-hook"
"""Stands in each of our files."""
CODE = "pivotd-libvirt-hook.py"
PYTHON = Path("usr/bin/python3")
DAEMON = f"""#!/bin/sh
# pivotd-libvirt-hook: libvirt looks at its domains after this. Written by `pivotctl libvirt install-hooks`.
[ "$2" = start ] || exit 0
/usr/bin/python3 -I -S /etc/libvirt/hooks/{CODE} --parent "$PPID" daemon "$@"
exit 0
"""
QEMU = f"""#!/bin/sh
# pivotd-libvirt-hook: no domain starts from a stale image. Written by `pivotctl libvirt install-hooks`.
# Python starts only where a domain starts: libvirt runs this for every running domain when it starts itself.
case "$2" in prepare | migrate | restore) ;; *) exit 0 ;; esac
/usr/bin/python3 -I -S /etc/libvirt/hooks/{CODE} --parent "$PPID" qemu "$@"
[ $? -ne 10 ]
"""


class ForeignFileError(Exception):
    """A file of somebody else is in the place of one of ours; nothing was changed. The message says which."""


def files(root: Path, *, starts: bool) -> dict[Path, tuple[bytes, int]]:
    """Return the content and mode of each file of the hook, by path, in the order in which they can be written.

    ``starts``: also the one that libvirt runs for each domain.
    """
    code = Path(pivotd.__file__).with_name("libvirt_hook.py").read_bytes()
    hooks = root / HOOKS
    found = {hooks / CODE: (code, 0o644), hooks / "daemon.d" / "pivotd": (DAEMON.encode(), 0o755)}
    return found | ({hooks / "qemu.d" / "pivotd": (QEMU.encode(), 0o755)} if starts else {})


def install(root: Path, *, starts: bool) -> list[Path]:
    """Write the files of the hook; return their paths. ``starts``: also what looks at each start of a domain.

    A reader of the directories sees a file as a whole or not at all. Raises: ForeignFileError, OSError.
    """
    ours = files(root, starts=starts)
    _check(ours)
    for path, (content, mode) in ours.items():
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Not in the directory itself: libvirt runs every program in it.
        new = root / HOOKS / f".{path.parent.name}-{path.name}.new"
        with suppress(FileNotFoundError):
            new.unlink()
        new.write_bytes(content)
        new.chmod(mode)
        fsync_file(new)
        new.replace(path)
        fsync_directory(path.parent)
    return list(ours)


def remove(root: Path) -> list[Path]:
    """Remove our files, and the directories that are empty then; return the paths of what was removed.

    Raises: ForeignFileError, OSError.
    """
    ours = files(root, starts=True)
    _check(ours)
    gone = [path for path in reversed(ours) if path.exists()]
    for path in gone:
        path.unlink()
        fsync_directory(path.parent)
        if path.parent.name.endswith(".d"):
            with suppress(OSError):
                path.parent.rmdir()
    return gone


def _check(ours: Mapping[Path, object]) -> None:
    for path in ours:
        if path.exists() and MARK not in path.read_bytes():
            raise ForeignFileError(f"{path} is not a file of pivotd; move it away first")
