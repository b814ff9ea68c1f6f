"""The decision table of docs/protocol.md, row by row, and its properties over every combination."""

from __future__ import annotations

import itertools

import pytest

from pivotd.core import actions as a
from pivotd.core import names
from pivotd.core.observation import JobSeen, Observation, Qemu, Root
from pivotd.core.phases import is_allowed
from pivotd.core.pivot import Outcome, Phase
from pivotd.core.request import CopyOptions

from .build import ASKED, PIVOT, decide, disk, jobs, pivot, seen

RECOVERED = {"stop_sent": None, "completing": None}
UNKNOWN_2 = Observation(Qemu.REPLACED, uses_destination=True)


def outcomes(action: a.Action) -> list[Outcome]:
    assert isinstance(action, a.RecordOutcome), action
    return [outcome for _, outcome in action.outcomes]


# -- recovery, row by row -----------------------------------------------------------------------------------------


def test_paused_all_source_ready_goes_on_with_complete():
    """Same QEMU, our pause, every root the source, jobs ready: bring the jobs to pending."""
    assert decide(pivot(Phase.PAUSING), seen("paused", **RECOVERED)) == a.Complete(jobs(0))


def test_a_reset_during_our_pause_is_still_our_pause():
    """A guest reset while paused shows as prelaunch: the same row."""
    assert decide(pivot(Phase.PAUSING), seen("prelaunch", **RECOVERED)) == a.Complete(jobs(0))


def test_paused_some_pending_brings_the_others_to_pending_first():
    """Nothing is finalized before everything is pending."""
    assert decide(pivot(Phase.PAUSING, 2), seen("paused", ["pending", "ready"], **RECOVERED)) == a.Complete(jobs(1))


def test_paused_all_pending_finalizes_all():
    """The barrier: all pending, then all finalized."""
    assert decide(pivot(Phase.PAUSING, 2), seen("paused", "pending", n=2, **RECOVERED)) == a.Finalize(jobs(0, 1))


@pytest.mark.parametrize("ended", ["failed", "concluded", "gone", "aborting"])
def test_paused_all_source_with_an_ended_job_stays_on_the_source(ended: str):
    """One job failed, cancelled or gone: nothing is switched."""
    assert isinstance(decide(pivot(Phase.PAUSING, 2), seen("paused", ["pending", ended], **RECOVERED)), a.Abandon)


def test_paused_some_destination_finalizes_the_rest():
    """A crash between two finalizes is finished forward."""
    action = decide(
        pivot(Phase.PAUSING, 2), seen("paused", ["concluded", "pending"], ["destination", "source"], **RECOVERED)
    )
    assert action == a.Finalize(jobs(1))


@pytest.mark.parametrize("job", ["concluded", "failed", "gone"])
def test_paused_all_destination_is_switched_whatever_the_jobs_say(job: str):
    """The graph decides, in both directions: an error in the job does not mean that the root stayed."""
    assert outcomes(decide(pivot(Phase.PAUSING), seen("paused", job, "destination", **RECOVERED))) == [Outcome.SWITCHED]


def test_concluded_without_error_is_not_switched():
    """A cancelled READY job says COMPLETED without an error: the root is the source, so nothing was switched."""
    assert not isinstance(decide(pivot(Phase.PAUSING), seen("paused", "concluded", "source")), a.RecordOutcome)


def test_a_mixed_set_that_cannot_be_finished_is_taken_back():
    """One disk moved, the other's job failed: back to the sources while the guest is still."""
    action = decide(
        pivot(Phase.PAUSING, 2), seen("paused", ["concluded", "failed"], ["destination", "source"], **RECOVERED)
    )
    assert action == a.RollBack(("disk0",))


def test_a_mixed_set_that_cannot_be_taken_back_is_recorded_as_it_is():
    """Every disk is complete although the set is split."""
    found = seen("paused", ["concluded", "failed"], ["destination", "source"], rollback_failed=True)
    assert outcomes(decide(pivot(Phase.PAUSING, 2), found)) == [Outcome.SWITCHED, Outcome.KEPT]


def test_found_running_before_the_switch_starts_the_pause_again():
    """`stop` never happened, or somebody resumed."""
    assert isinstance(decide(pivot(Phase.PAUSING), seen("running", **RECOVERED)), a.Retreat)


