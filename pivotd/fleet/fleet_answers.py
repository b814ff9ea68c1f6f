"""What the fleet keeps, in the types that pivotctl and the API show."""

from __future__ import annotations

from pivotd.client.answers import (
    FleetCandidate,
    FleetDomain,
    FleetHost,
    FleetNode,
    FleetStatus,
    FleetUndecided,
    FleetVerdict,
)
from pivotd.core.fleet import FleetView
from pivotd.core.rules.fleet_local import disks_of
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.errors import FleetSilentError
from pivotd.fleet import nodes
from pivotd.fleet.store import EtcdFleet


def verdict(view: FleetView, disk: str) -> FleetVerdict:
    """Return the fleet's verdict on one disk."""
    word, known, owner = fleet_verdict(view, disk), view.disk(disk), view.owner
    decided = known is not None and word.pivot == known.pivot
    return FleetVerdict(
        domain=view.domain,
        disk=disk,
        image=None if word.image is None else word.image.filename,
        format=None if word.image is None else word.image.format,
        outcome=known.outcome if known is not None and decided else None,  # type: ignore[arg-type]
        certain=word.certain,
        reason=word.reason,
        candidates=tuple(FleetCandidate(image.filename, image.format) for image in word.candidates),
        decides=word.decides,
        pivot=word.pivot,
        since=known.at if known is not None and decided else None,
        host=None if owner is None else owner.host,
        epoch=None if owner is None else owner.epoch,
    )


def domain(view: FleetView) -> FleetDomain:
    """Return everything of one domain."""
    owner = view.owner
    return FleetDomain(
        domain=view.domain,
        host=None if owner is None else owner.host,
        epoch=None if owner is None else owner.epoch,
        since=None if owner is None else owner.since,
        pivot=None if view.intent is None else view.intent.pivot,
        disks=tuple(of_domain(view, None)),
    )


def of_domain(view: FleetView, disk: str | None) -> list[FleetVerdict]:
    """Return the verdict on one disk, or on all that the fleet knows."""
    return [verdict(view, name) for name in (disks_of(view) if disk is None else [disk])]


async def verdicts(store: EtcdFleet, domain: str | None, disk: str | None) -> list[FleetVerdict]:
    """Return the fleet's verdicts on all disks, or on those selected. Raises: FleetError."""
    if domain is not None:
        return of_domain(await store.read(domain, store.timeout_s), disk)
    views, _ = await store.domains(store.timeout_s)
    return [
        one for view in views for one in of_domain(view, disk) if disk is None or view.disk(disk) or view.move(disk)
    ]


async def domains(store: EtcdFleet) -> list[FleetDomain]:
    """Return all domains. Raises: FleetError."""
    views, _ = await store.domains(store.timeout_s)
    return [domain(view) for view in views]


async def status(store: EtcdFleet) -> FleetStatus:
    """Return what each node says, and, if there is a majority, the hosts and the undecided pivots.

    Raises: FleetRefusedError.
    """
    shown = tuple(_node(one) for one in await nodes.look(store))
    try:
        views, _ = await store.domains(store.timeout_s)
        hosts = await store.hosts(store.timeout_s)
    except FleetSilentError as error:
        return FleetStatus(False, error.message, store.gateway.cluster, shown, None, (), ())
    return FleetStatus(
        quorum=True,
        error=None,
        cluster=store.gateway.cluster,
        nodes=shown,
        domains=len(views),
        hosts=tuple(FleetHost(name, host.version, host.since) for name, host in sorted(hosts.items())),
        undecided=tuple(
            FleetUndecided(view.domain, intent.pivot, intent.host, intent.on_silence.value)
            for view in views
            if (intent := view.intent) is not None
        ),
    )


def _node(one: nodes.NodeSeen) -> FleetNode:
    return FleetNode(
        endpoint=one.url,
        error=None if one.error is None else one.error.message,
        leader=one.leads,
        version=one.version,
        answer_ms=None if one.answer_ms is None else round(one.answer_ms, 1),
        database_bytes=one.database_bytes,
    )
