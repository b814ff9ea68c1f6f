"""The record of a switch hangs in the journal's storage: the guest has to wait for it, and that is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.process import call
from tests.journal_disk.disk import Disk
from tests.journal_disk.fixture import WAIT_S, Ground
from tests.journal_disk.server import Fault
from tests.support.proxy import Message
from tests.support.waiting import until

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(300)]


def test_a_guest_that_waits_for_the_record_of_its_switch_is_told_of(tmp_path: Path):
    """By the log and by health, as long as it lasts; then it runs on, and nothing is wrong any more."""
    with Disk(tmp_path / "state") as disk, Ground(tmp_path, disk) as ground:
        ground.daemon.start()
        struck: list[Message] = []

        def strike(message: Message) -> None:
            if message.label == "return:job-finalize" and not struck:
                struck.append(message)
                ground.disk.fail(Fault("fsync", 1, "hang"))

        def health() -> str:
            return str(call(ground.daemon, "GET", "/v1/health"))

        ground.hook = strike
        pivot = ground.copy()["id"]
        assert until(lambda: "storage of the journal does not answer" in health(), WAIT_S), health()
        assert ground.run_state() == "paused"
        ground.disk.fail()
        assert ground.rest(pivot)["outcome"] == "switched"
        assert ground.await_running(WAIT_S)
        assert "does not answer" not in health()
        assert ground.daemon.log_path.read_text().count('"pivot.guest-waits"') == 1
