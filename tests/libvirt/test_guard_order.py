"""What is on disk before a call of a guarded pivot leaves for libvirtd."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivotd.journal.reader import Reader
from tests.journal_disk.disk import Disk
from tests.journal_disk.server import Fault
from tests.libvirt.between import Between
from tests.libvirt.domain import Domain
from tests.libvirt.guarding import CONFIGURATION, Guarded, until
from tests.libvirt.libvirtd import Libvirtd
from tests.support.daemon import Daemon

pytestmark = pytest.mark.qemu
SUSPEND, RESUME, ABORT = 34, 28, 237
"""Source: libvirt, src/remote/remote_protocol.x, REMOTE_PROC_DOMAIN_SUSPEND, …_RESUME, …_BLOCK_JOB_ABORT."""


def test_each_record_is_there_before_the_call_that_needs_it(libvirtd: Libvirtd, tmp_path: Path):
    """A reader sees what COMMIT has made durable; nothing that comes later is there yet."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    domain.copy()
    last: list[str] = []

    def first() -> bool:
        reader = Reader.attach(tmp_path / "state" / "journal.db")
        events = [record.event for record in reader.events(0) if record.pivot is not None]
        reader.close()
        last.append([event for event in events if event != "writes-counted"][-1])
        return True

    with (
        Between(libvirtd, dict.fromkeys((SUSPEND, ABORT, RESUME), first)) as between,
        Daemon(tmp_path, {}, configuration=CONFIGURATION.format(between.uri)) as daemon,
        Guarded(domain, daemon) as guarded,
    ):
        guarded.await_domain()
        answer = daemon.ctl("libvirt", "pivot", "web1", "vda")
    assert (answer.status, answer.json["outcome"]) == (0, "switched"), answer
    assert last == ["pausing", "asking", "switched"]


@pytest.mark.chaos
@pytest.mark.parametrize("nth", [1, 2, 3], ids=["asking", "writes-counted", "switched"])
@pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["installed"])
def test_the_guest_goes_on_while_the_journal_hangs_in_its_pause(libvirtd: Libvirtd, tmp_path: Path, nth: int):
    """Before libvirt was asked on the old image, and the pivot goes on later; after that once libvirt agrees."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    domain.copy()

    def run_state() -> str:
        spy = domain.spy()
        state = spy.execute("query-status")["status"]
        spy.close()
        return str(state)

    with Disk(tmp_path / "state") as disk:

        def hang() -> bool:
            disk.fail(Fault("fsync", nth, "hang"))
            return True

        with (
            Between(libvirtd, {SUSPEND: hang}) as between,
            Daemon(tmp_path, {}, configuration=CONFIGURATION.format(between.uri)) as daemon,
            Guarded(domain, daemon) as guarded,
        ):
            guarded.await_domain()
            asking = guarded.begin("libvirt", "pivot", "web1", "vda", "--max-pause", "300ms")
            assert disk.await_strike()
            until(lambda: run_state() == "running", "the resume")
            assert domain.root() == f"web1-vda-{0 if nth == 1 else 1}.qcow2"
            disk.fail()
            assert asking.wait(60) == 0
            guarded.await_end()
            guarded.assert_right()
