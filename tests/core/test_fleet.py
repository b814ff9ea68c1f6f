"""The rules of a fleet, one state each. That they are right together, tests/model/test_fleet.py shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pivotd.core import actions
from pivotd.core.fleet import ACCEPTED, FleetDisk, FleetImage, FleetIntent, FleetMove, FleetView, OnSilence, Owner
from pivotd.core.observation import Observation, Qemu
from pivotd.core.pivot import Accepted, FleetStage, Outcome, Phase, Pivot
from pivotd.core.request import CopyOptions, Manager
from pivotd.core.rules.fleet_changes import announced, forgotten
from pivotd.core.rules.fleet_owners import accepting, doubting, leaving, meeting, settling, take_over
from pivotd.core.rules.fleet_pivots import Here, Superseded, after_outcome, before_intent
from pivotd.core.rules.fleet_words import Worth, fleet_verdict, worth
from tests.core.build import Known, decide, disk, pivot, seen

NOW = "2026-11-23T10:00:00.000000Z"
HERE, THERE = Here("h1", "boot1", NOW), Here("h2", "boot2", NOW)
OLD, NEW, ELSE = (FleetImage(f"/{name}/disk0.qcow2", "qcow2") for name in ("old", "new", "else"))
GONE = Known(Observation(Qemu.GONE))


def view(host: str | None = "h1", epoch: int = 3, **parts: Any) -> FleetView:
    return FleetView("web1", Owner(host, epoch, "boot1", NOW), revision=7, **parts)


def told(image: FleetImage, outcome: Any = Outcome.SWITCHED, of: str = "earlier") -> FleetDisk:
    return FleetDisk("disk0", image, OLD if image != OLD else NEW, outcome, of, 3, NOW)


def ended(*outcomes: Outcome, stage: FleetStage = FleetStage.ANNOUNCED, mode: str = "resume", **changes: Any) -> Pivot:
    """Return a pivot whose outcome is in the journal, announced under epoch 3."""
    disks = tuple(disk(index, outcome) for index, outcome in enumerate(outcomes))
    base = pivot(Phase.DECIDED, disks=disks, fleet=stage, fleet_epoch=3, options=CopyOptions(on_silence=mode))
    return replace(base, **changes)


SWITCHED, KEPT, UNKNOWN = (ended(outcome) for outcome in (Outcome.SWITCHED, Outcome.KEPT, Outcome.UNKNOWN))
INTENT = announced(view(), SWITCHED, OnSilence.RESUME)

# -- before the pause ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "owner"),
    [(FleetView("web1"), ("h1", 1)), (view(None, 4), ("h1", 5)), (view(), ("h1", 3))],
    ids=["unknown", "released", "own"],
)
def test_a_guest_without_an_owner_is_claimed_with_the_intent(before: FleetView, owner: tuple[str, int]):
    """In one transaction: otherwise another host could claim it in between."""
    after = before_intent(before, pivot(Phase.READY), HERE, OnSilence.WAIT)
    assert isinstance(after, FleetView)
    assert after.owner is not None
    assert after.intent is not None
    assert (after.owner.host, after.owner.epoch) == owner
    assert (after.intent.host, after.intent.epoch) == owner
    assert after.intent.moves == (FleetMove("disk0", OLD, NEW),)


@pytest.mark.parametrize(
    ("before", "here", "why"),
    [
        (view("h2"), HERE, "belongs to host h2"),
        (replace(INTENT, intent=replace(INTENT.intent, pivot="other")), HERE, "became of pivot other"),
        (replace(INTENT, owner=Owner(None, 4, "", NOW)), HERE, "became of pivot"),
        (view(None), replace(HERE, present=False), "is not here"),
    ],
    ids=["other host", "other pivot", "released with an intent", "left"],
)  # fmt: skip
def test_no_pause_begins_on_a_guest_of_which_others_may_tell(before: FleetView, here: Here, why: str):
    """The sentence names who."""
    refusal = before_intent(before, pivot(Phase.READY), here, OnSilence.RESUME)
    assert isinstance(refusal, str)
    assert why in refusal


@pytest.mark.parametrize(
    ("known", "epoch", "why"),
    [
        (told(OLD), None, None),
        (told(NEW), None, "the fleet has disk0 on /new/disk0.qcow2"),
        (told(OLD, Outcome.UNKNOWN), None, "on /old/disk0.qcow2 or /new/disk0.qcow2"),
        (told(NEW), 3, None),
        (told(NEW), 2, "the fleet has disk0 on /new/disk0.qcow2, and the guest had another owner since this pivot"),
        (told(OLD), 2, None),
    ],
    ids=["the source", "another image", "in doubt", "compared before", "compared under another owner", "the same"],
)
def test_a_pivot_whose_source_was_not_compared_under_the_present_owner_begins_where_the_fleet_says(
    known: FleetDisk, epoch: int | None, why: str | None
):
    """Only then nobody has compared its source with the fleet's word before, under the present owner."""
    found = before_intent(view(disks=(known,)), replace(pivot(Phase.READY), fleet_epoch=epoch), HERE, OnSilence.RESUME)
    assert isinstance(found, FleetView) if why is None else why in str(found)


