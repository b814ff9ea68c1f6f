"""What is known to be wrong with QEMU's releases. Source: docs/protocol.md, docs/tasks.md, tests/qmp/."""

from __future__ import annotations

TESTED_MIN = (7, 2)
"""The oldest release that pivotd's tests run."""
_FAULTS = (
    ((10, 0), "aborts if another client sends query-named-block-nodes while it creates a qcow2 image, as for a copy"),
    ((9, 0), "cannot hold a suspended guest by `stop`, so pivotd refuses its pivots"),
    ((8, 2), "holds up all disks of an I/O thread while one job is pending"),
)
"""Releases before this one have this fault."""


def untested(version: tuple[int, ...]) -> bool:
    """Return whether this release is older than all that the tests run."""
    return version[:2] < TESTED_MIN


def faults(version: tuple[int, ...]) -> list[str]:
    """Return what is known to be wrong with a release, in clauses that follow its name."""
    return [text for fixed_in, text in _FAULTS if version[:2] < fixed_in]