def test_a_mirror_that_is_paused_is_waited_for():
    """No pause of the guest for last bytes that cannot come."""
    assert isinstance(decide(pivot(Phase.READY, 2), seen(jobs=["ready", "standby"])), a.Wait)
    assert isinstance(decide(pivot(Phase.READY, 2), seen(jobs=["ready", "ready"])), a.Converge)


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.READY])
def test_a_destination_that_lost_its_name_is_given_up(phase: Phase):
    """Its data would be gone with QEMU: the reason is what became of it."""
    assert decide(pivot(phase), seen(lost="/new/disk0.qcow2 was deleted")) == a.Abandon("/new/disk0.qcow2 was deleted")


@pytest.mark.parametrize("jobs", ["ready", "pending"])
def test_a_destination_that_lost_its_name_under_a_pause_is_given_up(jobs: str):
    """Nothing has moved yet, and the guest can go on with the source; a pause can outlive pivotd for hours."""
    lost = "/new/disk0.qcow2 was deleted or renamed by another program"
    assert decide(pivot(Phase.PAUSING), seen("paused", jobs, lost=lost)) == a.Abandon(lost)


def test_a_destination_that_lost_its_name_after_the_switch_is_the_image_all_the_same():
    """The guest may have been told of a switch; a name that is gone is no evidence against it."""
    action = decide(pivot(Phase.PAUSING), seen("paused", "concluded", "destination", lost="gone"))
    assert outcomes(action) == [Outcome.SWITCHED]


def test_found_running_with_a_pending_job_never_finalizes():
    """A write queued while pending would land on the new root: cancel, never stop and finalize from here."""
    assert isinstance(decide(pivot(Phase.PAUSING), seen("running", "pending", **RECOVERED)), a.Abandon)


def test_found_running_on_the_destination_is_recorded_as_seen():
    """Somebody resumed after the switch: the destination has newer writes."""
    assert outcomes(decide(pivot(Phase.PAUSING), seen("running", "concluded", "destination"))) == [Outcome.SWITCHED]


@pytest.mark.parametrize("run_state", ["paused", "running"])
@pytest.mark.parametrize("phase", [Phase.PAUSING, Phase.CANCELLING])
@pytest.mark.parametrize("status", ["running", "ready", "standby", "pending"])
def test_a_reverse_mirror_that_lives_is_cancelled_before_any_outcome(phase: Phase, run_state: str, status: str):
    """It was left by a process that died, or was too slow, and could move the root back under a `switched` record."""
    reverse = names.reverse_job(PIVOT, 0)
    found = seen(run_state, "concluded", "destination", **RECOVERED)
    found = found.but(jobs={**found.seen.jobs, reverse: JobSeen(status)})
    assert decide(pivot(phase, owes_resume=True), found) == a.CancelJobs((reverse,), resume=False)


def test_a_reverse_mirror_that_has_ended_is_in_nobodys_way():
    """The root says what it did."""
    found = seen("paused", "concluded", "destination", **RECOVERED)
    found = found.but(jobs={**found.seen.jobs, names.reverse_job(PIVOT, 0): JobSeen("concluded", "Operation canceled")})
    assert outcomes(decide(pivot(Phase.PAUSING), found)) == [Outcome.SWITCHED]


@pytest.mark.parametrize("state", ["io-error", "shutdown", "guest-panicked", "internal-error"])
def test_another_still_state_is_recorded_by_the_roots(state: str):
    """The run state is left alone and the roots name the outcome."""
    assert outcomes(decide(pivot(Phase.PAUSING), seen(state, "concluded", "destination"))) == [Outcome.SWITCHED]
    assert isinstance(decide(pivot(Phase.PAUSING), seen(state, "ready")), a.Abandon)


def test_a_resume_is_not_forced_on_another_state():
    """A guest in io-error stays in io-error."""
    before = pivot(Phase.DECIDED, owes_resume=True, disks=(disk(0, Outcome.SWITCHED),))
    assert decide(before, seen("io-error", "concluded", "destination")) == a.NoteResumed("io-error")


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.CLOSED])
def test_a_silent_qemu_decides_nothing(phase: Phase):
    """Alive but silent: keep asking."""
    assert isinstance(decide(pivot(phase), Observation(Qemu.SILENT)), a.AskAgain)


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.COPYING, Phase.READY, Phase.PAUSING, Phase.CANCELLING])
def test_gone_means_the_source(phase: Phase):
    """QEMU gone and no `switched` record: the source."""
    assert outcomes(decide(pivot(phase, 2), Observation(Qemu.GONE))) == [Outcome.KEPT, Outcome.KEPT]


def test_another_qemu_on_the_source_means_the_source():
    """Another process, using the source."""
    assert outcomes(decide(pivot(Phase.PAUSING), Observation(Qemu.REPLACED, uses_source=True))) == [Outcome.KEPT]