# -- after the outcome ---------------------------------------------------------------------------------------------


def test_all_disks_are_told_at_once_and_the_intent_goes():
    """Each with both images, by its own outcome."""
    split = ended(Outcome.SWITCHED, Outcome.KEPT)
    after = after_outcome(announced(view(), split, OnSilence.RESUME), split, HERE)
    assert isinstance(after, FleetView)
    assert after.intent is None
    assert [(one.disk, one.image.filename) for one in after.disks] == [
        ("disk0", "/new/disk0.qcow2"), ("disk1", "/old/disk1.qcow2"),
    ]  # fmt: skip


def test_the_intent_of_another_pivot_stays():
    """It is about other disks."""
    other = replace(INTENT, intent=replace(INTENT.intent, pivot="other"))
    found = after_outcome(other, replace(SWITCHED, fleet=FleetStage.NONE), HERE)
    assert isinstance(found, FleetView)
    assert found.intent == other.intent


def test_telling_twice_changes_nothing():
    """The answer to the first message may have been lost."""
    once = after_outcome(INTENT, SWITCHED, HERE)
    assert isinstance(once, FleetView)
    assert after_outcome(once, SWITCHED, HERE) is once


@pytest.mark.parametrize(
    "now",
    [replace(INTENT, owner=Owner("h2", 4, "", NOW)), replace(INTENT, owner=Owner("h1", 5, "", NOW)),
     replace(INTENT, owner=Owner(None, 4, "", NOW)), view()],
    ids=["another host", "another epoch", "released", "its intent was settled"],
)  # fmt: skip
def test_an_outcome_is_superseded_unless_its_intent_is_there_under_its_epoch(now: FleetView):
    """Somebody has decided without this host."""
    assert isinstance(after_outcome(now, SWITCHED, HERE), Superseded)


def test_a_domain_that_a_person_had_forgotten_is_told_of_again():
    """In the transaction that claims it, under a new epoch; a guest that is gone may have been elsewhere since."""
    gone = forgotten(view())
    assert (gone.known, gone.epoch, gone.disks) == (False, 4, ())
    after = after_outcome(gone, SWITCHED, HERE)
    assert isinstance(after, FleetView)
    assert after.owner == Owner("h1", 5, "boot1", NOW)
    assert after.disks[0].image == NEW
    assert after_outcome(after, SWITCHED, HERE) is after, "the answer was lost"
    for lost in (gone, FleetView("web1")):
        assert isinstance(after_outcome(lost, SWITCHED, replace(HERE, present=False)), Superseded)
    assert isinstance(after_outcome(FleetView("web1"), KEPT, replace(HERE, present=False)), FleetView)
    assert isinstance(after_outcome(gone, KEPT, replace(HERE, present=False)), Superseded)
    taken = replace(after, disks=(replace(after.disks[0], outcome=ACCEPTED),))
    assert isinstance(after_outcome(taken, SWITCHED, HERE), Superseded)


