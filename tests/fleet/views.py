"""Views of one domain as a pivot of one disk makes them, step by step."""

from __future__ import annotations

from dataclasses import replace

from pivotd.core.fleet import FleetDisk, FleetImage, FleetIntent, FleetMove, FleetView, OnSilence, Owner
from pivotd.core.pivot import Outcome
from pivotd.core.request import Manager

AT = "2026-11-30T00:00:00.000000Z"
AWAY = "http://127.0.0.1:1"
"""Nobody listens there; a port that was free a moment ago can be another test's by now."""
SOURCE, DESTINATION = FleetImage("/old/web1.qcow2", "qcow2"), FleetImage("/new/web1.qcow2", "qcow2")


def claimed(view: FleetView, host: str = "h1") -> FleetView:
    """Return the domain with an owner."""
    epoch = view.owner.epoch + 1 if view.owner else 1
    return replace(view, owner=Owner(host, epoch, "boot-1", AT))


def announced(view: FleetView, pivot: str = "01A", *disks: str) -> FleetView:
    """Return the domain with an intent."""
    assert view.owner is not None
    assert view.owner.host is not None
    moves = tuple(FleetMove(disk, SOURCE, DESTINATION) for disk in disks or ("disk0",))
    owner = view.owner
    intent = FleetIntent(pivot, owner.host or "", owner.epoch, OnSilence.RESUME, Manager.PIVOTD, moves)
    return replace(view, intent=intent)


def published(view: FleetView) -> FleetView:
    """Return the domain after the announced pivot has switched."""
    intent = view.intent
    assert intent is not None
    disks = tuple(
        FleetDisk(move.disk, move.destination, move.source, Outcome.SWITCHED, intent.pivot, intent.epoch, AT)
        for move in intent.moves
    )
    return replace(view, intent=None, disks=disks)


def withdrawn(view: FleetView) -> FleetView:
    """Return the domain after the announced pivot was given up."""
    return replace(view, intent=None)
