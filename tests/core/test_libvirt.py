"""The decision table of libvirt's pivots: one row each. docs/protocol.md tells the same table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pivotd.core import actions, verdict
from pivotd.core.observation import Belief, JobBelief, JobSeen, Qemu, Root
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import CopyOptions, Kind, Manager
from pivotd.core.rules import agreement
from tests.core.build import ASKED, Known, decide, jobs
from tests.core.build import pivot as any_pivot
from tests.core.build import seen as any_seen

S, D, OTHER, ABSENT = Root.SOURCE, Root.DESTINATION, Root.OTHER, Root.ABSENT
BOTH = ("disk0", "disk1")


def pivot(phase: Phase, n: int = 1, **changes: Any) -> Pivot:
    return any_pivot(phase, n, manager=Manager.LIBVIRT, **changes)


def asked(n: int = 1, **changes: Any) -> Pivot:
    """A pivot in its pause, of which the journal says that libvirt was asked."""
    return pivot(Phase.PAUSING, n, asking=True, **changes)


def believes(*disks: tuple[Root, Root | None, str]) -> dict[str, Belief]:
    """Live, next boot and job of each disk."""
    return {
        f"disk{index}": Belief(live, next_, JobBelief(job), job_id=None if job == "none" else jobs(index)[0])
        for index, (live, next_, job) in enumerate(disks)
    }


def seen(
    root: str | list[str] = "source",
    beliefs: dict[str, Belief] | None = None,
    run_state: str = "paused",
    job: str | list[str] = "ready",
    **rest: Any,
) -> Known:
    n = len(root) if isinstance(root, list) else 1
    known = any_seen(run_state, jobs=job, roots=root, n=n)
    return known.but(beliefs=believes(*[(S, S, "ready")] * n) if beliefs is None else beliefs, **rest)


def moved(live: Root = D, next_: Root | None = D, job: str = "none", **rest: Any) -> Known:
    """QEMU has the destination, its job is gone; this is what libvirt believes."""
    return seen("destination", believes((live, next_, job)), job="gone", **rest)


AGREED = frozenset({("disk0", D)})


def outcomes(action: actions.Action) -> dict[str, Outcome]:
    assert isinstance(action, actions.RecordOutcome), action
    return dict(action.outcomes)


# -- before the pause -------------------------------------------------------------------------------------------


def test_starts_the_job_that_libvirt_does_not_have():
    known = seen(beliefs=believes((S, S, "none")), run_state="running", job="gone")
    assert decide(pivot(Phase.PREPARING), known) == actions.Prepare(0, actions.Step.START_JOB)


def test_goes_on_with_a_job_of_which_the_answer_was_lost():
    known = seen(beliefs=believes((S, S, "copying")), run_state="running", job="running")
    assert decide(pivot(Phase.PREPARING), known) == actions.Advance(Phase.COPYING)


def test_does_not_start_a_job_twice_that_ended_at_once():
    known = seen(beliefs=believes((S, S, "none")), run_state="running", job="gone", started=frozenset({0}))
    assert isinstance(decide(pivot(Phase.PREPARING), known), actions.Abandon)


def test_a_snapshot_needs_no_job():
    known = seen(beliefs=believes((S, S, "none")), run_state="running", job="gone")
    assert decide(pivot(Phase.PREPARING, kind=Kind.SNAPSHOT), known) == actions.Advance(Phase.COPYING)


def test_an_adopted_job_that_was_replaced_is_left_alone():
    theirs = {"disk0": Belief(S, S, JobBelief.READY, job_id="another")}
    adopted = pivot(Phase.PREPARING, options=CopyOptions(adopted=True))
    assert isinstance(decide(adopted, seen(beliefs=theirs, run_state="running")), actions.Abandon)


@pytest.mark.parametrize("belief", ["copying", "pivoting", "aborting"])
def test_waits_until_libvirt_takes_the_job_for_ready(belief: str):
    known = seen(beliefs=believes((S, S, belief)), run_state="running")
    assert isinstance(decide(pivot(Phase.COPYING), known), actions.Wait)
    assert isinstance(decide(pivot(Phase.READY), known), actions.Wait)


def test_ready_converges():
    assert decide(pivot(Phase.READY), seen(run_state="running")) == actions.Converge()


def test_a_switch_of_somebody_else_is_recorded_once_the_next_boot_agrees():
    known = moved(next_=S, run_state="running")
    assert decide(pivot(Phase.READY), known) == actions.Agree((("disk0", D),))
    recorded = decide(pivot(Phase.READY), moved(run_state="running", agreed=AGREED))
    assert outcomes(recorded) == {"disk0": Outcome.SWITCHED}


# -- in the pause, before and while libvirt is asked ----------------------------------------------------------------


def test_the_guest_is_stopped_before_libvirt_is_asked():
    assert decide(pivot(Phase.PAUSING), seen(run_state="running")) == actions.Stop()


def test_libvirt_is_asked_for_every_disk():
    known = seen(["source", "source"])
    assert decide(pivot(Phase.PAUSING, 2), known) == actions.AskLibvirt(BOTH, pivot=True)


def test_an_adopted_job_that_is_to_end_is_aborted():
    ending = pivot(Phase.PAUSING, options=CopyOptions(adopted=True, abort=True))
    assert decide(ending, seen()) == actions.AskLibvirt(("disk0",), pivot=False)
    done = seen(beliefs=believes((S, S, "none")), job="gone")
    assert decide(ending, done) == actions.Agree((("disk0", S),))
    assert outcomes(decide(ending, done.but(agreed=frozenset({("disk0", S)})))) == {"disk0": Outcome.KEPT}


def test_an_aborted_commit_that_libvirt_takes_for_a_switch_is_set_right():
    """The next boot first, for the base lacks what was written since; the record says what libvirt does not know."""
    ending = pivot(Phase.PAUSING, options=CopyOptions(adopted=True, abort=True), kind=Kind.COMMIT)
    taken = seen(beliefs=believes((D, D, "none")), job="gone")
    assert decide(ending, taken) == actions.Agree((("disk0", S),))
    agreed = taken.but(beliefs=believes((D, S, "none")), agreed=frozenset({("disk0", S)}))
    action = decide(ending, agreed)
    assert outcomes(action) == {"disk0": Outcome.KEPT}
    assert isinstance(action, actions.RecordOutcome)
    assert "libvirt does not know" in (action.warning or "")
    assert decide(replace(ending, attempt=1), gone(D)) == actions.Agree((("disk0", S),))
    ended = gone(S, agreed=frozenset({("disk0", S)}))
    assert outcomes(decide(replace(ending, attempt=1), ended)) == {"disk0": Outcome.KEPT}


def test_the_deadline_before_the_call_keeps_the_job():
    assert isinstance(decide(pivot(Phase.PAUSING), seen(deadline_passed=True)), actions.Retreat)


def test_a_refusal_keeps_the_job():
    action = decide(asked(), seen(ask_refused="busy"))
    assert isinstance(action, actions.Retreat)
    assert "busy" in action.reason


def test_a_call_without_an_answer_is_made_again():
    assert decide(asked(), seen(ask_in_doubt=True)) == actions.AskLibvirt(("disk0",), pivot=True)


@pytest.mark.parametrize("why", [{"deadline_passed": True}, {"cancelled_by": ASKED}, {"ask_refused": "busy"}])
def test_after_a_call_without_an_answer_the_job_must_end_before_the_guest_goes_on(why: dict[str, Any]):
    """QEMU may still carry out what it was told before libvirtd died: going on with the job there would be a guess."""
    assert isinstance(decide(asked(), seen(ask_in_doubt=True, **why)), actions.Abandon)
    cancelling = pivot(Phase.CANCELLING, asking=True, owes_resume=True)
    assert decide(cancelling, seen(ask_in_doubt=True)) == actions.AskLibvirt(("disk0",), pivot=False)


def test_libvirt_is_not_asked_about_a_job_that_it_is_ending():
    for phase in (Phase.PAUSING, Phase.CANCELLING):
        known = seen(beliefs=believes((S, S, "pivoting")), ask_in_doubt=True)
        assert isinstance(decide(pivot(phase, asking=True, owes_resume=True), known), actions.Wait)


def test_a_job_that_ended_on_the_source_is_given_up():
    known = seen(beliefs=believes((S, S, "none")), job="failed")
    assert isinstance(decide(asked(), known), actions.Abandon)


def test_a_pause_that_never_led_to_a_call_ends_at_once():
    cancelling = pivot(Phase.CANCELLING, owes_resume=True)
    assert decide(cancelling, seen()) == actions.Resume()


# -- in the pause, after the switch -----------------------------------------------------------------------------


@pytest.mark.parametrize("next_", [S, D], ids=["stale", "right"])
def test_the_next_boot_is_written_also_where_it_seems_right(next_: Root):
    """Libvirt shows what it has in memory, and ignores that it could not save that."""
    assert decide(asked(), moved(next_=next_)) == actions.Agree((("disk0", D),))


def test_agreement_is_recorded():
    action = decide(asked(), moved(agreed=AGREED))
    assert outcomes(action) == {"disk0": Outcome.SWITCHED}
    assert isinstance(action, actions.RecordOutcome)
    assert action.warning is None


def test_a_transient_guest_has_no_next_boot():
    assert outcomes(decide(asked(), moved(next_=None))) == {"disk0": Outcome.SWITCHED}


@pytest.mark.parametrize("next_", [OTHER, S], ids=["other", "back"])
def test_a_redefinition_by_somebody_else_is_named_and_not_overwritten(next_: Root):
    """To another image at any time; to the old one after pivotd has written the new one."""
    known = moved(next_=next_, agreed=AGREED if next_ is S else frozenset())
    action = decide(asked(), known)
    assert outcomes(action) == {"disk0": Outcome.SWITCHED}
    assert isinstance(action, actions.RecordOutcome)
    assert action.warning is not None
    assert "the next boot names" in action.warning


def test_a_next_boot_without_the_disk_is_called_so():
    beliefs = {"disk0": Belief(D, ABSENT, next_has_disk=False)}
    action = decide(asked(), seen("destination", beliefs, job="gone"))
    assert isinstance(action, actions.RecordOutcome)
    assert "and the definition of the next boot has no disk disk0" in (action.warning or "")


def test_a_switch_of_somebody_else_is_told_as_one():
    """The guest ran: nothing may say that pivotd recorded the switch before that."""
    action = decide(pivot(Phase.READY), moved(run_state="running", agreed=AGREED))
    assert isinstance(action, actions.RecordOutcome)
    assert action.warning == "somebody else has switched disk0, not in a pause of pivotd's"
    decided = pivot(Phase.DECIDED, error=action.warning, decided_at="2026-11-23T09:00:00Z")
    one = verdict.of_pivot(decided, replace(decided.disks[0], outcome=Outcome.SWITCHED))
    assert one.reason == "The switch was seen in the block graph and recorded."


@pytest.mark.parametrize("belief", ["none", "ready", "pivoting"])
def test_a_switch_of_which_libvirt_will_not_learn_is_taken_back(belief: str):
    """The guest stands still: both images are the same. Then the source is kept, for libvirt knows that one."""
    action = decide(asked(), moved(live=S, next_=S, job=belief))
    assert isinstance(action, actions.RollBack)
    assert action.disks == ("disk0",)
    late = moved(live=S, next_=S, job=belief, ask_in_doubt=True, calling=True)
    assert isinstance(decide(asked(), late), actions.RollBack)
    back = seen(beliefs=believes((S, S, belief)), job="gone", rolled_back="libvirt")
    assert isinstance(decide(asked(), back), actions.Abandon)


def test_a_switch_after_which_the_guest_may_have_written_stays_whatever_libvirt_knows():
    """It was resumed and suspended unseen: the source lacks that. The record says what libvirt does not know."""
    known = moved(live=S, next_=S, may_have_written=True)
    assert decide(asked(), known) == actions.Agree((("disk0", D),))
    action = decide(asked(), known.but(agreed=AGREED))
    assert outcomes(action) == {"disk0": Outcome.SWITCHED}
    assert isinstance(action, actions.RecordOutcome)
    assert "libvirt does not know" in (action.warning or "")
    decided = pivot(Phase.DECIDED, owes_resume=True, error=action.warning)
    decided = replace(decided, disks=tuple(replace(disk, outcome=Outcome.SWITCHED) for disk in decided.disks))
    assert decide(decided, moved(live=S)) == actions.Resume()
    assert isinstance(decide(replace(decided, error=None), moved(live=S)), actions.Wait)


@pytest.mark.parametrize("why", ["may still learn", "not taken back", "half learnt"])
def test_a_libvirt_that_does_not_know_of_the_switch_keeps_the_guest_paused(why: str):
    known = moved(live=S, next_=S, job="pivoting", deadline_passed=True)
    match why:
        case "may still learn":
            known = known.but(jobs={jobs(0)[0]: JobSeen("concluded")})
        case "not taken back":
            known = known.but(rollback_failed=True)
        case "half learnt":
            known = moved(job="pivoting")
    action = decide(asked(), known)
    assert isinstance(action, actions.Wait)
    assert "/new/disk0.qcow2" in action.reason
    assert "restart libvirtd" in action.reason


def test_a_libvirt_that_takes_a_job_for_switched_that_has_not_moved_the_disk_is_told_by_the_record():
    """QEMU's root is right. While QEMU lists the job libvirt may still learn; after that waiting does not help."""
    cancelling = pivot(Phase.CANCELLING, asking=True, owes_resume=True)
    known = seen(beliefs=believes((D, D, "none")), job="gone")
    listed = known.but(jobs={jobs(0)[0]: JobSeen("concluded")})
    assert isinstance(decide(cancelling, listed), actions.Wait)
    assert decide(cancelling, known) == actions.Agree((("disk0", S),))
    action = decide(cancelling, known.but(beliefs=believes((D, S, "none")), agreed=frozenset({("disk0", S)})))
    assert outcomes(action) == {"disk0": Outcome.KEPT}
    assert isinstance(action, actions.RecordOutcome)
    assert "libvirt does not know" in (action.warning or "")


