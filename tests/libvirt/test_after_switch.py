"""The look after a switch, and beside it: the definition of the next boot is written, and lasts, before it counts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd.core.observation import Asked, JobBelief, Root
from pivotd.core.pivot import Image
from pivotd.libvirt import definition_file, durable
from pivotd.libvirt.domain_session import LibvirtSession
from pivotd.libvirt.line import Line
from tests.journal.samples import make_pivot
from tests.libvirt.between import Between
from tests.libvirt.domain import Domain
from tests.libvirt.libvirtd import Libvirtd

pytestmark = pytest.mark.qemu
GET_XML, UPDATE_DEVICE = 14, 174
"""Source: libvirt, src/remote/remote_protocol.x, REMOTE_PROC_DOMAIN_GET_XML_DESC, …_UPDATE_DEVICE_FLAGS."""


class Switch:
    """One copy of a domain's disk, switched by libvirt at the word of pivotd."""

    def __init__(self, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch) -> None:
        libvirtd.start()
        self.libvirtd = libvirtd
        self.domain = Domain(libvirtd, guest=False).define().boot()
        self.file = self.domain.config_file()
        self.old, self.new = self.domain.image(), self.domain.copy()
        self.synced: list[tuple[Path, bool]] = []
        """What was synced after the switch, and whether the file named the new image then."""
        self.written = False
        """Libvirt was asked to write the definition once more."""
        self._fsync = os.fsync
        for module in (definition_file, durable):
            monkeypatch.setattr(module, "definitions", lambda _uri: self.file.parent)
        monkeypatch.setattr(os, "fsync", self._note)

    def _note(self, descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        if self.file.parent in {name, name.parent}:
            self.synced.append((name, str(self.new) in self.file.read_text()))
        self._fsync(descriptor)

    def ask(self, first: Callable[[], object] = int, writing: Callable[[], object] = int) -> Asked | None:
        """Switch; ``first``: what happens right after that; ``writing``: when pivotd asks for another write."""

        def before_xml() -> bool:
            first()
            return True

        def before_write() -> bool:
            self.written = True
            writing()
            return True

        with Between(self.libvirtd, {GET_XML: before_xml, UPDATE_DEVICE: before_write}) as between:
            return asyncio.run(self._ask(between.uri))

    async def _ask(self, uri: str) -> Asked | None:
        line = Line("web1")
        session = await LibvirtSession.open(uri, "web1", line)
        sides = {"source": Image(str(self.old), "qcow2", "old"), "destination": Image(str(self.new), "qcow2", "new")}
        pivot = make_pivot(1, disk="vda")
        qdev = "/machine/peripheral/virtio-disk0/virtio-backend"
        pivot = replace(pivot, disks=(replace(pivot.disks[0], qdev=qdev, **sides),))
        asked = await session.ask_libvirt(pivot, ["vda"], switch=True)
        await session.close()
        line.end()
        return asked


@pytest.fixture
def switch(libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch) -> Switch:
    """A copy that is ready."""
    return Switch(libvirtd, monkeypatch)


def test_what_libvirt_has_written_is_synced_and_not_written_again(switch: Switch):
    """One look brings the roots, what libvirt believes, and a next boot that lasts."""
    asked = switch.ask()
    assert asked is not None
    belief = asked.beliefs["vda"]
    assert (asked.roots, belief.live, belief.next, belief.job) == (
        {"vda": Root.DESTINATION}, Root.DESTINATION, Root.DESTINATION, JobBelief.NONE,
    )  # fmt: skip
    assert (asked.saved, asked.raced, switch.written) == (frozenset({"vda"}), False, False)
    assert switch.synced == [(switch.file, True), (switch.file.parent, True)]


@pytest.mark.parametrize("renewed", [False, True], ids=["the old file", "a new file with the old text"])
def test_what_libvirt_could_not_write_is_written_again_first(switch: Switch, renewed: bool):
    """Libvirt ignores that; its memory names the new image, the file does not."""
    old = switch.file.with_name("old")
    os.link(switch.file, old)
    text = switch.file.read_text()

    def not_written() -> None:
        if renewed:
            old.unlink()
            old.write_text(text)
        old.rename(switch.file)

    asked = switch.ask(not_written)
    assert asked is not None
    assert (asked.saved, asked.raced, switch.written) == (frozenset({"vda"}), False, True)
    assert switch.synced == [(switch.file, True), (switch.file.parent, True)]


def test_a_file_that_may_not_be_read_is_written_again(switch: Switch, monkeypatch: pytest.MonkeyPatch):
    """It is root's alone, and pivotd is somebody else."""

    def closed(path: Path) -> str:
        raise PermissionError(path)

    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: closed(path) if path == switch.file else real(path))
    switch.synced = []
    monkeypatch.setattr(os, "fsync", switch._fsync)
    asked = switch.ask()
    assert asked is not None
    assert (asked.saved, switch.written) == (frozenset({"vda"}), True)


def test_a_definition_that_does_not_last_is_not_counted_on(switch: Switch, monkeypatch: pytest.MonkeyPatch):
    """The look stands all the same; pivotd then writes it by itself, and tells why that fails."""

    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(durable, "fsync_directory", fails)
    asked = switch.ask()
    assert asked is not None
    assert (asked.roots["vda"], asked.saved) == (Root.DESTINATION, frozenset())


def test_somebody_who_defines_the_guest_at_that_moment_is_noticed(switch: Switch):
    """What he has defined may be lost, and pivotd has to say so."""
    old = switch.file.with_name("old")
    os.link(switch.file, old)

    def define() -> None:
        text = switch.libvirtd.directory / "again.xml"
        text.write_text(switch.libvirtd.ask("dumpxml", "web1", "--inactive"))
        switch.libvirtd.ask("define", str(text))

    asked = switch.ask(lambda: old.rename(switch.file), define)
    assert asked is not None
    assert asked.raced
