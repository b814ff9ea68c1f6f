"""A point in time on the command line: so long ago, or a date."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from pivotd.cli.values import UNITS_S, Length

UNITS = {unit: length for unit, length in {**UNITS_S, "w": 7 * UNITS_S["d"]}.items() if unit}


class Since(click.ParamType[datetime]):
    """``2m``, ``24h``, ``7d``: so long ago; ``2026-11-30T08:00``: that time, UTC unless it says otherwise."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time in UTC."""
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        try:
            found = datetime.fromisoformat(text.upper())
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        try:
            return datetime.now(UTC) - timedelta(
                seconds=Length(UNITS, "seconds", "24h or 7d").convert(text, param, ctx)
            )
        except (click.BadParameter, OverflowError):
            self.fail(
                f"{value!r} is no time: give how long ago, like 2m, 12h or 3d, or a date like 2026-11-23 or "
                "2026-11-23T09:00",
                param,
                ctx,
            )
