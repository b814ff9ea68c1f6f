"""A real Linux guest that writes numbered blocks, and the judge that knows what it was told is on disk.

See guest_init.sh for the guest's side and the words on its serial port.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.guest_assets import GuestAssets
from tests.support.qemu import Disk, Qemu

BLOCK_BYTES = 4096
LINE_BYTES = 32
MEMORY_MIB = 160
LOOK_MS = 5
AWAIT_TIMEOUT_S = 90.0
"""A boot takes 3-4 s under TCG on a free core, and more than ten times as long where five others want it."""
KERNEL_OPTIONS = "console=ttyS0 quiet loglevel=0 mitigations=off nokaslr tsc=reliable no_timer_check"

_WORD = re.compile(rb"^(READY|REFUSED|START|ACK|STOPPED)(?: (.*?))?\r?$", re.MULTILINE)
_LINE = re.compile(rb"pivotd (\S+) +(\d+)\n")


class GuestRefusedError(AssertionError):
    """The guest saw that it cannot do what the test wants: no disk, no module."""


class LostWritesError(AssertionError):
    """After a restart the guest found less on its disk than it had been told is there."""


@dataclass(frozen=True, slots=True)
class Guest:
    """What the guest does.

    ``write``: ``acks`` numbered and flushed blocks, ``idle`` nothing, ``busy`` dirties as fast as it can without
    acks, ``both``. ``rate_per_s`` 0 means as fast as it can. ``batch`` blocks share one flush and one ACK.
    ``slots`` is the length of a round in blocks. ``flush=False`` makes it lie: it says ACK without a flush.
    ``hold``: it has found its disks and waits, before it reads them, for a line on its second serial port (release()).
    """

    assets: GuestAssets
    write: str = "acks"
    rate_per_s: int = 0
    batch: int = 1
    slots: int = 256
    flush: bool = True
    hold: bool = False

    def qemu(
        self, directory: Path, disks: Sequence[Disk], *, expect: Sequence[str] | None = None, **options: Any
    ) -> Qemu:
        """Return a QEMU, not yet started, that boots this guest; ``options`` are those of Qemu.

        ``expect`` names the disks that the guest insists on, by default those that it gets.
        """
        name = options.get("name", "web1")
        names = expect if expect is not None else [disk.name or f"disk{i}" for i, disk in enumerate(disks)]
        modules = dict.fromkeys(module for disk in disks for module in self.assets.modules[disk.bus])
        words = {
            "disks": ",".join(names), "modules": ",".join(modules), "write": self.write, "rate": self.rate_per_s,
            "batch": self.batch, "slots": self.slots, "flush": "on" if self.flush else "off",
            "hold": "on" if self.hold else "off",
        }  # fmt: skip
        command_line = " ".join([KERNEL_OPTIONS, *(f"pivotd.{key}={value}" for key, value in words.items())])
        if any(disk.bus == "ide" for disk in disks):
            # The cloud kernel has no driver for q35's AHCI.
            options.setdefault("machine", "pc")
        end_torn_line(serial_log(directory, name))
        boot = [
            "-kernel", str(self.assets.kernel), "-initrd", str(self.assets.initramfs), "-append", command_line,
            "-chardev", f"file,id=serial,path={serial_log(directory, name)},append=on", "-serial", "chardev:serial",
        ]  # fmt: skip
        if self.hold:
            port = str(_release_path(directory, name))
            boot += ["-chardev", f"socket,id=release,path={port},server=on,wait=off", "-serial", "chardev:release"]
        return Qemu(directory, disks, memory_mib=MEMORY_MIB, guest=boot, **options)

    def release(self, qemu: Qemu) -> None:
        """Let a guest go that was held; its writers read their disks now."""
        with socket.socket(socket.AF_UNIX) as port:
            port.connect(str(_release_path(qemu.directory, qemu.name)))
            port.sendall(b"go\n")

    def judge(self, qemu: Qemu) -> GuestJudge:
        """Return the judge of a QEMU made by this guest; it may be asked before, during and after its life."""
        return GuestJudge(serial_log(qemu.directory, qemu.name), slots=self.slots, qemu=qemu)


def serial_log(directory: Path, name: str) -> Path:
    """Return where the guest's words are kept; a restarted guest appends."""
    return directory / f"{name}.serial"


def _release_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.release"


def end_torn_line(log: Path) -> None:
    """End a line that the kill of an earlier QEMU cut, so that it is no word, and the next life's first word is one."""
    if log.exists() and (said := log.read_bytes()) and not said.endswith(b"\n"):
        with log.open("ab") as file:
            file.write(b" cut\n")


