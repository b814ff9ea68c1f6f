"""Two hosts of a fleet under kills: no answer is wrong, whoever is lost at whichever message.

``make fleet ROUNDS=200 SEED=…`` plays as many random rounds as wanted and prints what was answered.
"""

from __future__ import annotations

import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import LONG
from tests.fleet.etcd import Cluster
from tests.fleet.plan import FleetRound, Summary, Victim, Weather, matrix
from tests.fleet.rounds import MODES, campaign, play_all, rounds_at
from tests.fleet.wires import Message, Place
from tests.support.seeds import rng, seed

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(1800)]

ROUNDS = 10
STRIDE = 19
"""Of the matrix without PIVOTD_LONG; it has no common divisor with the number of places and victims."""


def kept() -> Path:
    return Path(tempfile.mkdtemp(prefix="pivotd-fleet-"))


def held(summary: Summary) -> None:
    """Check that every promise was kept."""
    print(summary)  # noqa: T201 - pytest shows it when the test fails
    assert (summary.wrong, summary.broken, summary.believed) == ([], [], [])


def test_random_rounds() -> None:
    """Nodes of etcd, messages, pivotd, QEMU and whole hosts at random; lost hosts come back."""
    held(campaign(ROUNDS, seed(), kept()))


def test_every_message_is_struck() -> None:
    """Before it arrives, after its answer, with the answer lost, and late; pivotd, QEMU, both or the host are lost then."""
    planned = [(mode, one) for mode in MODES for one in matrix()] if LONG else []
    planned = planned or [(MODES[n % len(MODES)], one) for n, one in enumerate(matrix()[::STRIDE])]
    summary = play_all(planned, rng("matrix"), kept())
    held(summary)
    struck = sum(count for note, count in summary.notes.items() if note.endswith(": struck"))
    pivots = [one for _, one in planned if one.message in {Message.INTEND, Message.PUBLISH, Message.WITHDRAW}]
    assert struck > len(pivots) // 2, "the message has to come"


def test_take_over_without_a_majority() -> None:
    """It says that nothing is known, and answers as soon as there is a majority."""
    planned = FleetRound(Victim.HOST, Message.PUBLISH, Place.LATE, weather=Weather.NO_MAJORITY)
    summary = play_all([("wait", planned)], rng("majority"), kept())
    held(summary)
    assert summary.words["fleet: no answer"] > 0
    assert summary.words["take: certain"] == 1


def test_the_clock_of_a_host_is_a_day_wrong() -> None:
    """A take-over by the host that is ahead, and one back from it: nothing is decided by a clock."""
    summary = Summary()
    with tempfile.TemporaryDirectory(prefix="pv") as name, Cluster(Path(name) / "etcd") as cluster:
        site = Path(name) / "s"
        site.mkdir()
        with rounds_at(site, cluster, "resume", summary, random.Random(1)) as rounds:
            rounds.play(FleetRound(Victim.HOST, Message.PUBLISH, Place.AFTER))
            owner = rounds.site.view().owner
            assert owner is not None
            ahead = datetime.fromisoformat(owner.since) - datetime.now(UTC)
            assert timedelta(hours=23) < ahead < timedelta(hours=25)
            rounds.play(FleetRound(Victim.HOST, Message.PUBLISH, Place.LATE))
    held(summary)


def test_the_judge_can_fail() -> None:
    """Pointed at the image that the fleet does not name, it finds acknowledged writes missing."""
    summary = Summary()
    # Not tmp_path: Unix sockets need short paths.
    with tempfile.TemporaryDirectory(prefix="pv") as name, Cluster(Path(name) / "etcd") as cluster:
        site = Path(name) / "s"
        site.mkdir()
        with rounds_at(site, cluster, "resume", summary, random.Random(1), other_image=True) as rounds:
            rounds.play(FleetRound(Victim.NOBODY, Message.PUBLISH, Place.AFTER))
    assert any("disk0-0.qcow2 lacks" in text for text in summary.wrong), summary
