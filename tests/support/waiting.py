"""Waiting for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_S = 60.0
LOOK_S = 0.002


def until(done: Callable[[], bool], timeout_s: float = WAIT_S, look_s: float = LOOK_S) -> bool:
    """Look every so many seconds until something is so, at most so long."""
    deadline_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(look_s)
    return True
