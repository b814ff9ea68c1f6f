"""What is decided about a copy whose destination has failed."""

from __future__ import annotations

import pytest

from pivotd.core import names
from pivotd.core.actions import Abandon, Finalize, GoOn, Retreat, Wait
from pivotd.core.observation import JobSeen, Observation
from pivotd.core.pivot import Phase, Pivot
from pivotd.core.request import CopyOptions

from .build import ASKED, PIVOT, decide, pivot, seen

JOB = names.mirror_job(PIVOT, 0)


def resumable(phase: Phase, **changes: object) -> Pivot:
    return pivot(phase, options=CopyOptions(resumable=True), **changes)


def interrupted(status: str = "paused", io_status: str = "nospace", backlog: int = 1, **rest: object) -> Observation:
    return seen(**rest).but(jobs={JOB: JobSeen(status, None, backlog, 5, io_status)})  # type: ignore[arg-type]


@pytest.mark.parametrize("io_status", ["nospace", "failed"])
@pytest.mark.parametrize(("phase", "status"), [(Phase.COPYING, "paused"), (Phase.READY, "standby")])
def test_an_interrupted_copy_is_told_to_go_on(phase: Phase, status: str, io_status: str):
    """While it copies and while it follows the guest."""
    action = decide(resumable(phase), interrupted(status, io_status))
    assert isinstance(action, GoOn)
    assert action.jobs == (JOB,)


def test_one_that_waits_to_be_completed_goes_on_too():
    """It has to follow the guest until somebody completes it."""
    assert isinstance(decide(resumable(Phase.READY, hold=True), interrupted("standby")), GoOn)


def test_the_destination_is_named():
    """People read what to repair."""
    action = decide(resumable(Phase.COPYING), interrupted())
    assert isinstance(action, GoOn)
    assert action.reason.startswith("/new/disk0.qcow2 is full")


def test_a_job_that_somebody_paused_is_left_alone():
    """Without an I/O error it is not ours to resume."""
    assert isinstance(decide(resumable(Phase.COPYING), interrupted(io_status="ok")), Wait)


def test_a_copy_that_is_not_resumable_is_left_alone():
    """QEMU ends its job by itself, unless the destination is full: that passes, and loses nothing."""
    assert isinstance(decide(pivot(Phase.COPYING), interrupted(io_status="failed")), Wait)
    assert isinstance(decide(pivot(Phase.READY), interrupted("standby", "nospace")), GoOn)


def test_a_flush_that_failed_ends_the_copy():
    """With nothing left to write it is the flush that failed: written data may be lost."""
    assert isinstance(decide(resumable(Phase.COPYING), interrupted(io_status="failed", backlog=0)), Abandon)


def test_a_failure_before_anything_is_copied_is_no_failed_flush():
    """While a mirror fills the image with zeroes it shows no bytes at all."""
    now = seen().but(jobs={JOB: JobSeen("paused", None, 0, 0, "failed")})
    assert isinstance(decide(resumable(Phase.COPYING), now), GoOn)


def test_a_full_disk_at_a_flush_does_not_end_the_copy():
    """qcow2 writes its tables then."""
    assert isinstance(decide(resumable(Phase.COPYING), interrupted(io_status="nospace", backlog=0)), GoOn)


def test_a_cancelled_copy_is_not_told_to_go_on():
    """Cancelling comes first."""
    assert isinstance(decide(resumable(Phase.COPYING), interrupted().but(cancelled_by=ASKED)), Abandon)


def test_a_guest_is_not_kept_waiting_in_its_pause():
    """Nothing was completed: the guest goes on with the source, and the copy later."""
    action = decide(resumable(Phase.PAUSING), interrupted("standby", run_state="paused"))
    assert isinstance(action, Retreat)
    assert "is full" in action.reason


def test_a_copy_that_was_told_to_complete_is_given_up():
    """It could go to pending at any time, and then hold the writes of a running guest."""
    now = interrupted("standby", run_state="paused").but(completing=frozenset({JOB}))
    assert isinstance(decide(resumable(Phase.PAUSING), now), Abandon)


def test_the_pause_of_a_sound_copy_is_as_ever():
    """Pending jobs are finalized."""
    assert isinstance(decide(resumable(Phase.PAUSING), seen("paused", "pending")), Finalize)
