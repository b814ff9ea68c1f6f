"""The table of phases: what the documentation shows, and what the decision does."""

from __future__ import annotations

import itertools
from pathlib import Path

from pivotd.core import actions as a
from pivotd.core.decide import decide
from pivotd.core.phases import TRANSITIONS, diagram, is_allowed
from pivotd.core.words import Phase

from .build import pivot
from .test_decide import every_observation

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_documented_diagram_is_the_one_in_the_code():
    """docs/protocol.md shows TRANSITIONS."""
    assert f"```mermaid\n{diagram()}\n```" in PROTOCOL.read_text()


def test_every_phase_has_a_way_to_the_end():
    """No pivot can stay open for ever by the table alone."""
    for phase in Phase:
        reached, todo = set(), [phase]
        while todo:
            now = todo.pop()
            if now not in reached:
                reached.add(now)
                todo += TRANSITIONS[now]
        assert Phase.CLOSED in reached


def test_decisions_change_phases_only_as_the_table_says():
    """Every recording action, from every phase and observation, takes an allowed transition."""
    for before, observation in itertools.product([pivot(phase, 2) for phase in Phase], every_observation()):
        match decide(before, observation):
            case a.Advance(phase):
                after = phase
            case a.Retreat():
                after = Phase.READY
            case a.Abandon():
                after = Phase.CANCELLING
            case a.RecordOutcome():
                after = Phase.DECIDED
            case a.Converge():
                after = Phase.PAUSING
            case a.Close():
                after = Phase.CLOSED
            case _:
                continue
        assert is_allowed(before.phase, after), (before.phase, observation)
        assert after is not before.phase