def test_every_disk_of_a_kept_pivot_is_told_of_again_after_a_forgetting():
    """Whatever else has claimed the guest since: without a word of the fleet, the end of QEMU would leave a doubt."""
    both = ended(Outcome.KEPT, Outcome.KEPT, stage=FleetStage.TOLD)
    gone = forgotten(view())
    for lost in (gone, meeting(gone, HERE)):
        one = after_outcome(lost, both, HERE, only="disk1")
        assert isinstance(one, FleetView)
        every = after_outcome(one, both, HERE, only="disk0")
        assert isinstance(every, FleetView)
        told_of = [(known.disk, known.outcome, known.epoch) for known in every.disks]
        assert told_of == [("disk0", Outcome.KEPT, 5), ("disk1", Outcome.KEPT, 5)]
    met = meeting(gone, HERE)
    assert after_outcome(met, replace(both, fleet_epoch=5), HERE) == met, "it has never moved anything since"


def test_a_kept_pivot_only_removes_its_intent():
    """What the fleet knows of the source is right."""
    assert after_outcome(replace(INTENT, disks=(told(OLD),)), KEPT, HERE) == view(disks=(told(OLD),))


def test_a_kept_pivot_tells_of_a_source_that_the_fleet_does_not_name():
    """The disk was moved without the fleet: what it says would be wrong without the intent."""
    after = after_outcome(replace(INTENT, disks=(told(ELSE),)), KEPT, HERE)
    assert isinstance(after, FleetView)
    assert after.disks[0].image == OLD


# -- the guest waits -----------------------------------------------------------------------------------------------

PAUSED = {"owes_resume": True}
MEMBER = {"in_fleet": True}
SILENT = MEMBER | {"fleet_due": False, "fleet_silent": "no quorum"}


def act(of: Pivot, **known: Any) -> actions.Action:
    return decide(of, seen("paused" if of.owes_resume else "running", "gone", "destination").but(**known))


@pytest.mark.parametrize("mode", ["wait", "resume"])
def test_a_switch_is_told_before_the_guest_runs(mode: str):
    """And then it runs."""
    waiting = ended(Outcome.SWITCHED, mode=mode, **PAUSED)
    assert act(waiting, **MEMBER) == actions.TellFleet()
    assert act(waiting, **MEMBER, fleet_told=True) == actions.Resume()


def test_without_an_answer_the_guest_runs_after_the_longest_pause_or_never():
    """As was announced; it was asked at least once."""
    late = SILENT | {"deadline_passed": True}
    assert isinstance(act(ended(Outcome.SWITCHED, **PAUSED), **SILENT), actions.Wait)
    assert act(ended(Outcome.SWITCHED, **PAUSED), **late) == actions.Resume()
    assert act(ended(Outcome.SWITCHED, **PAUSED), **MEMBER, deadline_passed=True) == actions.TellFleet()
    assert isinstance(act(ended(Outcome.SWITCHED, mode="wait", **PAUSED), **late), actions.Wait)


def test_a_guest_that_stays_on_its_source_does_not_wait():
    """Its image was right all the time."""
    assert act(ended(Outcome.KEPT, **PAUSED), **MEMBER) == actions.Resume()


@pytest.mark.parametrize("of", [SWITCHED, KEPT, UNKNOWN], ids=["switched", "kept", "unknown"])
@pytest.mark.parametrize("known", [seen("running", "gone", "destination"), GONE], ids=["QEMU", "no QEMU"])
def test_no_pivot_closes_before_the_fleet_knows(of: Pivot, known: Known):
    """Nobody would tell it any more."""
    known = known.but(has_nonce=False) if known is not GONE else known
    assert decide(of, known.but(**MEMBER)) == actions.TellFleet()
    assert isinstance(decide(of, known.but(**SILENT)), actions.Wait)
    assert decide(of, known.but(**SILENT, fleet_told=True)) == actions.Close()


