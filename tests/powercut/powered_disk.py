"""A file system on a disk whose power can be cut, without a host around it.

The disk is a qcow2 overlay in which every block is new. A qemu-storage-daemon serves it as a file, the kernel makes a
block device of that file, and passes each flush on. QEMU keeps the map of new blocks in its memory until it is told to
flush: a write that was not flushed is lost with that process, even if the kernel had already written it out. Needs root.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.qemu import popen_tied
from tests.support.waiting import until

OPTIONS = "commit=300"
"""ext4 writes out by itself every five seconds; with this, nothing becomes durable by chance while a test runs."""
END_TIMEOUT_S = 60.0


def missing() -> str | None:
    """Return why there can be no such disk here, None if there can."""
    for program in ("qemu-storage-daemon", "losetup", "mke2fs", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not Path("/dev/loop-control").exists() or not Path("/dev/fuse").exists():
        return "the kernel has no loop devices or no FUSE"
    return None


class PoweredDisk:
    """One disk below a directory; a context manager. ``process``: one of those whose mount namespaces see it, too."""

    def __init__(self, directory: Path, name: str, *, size: str = "256M") -> None:
        self._image, self._file = directory / f"{name}.qcow2", directory / f"{name}.img"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._device = ""
        self._mounts: list[tuple[int | None, Path]] = []
        base = directory / f"{name}.raw"
        _run("truncate", "-s", size, str(base))
        _run("mke2fs", "-q", "-t", "ext4", str(base))
        _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(self._image))
        self._file.touch()

    def __enter__(self) -> Self:
        self.power_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        self.let_go()

    def power_on(self) -> None:
        """Make the block device; what was flushed before the last cut is on it."""
        export = f"type=fuse,id=export,node-name=disk,mountpoint={self._file},writable=on"
        command = [
            "qemu-storage-daemon", "--blockdev", f"driver=file,node-name=file,filename={self._image}",
            "--blockdev", "driver=qcow2,node-name=disk,file=file", "--export", export,
        ]  # fmt: skip
        self._daemon = popen_tied(command, self._image.with_suffix(".log"), self._image.parent)
        assert until(self._is_served), self._image.with_suffix(".log").read_text()
        self._device = _run("losetup", "--find", "--show", str(self._file)).strip()

    def mount(self, at: Path, process: int | None = None) -> None:
        """Mount the file system here, or where another process sees it."""
        _run(*_within(process), "mount", "-t", "ext4", "-o", OPTIONS, self._device, str(at))
        self._mounts.append((process, at))

    def cut(self) -> None:
        """Take the power away at once; processes that use the file system get errors from now on."""
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGKILL)

    def let_go(self) -> None:
        """Unmount what is left after a cut, in every namespace that still is; nobody may use it any more."""
        if self._daemon is None:
            return
        self._daemon.wait(END_TIMEOUT_S)
        self._daemon = None
        while self._mounts:
            process, at = self._mounts.pop()
            if process is None or Path(f"/proc/{process}").exists():
                _run(*_within(process), "umount", "--lazy", str(at))
        _run("losetup", "--detach", self._device)
        _run("umount", "--lazy", str(self._file))
        assert until(self._is_free, END_TIMEOUT_S), f"somebody still uses {self._device}"

    def _is_free(self) -> bool:
        return str(self._file) not in _run("losetup", "--list", "--noheadings", "--output", "BACK-FILE")

    def _is_served(self) -> bool:
        assert self._daemon is not None
        assert self._daemon.poll() is None, self._image.with_suffix(".log").read_text()
        return self._file.stat().st_size > 0


def _within(process: int | None) -> list[str]:
    return [] if process is None else ["nsenter", f"--target={process}", "--mount"]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
