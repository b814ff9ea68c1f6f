"""The OpenAPI 3.1 document, made from the route table and the types of requests and answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from pivotd import __version__, limits
from pivotd.api.routes import ROUTES, Route
from pivotd.client.answers import ObsoleteImages
from pivotd.client.requests import NewPivot
from pivotd.core.list_filters import OUTCOMES
from pivotd.core.request import Kind

Schema = dict[str, Any]

PROBLEM = {"$ref": "#/components/schemas/Problem"}
TEXT: Schema = {"type": "string"}
PAGE_HEADERS: Schema = {
    "Link": {"description": '<the next page>; rel="next", as long as there may be one.', "schema": TEXT},
    "X-Total-Count": {"description": "How many there are, with total=true.", "schema": TEXT},
}
PARAMETERS: dict[str, tuple[str, Schema]] = {
    "pivot": ("The id of a pivot, or the request id under which it was started.", TEXT),
    "domain": ("The name of a domain.", TEXT),
    "disk": ("The name of a disk of the domain.", TEXT),
    "image": ("The absolute path or NBD address of an image.", TEXT),
    "after_image": ("The name of an image: only later ones, to go on where a page ended.", TEXT),
    "open": ("true: only pivots that are not closed.", {"type": "boolean", "default": False}),
    "local": (
        "true: this host's word counts alone if its fleet does not answer; no other host has had the guest since.",
        {"type": "boolean", "default": False},
    ),
    "limit": ("The most rows to return.", {"type": "integer", "minimum": 0, "maximum": limits.EVENTS_PAGE_MAX}),
    "before": ("The id of a pivot: only older ones, to go on where a page ended.", TEXT),
    "kind": ("Only pivots of this kind.", {"type": "string", "enum": [kind.value for kind in Kind]}),
    "outcome": ("Only pivots with this outcome.", {"type": "string", "enum": list(OUTCOMES)}),
    "since": ("Only what was created or written at this time or later.", {"type": "string", "format": "date-time"}),
    "id": (
        "The pivot with this id or request id, else those whose ids begin so, and nothing else of the list.",
        TEXT,
    ),
    "total": (
        "true: the header X-Total-Count says how many there are, unless kind, outcome or since is given.",
        {"type": "boolean", "default": False},
    ),
    "event": ("Only records of this event.", TEXT),
    "tail": ("true: the last records, oldest first, instead of the first.", {"type": "boolean", "default": False}),
    "before_seq": (
        "With tail: only records with a smaller sequence number; 0: all.",
        {"type": "integer", "minimum": 0, "maximum": 2**53},
    ),
    "after": ("Only records with a larger sequence number.", {"type": "integer", "minimum": 0, "maximum": 2**53}),
    "timeout_s": (
        "How long to wait, in seconds; then the pivot is returned as it is.",
        {"type": "number", "minimum": 0, "maximum": limits.WAIT_TIMEOUT_S_MAX, "default": 30.0},
    ),
}
"""The meaning and schema of each parameter; a name means the same in every route."""


def document() -> bytes:
    """Return the document as JSON."""
    shapes = [shape for route in ROUTES for shape in (route.body, route.answer) if shape is not None]
    schemas, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(shapes, schemas, strict=True))
    components["Problem"] = {
        "type": "object",
        "description": "RFC 9457 problem; further members carry the facts.",
        "required": ["type", "title", "status", "detail", "kind"],
        "properties": {
            "type": TEXT,
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "what, why, what next, in one line"},
            "kind": {"type": "string", "description": "stable name of the error"},
            "exit_status": {"type": "integer", "description": "what pivotctl exits with"},
        },
    }
    paths: Schema = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "pivotd", "version": __version__, "license": {"name": "Apache-2.0"}},
            "paths": paths,
            "components": {"schemas": components},
        }
    )


def _operation(route: Route, schema_of: Mapping[Any, Any]) -> Schema:
    success: Schema = {"description": route.summary}
    if route.status != 204:
        shape = {} if route.answer is None else {"schema": schema_of[route.answer]}
        success["content"] = {"text/plain": {}} if route.path == "/metrics" else {"application/json": shape}
        if "limit" in route.query and route.answer is not ObsoleteImages:
            success["headers"] = PAGE_HEADERS
        if route.path == "/v1/events":
            success["content"]["text/event-stream"] = {}
    errors = {
        "description": "The request was not carried out.",
        "content": {"application/problem+json": {"schema": PROBLEM}},
    }
    operation: Schema = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "x-access-class": route.access.value,
        "parameters": [
            *(_parameter(name, "path") for name in re.findall(r"{(\w+)}", route.path)),
            *(_parameter(name, "query") for name in route.query),
        ],
        "responses": {str(route.status): success, "default": errors},
    }
    if route.body is not None:
        content = {"application/json": {"schema": schema_of[route.body]}}
        operation["requestBody"] = {"required": True, "content": content}
        if issubclass(route.body, NewPivot):
            key = {"description": "The request id: the same one returns the same pivot.", "schema": TEXT}
            operation["parameters"].append({"name": "Idempotency-Key", "in": "header", "required": False, **key})
    return operation


def _parameter(name: str, place: str) -> Schema:
    description, schema = PARAMETERS[name]
    return {"name": name, "in": place, "required": place == "path", "description": description, "schema": schema}