def test_a_silent_qemu_keeps_nobody_from_telling():
    """Another host may have to start the guest."""
    assert decide(SWITCHED, Known(Observation(Qemu.SILENT)).but(**MEMBER)) == actions.TellFleet()


def test_a_pivot_that_waits_for_its_user_withdraws():
    """The fleet would call the disk unknown as long as it waits."""
    waiting = replace(KEPT, phase=Phase.READY, hold=True)
    assert decide(waiting, seen().but(**MEMBER)) == actions.TellFleet()
    assert isinstance(decide(replace(waiting, fleet=FleetStage.NONE), seen().but(**MEMBER)), actions.Wait)


@pytest.mark.parametrize("mode", ["wait", "resume"])
def test_a_host_that_has_left_its_fleet_keeps_its_word(mode: str):
    """A guest that was to wait for the fleet waits until that is configured again; nothing else does."""
    paused = act(ended(Outcome.SWITCHED, mode=mode, **PAUSED))
    assert isinstance(paused, actions.Resume if mode == "resume" else actions.Wait)
    assert decide(ended(Outcome.SWITCHED, mode=mode), GONE) == actions.Close()


# -- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "image"),
    [
        (view(), (None, True)),
        (view(disks=(told(NEW),)), (NEW, True)),
        (view(disks=(told(OLD, Outcome.UNKNOWN),)), (None, False)),
        (INTENT, (None, False)),
        (announced(view(), SWITCHED, OnSilence.WAIT), (OLD, True)),
        (announced(view(), replace(SWITCHED, manager=Manager.LIBVIRT), OnSilence.WAIT), (None, False)),
    ],
    ids=["never moved", "result", "unknown", "resume", "wait", "libvirt"],
)  # fmt: skip
def test_the_fleet_is_certain_only_of_what_no_host_can_change(now: FleetView, image: tuple[FleetImage | None, bool]):
    """Otherwise it names both images."""
    found = fleet_verdict(now, "disk0")
    assert (found.image, found.certain) == image
    assert set(found.candidates) == (set() if found.certain else {OLD, NEW})


@pytest.mark.parametrize(
    ("now", "of", "said"),
    [
        (INTENT, SWITCHED, Worth.TELL_FIRST),
        (INTENT, KEPT, Worth.TELL_FIRST),
        (view(epoch=5, disks=(told(ELSE),)), SWITCHED, Worth.FLEETS),
        (view(disks=(told(NEW),)), replace(SWITCHED, fleet=FleetStage.TOLD), Worth.CERTAIN),
        (view(disks=(told(ELSE),)), replace(SWITCHED, fleet=FleetStage.TOLD), Worth.FLEETS),
        (view(disks=(told(ELSE),)), replace(SWITCHED, fleet=FleetStage.NONE), Worth.CONTRADICTS),
        (view(disks=(told(ELSE),)), replace(SWITCHED, fleet=FleetStage.SUPERSEDED), Worth.FLEETS),
        (view(), replace(KEPT, fleet=FleetStage.TOLD), Worth.CERTAIN),
        (view(), replace(SWITCHED, fleet=FleetStage.NONE), Worth.TELL_FIRST),
        (FleetView("web1"), replace(KEPT, fleet=FleetStage.NONE, fleet_epoch=0), Worth.CERTAIN),
        (FleetView("web1"), replace(KEPT, fleet=FleetStage.NONE, fleet_epoch=1), Worth.FORGOTTEN),
        (FleetView("web1"), replace(KEPT, fleet_epoch=1), Worth.CERTAIN),
        (FleetView("web1"), replace(KEPT, fleet_epoch=2), Worth.FORGOTTEN),
        (FleetView("web1"), replace(SWITCHED, fleet=FleetStage.TOLD), Worth.FORGOTTEN),
        (view(), replace(SWITCHED, fleet=FleetStage.TOLD), Worth.FORGOTTEN),
        (forgotten(view()), replace(KEPT, fleet=FleetStage.NONE), Worth.FORGOTTEN),
        (view(epoch=5, forgotten=4), replace(KEPT, fleet=FleetStage.NONE, fleet_epoch=None), Worth.FORGOTTEN),
        (view(epoch=5, forgotten=4), replace(KEPT, fleet=FleetStage.NONE, fleet_epoch=5), Worth.CERTAIN),
    ],
)  # fmt: skip
def test_what_the_word_of_a_journal_is_worth(now: FleetView, of: Pivot, said: Worth):
    """Of a guest that belongs to this host; tests/core/test_fleet_local.py has the others."""
    assert worth(now, of, of.disks[0]) is said