def test_libvirt_refuses_to_define_the_next_boot():
    """Another try until the deadline, then the record says so: the journal is right, whatever libvirt starts."""
    known = moved(next_=S, agree_refused="No space left")
    assert isinstance(decide(asked(), known), actions.Agree)
    action = decide(asked(), known.but(deadline_passed=True))
    assert outcomes(action) == {"disk0": Outcome.SWITCHED}
    assert isinstance(action, actions.RecordOutcome)
    assert "No space left" in (action.warning or "")


def test_the_rest_of_several_disks_follows():
    beliefs = believes((D, D, "none"), (S, S, "ready"))
    known = seen(["destination", "source"], beliefs, job=["gone", "ready"])
    assert decide(asked(2), known) == actions.AskLibvirt(("disk1",), pivot=True)


def test_a_rest_that_cannot_follow_is_aborted_and_the_set_is_split():
    beliefs = believes((D, D, "none"), (S, S, "ready"))
    known = seen(["destination", "source"], beliefs, job=["gone", "ready"])
    assert isinstance(decide(asked(2), known.but(ask_refused="busy")), actions.Abandon)
    cancelling = pivot(Phase.CANCELLING, 2, asking=True, owes_resume=True)
    assert decide(cancelling, known) == actions.AskLibvirt(("disk1",), pivot=False)
    ended = seen(["destination", "source"], believes((D, D, "none"), (S, S, "none")), job="gone")
    done = ended.but(agreed=frozenset({("disk0", D), ("disk1", S)}))
    assert outcomes(decide(cancelling, done)) == {"disk0": Outcome.SWITCHED, "disk1": Outcome.KEPT}


