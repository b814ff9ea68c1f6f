"""Every route on one screen: method, path, access, handler. The server serves nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pivotd.api import handlers as h
from pivotd.api.access import AccessClass
from pivotd.client import answers as a
from pivotd.client import requests as r

READER, OPERATOR = AccessClass.READER, AccessClass.OPERATOR
WHOSE = ("domain", "disk")
VERDICT_OF = (*WHOSE, "local")
EVENTS_PAGE = ("after", "limit", "domain", "event", "since", "tail", "before_seq")
PIVOTS_PAGE = ("domain", "open", "limit", "before", "kind", "outcome", "since", "id", "total")
D, P = "/v1/domains/{domain}", "/v1/pivots/{pivot}"
F = "/v1/fleet"
Handler = Callable[[h.Call, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table. ``body``: the model of the request, None for none. ``status``: of success.

    ``answer``: the type of the answer; None: no content, or an OpenAPI document.
    """

    method: str
    path: str
    access: AccessClass
    handler: Handler
    summary: str
    answer: Any = None
    body: type | None = None
    status: int = 200
    query: tuple[str, ...] = ()


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/health", READER, h.health, "State of the daemon, its journal and its domains", a.Health),
    Route("GET", "/metrics", READER, h.metrics, "Metrics in Prometheus' text format"),
    Route("GET", "/v1/doctor", READER, h.doctor, "What is wrong here, as the daemon sees it", a.DoctorReport),
    Route("GET", "/v1/openapi.json", READER, h.openapi, "This document"),
    Route("GET", "/v1/domains", READER, h.domains, "All domains", list[a.DomainView]),
    Route("POST", "/v1/domains", OPERATOR, h.add_domain, "Add a domain", a.DomainView, r.DomainRequest, 201),
    Route("GET", D, READER, h.domain, "One domain, with others' block jobs", a.DomainView),
    Route("DELETE", D, OPERATOR, h.remove_domain, "Forget a domain", status=204),
    Route("GET", f"{D}/disks", READER, h.disks, "The disks of a domain", list[a.DiskView]),
    Route("POST", f"{D}/copy", OPERATOR, h.copy, "Copy disks, switch as one", a.Pivot, r.CopyRequest, 202),
    Route("POST", f"{D}/commit", OPERATOR, h.commit, "Commit disks' layers", a.Pivot, r.CommitRequest, 202),
    Route("POST", f"{D}/pull", OPERATOR, h.pull, "Pull layers into the images", a.Pivot, r.PullRequest, 202),
    Route("POST", f"{D}/snapshot", OPERATOR, h.snapshot, "Make overlays", a.Pivot, r.SnapshotRequest, 202),
    Route("POST", f"{D}/adopt", OPERATOR, h.adopt, "Take over others' jobs", a.Pivot, r.AdoptRequest, 202),
    Route("GET", "/v1/pivots", READER, h.pivots, "Pivots, newest first", list[a.Pivot], query=PIVOTS_PAGE),
    Route("GET", P, READER, h.pivot, "One pivot with every record", a.PivotWithRecords),
    Route("POST", f"{P}/complete", OPERATOR, h.complete, "Switch one that waits", a.Pivot, status=202),
    Route("POST", f"{P}/cancel", OPERATOR, h.cancel, "Keep the source", a.Pivot, status=202),
    Route("POST", f"{P}/bandwidth", OPERATOR, h.bandwidth, "Set bandwidth", a.Pivot, r.BandwidthRequest, 202),
    Route("POST", f"{P}/undo", OPERATOR, h.undo, "Return to the images before it", a.Pivot, status=202),
    Route("POST", f"{P}/release", OPERATOR, h.release, "End its undo window", a.Pivot, status=202),
    Route("GET", f"{P}/wait", READER, h.wait, "Wait until a pivot rests", a.Pivot, query=("timeout_s",)),
    Route("GET", f"{P}/progress", READER, h.progress, "How far an open pivot is", a.Progress | None),
    Route("GET", "/v1/verdicts", READER, h.verdicts, "Which image is right", list[a.Verdict], query=VERDICT_OF),
    Route("POST", f"{D}/disks/{{disk}}/accept", OPERATOR, h.accept, "Say which is right", a.Verdict, r.AcceptRequest),
    Route("GET", "/v1/images", READER, h.images, "History of an image", list[a.ImageVerdict], query=("image",)),
    Route(
        "GET", "/v1/obsolete", READER, h.obsolete, "Images of no use", a.ObsoleteImages, query=("after_image", "limit")
    ),
    Route("GET", f"{F}/verdicts", READER, h.fleet_verdicts, "By the fleet", list[a.FleetVerdict], query=WHOSE),
    Route("GET", f"{F}/domains", READER, h.fleet_domains, "All domains of the fleet", list[a.FleetDomain]),
    Route("GET", f"{F}/status", READER, h.fleet_status, "State of etcd and of the fleet", a.FleetStatus),
    Route("POST", f"{F}/domains/{{domain}}/take", OPERATOR, h.take, "Take a guest", a.FleetDomain, r.TakeRequest),
    Route("DELETE", f"{F}/domains/{{domain}}", OPERATOR, h.forget, "Remove it from the fleet", status=204),
    Route("GET", "/v1/journal", READER, h.journal, "How large the journal is", a.JournalStats),
    Route(
        "POST", "/v1/journal/archive", OPERATOR, h.archive, "Archive old pivots", a.ArchiveProgress, r.ArchiveRequest
    ),
    Route("GET", "/v1/events", READER, h.events, "The event log, or a stream", list[a.Record], query=EVENTS_PAGE),
)
