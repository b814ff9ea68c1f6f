"""pivotd killed at every point of a pivot: real QEMU, real SIGKILL, one claim for each way to kill.

``python -m tests.chaos.campaign`` runs the same with every query message too, with more disks, with ``-drive`` disks.
"""

from __future__ import annotations

import pytest

from tests.chaos import campaign
from tests.chaos.rounds import Setup

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(400)]

ROUNDS_MIN = 60


def assert_kept(jobs: list[campaign.Job], *, struck_min: int) -> None:
    ran, struck, problems = campaign.run(jobs)
    assert problems == []
    assert struck >= struck_min, f"only {struck} of {ran} rounds reached their point"


def test_at_every_message_with_qemu_alive():
    """After the restart the verdict is the image QEMU uses, the run state is what it was, nothing is left behind."""
    assert_kept(campaign.messages_jobs(Setup(), kill_qemu=False, thin=True), struck_min=ROUNDS_MIN)


def test_at_every_message_with_qemu_killed_too():
    """The journal alone names an image that holds every acknowledged block."""
    assert_kept(campaign.messages_jobs(Setup(), kill_qemu=True, thin=True), struck_min=ROUNDS_MIN)


@pytest.mark.parametrize("kill_qemu", [False, True], ids=["alive", "killed-too"])
def test_at_every_flush_of_the_journal(kill_qemu: bool):
    """Killed at the entry of each fdatasync, before it took effect."""
    assert_kept(campaign.fdatasync_jobs(Setup(), kill_qemu=kill_qemu), struck_min=7)


@pytest.mark.parametrize("first", [campaign.PAUSE_POINTS[0], campaign.PAUSE_POINTS[2]], ids=str)
def test_again_at_every_step_of_the_recovery(first: campaign.Point):
    """Killed in the pause, and killed again wherever the recovery is."""
    assert_kept(campaign.recovery_jobs(Setup(), first, thin=True), struck_min=10)


def test_a_guest_that_was_paused_before_stays_so():
    """Killed at every step of a pivot of a paused guest: it is never started."""
    jobs = campaign.messages_jobs(Setup(paused=True), kill_qemu=False, thin=True)
    wanted = {"job-complete", "job-finalize", "query-block", "job-dismiss", "blockdev-mirror"}
    late = [job for job in jobs if job.point is not None and job.point.label.partition(":")[2] in wanted]
    assert_kept(late, struck_min=10)


def test_three_disks_killed_between_the_switches():
    """A set that was half switched is finished or taken back as one."""
    jobs = campaign.messages_jobs(Setup(disks=3), kill_qemu=False, thin=True)
    wanted = {"job-complete", "job-finalize"}
    late = [job for job in jobs if job.point is not None and job.point.label.partition(":")[2] in wanted]
    assert_kept(late, struck_min=15)
