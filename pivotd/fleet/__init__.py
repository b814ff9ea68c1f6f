"""etcd: what all hosts of a fleet know of a domain. Used only where [fleet] is configured."""

from __future__ import annotations

from pivotd.config import Fleet
from pivotd.fleet.late import LateFleet


def connect(settings: Fleet) -> LateFleet:
    """Return the fleet of a configuration. Nothing is imported and nothing is sent before the first message."""
    return LateFleet(settings)
