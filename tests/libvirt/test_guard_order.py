"""What is on disk before a call of a guarded pivot leaves for libvirtd."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pivotd.client import Client
from pivotd.journal.reader import Reader
from tests.journal_disk.disk import Disk
from tests.journal_disk.server import Fault
from tests.libvirt.between import Between
from tests.libvirt.domain import Domain
from tests.libvirt.guarding import CONFIGURATION, WAIT_S, Guarded, until
from tests.libvirt.libvirtd import Libvirtd
from tests.support.daemon import Daemon

pytestmark = pytest.mark.qemu
SUSPEND, RESUME, ABORT = 34, 28, 237
"""Source: libvirt, src/remote/remote_protocol.x, REMOTE_PROC_DOMAIN_SUSPEND, …_RESUME, …_BLOCK_JOB_ABORT."""
OF_TIMERS = frozenset({1, 2, 273})
"""Connections, their ends, and lists of the domains, now and then. Source: libvirt's remote_protocol.x."""
READERS = 10
READERS_COME_S = 0.3
"""While the call that pauses the guest is on its way, readers ask for what needs libvirt."""


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


@pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["installed"])
def test_no_reader_asks_libvirt_while_the_guest_is_paused(libvirtd: Libvirtd, tmp_path: Path):
    """Each call would lengthen the pause: libvirt gets the same ones in a pause with ten readers and in one without."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    pauses: list[list[int]] = []
    waited: list[int] = []
    asking: set[int] = set()
    stop = threading.Event()

    def paused() -> bool:
        time.sleep(READERS_COME_S if threads else 0)
        between.calls.clear()
        return True

    def resumed() -> bool:
        pauses.append(list(between.calls))
        waited.append(len(asking))
        return True

    def read() -> None:
        client = Client(str(daemon.socket), patience_s=WAIT_S)
        while not stop.is_set():
            asking.add(threading.get_ident())
            client.disks("web1")
            client.verdicts("web1")
            asking.discard(threading.get_ident())

    threads: list[threading.Thread] = []
    with (
        Between(libvirtd, {}) as between,
        Daemon(tmp_path, {}, configuration=CONFIGURATION.format(between.uri)) as daemon,
        Guarded(domain, daemon) as guarded,
    ):
        guarded.await_domain()
        try:
            for number in (1, 2, 3):
                between.first |= {SUSPEND: paused, RESUME: resumed}
                assert daemon.ctl("copy", "web1", f"vda={domain.image('vda', number)}").status == 0
                if number == 1:
                    threads += [threading.Thread(target=read, daemon=True) for _ in range(READERS)]
                    for thread in threads:
                        thread.start()
        finally:
            stop.set()
            for thread in threads:
                thread.join(WAIT_S)
    quiet, *read_meanwhile = [sorted(call for call in calls if call not in OF_TIMERS) for calls in pauses]
    assert read_meanwhile == [quiet, quiet]
    assert waited[0] == 0
    assert min(waited[1:]) > 0, "no reader has asked in the pause: nothing is shown"


@pytest.mark.chaos
@pytest.mark.parametrize("nth", [1, 2, 3], ids=["asking", "writes-counted", "switched"])
@pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["installed"])
@pytest.mark.thinned(3)
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
            # Not much longer, and long enough for what comes before libvirt is asked: the writes are counted then.
            asking = guarded.begin("libvirt", "pivot", "web1", "vda", "--max-pause", "2s")
            assert disk.await_strike()
            until(lambda: run_state() == "running", "the resume")
            assert domain.root() == f"web1-vda-{0 if nth == 1 else 1}.qcow2"
            disk.fail()
            assert asking.wait(60) == 0
            guarded.await_end()
            guarded.assert_right()
