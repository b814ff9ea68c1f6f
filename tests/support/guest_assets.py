"""Builds the guest: Debian's cloud kernel, and an initramfs with busybox and guest_init.sh.

Everything is cached below PIVOTD_CACHE, or ``.cache/`` of the checkout. Needs no root, only the standard library, and
the network once. ``python -m tests.support.guest_assets`` builds what is missing and prints where it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.kernel_modules import NoModuleError, load_order, unpack

KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/bin/busybox")
INIT = Path(__file__).with_name("guest_init.sh")
CHECKOUT = Path(__file__).parents[2]
VIRTIO_BLK = ("virtio_pci", "virtio_blk")
DRIVERS = {
    "virtio-blk": VIRTIO_BLK,
    "virtio-scsi": ("virtio_pci", "virtio_scsi", "sd_mod"),
    "ide": ("ata_piix", "sd_mod"),
    "nvme": ("nvme",),
    "ext4 on virtio-blk": (*VIRTIO_BLK, "ext4"),
}
"""What each bus of a disk needs, and the root disk of tests/powercut. A driver may be part of the kernel."""


class GuestBuildError(Exception):
    """The guest cannot be built; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class GuestAssets:
    """A kernel and an initramfs that belong together.

    ``modules`` maps each key of DRIVERS to the modules in the initramfs that it needs, in the order of loading.
    """

    kernel: Path
    initramfs: Path
    modules: Mapping[str, tuple[str, ...]]


def cache_directory() -> Path:
    """Return where built things are kept."""
    return Path(os.environ.get("PIVOTD_CACHE", CHECKOUT / ".cache"))


def build() -> GuestAssets:
    """Return the guest, building what is missing; several processes may do this at the same time."""
    base = cache_directory() / "guest"
    base.mkdir(parents=True, exist_ok=True)
    kernels = sorted(base.glob("kernel-*"))
    kernel = kernels[-1] if kernels else _fetch_kernel(base)
    busybox = static_busybox()
    content = [busybox, INIT.read_bytes(), kernel.name.encode()]
    key = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in content)).hexdigest()[:16]
    initramfs = base / f"initramfs-{key}.cpio"
    if not initramfs.exists():
        with tempfile.NamedTemporaryFile(dir=base, delete=False) as file:
            file.write(archive(kernel, busybox, INIT))
        Path(file.name).replace(initramfs)
    modules = {bus: load_order(kernel, drivers) for bus, drivers in DRIVERS.items()}
    return GuestAssets(kernel / "vmlinuz", initramfs, modules)


def _fetch_kernel(base: Path) -> Path:
    """Download and unpack the kernel package; the directory appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=base) as name:
        work = Path(name)
        package = _kernel_package()
        version = package.removeprefix("linux-image-")
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], cwd=work)
        _run(["dpkg", "-x", str(next(work.glob("*.deb"))), "tree"], cwd=work)
        whole = work / "whole"
        whole.mkdir()
        shutil.move(next(work.glob("tree/boot/vmlinuz-*")), whole / "vmlinuz")
        try:
            unpack(work / "tree", (driver for drivers in DRIVERS.values() for driver in drivers), whole)
        except NoModuleError as error:
            raise GuestBuildError(f"{package}: {error}") from error
        kernel = base / f"kernel-{version}"
        try:
            whole.rename(kernel)
        except OSError:
            # Another process was quicker: its directory is as good.
            if not kernel.exists():
                raise
    return kernel


def _kernel_package() -> str:
    said = _run(["apt-cache", "depends", "--important", KERNEL_PACKAGE])
    names = [line.split()[-1] for line in said.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise GuestBuildError(f"apt knows no {KERNEL_PACKAGE}: run apt-get update first")
    return names[0]


def _run(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GuestBuildError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def static_busybox() -> bytes:
    """Return busybox, which must need no libraries."""
    try:
        data = BUSYBOX.read_bytes()
    except FileNotFoundError:
        data = b""
    if not data or b"/lib64/ld-linux" in data[:4096]:
        raise GuestBuildError(f"{BUSYBOX} is not statically linked: install the package busybox-static")
    return data


def archive(kernel: Path, busybox: bytes, init: Path) -> bytes:
    """Return an initramfs: a cpio archive in the format that the kernel unpacks (newc)."""
    entries = [(name, 0o040755, b"") for name in ("bin", "dev", "lib", "lib/modules", "proc", "root", "sys")]
    entries += [("bin/busybox", 0o100755, busybox), ("init", 0o100755, init.read_bytes())]
    entries += [(f"lib/modules/{path.name}", 0o100644, path.read_bytes()) for path in sorted(kernel.glob("*.ko"))]
    entries.append(("TRAILER!!!", 0, b""))
    archive = bytearray()
    for number, (name, mode, data) in enumerate(entries, start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08x" % value for value in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4)
        archive += data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


if __name__ == "__main__":
    import sys

    try:
        print(build().initramfs)  # noqa: T201 - a program's output
    except GuestBuildError as error:
        sys.exit(f"the test guest cannot be built: {error}")
