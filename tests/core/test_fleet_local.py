"""What host and fleet together say of a disk: one row each. That the rows are right together, tests/model/test_fleet.py shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pivotd.core.fleet import ACCEPTED, FleetDisk, FleetImage, FleetView, OnSilence
from pivotd.core.overwritten import Overwritten, doubted
from pivotd.core.pivot import Accepted, FleetStage, Outcome, Phase, Pivot, RanOn
from pivotd.core.rules.fleet_changes import announced
from pivotd.core.rules.fleet_local import DiskHere, disks_of, together, unanswered, unknown_here
from pivotd.core.verdict import Presence as At
from pivotd.core.verdict import Verdict, check_file, doubtful, of_pivot, without_pivot
from tests.core.test_fleet import ELSE, HERE, INTENT, KEPT, NEW, NOW, OLD, SWITCHED, UNKNOWN, ended, told, view

TOLD = replace(SWITCHED, fleet=FleetStage.TOLD, phase=Phase.CLOSED)
NEVER = DiskHere(without_pivot("web1", "disk0"))


def here(pivot: Pivot, **facts: Any) -> DiskHere:
    disk = replace(pivot.disks[0], left_at=NOW if facts.get("left") else None, ran_on=facts.pop("ran_on", None))
    decided = replace(pivot, decided_at=NOW) if disk.outcome is not None else pivot
    return DiskHere(doubtful(of_pivot(decided, disk), disk), (decided, disk), **facts)


def said(fleet: FleetView, disk: DiskHere) -> Verdict:
    return together(fleet, HERE, [disk]).verdicts[0]


def test_the_fleet_agrees_with_the_journal():
    """Nothing is to be told, and the word stays the journal's."""
    found = together(view(disks=(told(NEW, of=TOLD.id),)), HERE, [here(TOLD)])
    (one,) = found.verdicts
    assert (one.certain, one.image, one.outcome, found.tell) == (True, NEW.filename, Outcome.SWITCHED, None)


@pytest.mark.parametrize("disk", [here(TOLD), here(SWITCHED), NEVER, here(TOLD, live=NEW, seen=True)])
def test_the_guest_of_another_host_is_not_certain_here(disk: DiskHere):
    """Whatever the journal or a QEMU says; the reason names the host, and nobody waits for it."""
    one = said(view("h2", 4, disks=(told(NEW),)), disk)
    assert (one.certain, one.pending) == (False, False)
    assert "belongs to host h2" in one.reason
    assert one.outcome is not None, "a disk that was never moved here would start from a default"


@pytest.mark.parametrize(
    ("fleet", "disk", "against"),
    [
        (view("h2", 4, disks=(told(NEW),)), DiskHere(without_pivot("web1", "disk0"), live=OLD), False),
        (view(disks=(told(NEW),)), DiskHere(without_pivot("web1", "disk0"), live=OLD), True),
        (view(disks=(told(NEW),)), DiskHere(without_pivot("web1", "disk0"), live=NEW), False),
        (view(disks=(told(OLD, of="P0009"),)), here(TOLD, live=NEW), True),
        (view(disks=(told(OLD, of="P0009"),)), here(TOLD), False),
    ],
    ids=["another host's", "never moved here", "where the fleet says", "moved on by another host", "no QEMU"],
)
def test_only_of_a_guest_of_this_host_the_fleet_contradicts_where_it_runs(
    fleet: FleetView, disk: DiskHere, against: bool
):
    """Before a guest that has migrated here was claimed, nothing is known to be wrong."""
    assert bool(together(fleet, HERE, [disk]).against) is against


@pytest.mark.parametrize("known", [told(NEW, of=TOLD.id), told(OLD, Outcome.UNKNOWN, of=TOLD.id)])
def test_a_guest_that_has_run_on_another_image_is_not_certain_by_an_older_word(known: FleetDisk):
    """The fleet may not have heard of it yet. While QEMU is on the image that the fleet names, that counts."""
    third = FleetImage("/images/third.qcow2", "qcow2")
    ran_on = RanOn(third.filename, third.format, NOW)
    one = said(view(disks=(known,)), here(TOLD, ran_on=ran_on))
    assert (one.certain, one.image) == (False, NEW.filename)
    assert third.filename in one.reason
    assert not said(view(disks=(known,)), here(TOLD, ran_on=ran_on, live=third)).certain
    taken_since = view(epoch=5, disks=(told(third, of="P0009"),))
    assert said(taken_since, here(TOLD, ran_on=ran_on, live=third)).image == third.filename


def test_a_guest_that_has_run_where_the_fleet_says_leaves_no_doubt():
    """Another host had moved it there, and the fleet did not answer when it was seen here."""
    third = FleetImage("/images/third.qcow2", "qcow2")
    back = view(epoch=5, disks=(told(third, of="P0009"),))
    one = said(back, here(TOLD, ran_on=RanOn(third.filename, third.format, NOW)))
    assert (one.certain, one.image) == (True, third.filename)
    assert not said(back, here(TOLD, ran_on=RanOn("/images/fourth.qcow2", "qcow2", NOW))).certain


