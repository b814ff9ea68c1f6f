"""A guest that boots in no time and writes for ever: firmware of its own (tiny_guest.S), and the judge of its writes.

It flushes as a real guest does, stops and goes on with the machine, and survives a reset. Needs ``as`` and ``objcopy``.
"""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.qemu import Disk, Qemu

SOURCE = Path(__file__).with_suffix(".S")
CPU = "qemu64,-apic"
"""Without an APIC that nobody has set up, the CPU hears the timer."""
SECTOR_BYTES = 512
SLOTS = 256
SPREAD_SECTORS = 256
"""128 KiB between two numbers: each has clusters of its own, also in an image with large clusters."""
LOOK_MS = 2
AWAIT_TIMEOUT_S = 90.0
PAUSE_MS_DEFAULT = 1
"""Between two numbers: the guest sleeps, and leaves the processor to others."""

_ACK = re.compile(rb"^ACK ([0-9a-f]{8})\r?$", re.MULTILINE)
_FAILED = re.compile(rb"^ERR ([0-9a-f]{8})\r?$", re.MULTILINE)
_UP = re.compile(rb"UP [0-9a-f]{8}\r?$", re.MULTILINE)
"""A reset can come in the middle of a line: then this follows on it."""


class WriteFailedError(AssertionError):
    """The guest's disk has reported an error, and the guest has halted."""


@dataclass(frozen=True, slots=True)
class TinyGuest:
    """What the firmware does: ``batch`` numbers (a power of 2) share one flush, ``pause_ms`` is its sleep after each.

    ``first``: the number it begins at when the machine is switched on; it begins a batch, and leaves no gap of unwritten ones
    below it for the judge: the one after the last acknowledged, or a multiple of SLOTS.
    """

    disks: int = 1
    batch: int = 4
    pause_ms: int = PAUSE_MS_DEFAULT
    first: int = 0

    def firmware(self, directory: Path) -> Path:
        """Assemble the firmware into a directory and return its path."""
        words = {
            "DISKS": self.disks, "SPREAD": SPREAD_SECTORS, "BATCH": self.batch, "PAUSE_MS": self.pause_ms,
            "FIRST": self.first,
        }  # fmt: skip
        symbols = [part for name, value in words.items() for part in ("--defsym", f"{name}={value}")]
        whole, flat = directory / "tiny_guest.o", directory / "tiny_guest.bin"
        subprocess.run(["as", "--32", *symbols, "-o", str(whole), str(SOURCE)], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(whole), str(flat)], check=True)
        return flat

    def qemu(self, directory: Path, disks: Sequence[Disk], *, serial: Path | None = None, **options: Any) -> Qemu:
        """Return a QEMU, not yet started, that boots this guest; ``options`` are those of Qemu."""
        assert len(disks) >= self.disks, "the firmware writes to more disks than there are"
        assert all(disk.bus == "ide" for disk in disks[: self.disks]), "the firmware knows only IDE"
        log = serial or serial_log(directory, options.get("name", "web1"))
        firmware = ["-cpu", CPU, "-bios", str(self.firmware(directory))]
        port = ["-chardev", f"file,id=serial,path={log},append=on", "-serial", "chardev:serial"]
        options = {"machine": "pc", "memory_mib": 16} | options
        return Qemu(directory, disks, guest=[*firmware, *port], **options)

    def judge(self, qemu: Qemu) -> TinyJudge:
        """Return the judge of a QEMU made by this guest."""
        return TinyJudge(serial_log(qemu.directory, qemu.name), qemu)


def serial_log(directory: Path, name: str) -> Path:
    """Return where the guest's words are kept."""
    return directory / f"{name}.serial"


class TinyJudge:
    """Knows the last number that the guest was told is flushed, from the serial log alone."""

    def __init__(self, log: Path, qemu: Qemu | None = None) -> None:
        self._log, self._qemu = log, qemu

    def last_ack(self) -> int:
        """Return the last acknowledged number, -1 if there is none."""
        return last_ack(self._read())

    def boots(self) -> int:
        """Return how often the firmware has begun."""
        return len(_UP.findall(self._read()))

    def failed(self) -> bool:
        """Return whether the guest has seen an error of its disk."""
        return _FAILED.search(self._read()) is not None

    def await_acks(self, *, more_than: int = -1, timeout_s: float = AWAIT_TIMEOUT_S) -> int:
        """Wait until a number above ``more_than`` is acknowledged. Raises: WriteFailedError, TimeoutError."""
        deadline_s = time.monotonic() + timeout_s
        poll = select.poll()
        pidfd = os.pidfd_open(self._qemu.pid) if self._qemu is not None else -1
        try:
            if pidfd >= 0:
                poll.register(pidfd, select.POLLIN)
            while (number := self.last_ack()) <= more_than:
                if self.failed():
                    raise WriteFailedError(self._read()[-100:].decode(errors="replace"))
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"no ACK above {more_than} within {timeout_s} s, the last is {number}")
                assert not poll.poll(LOOK_MS), f"QEMU ended while the test waited for an ACK above {more_than}"
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        return number

    def missing(self, image: Path, image_format: str, last: int | None = None) -> list[int]:
        """Return the acknowledged numbers, none above ``last``, that an image does not hold or hold overwritten."""
        end = self.last_ack() if last is None else last
        assert end >= 0, "no acknowledged write: nothing to judge"
        return lost(read_slots(image, image_format), end)

    def _read(self) -> bytes:
        try:
            return self._log.read_bytes()
        except FileNotFoundError:
            return b""


def last_ack(said: bytes) -> int:
    """Return the last number that the words on a serial port acknowledge, -1 if there is none."""
    return max((int(number, 16) for number in _ACK.findall(said)), default=-1)


def lost(slots: Iterable[int], end: int) -> list[int]:
    """Return the numbers up to ``end``, newest of their slot, in whose place is neither they nor a later one.

    ``slots``: the number in each slot, -1 where there is none (never written, or torn).
    """
    missing = []
    for slot, found in enumerate(slots):
        wanted = end - (end - slot) % SLOTS
        if wanted >= 0 and (found < wanted or found % SLOTS != slot):
            missing.append(wanted)
    return missing


def read_slots(image: Path, image_format: str) -> list[int]:
    """Return the number in each slot of an image, -1 where there is none: zeros, or words that differ."""
    with tempfile.NamedTemporaryFile() as raw:
        subprocess.run(
            ["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", str(image), raw.name],
            check=True, capture_output=True,
        )  # fmt: skip
        return raw_slots(Path(raw.name))


def raw_slots(image: Path) -> list[int]:
    """Return the number in each slot of a raw image, as read_slots() does."""
    with image.open("rb") as file:
        return [_number(os.pread(file.fileno(), SECTOR_BYTES, slot * SPREAD_SECTORS * SECTOR_BYTES), slot)
                for slot in range(SLOTS)]  # fmt: skip


def _number(sector: bytes, slot: int) -> int:
    words = set(struct.unpack("<128I", sector))
    if len(words) != 1:
        return -1
    (number,) = words
    # A sector of zeros is one that was never written, except number 0 in slot 0, which nobody can tell apart.
    return number if number or slot == 0 else -1
