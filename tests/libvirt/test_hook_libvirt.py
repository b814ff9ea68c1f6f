"""The hook as libvirt itself runs it: who may start, who is never refused, and a QEMU that hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd.core.pivot import Image, Outcome, Phase
from pivotd.journal.journal import Journal
from pivotd.libvirt_hook import DOMAIN_BOUND_S, JOURNAL
from tests.journal.samples import make_pivot
from tests.libvirt.domain import ABORT_POINTS, PIVOT_POINTS, Domain
from tests.libvirt.libvirtd import Libvirtd, LibvirtError
from tests.support.qemu import create_image
from tests.support.waiting import until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

SLACK_S = 20.0


def install(libvirtd: Libvirtd, journal: Path) -> None:
    """Install the hook, which reads another journal than this host's."""
    libvirtd.install_hook()
    code = libvirtd.directory / "etc/hooks/pivotd-libvirt-hook.py"
    text = code.read_text()
    assert str(JOURNAL) in text
    code.write_text(text.replace(str(JOURNAL), str(journal)))


def call_stale(state_dir: Path, domain: Domain) -> None:
    """Write a journal in which a pivot has moved vda of the domain to its image 1."""

    async def write() -> None:
        journal = Journal.open(state_dir)
        await journal.check_file()
        pivot = make_pivot(1, disk="vda")
        (disk,) = pivot.disks
        source, destination = (Image(str(domain.image("vda", number)), "qcow2", f"n{number}") for number in (0, 1))
        disk = replace(disk, source=source, destination=destination)
        before, _ = await journal.accept(replace(pivot, disks=(disk,)), {})
        disks = (replace(disk, outcome=Outcome.SWITCHED),)
        await journal.advance(before, "switched", {}, phase=Phase.CLOSED, disks=disks)
        await journal.close()

    state_dir.mkdir()
    asyncio.run(write())


@pytest.fixture
def state_dir(libvirtd: Libvirtd) -> Path:
    """Where the hook of every release sees it: another one has its own /tmp."""
    return libvirtd.directory / "images" / "state"


def test_a_start_on_a_stale_image_is_refused_and_a_running_domain_is_never_touched(
    libvirtd: Libvirtd, state_dir: Path
) -> None:
    """Virsh shows the right image; and libvirtd, started again, keeps the domain that runs on the stale one."""
    install(libvirtd, state_dir / "journal.db")
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    pid = domain.qemu_pid()
    call_stale(state_dir, domain)
    libvirtd.stop()
    libvirtd.start()
    assert domain.qemu_pid() == pid
    assert domain.believe().state == "running"
    libvirtd.ask("destroy", "web1")
    with pytest.raises(LibvirtError, match=f"vda must start from {domain.image('vda', 1)}, not from"):
        libvirtd.ask("start", "web1")


@pytest.mark.long
def test_a_saved_domain_is_restored(libvirtd: Libvirtd, state_dir: Path) -> None:
    """Its memory belongs to the image that it was saved with, in a managed save and in a file."""
    install(libvirtd, state_dir / "journal.db")
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    call_stale(state_dir, domain)
    libvirtd.ask("managedsave", "web1")
    libvirtd.ask("start", "web1")
    saved = libvirtd.directory / "saved"
    libvirtd.ask("save", "web1", str(saved))
    libvirtd.ask("restore", str(saved))
    assert domain.root() == "web1-vda-0.qcow2"
    libvirtd.ask("destroy", "web1")
    with pytest.raises(LibvirtError, match="must start from"):
        libvirtd.ask("start", "web1")


@pytest.mark.long
@pytest.mark.parametrize("defined", ["the old image", "the new image"])
def test_a_snapshot_is_reverted_to(libvirtd: Libvirtd, state_dir: Path, defined: str) -> None:
    """Going back is a decision, whatever the next boot would start from."""
    install(libvirtd, state_dir / "journal.db")
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    libvirtd.ask("snapshot-create-as", "web1", "before")
    libvirtd.ask("destroy", "web1")
    call_stale(state_dir, domain)
    if defined == "the new image":
        text = libvirtd.ask("dumpxml", "web1", "--inactive")
        other = libvirtd.directory / "other.xml"
        other.write_text(text.replace(str(domain.image("vda", 0)), str(domain.image("vda", 1))))
        libvirtd.ask("define", str(other))
    libvirtd.ask("snapshot-revert", "web1", "before")
    assert domain.root() == "web1-vda-0.qcow2"


