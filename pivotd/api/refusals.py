"""Refused requests in the log: who asked, for what, and why not; a client in a loop cannot flood the log.

In each interval the first ones of a user are told, and the first ones of all users. At its end the log says how many
it has left out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from pivotd import limits
from pivotd.core.names import is_domain_name
from pivotd.core.request import Requester
from pivotd.errors import NotAllowedError, PivotdError
from pivotd.host import users
from pivotd.log import get_logger

log = get_logger()

PATH_LENGTH_MAX = 200


class Refusals:
    """Counts the refusals of the present interval, which begins with the first of them."""

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()
        self._logged: Counter[int] = Counter()
        self._end: asyncio.TimerHandle | None = None

    def tell(self, who: Requester, method: str, path: str, error: PivotdError, domain: str | None = None) -> None:
        """Log one refusal, or count it."""
        if self._end is None:
            self._end = asyncio.get_running_loop().call_later(limits.REFUSALS_INTERVAL_S, self.end)
        # A user beyond the bound of all is counted with no one's name, so that this takes no more memory.
        uid = who.uid if who.uid in self._seen or len(self._seen) < limits.REFUSALS_LOGGED else -1
        self._seen[uid] += 1
        if self._logged[uid] >= limits.REFUSALS_LOGGED_PER_UID or self._logged.total() >= limits.REFUSALS_LOGGED:
            return
        self._logged[uid] += 1
        facts: dict[str, Any] = {"uid": who.uid, "user": users.name_of(who.uid), "requester_pid": who.pid}
        facts |= {"method": method, "path": path[:PATH_LENGTH_MAX], "kind": error.kind, "reason": error.message}
        if domain is not None and is_domain_name(domain):
            facts["domain"] = domain
        log.log("warning" if isinstance(error, NotAllowedError) else "info", "request.refused", **facts)

    def end(self) -> None:
        """End the interval: log how many refusals were left out."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        for uid, seen in self._seen.items():
            left_out = seen - self._logged[uid]
            if left_out:
                whose = {"uid": uid, "user": users.name_of(uid)} if uid >= 0 else {"uid": None, "user": None}
                log.warning("request.left-out", left_out=left_out, seconds=limits.REFUSALS_INTERVAL_S, **whose)
        self._seen.clear()
        self._logged.clear()


REFUSALS = Refusals()
"""Of this process."""
