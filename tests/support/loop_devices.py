"""Block devices over files: a test that needs one is skipped where this host gives none."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.qemu import Disk


class LoopDevice:
    """A block device over a file."""

    def __init__(self, image: Path) -> None:
        done = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no loop device: {done.stderr.strip()} (needs root and /dev/loop*)")
        self.path = Path(done.stdout.strip())
        self._attached = True

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._attached:
            self.detach()

    def detach(self) -> None:
        """Take the file away; whoever has the device open keeps it until then."""
        subprocess.run(["losetup", "--detach", str(self.path)], check=True)
        self._attached = False

    def attach(self, image: Path, *options: str) -> None:
        """Give the device a file again."""
        subprocess.run(["losetup", *options, str(self.path), str(image)], check=True)
        self._attached = True


def disk_of(device: Path, image_format: str = "qcow2") -> Disk:
    """Return a disk of a guest on a block device."""
    return Disk(device, format=image_format, node={"file": {"driver": "host_device", "filename": str(device)}})