def test_without_a_record_the_guest_runs_only_where_the_next_boot_says_which_image_is_right():
    """If QEMU ends then, nothing else tells: a transient guest has no next boot, and a written one may be lost."""

    def may(known: Known) -> bool:
        return agreement.may_run(asked(), known.seen, known.attempt)

    assert may(moved(agreed=AGREED))
    assert not may(moved())
    assert not may(moved(next_=None))
    assert not may(moved(next_=OTHER, agreed=AGREED))
    assert not may(moved(live=S, agreed=AGREED))
    assert may(seen())
    assert not may(seen(ask_in_doubt=True))


# -- a guest that is saved, dumped or migrated in its pause ---------------------------------------------------------


@pytest.mark.parametrize("run_state", ["finish-migrate", "save-vm", "postmigrate"])
@pytest.mark.parametrize("phase", [Phase.CANCELLING, Phase.DECIDED])
def test_the_resume_of_a_guest_that_is_being_saved_stays_owed(phase: Phase, run_state: str):
    """Nothing is resumed that may run elsewhere, and nothing is forgotten: a save can fail in the end."""
    open_ = pivot(phase, owes_resume=True)
    action = decide(open_, seen(run_state=run_state, job="gone"))
    assert isinstance(action, actions.Wait)
    assert "virsh resume" in action.reason


