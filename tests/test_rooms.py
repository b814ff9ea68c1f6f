"""The rooms of docs/architecture.md: a name of a module says in which room it is."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1] / "pivotd"

BOTH_SIDES = {"ports": {"api", "engine"}}
"""Names that two rooms share because they mean the same there: what the room needs of others."""


def rooms_by_name() -> dict[str, set[str]]:
    """Return for each name of a module or of a folder the rooms that have it; the package itself counts as one."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in ROOT.rglob("*.py"):
        *folders, name = path.relative_to(ROOT).with_suffix("").parts
        if name == "__init__":
            name = folders[-1] if folders else ROOT.name
        found[name].add(folders[0] if folders else ROOT.name)
    return found


def test_no_two_rooms_have_a_module_of_one_name():
    """Whoever reads `layers` knows which one is meant."""
    shared = {name: rooms for name, rooms in rooms_by_name().items() if len(rooms) > 1}
    assert shared == BOTH_SIDES