def test_another_qemu_on_the_destination_needs_a_person():
    """Another process, using the destination: a contradiction."""
    assert outcomes(decide(pivot(Phase.PAUSING), Observation(Qemu.REPLACED, uses_destination=True))) == [
        Outcome.UNKNOWN
    ]


def test_after_an_unknown_outcome_nothing_is_resumed_or_removed():
    """Both images are kept as they are for a person."""
    before = pivot(Phase.DECIDED, owes_resume=True, disks=(disk(0, Outcome.UNKNOWN),))
    assert decide(before, seen("paused", "concluded", "other")) == a.Close()


# -- the pause ----------------------------------------------------------------------------------------------------


def test_a_fresh_intent_stops_the_guest_first():
    """`stop` precedes `job-complete`."""
    assert decide(pivot(Phase.PAUSING), seen("running", stop_sent=False)) == a.Stop()


def test_after_a_quick_flush_complete_follows_stop_in_one_write():
    """Order alone matters there: QEMU runs the commands one after the other."""
    assert decide(pivot(Phase.PAUSING), seen("running", stop_sent=False, quick=True)) == a.Stop(jobs(0))


def test_a_guest_that_was_paused_before_is_never_stopped_nor_resumed():
    """The pause is not ours."""
    before = pivot(Phase.PAUSING, run_state_before="paused", owes_resume=False)
    assert decide(before, seen("paused", stop_sent=False)) == a.Complete(jobs(0))
    after = pivot(Phase.DECIDED, run_state_before="paused", disks=(disk(0, Outcome.SWITCHED),))
    assert decide(after, seen("paused", "concluded", "destination")) == a.CleanUp()


def test_deadline_before_complete_keeps_the_mirror():
    """Nothing was completed: the guest goes on, the mirror stays ready."""
    found = seen("paused", stop_sent=True, deadline_passed=True)
    assert isinstance(decide(pivot(Phase.PAUSING), found), a.Retreat)


def test_deadline_after_complete_gives_the_copy_up():
    """A completed job cannot go back to ready."""
    found = seen("paused", stop_sent=True, deadline_passed=True, completing=frozenset(jobs(0)))
    assert isinstance(decide(pivot(Phase.PAUSING), found), a.Abandon)


def test_deadline_after_the_first_finalize_goes_forward():
    """Finalizing does no I/O: finishing is quicker than going back."""
    found = seen("paused", ["concluded", "pending"], ["destination", "source"], deadline_passed=True)
    assert decide(pivot(Phase.PAUSING, 2), found) == a.Finalize(jobs(1))


def test_the_last_attempt_holds_the_pivot_at_ready():
    """After the last try the pivot waits for a person, with the mirror in place."""
    before = pivot(Phase.PAUSING, attempt=3, options=CopyOptions(attempts=3))
    action = decide(before, seen("paused", stop_sent=True, deadline_passed=True))
    assert isinstance(action, a.Retreat)
    assert action.hold


def test_a_foreign_root_is_unknown():
    """Neither image under the device: somebody else has changed the graph."""
    assert outcomes(decide(pivot(Phase.PAUSING), seen("paused", "ready", "other"))) == [Outcome.UNKNOWN]


# -- before and after ---------------------------------------------------------------------------------------------


def test_preparation_takes_the_steps_in_order_and_only_once():
    """Each step's evidence in QEMU leads to the next; the nonce comes first."""
    before = pivot(Phase.PREPARING)
    bare = seen(jobs="gone", has_nonce=False)
    c, f, q, d = (
        names.create_file_job(PIVOT, 0),
        names.file_node(PIVOT, 0),
        names.create_format_job(PIVOT, 0),
        names.destination_node(PIVOT, 0),
    )
    assert decide(before, bare) == a.PlaceNonce()
    found = bare.but(has_nonce=True)
    assert decide(before, found) == a.Prepare(0, a.Step.CREATE_FILE)
    found = found.but(jobs={c: JobSeen("concluded")})
    assert decide(before, found) == a.Prepare(0, a.Step.OPEN_FILE)
    found = found.but(nodes=frozenset({f}))
    assert decide(before, found) == a.Prepare(0, a.Step.CREATE_FORMAT)
    found = found.but(jobs={c: JobSeen("concluded"), q: JobSeen("concluded")})
    assert decide(before, found) == a.Prepare(0, a.Step.OPEN_FORMAT)
    found = found.but(nodes=frozenset({f, d}))
    assert decide(before, found) == a.Prepare(0, a.Step.START_JOB)
    found = found.but(jobs={**found.seen.jobs, jobs(0)[0]: JobSeen("running")})
    assert decide(before, found) == a.Advance(Phase.COPYING)


