"""A guest that somebody saves in its pause: libvirt resumes it only after that."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.libvirt.between import Between
from tests.libvirt.domain import Domain
from tests.libvirt.guarding import CONFIGURATION, Guarded, until
from tests.libvirt.libvirtd import Libvirtd
from tests.support.daemon import Daemon

pytestmark = [pytest.mark.qemu, pytest.mark.guest, pytest.mark.long, pytest.mark.timeout(180)]
GET_JOB_INFO = 163
"""Source: libvirt, src/remote/remote_protocol.x, REMOTE_PROC_DOMAIN_GET_JOB_INFO."""
WATCHED_S = 3.0
IO_HELPER = Path("/usr/lib/libvirt/libvirt_iohelper")
HELD = "being migrated or saved"


def hold_saves(libvirtd: Libvirtd) -> Path:
    """Let no save of this libvirtd come further than into a pipe, until there is the file whose path is returned."""
    helper, end = libvirtd.directory / "helper", libvirtd.directory / "end"
    helper.write_text(f"#!/bin/sh\nuntil [ -e {end} ]; do sleep 0.1; done\nexit 1\n")
    helper.chmod(0o755)
    subprocess.run(libvirtd.inside("mount", "--bind", str(helper), str(IO_HELPER)), check=True)
    return end


@pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["installed"])
def test_a_guest_that_is_being_saved_is_asked_for_at_a_slow_pace(libvirtd: Libvirtd, tmp_path: Path):
    """Pivotd says what its resume waits for; the guest runs on the new image once the save was given up."""
    libvirtd.start()
    domain = Domain(libvirtd).define().boot()  # one with more memory than fits into a pipe
    domain.copy()
    end = hold_saves(libvirtd)
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
