"""A guest that somebody saves or dumps in its pause: libvirt resumes it only after that, and pivotd must not forget it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.between import Between
from tests.libvirt.domain import Domain
from tests.libvirt.guarding import CONFIGURATION, Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd, Point
from tests.libvirt.test_meddling import state
from tests.support.daemon import Daemon

pytestmark = [pytest.mark.qemu, pytest.mark.guest, pytest.mark.long, pytest.mark.timeout(300)]
GET_JOB_INFO = 163
"""Source: libvirt, src/remote/remote_protocol.x, REMOTE_PROC_DOMAIN_GET_JOB_INFO."""
WATCHED_S = 3.0
IO_HELPER = Path("/usr/lib/libvirt/libvirt_iohelper")
HELD = "being migrated or saved"


@contextlib.contextmanager
def mounted(libvirtd: Libvirtd, *what: str) -> Iterator[None]:
    """Mount something for this libvirtd; the next one has the same mounts."""
    subprocess.run(libvirtd.inside("mount", *what), check=True)
    try:
        yield
    finally:
        subprocess.run(libvirtd.inside("umount", "--lazy", what[-1]), check=True)


@contextlib.contextmanager
def hold_saves(libvirtd: Libvirtd, *, in_the_pipe: bool = True) -> Iterator[Path]:
    """Let no save of this libvirtd come to its end until there is the file whose path is returned, and then fail.

    ``in_the_pipe``: nor further than into a pipe.
    """
    helper, end = libvirtd.directory / "helper", libvirtd.directory / "end"
    read = "" if in_the_pipe else "cat > /dev/null\n"
    helper.write_text(f"#!/bin/sh\n{read}until [ -e {end} ]; do sleep 0.1; done\nexit 1\n")
    helper.chmod(0o755)
    with mounted(libvirtd, "--bind", str(helper), str(IO_HELPER)):
        yield end


@pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["installed"])
def test_a_guest_that_is_being_saved_is_asked_for_at_a_slow_pace(libvirtd: Libvirtd, tmp_path: Path):
    """Pivotd says what its resume waits for; the guest runs on the new image once the save was given up."""
    libvirtd.start()
    domain = Domain(libvirtd).define().boot()  # one with more memory than fits into a pipe
    domain.copy()
    virsh = libvirtd.virsh_session()
    asked: list[float] = []

    def save() -> bool:
        asked.append(time.monotonic())
        if len(asked) == 1:
            virsh.send("managedsave web1")
            until(lambda: "Save" in libvirtd.virsh("domjobinfo", "web1").stdout, "the save")
        between.first[GET_JOB_INFO] = save
        return True

    with (
        hold_saves(libvirtd) as end,
        Between(libvirtd, {GET_JOB_INFO: save}) as between,
        Daemon(tmp_path, {}, configuration=CONFIGURATION.format(between.uri)) as daemon,
        Guarded(domain, daemon) as guarded,
    ):
        guarded.await_domain()
        asking = guarded.begin("libvirt", "pivot", "web1", "vda")
        until(lambda: asked, "the resume")
        until(lambda: len(asked) > 1, "the next try")
        before = len(asked)
        time.sleep(WATCHED_S)
        times = len(asked) - before
        assert times <= WATCHED_S + 1
        until(lambda: HELD in guarded.told(guarded.pivot()["id"]), "the word on the save")
        libvirtd.ask("domjobabort", "web1")
        end.touch()
        assert "error" in virsh.end()
        assert asking.wait(60) == 0
        guarded.await_end()
        guarded.assert_right()
        told = daemon.log_path.read_text().count(HELD)
        assert told <= 8, told


SAVE = "managedsave web1"
DUMP = "dump web1 /var/lib/libvirt/qemu/dump/web1"


@pytest.mark.parametrize(
    ("command", "room", "said"),
    [(SAVE, "20M", "Failed to save"), (DUMP, "1G", "")],
    ids=["a save that fills the disk", "a dump"],
)
def test_the_guest_runs_on_after_a_save_that_has_failed_and_after_a_dump(
    libvirtd: Libvirtd, tmp_path: Path, command: str, room: str, said: str
):
    """QEMU has written all of its memory and stands in postmigrate; libvirt resumes nothing that it has found paused."""
    libvirtd.start()
    domain = Domain(libvirtd).define().boot()
    domain.copy()
    directory = f"/var/lib/libvirt/qemu/{'dump' if command is DUMP else 'save'}"
    subprocess.run(libvirtd.inside("mkdir", "-p", directory), check=True)
    with mounted(libvirtd, "-t", "tmpfs", "-o", f"size={room}", "none", directory):
        answer = during_the_resume(libvirtd, domain, tmp_path, command)
    assert said in answer, answer
    assert said or "error" not in answer, answer


def test_a_save_in_which_libvirtd_dies_is_told(libvirtd: Libvirtd, tmp_path: Path):
    """Nobody can tell it from a migration then: the guest waits, pivotd says for what, and `virsh resume` ends it."""
    libvirtd.start()
    domain = Domain(libvirtd).define().boot()
    domain.copy()
    with (
        hold_saves(libvirtd, in_the_pipe=False) as end,
        guard(tmp_path, libvirtd) as daemon,
        Guarded(domain, daemon) as guarded,
    ):
        guarded.await_domain()
        libvirtd.kill_at(Point("after", "command", '"job-dismiss"', action="stop"))
        virsh = libvirtd.virsh_session()
        guarded.begin("libvirt", "pivot", "web1", "vda")
        until(lambda: state(libvirtd.pid) == "T", "the stop of libvirtd")
        os.kill(daemon.pid, signal.SIGSTOP)
        assert libvirtd.pid is not None
        os.kill(libvirtd.pid, signal.SIGCONT)
        virsh.send(SAVE)
        spy = domain.spy()
        until(lambda: spy.execute("query-status")["status"] == "postmigrate", "the end of QEMU's part of the save")
        spy.close()
        libvirtd.kill()
        end.touch()
        os.kill(daemon.pid, signal.SIGCONT)
        libvirtd.start()
        pivot = guarded.pivot()["id"]
        until(lambda: "let it run (virsh resume)" in guarded.told(pivot), "the word on what to do")
        assert guarded.pivot()["phase"] == "decided"
        libvirtd.ask("resume", "web1")
        guarded.await_end()
        guarded.assert_right()
        virsh.end()


def during_the_resume(libvirtd: Libvirtd, domain: Domain, directory: Path, command: str) -> str:
    """Have virsh run a command right before pivotd's resume, wait for the end of both, and return what virsh says."""
    virsh = libvirtd.virsh_session()
    asked: list[str] = []

    def first() -> bool:
        asked.append(command)
        virsh.send(command)
        until(lambda: "Operation" in libvirtd.virsh("domjobinfo", "web1").stdout or ended(), "its beginning")
        return True

    def ended() -> bool:
        spy = domain.spy()
        try:
            return bool(spy.execute("query-status")["status"] == "postmigrate")
        finally:
            spy.close()

    with (
        Between(libvirtd, {GET_JOB_INFO: first}) as between,
        Daemon(directory, {}, configuration=CONFIGURATION.format(between.uri)) as daemon,
        Guarded(domain, daemon) as guarded,
    ):
        guarded.await_domain()
        asking = guarded.begin("libvirt", "pivot", "web1", "vda")
        until(lambda: asked, "the resume")
        said = virsh.end()
        assert asking.wait(60) == 0
        guarded.await_end()
        guarded.assert_right()
    return said
