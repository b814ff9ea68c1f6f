"""Every route on one screen: method, path, who may, what it does. Nothing else is served."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pivotd.api import handlers as h
from pivotd.api.access import AccessClass
from pivotd.api.answers import Event, Health, PivotAnswer
from pivotd.api.models import AdoptBody, BandwidthBody, CommitBody, CopyBody, DomainBody, PullBody, SnapshotBody
from pivotd.api.ports import DiskView, DomainView, Progress
from pivotd.core.words import Verdict

READER, OPERATOR = AccessClass.READER, AccessClass.OPERATOR
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
    body: type | None = None
    status: int = 200
    query: tuple[str, ...] = ()
    answer: Any = None


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/health", READER, h.health, "State of the daemon, its journal and its domains", answer=Health),
    Route("GET", "/v1/openapi.json", READER, h.openapi, "This document"),
    Route("GET", "/v1/domains", READER, h.domains, "All domains", answer=list[DomainView]),
    Route("POST", "/v1/domains", OPERATOR, h.add_domain, "Add a domain", DomainBody, 201, answer=DomainView),
    Route("GET", "/v1/domains/{domain}", READER, h.domain, "One domain, with others' block jobs", answer=DomainView),
    Route("DELETE", "/v1/domains/{domain}", OPERATOR, h.remove_domain, "Forget a domain", status=204),
    Route("GET", "/v1/domains/{domain}/disks", READER, h.disks, "The disks of a domain", answer=list[DiskView]),
    Route(
        "POST",
        "/v1/domains/{domain}/copy",
        OPERATOR,
        h.copy,
        "Copy disks and switch them as one",
        CopyBody,
        202,
        answer=PivotAnswer,
    ),
    Route(
        "POST",
        "/v1/domains/{domain}/commit",
        OPERATOR,
        h.commit,
        "Commit layers of disks",
        CommitBody,
        202,
        answer=PivotAnswer,
    ),
    Route(
        "POST",
        "/v1/domains/{domain}/pull",
        OPERATOR,
        h.pull,
        "Pull layers into the images",
        PullBody,
        202,
        answer=PivotAnswer,
    ),
    Route(
        "POST",
        "/v1/domains/{domain}/snapshot",
        OPERATOR,
        h.snapshot,
        "Put overlays on disks",
        SnapshotBody,
        202,
        answer=PivotAnswer,
    ),
    Route(
        "POST",
        "/v1/domains/{domain}/adopt",
        OPERATOR,
        h.adopt,
        "Take over somebody's block jobs",
        AdoptBody,
        202,
        answer=PivotAnswer,
    ),
    Route(
        "GET",
        "/v1/pivots",
        READER,
        h.pivots,
        "Pivots, newest first",
        query=("domain", "open"),
        answer=list[PivotAnswer],
    ),
    Route("GET", "/v1/pivots/{pivot}", READER, h.pivot, "One pivot with every record", answer=PivotAnswer),
    Route(
        "POST",
        "/v1/pivots/{pivot}/complete",
        OPERATOR,
        h.complete,
        "Switch a pivot that waits",
        status=202,
        answer=PivotAnswer,
    ),
    Route("POST", "/v1/pivots/{pivot}/cancel", OPERATOR, h.cancel, "Keep the source", status=202, answer=PivotAnswer),
    Route(
        "POST",
        "/v1/pivots/{pivot}/bandwidth",
        OPERATOR,
        h.bandwidth,
        "Copy slower or faster",
        BandwidthBody,
        202,
        answer=PivotAnswer,
    ),
    Route(
        "POST",
        "/v1/pivots/{pivot}/undo",
        OPERATOR,
        h.undo,
        "Return to the images before it",
        status=202,
        answer=PivotAnswer,
    ),
    Route(
        "POST", "/v1/pivots/{pivot}/release", OPERATOR, h.release, "End its undo window", status=202, answer=PivotAnswer
    ),
    Route(
        "GET",
        "/v1/pivots/{pivot}/wait",
        READER,
        h.wait,
        "Wait until a pivot rests",
        query=("timeout_s",),
        answer=PivotAnswer,
    ),
    Route("GET", "/v1/pivots/{pivot}/progress", READER, h.progress, "How far an open pivot is", answer=Progress | None),
    Route(
        "GET",
        "/v1/verdicts",
        READER,
        h.verdicts,
        "Which image holds the data",
        query=("domain", "disk", "image"),
        answer=list[Verdict],
    ),
    Route(
        "GET",
        "/v1/events",
        READER,
        h.events,
        "The event log, also as a stream",
        query=("after", "limit"),
        answer=list[Event],
    ),
)