@pytest.mark.parametrize("phase", [Phase.READY, Phase.CANCELLING, Phase.DECIDED])
def test_a_guest_whose_save_has_failed_in_the_end_is_resumed(phase: Phase):
    """By the word of libvirt its memory went to a file: it runs nowhere else."""
    known = seen(run_state="postmigrate", saved=True)
    assert decide(pivot(phase, owes_resume=True), known.but(beliefs=believes((S, S, "none")))) == actions.Resume()


def test_nothing_is_taken_back_in_a_qemu_that_has_let_go_of_its_images():
    """A mirror back would write to an image that QEMU has given up at the end of a migration."""
    cancelling = pivot(Phase.CANCELLING, asking=True, owes_resume=True)
    for known in (moved(live=S, next_=S, run_state="postmigrate", saved=saved) for saved in (False, True)):
        assert not isinstance(decide(cancelling, known), actions.RollBack)
        assert not isinstance(decide(asked(), known), actions.RollBack)


# -- a snapshot --------------------------------------------------------------------------------------------------


def snapshot(**changes: Any) -> Pivot:
    return asked(kind=Kind.SNAPSHOT, **changes)


def test_a_snapshot_of_which_libvirt_does_not_know_is_taken_back():
    """No job stands in libvirt's status file, so no hook can tell it; the overlay is empty."""
    known = moved(live=S, next_=S)
    assert isinstance(decide(snapshot(), known), actions.RollBack)
    waiting = known.but(ask_in_doubt=True, calling=True)
    assert isinstance(decide(snapshot(), waiting), actions.Wait)
    action = decide(snapshot(), known.but(rollback_failed=True))
    assert isinstance(action, actions.Wait)
    assert "neither save nor migrate the guest before it was shut down and started" in action.reason


