"""A domain of a private libvirtd whose guest is the tests' own firmware: it boots at once, writes and flushes for ever.

It costs a boot of milliseconds where a Linux guest takes seconds, so that campaigns can play many rounds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self
from xml.sax.saxutils import escape

from tests.libvirt.domain import Domain
from tests.libvirt.libvirtd import Libvirtd
from tests.support.guest import MEMORY_MIB
from tests.support.tiny_guest import TinyGuest, TinyJudge
from tests.support.waiting import WAIT_S

LOOK_S = 0.03
TINY_MEMORY_MIB = 16

_DEVICES = """
    <controller type='usb' model='none'/>"""
_CPU = """
  <cpu mode='custom' match='exact' check='none'>
    <model fallback='forbid'>qemu64</model><feature policy='disable' name='apic'/>
  </cpu>"""


class TinyDomain(Domain):
    """A domain with one IDE disk, which libvirt calls vda all the same."""

    def __init__(self, libvirtd: Libvirtd, *, name: str = "web1", pause_ms: int = 2) -> None:
        super().__init__(libvirtd, name=name)
        self.tiny = TinyJudge(self.serial)
        self._pause_ms = pause_ms

    def boot(self) -> Self:
        """Start the domain and wait for its first writes; it goes on after the last number that it was told is flushed."""
        first = self.tiny.last_ack() + 1
        TinyGuest(pause_ms=self._pause_ms, first=first).firmware(self.libvirtd.directory)
        self.libvirtd.ask("start", self.name)
        assert self._is_past(first), f"the guest does not write: {self.tiny.last_ack()}"
        return self

    def writes_go_on(self) -> bool:
        """Tell whether the guest gets further writes acknowledged."""
        return self._is_past(self.tiny.last_ack())

    def missing(self, image: Path, target: str = "vda") -> list[int]:
        """Return the acknowledged numbers that an image lacks; the guest has to stand still, or QEMU to be gone."""
        return self.tiny.missing(image, "qcow2")

    def _is_past(self, number: int) -> bool:
        """Wait until a number above this one is acknowledged, without a busy loop beside the guest."""
        deadline_s = time.monotonic() + WAIT_S
        while self.tiny.last_ack() <= number:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(LOOK_S)
        return True

    def _device(self, target: str) -> str:
        return "ide0-0-0"

    def _xml(self) -> str:
        xml = super()._xml().replace(" bus='virtio'", " bus='ide'")
        xml = xml.replace(f">{MEMORY_MIB}<", f">{TINY_MEMORY_MIB}<")
        return xml.replace("  </os>", f"  </os>{_CPU}").replace("</emulator>", f"</emulator>{_DEVICES}")

    def _boot(self) -> str:
        firmware = escape(str(self.libvirtd.directory / "tiny_guest.bin"))
        return f"\n    <loader readonly='yes' type='rom'>{firmware}</loader>"
