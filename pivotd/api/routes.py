"""Every route on one screen: method, path, who may, what it does. Nothing else is served."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pivotd.api import answers as a
from pivotd.api import handlers as h
from pivotd.api.access import AccessClass
from pivotd.api.models import AdoptBody, BandwidthBody, CommitBody, CopyBody, DomainBody, PullBody, SnapshotBody
from pivotd.api.ports import DiskView, DomainView, Progress
from pivotd.core.pivot import Record
from pivotd.core.verdict import Verdict

READER, OPERATOR = AccessClass.READER, AccessClass.OPERATOR
VERDICT_OF = ("domain", "disk", "image")
PAGE = ("after", "limit")
PIVOTS_PAGE = ("domain", "open", "limit", "before")
Handler = Callable[[h.Call, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table. ``body``: the model of the request, None for none. ``status``: of success.

    ``answer``: the shape of what it gives back, a type; None: nothing, or an OpenAPI document.
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
    Route("GET", "/v1/openapi.json", READER, h.openapi, "This document"),
    Route("GET", "/v1/domains", READER, h.domains, "All domains", list[DomainView]),
    Route("POST", "/v1/domains", OPERATOR, h.add_domain, "Add a domain", DomainView, DomainBody, 201),
    Route("GET", "/v1/domains/{domain}", READER, h.domain, "One domain, with others' block jobs", DomainView),
    Route("DELETE", "/v1/domains/{domain}", OPERATOR, h.remove_domain, "Forget a domain", status=204),
    Route("GET", "/v1/domains/{domain}/disks", READER, h.disks, "The disks of a domain", list[DiskView]),
    Route("POST", "/v1/domains/{domain}/copy", OPERATOR, h.copy, "Copy disks, switch as one", a.Pivot, CopyBody, 202),
    Route("POST", "/v1/domains/{domain}/commit", OPERATOR, h.commit, "Commit disks' layers", a.Pivot, CommitBody, 202),
    Route("POST", "/v1/domains/{domain}/pull", OPERATOR, h.pull, "Pull layers into the images", a.Pivot, PullBody, 202),
    Route("POST", "/v1/domains/{domain}/snapshot", OPERATOR, h.snapshot, "Make overlays", a.Pivot, SnapshotBody, 202),
    Route("POST", "/v1/domains/{domain}/adopt", OPERATOR, h.adopt, "Take over others' jobs", a.Pivot, AdoptBody, 202),
    Route("GET", "/v1/pivots", READER, h.pivots, "Pivots, newest first", list[a.Pivot], query=PIVOTS_PAGE),
    Route("GET", "/v1/pivots/{pivot}", READER, h.pivot, "One pivot with every record", a.Pivot),
    Route("POST", "/v1/pivots/{pivot}/complete", OPERATOR, h.complete, "Switch one that waits", a.Pivot, status=202),
    Route("POST", "/v1/pivots/{pivot}/cancel", OPERATOR, h.cancel, "Keep the source", a.Pivot, status=202),
    Route("POST", "/v1/pivots/{pivot}/bandwidth", OPERATOR, h.bandwidth, "Set bandwidth", a.Pivot, BandwidthBody, 202),
    Route("POST", "/v1/pivots/{pivot}/undo", OPERATOR, h.undo, "Return to the images before it", a.Pivot, status=202),
    Route("POST", "/v1/pivots/{pivot}/release", OPERATOR, h.release, "End its undo window", a.Pivot, status=202),
    Route("GET", "/v1/pivots/{pivot}/wait", READER, h.wait, "Wait until a pivot rests", a.Pivot, query=("timeout_s",)),
    Route("GET", "/v1/pivots/{pivot}/progress", READER, h.progress, "How far an open pivot is", Progress | None),
    Route("GET", "/v1/verdicts", READER, h.verdicts, "Which image is right", list[Verdict], query=VERDICT_OF),
    Route("GET", "/v1/events", READER, h.events, "The event log, or a stream", list[Record], query=PAGE),
)
