"""The definition of the next boot is on disk, its name too, before pivotd counts on it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd.core.observation import Root
from pivotd.core.pivot import Image
from pivotd.libvirt import durable
from pivotd.libvirt.domain_session import LibvirtSession
from pivotd.libvirt.line import Line
from tests.journal.samples import make_pivot
from tests.libvirt.domain import Domain
from tests.libvirt.libvirtd import Libvirtd


@pytest.mark.qemu
def test_file_and_directory_are_synced_with_the_new_image_in_them(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libvirt itself leaves the directory to chance: a power cut could bring the old definition back."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    old, new = domain.image(), domain.image(number=1)
    file = domain.config_file()
    synced: list[tuple[Path, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), str(new) in file.read_text()))
        real(descriptor)

    monkeypatch.setattr(durable, "definitions", lambda _uri: file.parent)
    monkeypatch.setattr(os, "fsync", fsync)

    async def agree() -> tuple[frozenset[str], bool]:
        line = Line("web1")
        session = await LibvirtSession.open(libvirtd.uri, "web1", line)
        pivot = make_pivot(1, disk="vda")
        sides = {"source": Image(str(old), "qcow2", "old"), "destination": Image(str(new), "qcow2", "new")}
        pivot = replace(pivot, disks=(replace(pivot.disks[0], **sides),))
        agreed = await session.agree(pivot, {"vda": Root.DESTINATION})
        await session.close()
        line.end()
        return agreed

    assert asyncio.run(agree()) == (frozenset({"vda"}), False)
    assert synced == [(file, True), (file.parent, True)]


def test_where_the_directory_may_not_be_read_its_file_system_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Syncfs needs a descriptor on the same file system, and no permission on the directory."""
    written: list[Path] = []

    def closed(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(durable, "definitions", lambda _uri: tmp_path / "qemu")
    for name in ("fsync_file", "fsync_directory"):
        monkeypatch.setattr(durable, name, closed)
    monkeypatch.setattr(durable, "_sync_file_system", written.append)
    durable.sync_definition("qemu:///system", "web1", "uuid")
    assert written == [tmp_path]
    # Listening elsewhere, this libvirt may have its definitions elsewhere, too.
    monkeypatch.setattr(os, "sync", lambda: written.append(Path("/")))
    durable.sync_definition("qemu+unix:///system?socket=/run/other/sock", "web1", "uuid")
    assert written == [tmp_path, Path("/")]


def test_a_definition_of_another_libvirt_is_not_taken_for_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is the same, and the libvirt listens elsewhere: everything is written."""
    (tmp_path / "web1.xml").write_text("<uuid>another</uuid>")
    written: list[str] = []
    monkeypatch.setattr(durable, "definitions", lambda _uri: tmp_path)
    monkeypatch.setattr(os, "sync", lambda: written.append("all"))
    uri = "qemu+unix:///system?socket=/run/other/sock"
    durable.sync_definition(uri, "web1", "another")
    assert written == []
    durable.sync_definition(uri, "web1", "mine")
    assert written == ["all"]
