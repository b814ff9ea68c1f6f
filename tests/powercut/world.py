"""Builds the host that loses its power: a root file system from this host's own files, as an ext4 image.

It holds Python, pivotd, QEMU, the firmware of the tiny guest, and busybox. Needs no root and no network. Cached like
the test guest; each boot runs on an overlay of it, so that the image itself never changes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.guest_assets import CHECKOUT, GuestAssets, archive, build, cache_directory, static_busybox
from tests.support.tiny_guest import TinyGuest

HERE = Path(__file__).parent
IMAGE_SIZE = "1500M"
KEEP_S = 24 * 3600.0
"""Images of earlier content go after this; a campaign may still use one."""
PROGRAMS = ("qemu-system-x86_64", "qemu-img", "qemu-io", "setpriv")
FIRMWARE_DIRECTORIES = ("/usr/share/qemu", "/usr/share/seabios")
ACCELERATOR = "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so"
STDLIB_NEEDLESS = ("test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "config-3*")
PACKAGES = (
    "qemu", "sqlite_utils", "sqlite_fts4", "structlog", "starlette", "uvicorn", "httptools", "msgspec", "click",
    "click_default_group", "default_group*", "rich", "ulid", "anyio", "h11", "idna", "sniffio", "typing_extensions*",
    "tabulate*", "dateutil", "six*", "pluggy", "markdown_it", "mdurl", "pygments", "*.dist-info",
)  # fmt: skip
"""What pivotd imports, with what that imports."""


@dataclass(frozen=True, slots=True)
class World:
    """What QEMU needs to boot the host."""

    kernel: Path
    initramfs: Path
    modules: tuple[str, ...]
    """Of the initramfs, in the order of loading."""
    root: Path


def build_world() -> World:
    """Return the host, building what is missing; several processes may do this at the same time."""
    base = cache_directory() / "powercut"
    base.mkdir(parents=True, exist_ok=True)
    guest = build()
    kernel = guest.kernel
    key = _key(guest)
    initramfs, root = base / f"initramfs-{key}.cpio", base / f"root-{key}.raw"
    if not (initramfs.exists() and root.exists()):
        with tempfile.TemporaryDirectory(dir=base) as name:
            work = Path(name)
            (work / "initramfs").write_bytes(archive(kernel.parent, static_busybox(), HERE / "init.sh"))
            tree = work / "tree"
            _fill(tree, work)
            subprocess.run(
                ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), "-E", "root_owner=0:0", str(work / "root"), IMAGE_SIZE],
                check=True, capture_output=True,
            )  # fmt: skip
            (work / "initramfs").replace(initramfs)
            (work / "root").replace(root)
            for old in base.glob("*-*.*"):
                if key not in old.name and time.time() - old.stat().st_mtime > KEEP_S:
                    old.unlink(missing_ok=True)
    return World(kernel, initramfs, guest.modules["ext4 on virtio-blk"], root)


def _key(guest: GuestAssets) -> str:
    """Return what tells one content from another: our own files, and versions of the others."""
    digest = hashlib.sha256(f"{sys.version} {guest.initramfs.name}".encode())
    for directory in ("pivotd", "migrations", "tests/powercut", "tests/support"):
        for path in sorted((CHECKOUT / directory).rglob("*.*")):
            # cut.py and what is above it stay outside.
            if path.suffix in {".py", ".sh", ".S"} and path.name not in {"cut.py", "campaign.py", "test_powercut.py"}:
                digest.update(f"{path}:".encode() + path.read_bytes())
    digest.update((CHECKOUT / "requirements.txt").read_bytes())
    digest.update(subprocess.run(["qemu-img", "--version"], capture_output=True, check=True).stdout)
    return digest.hexdigest()[:16]


def _fill(tree: Path, work: Path) -> None:
    for name in (
        "dev",
        "proc",
        "sys",
        "tmp",
        "run",
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "opt",
        "images",
        "var/lib/pivotd",
    ):
        (tree / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    (tree / "sbin").symlink_to("usr/bin")
    busybox = tree / "bin/busybox"
    busybox.write_bytes(static_busybox())
    busybox.chmod(0o755)
    (tree / "bin/sh").symlink_to("busybox")
    boot = tree / "sbin/boot"
    shutil.copy2(HERE / "boot.sh", boot)
    boot.chmod(0o755)
    for disks in (1, 2):
        shutil.copy2(TinyGuest(disks=disks).firmware(work), tree / f"opt/tiny_guest-{disks}.bin")

    programs = [Path(shutil.which(name) or f"/usr/bin/{name}") for name in PROGRAMS]
    python = Path(sys.executable).resolve()
    for program in (*programs, python):
        _copy(program, tree)
    (tree / "usr/bin/python3").symlink_to(python)
    if Path(ACCELERATOR).exists():  # elsewhere it is part of QEMU itself
        _copy(Path(ACCELERATOR), tree)
    for directory in FIRMWARE_DIRECTORIES:
        _copy(Path(directory), tree)
    stdlib = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(stdlib, _within(tree, stdlib), symlinks=True, ignore=shutil.ignore_patterns(*STDLIB_NEEDLESS))
    site = Path(sysconfig.get_path("purelib"))
    packages = tree / "opt/packages"
    for pattern in PACKAGES:
        for found in site.glob(pattern):
            _copy_to(found, packages / found.name)
    for name in ("pivotd", "migrations", "tests/support", "tests/powercut", "tests/__init__.py"):
        _copy_to(CHECKOUT / name, tree / "opt/pivotd" / name)
    # Compiled here: the host compiles too slowly by itself.
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-s", str(tree), str(tree / "opt"), str(_within(tree, stdlib))],
        check=False, capture_output=True,
    )  # fmt: skip
    shared = [*stdlib.rglob("*.so"), *packages.rglob("*.so")]
    for library in _libraries((*programs, python, *shared)):
        _copy(library, tree)


def _within(tree: Path, path: Path) -> Path:
    """Return where an absolute path is below the tree; /lib is a link to /usr/lib there as on a merged Debian."""
    return tree / str(path).lstrip("/")


def _copy(path: Path, tree: Path) -> None:
    _copy_to(path, _within(tree, path))


def _copy_to(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True,
                        ignore_dangling_symlinks=True)  # fmt: skip
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy2(path, target)


def _libraries(programs: Iterable[Path]) -> list[Path]:
    """Return every shared library that these need, and the loader."""
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    return [Path(name) for name in sorted(set(re.findall(r"(?:=> |^\t)(/\S+)", said, re.MULTILINE)))]


if __name__ == "__main__":
    print(build_world().root)  # noqa: T201 - a program's output
