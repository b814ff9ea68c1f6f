"""The table of phases: what the documentation shows."""

from __future__ import annotations

from pathlib import Path

from pivotd.core.phases import TRANSITIONS, diagram
from pivotd.core.pivot import Phase

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
