"""Errors as RFC 9457 problem documents: a stable ``kind``, one sentence, the facts, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pivotd.errors import EXIT_REFUSED, PivotdError
from pivotd.log import get_logger

log = get_logger()

MEDIA_TYPE = "application/problem+json"


def encode(value: Any) -> bytes:
    """Return JSON; file names that are not text are escaped, as in the journal."""
    try:
        return msgspec.json.encode(value)
    except (UnicodeEncodeError, ValueError):
        return json.dumps(msgspec.to_builtins(value)).encode()


def problem(
    status: int,
    kind: str,
    detail: str,
    exit_status: int = EXIT_REFUSED,
    *,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> Response:
    """Return a problem document."""
    body = fields | {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "kind": kind,
        "exit_status": exit_status,
    }
    return Response(encode(body), status, headers, MEDIA_TYPE)


def of_error(error: Exception) -> Response:
    """Return the problem for an exception of a handler; an unexpected one is logged and reported as ``internal``."""
    if isinstance(error, PivotdError):
        return problem(error.http_status, error.kind, error.message, error.exit_status, **error.fields)
    log.exception("request.failed", error=repr(error))
    return problem(500, "internal", "pivotd met an unexpected error; its log has the details")


async def not_found(request: Request, error: Exception) -> Response:
    """Return the problem for a path that does not exist."""
    return problem(404, "not-found", f"there is no {request.url.path}; see /v1/openapi.json")


async def wrong_method(request: Request, error: Exception) -> Response:
    """Return the problem for a method that a path does not have."""
    detail = f"{request.url.path} takes no {request.method}; see /v1/openapi.json"
    return problem(405, "wrong-method", detail, headers=getattr(error, "headers", None))
