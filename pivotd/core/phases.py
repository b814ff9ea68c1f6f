"""Every allowed change of phase. docs/protocol.md shows this table as a diagram, and a test compares the two."""

from __future__ import annotations

from pivotd.core.pivot import Phase, Pivot

TRANSITIONS: dict[Phase, dict[Phase, str]] = {
    Phase.PREPARING: {
        Phase.COPYING: "every job has been started",
        Phase.CANCELLING: "refused by QEMU, or cancelled",
        Phase.DECIDED: "QEMU is gone",
    },
    Phase.COPYING: {
        Phase.READY: "every job waits for the switch",
        Phase.CANCELLING: "a copy failed, or cancelled",
        Phase.DECIDED: "QEMU is gone",
    },
    Phase.READY: {
        Phase.PAUSING: "intent: backlog small, images flushed",
        Phase.CANCELLING: "a job failed, or cancelled",
        Phase.DECIDED: "QEMU is gone",
    },
    Phase.PAUSING: {
        Phase.READY: "deadline before job-complete: the guest goes on",
        Phase.CANCELLING: "a switch failed, deadline, or cancelled",
        Phase.DECIDED: "the graph was read: switched or merged",
    },
    Phase.CANCELLING: {Phase.DECIDED: "every job has ended: kept"},
    Phase.DECIDED: {Phase.CLOSED: "guest resumed, nodes and jobs gone"},
    Phase.CLOSED: {},
}


def is_allowed(before: Phase, after: Phase) -> bool:
    """Return whether a record may move a pivot from one phase to another; staying is always allowed."""
    return before is after or after in TRANSITIONS[before]


def is_resting(pivot: Pivot) -> bool:
    """Return whether the pivot makes no further step by itself: closed, waiting at READY for a user, or undoable."""
    waits = pivot.window_open or (pivot.phase is Phase.READY and pivot.hold)
    return pivot.phase is Phase.CLOSED or (waits and not pivot.owes_resume)


def is_decided(pivot: Pivot) -> bool:
    """Return whether the outcome of a pivot is durable."""
    return pivot.phase in {Phase.DECIDED, Phase.CLOSED}


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> preparing: accepted"]
    for before, changes in TRANSITIONS.items():
        lines += [f"    {before} --> {after}: {why}" for after, why in changes.items()]
    return "\n".join([*lines, "    closed --> [*]"])