def test_a_snapshot_that_may_still_be_made_keeps_the_guest_paused():
    known = seen(beliefs=believes((S, S, "none")), job="gone", ask_in_doubt=True, calling=True)
    assert isinstance(decide(snapshot(), known), actions.Wait)
    assert isinstance(decide(snapshot(), known.but(deadline_passed=True)), actions.Abandon)
    cancelling = pivot(Phase.CANCELLING, kind=Kind.SNAPSHOT, asking=True, owes_resume=True)
    assert isinstance(decide(cancelling, known), actions.Wait)


# -- the guest runs although an intent is recorded -----------------------------------------------------------------


def test_a_guest_that_somebody_resumed_after_the_switch_is_recorded_whatever_libvirt_knows():
    """The next boot first, for it is what a host would start after a crash; then the record."""
    known = moved(live=S, next_=S, run_state="running")
    assert decide(asked(), known) == actions.Agree((("disk0", D),))
    done = moved(live=S, run_state="running", agreed=AGREED)
    assert outcomes(decide(asked(), done)) == {"disk0": Outcome.SWITCHED}
    refused = moved(live=S, next_=S, run_state="running", agree_refused="no")
    assert outcomes(decide(asked(), refused)) == {"disk0": Outcome.SWITCHED}


def test_a_guest_that_somebody_resumed_before_the_switch_goes_on():
    known = seen(run_state="running", stop_sent=True)
    assert isinstance(decide(asked(), known), actions.Retreat)
    assert isinstance(decide(asked(), known.but(ask_in_doubt=True)), actions.Abandon)


def test_a_switch_that_libvirt_has_not_learnt_of_is_taken_back_also_after_a_cancel():
    """QEMU ended the job only after libvirtd was back, and the guest would wait for a restart that does not help."""
    cancelling = pivot(Phase.CANCELLING, asking=True, owes_resume=True)
    known = moved(live=S, next_=S)
    assert isinstance(decide(cancelling, known), actions.RollBack)
    assert not isinstance(decide(cancelling, known.but(run_state="running")), actions.RollBack)
    assert not isinstance(decide(cancelling, known.but(may_have_written=True)), actions.RollBack)


@pytest.mark.parametrize("phase", [Phase.READY, Phase.CANCELLING, Phase.DECIDED])
def test_a_suspend_that_may_still_come_is_awaited(phase: Phase):
    """The guest would stay paused: nobody would owe it a resume any more."""
    known = seen(run_state="running", calling=True)
    assert isinstance(decide(pivot(phase, owes_resume=True), known), actions.Wait)
    assert decide(pivot(phase, owes_resume=True), known.but(run_state="paused")) == actions.Resume(owed=True)
    assert isinstance(decide(pivot(phase, owes_resume=True), known.but(calling=False)), actions.NoteResumed)


# -- QEMU is gone ------------------------------------------------------------------------------------------------


