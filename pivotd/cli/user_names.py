"""Names of users, for people."""

from __future__ import annotations

from functools import cache


@cache
def name(uid: int) -> str:
    """Return the name of a user of this host, the number of one that it does not know."""
    import pwd  # noqa: PLC0415 - only for those who read names

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