def test_a_failed_creation_is_an_end():
    """QEMU could not create the destination: its words are the reason."""
    found = seen(jobs="gone", has_nonce=True)
    found = found.but(jobs={names.create_file_job(PIVOT, 0): JobSeen("concluded", "No space left on device")})
    action = decide(pivot(Phase.PREPARING), found)
    assert isinstance(action, a.Abandon)
    assert "No space left" in action.reason


def test_ready_and_held_waits_for_a_person():
    """--no-pivot."""
    assert isinstance(decide(pivot(Phase.READY, hold=True), seen()), a.Wait)


def test_ready_resumes_a_guest_that_a_given_up_pause_left():
    """Killed between the record of giving up and `cont`."""
    assert decide(pivot(Phase.READY, owes_resume=True), seen("paused")) == a.Resume()


def test_a_failed_copy_stays_on_the_source():
    """The job ended by itself."""
    assert isinstance(decide(pivot(Phase.COPYING), seen(jobs="failed")), a.Abandon)


def test_cancelling_resumes_the_guest_in_the_same_write():
    """The guest must not wait for a job that takes its time to end."""
    before = pivot(Phase.CANCELLING, owes_resume=True)
    assert decide(before, seen("paused", "pending")) == a.CancelJobs(jobs(0), resume=True)


def test_cancelled_is_kept_once_every_job_has_ended():
    """The outcome is recorded from the graph, after the jobs."""
    assert outcomes(decide(pivot(Phase.CANCELLING), seen("running", "failed"))) == [Outcome.KEPT]


def test_a_switch_that_won_against_a_cancel_is_recorded_as_switched():
    """The graph says so."""
    assert outcomes(decide(pivot(Phase.CANCELLING), seen("running", "concluded", "destination"))) == [Outcome.SWITCHED]


# -- properties over everything -----------------------------------------------------------------------------------

STATES = ["running", "suspended", "paused", "prelaunch", "io-error", "shutdown", "guest-panicked", "postmigrate"]
JOBS = [
    "created",
    "running",
    "paused",
    "ready",
    "standby",
    "waiting",
    "pending",
    "aborting",
    "concluded",
    "failed",
    "gone",
]


def every_observation():
    """Every run state, pair of jobs, pair of roots, and memory of the process."""
    memories = [
        {"stop_sent": None, "completing": None},
        {"stop_sent": False, "completing": frozenset()},
        {"stop_sent": True, "completing": frozenset()},
        {"stop_sent": True, "completing": frozenset(jobs(0, 1))},
        {"stop_sent": True, "completing": frozenset(jobs(0, 1)), "deadline_passed": True},
        {"stop_sent": True, "completing": frozenset(), "deadline_passed": True},
        {"stop_sent": True, "completing": frozenset(), "cancelled_by": ASKED},
        {"stop_sent": True, "completing": frozenset(jobs(0)), "rollback_failed": True},
    ]
    for state, pair, roots, memory in itertools.product(
        STATES, itertools.product(JOBS, JOBS), itertools.product(Root, Root), memories
    ):
        yield seen(state, list(pair), [str(root) for root in roots], **memory)


def phase_after(action: a.Action) -> Phase | None:
    """Return the phase that an action records, None for one that records none."""
    match action:
        case a.Advance(phase):
            return phase
        case a.Retreat():
            return Phase.READY
        case a.Abandon():
            return Phase.CANCELLING
        case a.RecordOutcome():
            return Phase.DECIDED
        case a.Converge():
            return Phase.PAUSING
        case a.Close():
            return Phase.CLOSED
    return None