def test_a_guest_that_was_released_is_soon_claimed():
    one = said(view(None, 4, disks=(told(NEW),)), here(TOLD, left=True))
    assert (one.certain, one.pending) == (False, True)


def test_an_outcome_that_the_fleet_does_not_know_is_told():
    """The word is certain once the fleet holds what is to be told."""
    for pivot, image in ((SWITCHED, NEW), (KEPT, OLD)):
        found = together(replace(view(), intent=INTENT.intent), HERE, [here(pivot)])
        assert found.tell is not None
        assert found.tell.intent is None
        assert (found.verdicts[0].certain, found.verdicts[0].image) == (True, image.filename)


@pytest.mark.parametrize(("seen", "phase"), [(False, Phase.READY), (False, Phase.DECIDED), (True, Phase.DECIDED)])
def test_while_the_pivot_is_driven_only_its_driver_tells(seen: bool, phase: Phase):
    """An intent that somebody else removed would make its pivot superseded, and leave its guest paused."""
    pivot = replace(SWITCHED, phase=phase) if phase is Phase.DECIDED else undecided(phase)
    found = together(replace(view(), intent=INTENT.intent), HERE, [here(pivot, driven=True, seen=seen)])
    assert found.tell is None
    assert (found.verdicts[0].certain, found.verdicts[0].pending) == (False, True)


def test_a_pivot_before_its_outcome_leaves_the_guest_that_runs_where_it_is():
    found = together(
        replace(view(), intent=INTENT.intent), HERE, [here(undecided(Phase.READY), driven=True, seen=True)]
    )
    assert (found.tell, found.verdicts[0].certain, found.verdicts[0].image) == (None, True, OLD.filename)


def undecided(phase: Phase) -> Pivot:
    disks = tuple(replace(disk, outcome=None) for disk in SWITCHED.disks)
    return replace(SWITCHED, phase=phase, disks=disks, decided_at=None)


def test_a_later_move_elsewhere_counts():
    """The journal of this host was told, and the fleet names another image since."""
    one = said(view(epoch=5, disks=(told(ELSE, of="later"),)), here(TOLD))
    assert (one.certain, one.image, one.pivot, one.outcome) == (True, ELSE.filename, "later", Outcome.SWITCHED)


@pytest.mark.parametrize("live", [None, ELSE, NEW])
def test_a_guest_that_came_back_is_where_the_fleet_says_if_qemu_agrees(live: FleetImage | None):
    """While nobody has seen it here again, it may run elsewhere."""
    one = said(view(epoch=5, disks=(told(ELSE, of="later"),)), here(TOLD, left=True, live=live))
    assert one.certain is (live == ELSE)
    assert not one.certain or one.image == ELSE.filename


def test_a_fleet_that_is_not_certain_names_its_images():
    fleet = announced(view(), replace(SWITCHED, id="other"), OnSilence.RESUME)
    for disk in (NEVER, here(TOLD)):
        one = said(fleet, disk)
        assert (one.certain, one.pending) == (False, False)
        assert NEW.filename in one.reason
        assert OLD.filename in one.reason


def test_a_move_of_which_the_fleet_never_heard_contradicts():
    """It was made while no fleet was configured."""
    made_alone = replace(TOLD, fleet=FleetStage.NONE, fleet_epoch=None)
    one = said(view(disks=(told(ELSE),)), here(made_alone))
    assert not one.certain
    assert "verdict accept" in one.reason
    assert together(FleetView("web1"), HERE, [here(made_alone)]).tell is not None


@pytest.mark.parametrize(
    ("accepted", "written", "certain"),
    [(3, 4, True), (3, 3, False), (4, 3, False), (0, 1, True), (None, 4, False)],
)
def test_a_pivot_that_has_moved_nothing_hides_no_later_move(accepted: int | None, written: int, certain: bool):
    """It was given up before the fleet heard of it. A move under a later owner came after it; any other may be older.

    Its source may be where a pivot has moved the disk while no fleet was configured.
    """
    given_up = replace(KEPT, fleet=FleetStage.NONE, fleet_epoch=accepted, phase=Phase.CLOSED)
    one = said(view(epoch=5, disks=(replace(told(ELSE), epoch=written),)), here(given_up))
    assert (one.certain, one.image == ELSE.filename) == (certain, certain)
    moved = replace(TOLD, fleet=FleetStage.NONE, fleet_epoch=accepted)
    assert not said(view(epoch=5, disks=(replace(told(ELSE), epoch=written),)), here(moved)).certain
    word = Accepted(OLD.filename, OLD.format, NOW, 0, "compared")
    settled = replace(TOLD, fleet_epoch=accepted, disks=(replace(TOLD.disks[0], accepted=word),))
    one = said(view(epoch=5, disks=(replace(told(ELSE), epoch=written),)), here(settled))
    assert (one.certain, one.image == ELSE.filename) == (certain, certain)