# -- owners --------------------------------------------------------------------------------------------------------


def test_a_guest_is_claimed_released_and_left_alone():
    """By the host on which it is."""
    assert meeting(FleetView("web1"), HERE).owner == Owner("h1", 1, "boot1", NOW)
    assert meeting(view(None, 4), HERE).owner == Owner("h1", 5, "boot1", NOW)
    assert leaving(view(), HERE).owner == Owner(None, 4, "", NOW)
    unchanged = [meeting(view("h2"), HERE), leaving(view("h2"), HERE), leaving(INTENT, HERE)]
    assert unchanged == [view("h2"), view("h2"), INTENT]
    left = replace(INTENT, owner=Owner(None, 4, "", NOW))
    assert meeting(left, HERE) is left


def test_a_take_over_answers_with_the_certain_image_and_ends_the_intent():
    """Under a new epoch: what the old host still has to tell is refused."""
    after = take_over(announced(view(), SWITCHED, OnSilence.WAIT), THERE, {})
    assert isinstance(after, FleetView)
    assert after.owner == Owner("h2", 4, "boot2", NOW)
    assert after.intent is None
    assert fleet_verdict(after, "disk0").image == OLD
    assert isinstance(after_outcome(after, SWITCHED, HERE), Superseded)


def test_a_take_over_asks_a_person_exactly_where_the_fleet_does_not_know():
    """Both images are named; a choice that is not one of them, or not needed, is refused."""
    chosen = take_over(INTENT, THERE, {"disk0": NEW})
    assert isinstance(chosen, FleetView)
    assert fleet_verdict(chosen, "disk0").image == NEW
    for refused, why in [
        (take_over(INTENT, THERE, {}), "--image disk0=/old/disk0.qcow2 or /new/disk0.qcow2"),
        (take_over(INTENT, THERE, {"disk0": ELSE}), "no image that disk0 can be on"),
        (take_over(view(disks=(told(NEW),)), THERE, {"disk0": OLD}), "is certain"),
        (take_over(view(), THERE, {"disk9": OLD}), "never moved disk9"),
    ]:
        assert isinstance(refused, str)
        assert why in refused


def test_an_intent_says_all_that_another_host_needs():
    """Who, under which epoch, and both images."""
    assert INTENT.intent == FleetIntent(
        SWITCHED.id, "h1", 3, OnSilence.RESUME, Manager.PIVOTD, (FleetMove("disk0", OLD, NEW),)
    )


# -- a person's word -----------------------------------------------------------------------------------------------


def test_a_persons_word_replaces_what_the_pivot_left():
    """The other image is the one that it was taken for before."""
    after = accepting(view(disks=(told(NEW),)), HERE, SWITCHED, "disk0", ELSE)
    assert isinstance(after, FleetView)
    (known,) = after.disks
    assert (known.image, known.other, known.outcome, known.epoch) == (ELSE, NEW, ACCEPTED, 3)
    assert fleet_verdict(after, "disk0").image == ELSE