@pytest.fixture
def other_host() -> Iterator[Libvirtd]:
    with Libvirtd() as libvirtd:
        yield libvirtd


@pytest.mark.long
def test_a_migration_comes_in(libvirtd: Libvirtd, other_host: Libvirtd, state_dir: Path) -> None:
    """This host's journal knows nothing of what the other host has done to the disk."""
    if libvirtd.version() != other_host.version():
        pytest.skip("another release does not see the images of this one")
    install(other_host, state_dir / "journal.db")
    libvirtd.start()
    other_host.start()
    domain = Domain(libvirtd, guest=False, second_monitor=False).define().boot()
    call_stale(state_dir, domain)
    libvirtd.ask(
        "migrate", "web1", other_host.uri, "--live", "--p2p", "--unsafe", "--persistent",
        "--migrateuri", f"unix://{libvirtd.directory}/migrate.sock",
    )  # fmt: skip
    assert other_host.ask("domstate", "web1") == "running"
    other_host.ask("destroy", "web1")
    with pytest.raises(LibvirtError, match="must start from"):
        other_host.ask("start", "web1")


@pytest.mark.long
def test_libvirtd_starts_beside_a_qemu_that_hangs(libvirtd: Libvirtd) -> None:
    """It waits for the bound and no longer; the copy goes on when QEMU does."""
    libvirtd.install_hook()
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    domain.copy()
    libvirtd.kill()
    pid = domain.qemu_pid()
    os.kill(pid, signal.SIGSTOP)
    started_s = time.monotonic()
    libvirtd.start()
    took_s = time.monotonic() - started_s
    os.kill(pid, signal.SIGCONT)
    assert DOMAIN_BOUND_S <= took_s < DOMAIN_BOUND_S + SLACK_S
    assert until(lambda: domain.believe().mirror == "yes")
    libvirtd.ask("blockjob", "web1", "vda", "--pivot")
    assert domain.agrees()


@pytest.mark.parametrize(
    ("job", "end"),
    [
        ("commit", "pivot"),
        pytest.param("copy", "abort", marks=pytest.mark.long),
        pytest.param("commit", "abort", marks=pytest.mark.long),
        ("copy", "pivot"),
        pytest.param("copy of a chain", "pivot", marks=pytest.mark.long),
        pytest.param("shallow copy", "pivot", marks=pytest.mark.long),
        pytest.param("shallow copy to an image that is there", "pivot", marks=pytest.mark.long),
    ],
)
@pytest.mark.thinned(2)
def test_a_libvirtd_that_was_started_without_the_hook_is_mended_by_the_next_start(
    libvirtd: Libvirtd, job: str, end: str
) -> None:
    """It has dropped the job from its file, and waits for the end of it: whoever installs the hook then gets out of it."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    if job not in {"copy", "commit"}:
        domain.snapshot("vda", 5)
    if job == "commit":
        domain.snapshot()
        domain.commit()
    elif job == "shallow copy to an image that is there":
        create_image(domain.image("vda", 1), options=f"backing_file={domain.image()},backing_fmt=qcow2")
        domain.copy("vda", 1, "--shallow", "--reuse-external")
    else:
        domain.copy("vda", 1, *["--shallow"] * ("shallow" in job))
    libvirtd.kill_at((PIVOT_POINTS if end == "pivot" else ABORT_POINTS)["K4"])
    virsh = libvirtd.virsh_session()
    virsh.send(f"blockjob web1 vda --{end}")
    libvirtd.await_death()
    virsh.end()
    libvirtd.never_kill()
    libvirtd.start()
    if domain.agrees():
        return  # libvirt itself came to the right end
    assert domain.believe().mirror is not None
    libvirtd.stop()
    libvirtd.install_hook()
    libvirtd.start()
    assert "(repaired: " in libvirtd.hook_said()
    until(domain.agrees)
    if job not in {"commit", "copy"}:
        assert layers(libvirtd) == ["web1-vda-1.qcow2", *["web1-vda-0.qcow2"] * ("shallow" in job)]
    assert domain.is_healthy()


def layers(libvirtd: Libvirtd) -> list[str]:
    """Return the images of the running domain's disk as libvirt knows them, from the top down."""
    element = ET.fromstring(libvirtd.ask("dumpxml", "web1")).find("devices/disk")
    found = []
    while element is not None and (source := element.find("source")) is not None:
        found.append(Path(source.get("file", "")).name)
        element = element.find("backingStore")
    return found
