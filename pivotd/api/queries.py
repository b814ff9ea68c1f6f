"""The filters of a list in the query of a request, and the link to its next page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from starlette.datastructures import URL

from pivotd.core.list_filters import OUTCOMES, EventFilter, PivotFilter, journal_time
from pivotd.core.request import Kind
from pivotd.errors import BadRequestError


def pivot_filter(query: Mapping[str, str], *, open_only: bool) -> PivotFilter:
    """Return the filter of a list of pivots. Raises: BadRequestError."""
    kind = _one_of(query, "kind", [kind.value for kind in Kind])
    return PivotFilter(query.get("domain"), open_only, kind, _one_of(query, "outcome", OUTCOMES), _since(query))


def event_filter(query: Mapping[str, str]) -> EventFilter:
    """Return the filter of a list of records. Raises: BadRequestError."""
    return EventFilter(query.get("domain"), query.get("event"), _since(query))


def link(url: URL, **changed: Any) -> str:
    """Return the header that leads to the next page: the same request from another place on."""
    following = url.include_query_params(**changed)
    return f'<{following.path}?{following.query}>; rel="next"'


def _one_of(query: Mapping[str, str], name: str, words: Any) -> str | None:
    text = query.get(name)
    if text is not None and text not in words:
        raise BadRequestError(f"{name}={text[:40]}: expected one of {', '.join(words)}", field=name)
    return text


def _since(query: Mapping[str, str]) -> str | None:
    """Return the time as the journal writes times, which compare as text. Raises: BadRequestError."""
    text = query.get("since")
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            return journal_time(at)
    except (ValueError, OverflowError):
        pass
    raise BadRequestError(f"since={text[:40]}: expected a time like 2026-11-23T09:00:00Z", field="since")
