"""The names of all events that this release records. Pure; docs/journal.md explains each."""

from __future__ import annotations

from collections.abc import Iterable

from pivotd.core.names import NEAR
from pivotd.core.pivot import Outcome, Phase

EVENTS = frozenset(
    {
        *(outcome.value for outcome in Outcome),
        *(phase.value for phase in (Phase.COPYING, Phase.READY, Phase.PAUSING, Phase.CANCELLING, Phase.CLOSED)),
        *("accepted", "split", "asking", "writes-counted", "guest-waits", "define-raced", "announcing", "fleet-told"),
        *("withdrawn", "superseded", "resumed", "resume-not-needed", "not-our-pause", "paused", "gave-up"),
        *("rolling-back", "cancel-requested", "complete-requested", "release-requested", "undo-requested"),
        *("bandwidth-requested", "bandwidth-set", "slowing", "limits-restored", "interrupted", "went-on", "stalled"),
        *("moving-again", "destination-hangs", "leftovers", "window-ended", "release-owed", "release-settled"),
        *(
            "take-requested",
            "guest-taken",
            "forget-requested",
            "guest-forgotten",
            "guest-left",
            "journal-moved",
            "image-seen",
            "image-accepted",
        ),
        *("wrong-image", "ran-on-other-image", "old-image-used", "archived", "domain-added", "domain-removed"),
        *("reloaded", "reload-refused"),
    }
)


def no_event(name: str, known: Iterable[str] = EVENTS) -> str:
    """Return in words that there is no event of a name, and which one may be meant."""
    from difflib import get_close_matches  # noqa: PLC0415 - only for an error

    near = get_close_matches(name.lower(), sorted(known), 1, NEAR)
    # Another release may have other events: nobody can say that there is none at all.
    said = f"this pivotctl knows no event {name}, and the journal has none"
    return f"{said}: do you mean {near[0]}?" if near else f"{said}; docs/journal.md lists all"