def test_a_persons_word_settles_the_intent_of_the_pivot_that_it_is_about():
    """Another pivot's intent stays, and its host decides."""
    after = accepting(INTENT, HERE, SWITCHED, "disk0", ELSE)
    assert isinstance(after, FleetView)
    assert (after.intent, fleet_verdict(after, "disk0").image) == (None, ELSE)
    other = accepting(announced(view(), replace(SWITCHED, id="other"), OnSilence.RESUME), HERE, SWITCHED, "disk0", ELSE)
    assert isinstance(other, str)
    assert "fleet take" in other


def test_a_guest_that_has_run_on_another_image_has_two():
    """Both are named until it is seen on the right one again, or a person has said which one is right."""
    before = view(disks=(told(NEW, of=SWITCHED.id),))
    after = doubting(before, HERE, SWITCHED.id, (NEW, ELSE), "disk0")
    word = fleet_verdict(after, "disk0")
    assert (word.certain, word.candidates) == (False, (NEW, ELSE))
    assert doubting(after, HERE, SWITCHED.id, (NEW, ELSE), "disk0") == after
    assert fleet_verdict(settling(after, HERE, SWITCHED.id, NEW, "disk0"), "disk0").image == NEW
    accepted = accepting(after, HERE, SWITCHED, "disk0", ELSE)
    assert isinstance(accepted, FleetView)
    assert settling(accepted, HERE, SWITCHED.id, NEW, "disk0") == accepted
    for other in (replace(before, owner=None), view("h2", disks=before.disks), replace(INTENT, disks=before.disks)):
        assert doubting(other, HERE, SWITCHED.id, (NEW, ELSE), "disk0") == other
    for other in (view("h2", disks=after.disks), view(disks=(told(NEW, of="later"),)), before):
        assert settling(other, HERE, SWITCHED.id, NEW, "disk0") == other


def test_a_doubt_ends_although_the_fleet_knows_an_earlier_pivot():
    """The last one here was given up: of that, the fleet has never heard."""
    before = view(disks=(told(NEW, of="earlier"),))
    after = doubting(before, HERE, KEPT.id, (NEW, ELSE), "disk0")
    assert not fleet_verdict(after, "disk0").certain
    assert fleet_verdict(settling(after, HERE, KEPT.id, NEW, "disk0"), "disk0").image == NEW


def test_a_doubt_is_about_the_image_that_the_fleet_names():
    """Another host may have moved the disk since: the journal's own image is not among the two then."""
    after = doubting(view(disks=(told(ELSE, of="later"),)), HERE, SWITCHED.id, (NEW, OLD), "disk0")
    assert fleet_verdict(after, "disk0").candidates == (ELSE, OLD)
    agreed = view(disks=(told(ELSE, of="later"),))
    assert doubting(agreed, HERE, SWITCHED.id, (NEW, ELSE), "disk0") == agreed


@pytest.mark.parametrize("host", ["h2", None])
def test_a_persons_word_counts_only_where_the_guest_belongs(host: str | None):
    assert isinstance(accepting(view(host), HERE, SWITCHED, "disk0", ELSE), str)


def test_a_word_that_was_given_before_there_was_a_fleet_is_told_as_that():
    """Not as the outcome that the person has overruled."""
    word = Accepted(ELSE.filename, ELSE.format, NOW, 0, "compared")
    pivot = ended(Outcome.UNKNOWN, stage=FleetStage.NONE)
    pivot = replace(pivot, disks=(replace(pivot.disks[0], accepted=word),))
    assert worth(view(), pivot, pivot.disks[0]) is Worth.TELL_FIRST
    after = after_outcome(view(), pivot, HERE)
    assert isinstance(after, FleetView)
    assert (fleet_verdict(after, "disk0").image, after.disks[0].outcome) == (ELSE, ACCEPTED)
