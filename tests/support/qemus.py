"""Every QEMU at hand: Debian's own, and those of other releases as `make qemus` fetched them."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path

from tests.support.qemu import default_binary

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = "usr/lib/x86_64-linux-gnu"


@cache
def qemus() -> dict[str, tuple[str, ...]]:
    """Return version -> how to start that QEMU, oldest first; arguments follow, as after qemu-system-x86_64.

    Trees are those listed in PIVOTD_TEST_QEMUS (``TREE:TREE``), else those in the cache. No root and no chroot: a tree
    brings its dynamic linker, so paths mean the same inside and outside, and the pid is QEMU's own.
    """
    found = {_version(prefix): prefix for prefix in [tuple(default_binary()), *map(of_tree, trees())]}
    return dict(sorted(found.items(), key=lambda item: number(item[0])))


def trees() -> list[Path]:
    """Return the trees to use."""
    listed = os.environ.get("PIVOTD_TEST_QEMUS")
    if listed is not None:
        return [Path(tree).resolve() for tree in listed.split(":") if tree]
    cached = Path(os.environ.get("PIVOTD_CACHE", ROOT / ".cache")) / "qemus"
    return sorted(stamp.parent.resolve() for stamp in cached.glob("*/.complete"))


def of_tree(tree: Path) -> tuple[str, ...]:
    """Return how to start the QEMU of one tree."""
    libraries = tree / LIBRARIES
    return (
        "env",
        f"QEMU_MODULE_DIR={libraries}/qemu",
        str(libraries / "ld-linux-x86-64.so.2"),
        "--library-path",
        str(libraries),
        str(tree / "usr/bin/qemu-system-x86_64"),
        "-L",
        str(tree / "usr/share/qemu"),
        "-L",
        str(tree / "usr/share/seabios"),
    )


def number(version: str) -> tuple[int, ...]:
    """Return a version as numbers: "10.0.13" is (10, 0, 13)."""
    return tuple(map(int, version.split(".")))


def _version(prefix: tuple[str, ...]) -> str:
    said = subprocess.run([*prefix, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\d+\.\d+\.\d+)", said)
    assert match, said
    return match[1]
