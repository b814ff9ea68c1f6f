"""Whether the present task may wait for others: whoever only reads does, and no driver with a paused guest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_patient: ContextVar[bool] = ContextVar("patient", default=False)


def is_patient() -> bool:
    """Return whether this task, and those that it starts, let others go first."""
    return _patient.get()


@contextmanager
def patient() -> Iterator[None]:
    """Let others go first, within the block."""
    token = _patient.set(True)
    try:
        yield
    finally:
        _patient.reset(token)
