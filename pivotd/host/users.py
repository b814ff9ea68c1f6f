"""Names of users, for the log. The user database may be on a network: it is asked in a thread, and not waited for."""

from __future__ import annotations

import time

from pivotd import limits
from pivotd.host.threads import in_thread

DATABASE = "/etc/passwd"
"""What a message names if the database does not answer; the real one may be elsewhere, see nsswitch.conf(5)."""

_known: dict[int, tuple[str | None, float]] = {}
"""Uid -> name, None if there is none, and when it was looked up."""


def name_of(uid: int) -> str | None:
    """Return the name of a user as learned last, None if it is not known."""
    return _known.get(uid, (None, 0.0))[0]


async def learn(uid: int) -> None:
    """Look a name up unless it was looked up lately; a database that does not answer costs limits.USER_TIMEOUT_S."""
    now_s = time.monotonic()
    if uid in _known and now_s - _known[uid][1] < limits.USER_KNOWN_S:
        return
    if len(_known) >= limits.USERS_KNOWN_MAX:
        _known.clear()
    _known[uid] = name_of(uid), now_s
    try:
        _known[uid] = await in_thread(limits.USER_TIMEOUT_S, _look_up, uid, paths=[DATABASE]), now_s
    except (TimeoutError, OSError):
        return


def _look_up(uid: int) -> str | None:
    import pwd  # noqa: PLC0415 - not on the start-up path

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