class GuestJudge:
    """Knows every write that the guest was told is complete, and checks images against it.

    Built on the serial log alone: it also judges after everything else is dead.
    """

    def __init__(self, log: Path, *, slots: int = 256, qemu: Qemu | None = None) -> None:
        self._log, self._slots, self.qemu = log, slots, qemu
        self._offset = 0
        self._lives: dict[str, list[list[int]]] = {}
        self._refused: str | None = None
        self._stopped: dict[str, str] = {}
        self._ready = 0

    def last_ack(self, disk: str = "disk0") -> int:
        """Return the highest acknowledged number, -1 if there is none yet."""
        self._read()
        return max((last for first, last in self._lives.get(disk, []) if last >= first), default=-1)

    def await_ready(self, *, times: int = 1, timeout_s: float = AWAIT_TIMEOUT_S) -> None:
        """Wait until the guest has found all its disks; ``times`` counts its boots."""
        self._await(lambda: self._ready >= times, "READY", timeout_s)

    def await_acks(self, disk: str = "disk0", *, more_than: int = -1, timeout_s: float = AWAIT_TIMEOUT_S) -> int:
        """Wait until a number above ``more_than`` is acknowledged, and return the last one.

        Raises: GuestRefusedError, LostWritesError, TimeoutError, AssertionError when QEMU ends or the disk fails.
        """
        self._await(lambda: self.last_ack(disk) > more_than, f"ACK {disk} above {more_than}", timeout_s, disk)
        return self.last_ack(disk)

    def acknowledged(self, disk: str = "disk0", last_ack: int | None = None) -> dict[int, int]:
        """Return for each block of the region the highest number acknowledged, none of them above ``last_ack``."""
        self._read()
        newest: dict[int, int] = {}
        for first, last in self._lives.get(disk, []):
            end = last if last_ack is None else min(last, last_ack)
            for number in range(max(first, end - self._slots + 1), end + 1):
                newest[number % self._slots] = number
        return newest

    def check_image(self, path: Path, image_format: str, disk: str = "disk0", last_ack: int | None = None) -> list[int]:
        """Return the acknowledged numbers that the image does not hold; an empty list is a complete image.

        A number counts as held when every line of its block carries it or a later one. An image that a running
        guest writes may be read in the middle of a change: ask when the guest is stopped or gone, or with a
        ``last_ack`` of before the last flush.
        """
        expected = self.acknowledged(disk, last_ack)
        assert expected, f"{disk} has no acknowledged write: nothing to judge"
        data = _read_region(path, image_format, self._slots)
        return sorted(
            number
            for slot, number in expected.items()
            if not self._holds(data[slot * BLOCK_BYTES : (slot + 1) * BLOCK_BYTES], disk, number)
        )

    def _holds(self, block: bytes, disk: str, number: int) -> bool:
        lines = _LINE.findall(block)
        return len(block) == BLOCK_BYTES == len(lines) * LINE_BYTES and all(
            name == disk.encode() and int(n) >= number and int(n) % self._slots == number % self._slots
            for name, n in lines
        )

    def _await(self, done: Any, what: str, timeout_s: float, disk: str | None = None) -> None:
        deadline_s = time.monotonic() + timeout_s
        poll = select.poll()
        pidfd = -1
        if self.qemu is not None and self.qemu.returncode is None:
            pidfd = os.pidfd_open(self.qemu.pid)
            poll.register(pidfd, select.POLLIN)
        try:
            ended = False
            while True:
                self._read()
                if self._refused is not None:
                    raise GuestRefusedError(self._refused)
                if done():
                    return
                assert not ended, f"QEMU ended while the test waited for {what}"
                assert disk not in self._stopped, (
                    f"the guest's writer stopped at {disk} {self._stopped.get(disk or '')}"
                )
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"no {what} within {timeout_s} s")
                ended = bool(poll.poll(LOOK_MS))
        finally:
            if pidfd >= 0:
                os.close(pidfd)

    def _read(self) -> None:
        try:
            with self._log.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for match in _WORD.finditer(whole):
            self._take(match[1].decode(), (match[2] or b"").decode(errors="replace").split())

    def _take(self, word: str, arguments: list[str]) -> None:
        match word, arguments:
            case "READY", []:
                self._ready += 1
            case "REFUSED", why:
                self._refused = " ".join(why)
            case "START", [disk, first, found]:
                lives = self._lives.setdefault(disk, [])
                told = max((last for begun, last in lives if last >= begun), default=-1)
                if int(found) < told:
                    raise LostWritesError(f"{disk}: {told} was acknowledged, the restarted guest found {found}")
                lives.append([int(first), int(first) - 1])
                self._stopped.pop(disk, None)
            case "ACK", [disk, number] if number.isdigit() and disk in self._lives:
                self._lives[disk][-1][1] = int(number)
            case "STOPPED", [disk, number]:
                self._stopped[disk] = number
            case _:
                pass  # two writers of the kernel may have mixed a line: one ACK less is no error


def _read_region(path: Path, image_format: str, slots: int) -> bytes:
    with tempfile.NamedTemporaryFile() as raw:
        subprocess.run(
            ["qemu-img", "dd", "-U", "-f", image_format, "-O", "raw", f"bs={BLOCK_BYTES}", f"count={slots}",
             f"if={path}", f"of={raw.name}"],
            check=True, capture_output=True,
        )  # fmt: skip
        return Path(raw.name).read_bytes()