def gone(next_: Root | None, live: Root = ABSENT, **rest: Any) -> Known:
    return any_seen(qemu=Qemu.GONE, jobs="gone").but(beliefs=believes((live, next_, "none")), roots={}, **rest)


def test_without_libvirt_nothing_is_said_of_a_guest_that_has_ended():
    known = gone(S).but(beliefs={})
    assert isinstance(decide(asked(), known), actions.AskAgain)


def test_a_libvirt_that_has_not_noticed_the_end_may_still_finish_the_switch():
    assert isinstance(decide(asked(), gone(S, live=S)), actions.AskAgain)


@pytest.mark.parametrize(("next_", "outcome"), [(S, Outcome.KEPT), (D, Outcome.SWITCHED)])
def test_the_next_boot_says_which_of_two_complete_images_is_right_once_it_is_durable(next_: Root, outcome: Outcome):
    assert decide(asked(), gone(next_)) == actions.Agree((("disk0", next_),))
    done = gone(next_, agreed=frozenset({("disk0", next_)}))
    assert outcomes(decide(asked(), done)) == {"disk0": outcome}


def test_a_transient_guest_that_has_ended_keeps_its_source():
    assert outcomes(decide(asked(), gone(None))) == {"disk0": Outcome.KEPT}


@pytest.mark.parametrize(("next_", "outcome"), [(S, Outcome.KEPT), (D, Outcome.UNKNOWN)])
def test_without_a_call_only_the_source_can_be_right(next_: Root, outcome: Outcome):
    assert outcomes(decide(pivot(Phase.PAUSING), gone(next_))) == {"disk0": outcome}


@pytest.mark.parametrize(("place", "outcome"), [("source", Outcome.KEPT), ("destination", Outcome.SWITCHED)])
def test_another_qemu_after_the_call_goes_on_with_either_image(place: str, outcome: Outcome):
    side = Root(place)
    known = seen(place, believes((side, side, "none")), "running", job="gone", qemu=Qemu.REPLACED)
    assert outcomes(decide(asked(), known.but(agreed=frozenset({("disk0", side)})))) == {"disk0": outcome}
    assert outcomes(decide(asked(), known.but(roots={}))) == {"disk0": Outcome.UNKNOWN}


# -- once it is decided ------------------------------------------------------------------------------------------


def test_the_guest_is_resumed_after_the_record_if_libvirt_still_agrees():
    decided = pivot(Phase.DECIDED, owes_resume=True)
    decided = replace(decided, disks=tuple(replace(disk, outcome=Outcome.SWITCHED) for disk in decided.disks))
    assert decide(decided, moved()) == actions.Resume()
    assert isinstance(decide(decided, moved(live=S)), actions.Wait)
    ran = replace(decided, owes_resume=False)
    assert decide(ran, moved(run_state="running")) == actions.Close()
    assert isinstance(decide(ran, moved(live=S, run_state="running")), actions.Wait)


def test_another_job_of_somebody_else_does_not_keep_a_finished_pivot_open():
    decided = replace(pivot(Phase.DECIDED), owes_resume=False)
    decided = replace(decided, disks=tuple(replace(disk, outcome=Outcome.SWITCHED) for disk in decided.disks))
    theirs = {"disk0": Belief(D, D, JobBelief.COPYING, job_id="another")}
    assert decide(decided, moved(run_state="running").but(beliefs=theirs)) == actions.Close()


def test_a_job_that_has_vanished_does_not_keep_the_guest_paused_on_its_source():
    """Libvirt is wedged, but QEMU has no job that could move the disk."""
    known = seen(beliefs=believes((S, S, "pivoting")), job="gone", agreed=frozenset({("disk0", S)}))
    cancelling = pivot(Phase.CANCELLING, asking=True, owes_resume=True)
    action = decide(cancelling, known)
    assert outcomes(action) == {"disk0": Outcome.KEPT}
    assert isinstance(action, actions.RecordOutcome)
    assert "starts no other" in (action.warning or "")
    listed = known.but(jobs={jobs(0)[0]: JobSeen("concluded")})
    assert isinstance(decide(cancelling, listed), actions.Wait)


# -- the verdict -------------------------------------------------------------------------------------------------


