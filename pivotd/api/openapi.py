"""The OpenAPI 3.1 document, made from the route table and the models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from pivotd import __version__
from pivotd.api.models import Body
from pivotd.api.routes import ROUTES, Route

PROBLEM = {"$ref": "#/components/schemas/Problem"}


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
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "what, why, what next, in one line"},
            "kind": {"type": "string", "description": "stable name of the error"},
            "exit_status": {"type": "integer", "description": "what pivotctl exits with"},
        },
    }
    paths: dict[str, Any] = {}
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


def _operation(route: Route, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    if route.status != 204:
        shape = {} if route.answer is None else {"schema": schema_of[route.answer]}
        success["content"] = {"application/json": shape}
        if route.path == "/v1/events":
            success["content"]["text/event-stream"] = {}
    errors = {
        "description": "The request was not carried out.",
        "content": {"application/problem+json": {"schema": PROBLEM}},
    }
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "x-access-class": route.access.value,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", route.path)
        ]
        + [{"name": name, "in": "query", "required": False, "schema": {"type": "string"}} for name in route.query],
        "responses": {str(route.status): success, "default": errors},
    }
    if route.body is not None and issubclass(route.body, Body):
        operation["parameters"].append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": "The request id: the same one returns the same pivot.",
            }
        )
    if route.body is not None:
        content = {"application/json": {"schema": schema_of[route.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