def test_an_announced_pivot_of_a_later_owner_came_after_one_that_was_given_up():
    """With `wait`, the fleet is certain of its source."""
    given_up = replace(KEPT, fleet=FleetStage.NONE, fleet_epoch=1, phase=Phase.CLOSED)
    fleet = announced(view(epoch=2, disks=(told(ELSE),)), replace(SWITCHED, id="other"), OnSilence.WAIT)
    assert fleet.intent is not None
    fleet = replace(fleet, intent=replace(fleet.intent, moves=(replace(fleet.intent.moves[0], source=ELSE),)))
    assert said(fleet, here(given_up)).image == ELSE.filename


def test_a_guest_whose_disks_nobody_has_moved_may_start_from_its_default():
    for fleet in (FleetView("web1"), view()):
        assert said(fleet, NEVER) == NEVER.verdict


def test_a_disk_that_only_the_fleet_knows_has_its_image():
    fleet = view(disks=(told(NEW),))
    assert disks_of(fleet) == ["disk0"]
    (one,) = unknown_here(fleet, [])
    assert (said(fleet, one).certain, said(fleet, one).image) == (True, NEW.filename)
    assert unknown_here(fleet, [NEVER]) == []


def test_a_doubt_of_the_journals_own_stays():
    """A file that is gone is no image, whatever the fleet says of its name."""
    disk = here(TOLD)
    gone = replace(disk, verdict=check_file(disk.verdict, At.GONE))
    one = said(view(disks=(told(NEW, of=TOLD.id),)), gone)
    assert not one.certain
    assert "not there" in one.reason


def test_nothing_is_told_for_a_word_that_is_not_certain():
    disk = here(SWITCHED)
    gone = replace(disk, verdict=check_file(disk.verdict, At.GONE))
    assert together(replace(view(), intent=INTENT.intent), HERE, [gone]).tell is None


@pytest.mark.parametrize("disk", [NEVER, here(TOLD)])
def test_a_fleet_that_does_not_answer_makes_nothing_certain(disk: DiskHere):
    for again in (True, False):
        one = unanswered(disk, "no answer", again=again)
        assert (one.certain, one.pending) == (False, again)
        assert one.outcome is not None


def test_an_image_that_was_overwritten_here_is_no_image_to_start_from():
    """The fleet knows of no such thing."""
    mark = Overwritten("web1", "disk0", ELSE.filename, "other", "web2 disk0")
    disk = here(TOLD, live=ELSE, spoiled=True)
    one = said(view(disks=(told(ELSE),)), replace(disk, verdict=doubted(disk.verdict, mark)))
    assert not one.certain
    assert "forced to write" in one.reason


@pytest.mark.parametrize("image", [OLD, NEW])
def test_a_persons_word_in_the_fleet_settles_what_the_journal_cannot(image: FleetImage):
    """It was given with `fleet take`, also for the image that the journal would name."""
    pivot = replace(UNKNOWN, fleet=FleetStage.TOLD, phase=Phase.CLOSED)
    one = said(view(epoch=4, disks=(told(image, ACCEPTED, pivot.id),)), here(pivot))
    assert (one.certain, one.image, one.outcome) == (True, image.filename, ACCEPTED)


def test_a_guest_that_has_left_is_not_started_again_by_an_older_word():
    """The release is owed: the fleet still names this host, and the guest runs elsewhere."""
    moved = replace(UNKNOWN, fleet=FleetStage.TOLD, phase=Phase.CLOSED)
    fleet = view(disks=(told(NEW, ACCEPTED, moved.id),))
    for disk in (replace(NEVER, left=True), here(moved, left=True), here(TOLD, left=True)):
        assert not said(fleet, disk).certain


@pytest.mark.parametrize("later", [Outcome.SWITCHED, ACCEPTED])
def test_telling_of_one_disk_leaves_a_later_move_of_the_others(later: Any):
    """Two disks were moved as one before there was a fleet; the first has moved on in it since."""
    both = ended(Outcome.SWITCHED, Outcome.SWITCHED, stage=FleetStage.NONE, phase=Phase.CLOSED, decided_at=NOW)
    fleet = view(disks=(told(ELSE, later, of="later"),))
    second = DiskHere(of_pivot(both, both.disks[1]), (both, both.disks[1]))
    found = together(fleet, HERE, [second])
    assert found.tell is not None
    assert found.tell.disk("disk0") == fleet.disk("disk0")
    known = found.tell.disk("disk1")
    assert known is not None
    assert known.image.filename == both.disks[1].destination.filename
    assert found.verdicts[0].certain