def test_the_verdict_is_pending_from_the_call_until_the_outcome():
    """Whoever is dead: libvirt may have switched the disk, and the next boot decides."""
    open_pivot = asked()
    one = verdict.of_pivot(open_pivot, open_pivot.disks[0])
    assert (one.certain, one.pending, one.outcome) == (False, True, Outcome.KEPT)
    assert "both images are complete" in one.reason
    assert verdict.provisional(one) == one
    live = verdict.Live("/new/disk0.qcow2", "qcow2", is_destination=True)
    assert verdict.check(one, live, decided=False).pending
    before = pivot(Phase.PAUSING)
    assert verdict.of_pivot(before, before.disks[0]).certain
    own = any_pivot(Phase.PAUSING, asking=True)
    assert verdict.of_pivot(own, own.disks[0]).certain


def test_a_decided_verdict_tells_what_is_wrong_with_the_next_boot():
    decided = pivot(Phase.DECIDED, error="the next boot names /other.qcow2", decided_at="2026-11-23T09:00:00Z")
    disk = replace(decided.disks[0], outcome=Outcome.SWITCHED)
    one = verdict.of_pivot(decided, disk)
    assert (one.certain, one.image) == (True, "/new/disk0.qcow2")
    assert any("/other.qcow2" in line for line in one.evidence)


# -- libvirt hangs, and QEMU is seen by a monitor of pivotd's own ---------------------------------------------------------


def alone(root: str | list[str] = "source", job: str = "ready", **rest: Any) -> Known:
    """What that monitor shows once the deadline of the pause has passed."""
    n = len(root) if isinstance(root, list) else 1
    return seen(root, {}, job=[job] * n, by_monitor=True, **{"deadline_passed": True, **rest})


def test_before_libvirt_was_asked_the_guest_runs_on_the_source():
    assert isinstance(decide(pivot(Phase.PAUSING), alone()), actions.Retreat)
    assert decide(pivot(Phase.READY, owes_resume=True), alone()) == actions.Resume()
    assert decide(pivot(Phase.CANCELLING, owes_resume=True), alone()) == actions.Resume()
    assert isinstance(decide(pivot(Phase.PAUSING), alone(deadline_passed=False)), actions.AskAgain)


def test_once_libvirt_was_asked_its_job_is_cancelled_first():
    """It goes on later, and finds a job that has failed."""
    assert decide(asked(), alone()) == actions.CancelJobs(jobs(0), resume=False)
    assert isinstance(decide(asked(), alone(job="concluded")), actions.Abandon)
    cancelling = pivot(Phase.CANCELLING, asking=True, owes_resume=True)
    assert decide(cancelling, alone()) == actions.CancelJobs(jobs(0), resume=False)
    assert outcomes(decide(cancelling, alone(job="concluded"))) == {"disk0": Outcome.KEPT}


def test_in_the_middle_of_a_switch_the_guest_waits_for_libvirt():
    """The next boot would be another image; of a snapshot nobody knows whether it is still to come."""
    for known in (alone("destination", job="concluded"), alone(["destination", "source"])):
        action = decide(asked(len(known.seen.roots)), known)
        assert isinstance(action, actions.AskAgain), action
        assert "restart libvirtd" in action.reason
    overlay = replace(asked(), kind=Kind.SNAPSHOT)
    assert isinstance(decide(overlay, alone(job="gone")), actions.AskAgain)


def test_a_decided_guest_runs_where_the_record_has_it():
    decided = pivot(Phase.DECIDED, owes_resume=True)
    for outcome, root in ((Outcome.SWITCHED, "destination"), (Outcome.KEPT, "source")):
        known = replace(decided, disks=tuple(replace(disk, outcome=outcome) for disk in decided.disks))
        assert decide(known, alone(root, deadline_passed=False)) == actions.Resume()
        other = "source" if root == "destination" else "destination"
        assert isinstance(decide(known, alone(other)), actions.AskAgain)
    unknown = replace(decided, disks=tuple(replace(disk, outcome=Outcome.UNKNOWN) for disk in decided.disks))
    assert isinstance(decide(unknown, alone()), actions.AskAgain)


def test_nothing_else_is_done_without_libvirt():
    """A guest that runs may still be suspended by the call that hangs; a pause of somebody else's stays."""
    for known in (alone(run_state="running"), alone(run_state="io-error")):
        assert isinstance(decide(asked(), known), actions.AskAgain)
    assert isinstance(decide(pivot(Phase.PAUSING, owes_resume=False), alone()), actions.AskAgain)
    assert isinstance(decide(pivot(Phase.COPYING), alone(run_state="running")), actions.AskAgain)