def test_every_state_has_a_decision_and_none_breaks_the_rules():
    """Exhaustive over phases, run states, jobs, roots and memory of two disks.

    Never: finalize unless the guest is still and every root-source job of the set is pending; complete while it can
    write; a resume or outcome `switched` that the roots do not show; a stop of a guest that runs for somebody else; a
    change of phase that is not in the table.
    """
    count = 0
    found = list(every_observation())
    pivots = [pivot(phase, 2) for phase in Phase] + [
        pivot(Phase.PAUSING, 2, run_state_before="paused", owes_resume=False),
        pivot(Phase.READY, 2, owes_resume=True),
        pivot(Phase.CANCELLING, 2, owes_resume=True),
        pivot(Phase.DECIDED, 2, owes_resume=True, disks=(disk(0, Outcome.SWITCHED), disk(1, Outcome.SWITCHED))),
    ]
    for before, known in itertools.product(pivots, found):
        action, observation = decide(before, known), known.seen
        count += 1
        after = phase_after(action)
        assert after is None or (after is not before.phase and is_allowed(before.phase, after)), (before, observation)
        match action:
            case a.Finalize(names_):
                assert before.phase is Phase.PAUSING
                assert not observation.executing
                assert all(observation.job(name).status == "pending" for name in names_)
                on_source = [d for d in before.disks if observation.roots[d.disk] is Root.SOURCE]
                if len(on_source) == len(before.disks):
                    assert len(names_) == len(before.disks)
            case a.Complete() | a.RollBack():
                assert before.phase is Phase.PAUSING
                assert not observation.executing
            case a.Stop():
                assert before.owes_resume
                assert observation.executing
            case a.Resume():
                assert before.owes_resume
                assert before.phase in {Phase.READY, Phase.CANCELLING, Phase.DECIDED}
                assert observation.run_state in {"paused", "prelaunch"}
            case a.CancelJobs(_, resume):
                assert before.phase is Phase.CANCELLING
                assert not resume or before.owes_resume
            case a.RecordOutcome(pairs):
                for name, outcome in pairs:
                    root = observation.roots[name]
                    assert (outcome is Outcome.SWITCHED) == (root is Root.DESTINATION), (before, observation, action)
                    if root is Root.OTHER:
                        assert outcome is Outcome.UNKNOWN
    assert count == len(pivots) * len(found)


def test_an_image_that_pivotd_does_not_see_gets_no_job():
    """QEMU has opened it, perhaps in another mount namespace: nothing is copied to it."""
    found = seen(jobs="gone", has_nonce=True, nodes=frozenset({names.destination_node(PIVOT, 0)}))
    assert decide(pivot(Phase.PREPARING), found) == a.Prepare(0, a.Step.START_JOB)
    assert decide(pivot(Phase.PREPARING), found.but(lost="not there")) == a.Abandon("not there")


def test_a_file_that_pivotd_did_not_create_is_never_written_to():
    """The probe of the path found a file, and pivotd died before it could say so."""
    found = seen(jobs="gone", has_nonce=True, nodes=frozenset({names.file_node(PIVOT, 0)}))
    assert isinstance(decide(pivot(Phase.PREPARING), found), a.Abandon)


@pytest.mark.parametrize("status", ["ready", "standby", "pending"])
def test_a_disk_unplugged_before_any_job_ended_is_kept(status: str):
    """Only a job that has ended can have moved a disk: nothing is unknown, and the jobs are cancelled."""
    found = seen("running", [status, status], ["source", "absent"])
    assert isinstance(decide(pivot(Phase.PAUSING, 2), found), a.Abandon)


@pytest.mark.parametrize(
    ("phase", "run_state"),
    [(Phase.PAUSING, "running"), (Phase.PAUSING, "paused"), (Phase.CANCELLING, "running")],
)
def test_a_disk_unplugged_after_its_job_ended_is_unknown(phase: Phase, run_state: str):
    """Nobody can tell what the guest wrote, and where, before it was unplugged; it may be still only since then."""
    found = decide(pivot(phase, owes_resume=False), seen(run_state, "concluded", "absent"))
    assert isinstance(found, a.RecordOutcome)
    assert dict(found.outcomes) == {"disk0": Outcome.UNKNOWN}


def test_a_disk_unplugged_after_its_job_failed_is_kept():
    """A job that ended in an error has moved nothing."""
    found = decide(pivot(Phase.CANCELLING, owes_resume=False), seen("running", "failed", "absent"))
    assert isinstance(found, a.RecordOutcome)
    assert dict(found.outcomes) == {"disk0": Outcome.KEPT}


def test_a_snapshot_that_the_disk_would_lose_holds_up_the_pause():
    """It has come since the plan; nobody has said to drop it."""
    waiting = decide(pivot(Phase.READY), seen(snapshots=(("/old/disk0.qcow2", ("s1", "s2")),)))
    assert isinstance(waiting, a.Wait)
    assert "/old/disk0.qcow2 has got internal snapshots, which the disk would lose: s1, s2;" in waiting.reason
    dropping = pivot(Phase.READY, options=CopyOptions(drop_internal_snapshots=True))
    assert decide(dropping, seen(snapshots=(("/old/disk0.qcow2", ("s1",)),))) == a.Converge()
