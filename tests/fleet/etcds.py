"""Every etcd at hand: the installed one, and those of other Debian releases as `make etcds` fetched them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = "usr/lib/x86_64-linux-gnu"
CHOSEN = "PIVOTD_TEST_ETCD"
"""The tree whose etcd is used; without it, the installed one is."""


def trees() -> list[Path]:
    """Return the trees of other releases: those listed in PIVOTD_TEST_ETCDS (``TREE:TREE``), else those in the cache."""
    listed = os.environ.get("PIVOTD_TEST_ETCDS")
    if listed is not None:
        return [Path(tree).resolve() for tree in listed.split(":") if tree]
    cached = Path(os.environ.get("PIVOTD_CACHE", ROOT / ".cache")) / "etcds"
    return sorted(stamp.parent.resolve() for stamp in cached.glob("*/.complete"))


def command(program: str) -> list[str]:
    """Return how to start ``etcd`` or ``etcdctl``; arguments follow.

    A tree brings its dynamic linker: no root, no chroot, and the pid is the program's own.
    """
    chosen = os.environ.get(CHOSEN)
    if not chosen:
        return [program]
    tree = Path(chosen).resolve()
    libraries = tree / LIBRARIES
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(tree / "usr/bin" / program)]


def missing() -> str | None:
    """Return why there is no etcd here, None if there is."""
    for program in ("etcd", "etcdctl"):
        if shutil.which(command(program)[-1]) is None:
            return f"{program} is not installed: apt-get install etcd-server etcd-client"
    return None
