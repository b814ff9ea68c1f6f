"""`--at`: when an evacuation begins. One that has begun already goes on at once, also after a kill."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import click

from pivotd.client import Client

LOOK_S = 30.0
"""The clock is looked at this often: it may be set, and a host may sleep meanwhile."""
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)


class At(click.ParamType[str]):
    """A time of day of this host, or a date with a time."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        if _CLOCK.fullmatch(str(value)) is None:
            try:
                _once(str(value)).astimezone(UTC)
            except (ValueError, OverflowError):  # also of years that no time zone reaches
                self.fail(f"{value!r} is no time: give 22:00, or 2027-01-31T22:00", param, ctx)
            if _is_day(str(value)):
                self.fail(f"{value!r} has no time of day: give 22:00, or {value}T22:00", param, ctx)
        return str(value)


def last_and_next(at: str, now: datetime) -> tuple[datetime, datetime]:
    """Return when the time was last, and when it is next; of a date both are the same. ``now``: with its zone."""
    clock = _CLOCK.fullmatch(at)
    if clock is None:
        once = _once(at)
        return once, once
    local = now.replace(tzinfo=None)
    today = local.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
    last = today if today <= local else today - timedelta(days=1)
    # By the clock on the wall: a day on which that is put back or forward is not 24 hours long.
    following = (last + timedelta(days=1)).astimezone()
    if following <= now:
        # The clock was put back: it shows this time again.
        following = following.replace(tzinfo=None, fold=1).astimezone()
    return last.astimezone(), following


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _once(at: str) -> datetime:
    """Return a date with a time, of this host's zone unless it names one. Raises: ValueError, OverflowError."""
    given = datetime.fromisoformat(at)
    return given if given.tzinfo is not None else given.astimezone()


def has_begun(client: Client, prefix: str, since: datetime) -> bool:
    """Return whether a pivot with a request id of this beginning was asked for since then. Raises: ClientError."""
    first = since.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    for pivot in client.pivots():
        if pivot.created < first:
            return False
        if pivot.request_id.startswith(prefix):
            return True
    return False


def sleep_until(then: datetime, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return once the clock shows that time."""
    while (left_s := (then - datetime.now(UTC)).total_seconds()) > 0:
        sleep(min(left_s, LOOK_S))
