"""When a copy counts as stalled."""

from __future__ import annotations

from dataclasses import replace

from pivotd import limits
from pivotd.core.observation import JobSeen, Observation, Qemu
from pivotd.core.pivot import Phase
from pivotd.core.request import CopyOptions
from pivotd.engine.pace import Pace, stalls_after_s
from tests.core.build import pivot

MIB = 1 << 20


def noted(pace: Pace, at_s: float, backlog_mib: int, copied_mib: int, phase: Phase = Phase.COPYING) -> float:
    """Take one look into account; return for how long there was no progress then."""
    copying = pivot(phase)
    job = JobSeen("running", backlog_bytes=backlog_mib * MIB, copied_bytes=copied_mib * MIB)
    pace.note(copying, Observation(Qemu.SAME, jobs={copying.disks[0].job: job}), at_s)
    return pace.stalled_s(at_s)


def test_a_copy_that_goes_on_is_not_stalled():
    """However long it takes, and whether or not its first look came before QEMU knew of any work."""
    for first in (0, 100):
        pace = Pace()
        noted(pace, 0, first, 0)
        assert [noted(pace, second, 100 - second, second) for second in range(1, 100)] == [0] * 99


def test_a_job_that_has_not_begun_is_stalled():
    """It shows a backlog of nothing: somebody has paused it at once."""
    pace = Pace()
    assert [noted(pace, second, 0, 0) for second in (0, 10, 20)] == [0, 10, 20]
    assert noted(pace, 30, 100, 0) == 0, "now it has begun"
    assert noted(pace, 40, 100, 0) == 10


def test_what_a_job_counts_is_not_written_by_the_guest():
    """Nothing is known until every job has counted; what it counts then is no rate of anybody's."""
    pace = Pace()
    noted(pace, 0, 0, 0)
    assert (pace.backlog_bytes, pace.copied_bytes) == (None, None)
    noted(pace, 1, 1000, 0)
    assert (pace.backlog_bytes, pace.copied_bytes) == (1000 * MIB, 0)
    assert pace.dirty_bytes_per_s is None
    noted(pace, 2, 900, 100)
    assert (pace.dirty_bytes_per_s, pace.copy_bytes_per_s) == (0, 100 * MIB)


def test_one_job_of_two_has_not_counted():
    """Their sum says nothing yet."""
    copying = pivot(Phase.COPYING, 2)
    first, second = (disk.job for disk in copying.disks)
    jobs = {first: JobSeen("running", backlog_bytes=MIB, copied_bytes=0)}
    for late, known in ((JobSeen("running", None, 0, 0), None), (JobSeen("ready", None, 0, 0), MIB)):
        pace = Pace()
        pace.note(copying, Observation(Qemu.SAME, jobs={**jobs, second: late}), 0)
        assert pace.backlog_bytes == known


def test_a_backlog_that_grows_as_fast_as_it_is_copied_is_stalled():
    """Until it has been smaller than ever before."""
    pace = Pace()
    assert [noted(pace, second, 50, 10 * second) for second in (0, 10, 20)] == [0, 10, 20]
    assert noted(pace, 30, 49, 300) == 0


def test_a_small_backlog_is_enough_once_a_copy_is_ready():
    """The guest writes all the time."""
    pace = Pace()
    noted(pace, 0, 50, 50, Phase.READY)
    assert [noted(pace, second, 0, 100 + second, Phase.READY) for second in (10, 20, 30)] == [0, 0, 0]


def test_a_copy_under_a_limit_may_wait_for_its_next_piece():
    """QEMU copies 16 MiB at once, whatever the limit; the limit ends at READY."""
    plain, slow = pivot(Phase.COPYING), replace(CopyOptions(), bandwidth_bytes_per_s=64 << 10)
    assert stalls_after_s(plain) == limits.STALL_S
    assert stalls_after_s(replace(plain, options=slow)) == limits.STALL_S + 256
    assert stalls_after_s(replace(pivot(Phase.READY), options=slow)) == limits.STALL_S
