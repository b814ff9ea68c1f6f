"""One handler for each route: parse the request, call the service, build the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pivotd import limits
from pivotd.api import problems, queries
from pivotd.api.models import pivot_request
from pivotd.api.ports import Service
from pivotd.api.streams import EventStream, Streams
from pivotd.client import request_words, shown
from pivotd.client.answers import ObsoleteImages
from pivotd.client.requests import (
    AcceptRequest,
    AdoptRequest,
    ArchiveRequest,
    BandwidthRequest,
    CommitRequest,
    CopyRequest,
    DomainRequest,
    NewPivot,
    PullRequest,
    SnapshotRequest,
    TakeRequest,
)
from pivotd.core import nbd
from pivotd.core.list_filters import EventFilter
from pivotd.core.pivot import Pivot, Record
from pivotd.core.request import Requester
from pivotd.core.standing import ImageFound
from pivotd.core.verdict import Verdict
from pivotd.errors import BadRequestError, TooLargeError

T = TypeVar("T", bound=msgspec.Struct)
HEARTBEAT_S = 15.0
ALIVE = b": still here\n\n"


@dataclass(frozen=True, slots=True)
class Call:
    """The caller, and the parts of the daemon that serve the request."""

    who: Requester
    service: Service
    streams: Streams
    document: bytes
    """The OpenAPI document."""
    operator: bool
    """Whether the caller may change things."""


def _pivot(pivot: Pivot, records: Sequence[Record] | None = None) -> bytes:
    return problems.encode(shown.pivot(pivot) if records is None else shown.pivot_with_records(pivot, records))


def _record(record: Record) -> bytes:
    return problems.encode(record)


def _frame(record: Record) -> bytes:
    """Return a record in the format of the event stream."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (record.seq, record.event.encode(), _record(record))


def _verdict(verdict: Verdict) -> bytes:
    return problems.encode(verdict)


def _image(found: ImageFound) -> bytes:
    return problems.encode(shown.image(found))


def _list(encoded: Sequence[bytes]) -> Response:
    return Response(b"[%b]" % b",".join(encoded), media_type="application/json")


def _encoded(document: bytes) -> Response:
    return Response(document, media_type="application/json")


def _json(value: Any, status: int = 200, **headers: str) -> Response:
    return Response(problems.encode(value), status, headers, "application/json")


async def _body(request: Request, model: type[T]) -> T:
    data, size_bytes = bytearray(), 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes <= limits.REQUEST_BODY_BYTES_MAX:
            data += chunk
        elif size_bytes > limits.REQUEST_READ_BYTES_MAX:
            break
    if size_bytes > limits.REQUEST_BODY_BYTES_MAX:
        raise TooLargeError(f"the body is larger than {limits.REQUEST_BODY_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(bytes(data), type=model)
    except msgspec.ValidationError as error:
        field, said = request_words.of_error(error, bytes(data), model)
        raise BadRequestError(said, field=field) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error


def _number(request: Request, name: str, default: float, largest: float) -> float:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= largest:
        raise BadRequestError(f"{name}={text[:40]}: expected a number from 0 to {largest:g}")
    return value


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    if text not in {"true", "false"}:
        raise BadRequestError(f"{name}={text[:40]}: expected true or false")
    return text == "true"


async def health(call: Call, request: Request) -> Response:
    """State of the daemon."""
    return _json(await call.service.health())


async def metrics(call: Call, request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(await call.service.metrics(), media_type="text/plain; version=0.0.4")


async def doctor(call: Call, request: Request) -> Response:
    """What is wrong here."""
    return _json(await call.service.doctor())


async def openapi(call: Call, request: Request) -> Response:
    """The description of this API."""
    return Response(call.document, media_type="application/json")


async def domains(call: Call, request: Request) -> Response:
    """All domains."""
    return _json(await call.service.domains())


async def domain(call: Call, request: Request) -> Response:
    """One domain."""
    return _json(await call.service.domain(request.path_params["domain"]))


async def add_domain(call: Call, request: Request) -> Response:
    """Add a domain."""
    body = await _body(request, DomainRequest)
    view = await call.service.add_domain(body.name, body.qmp, call.who)
    return _json(view, 201, Location=f"/v1/domains/{view.name}")


async def remove_domain(call: Call, request: Request) -> Response:
    """Forget a domain."""
    await call.service.remove_domain(request.path_params["domain"], call.who)
    return Response(status_code=204)


async def disks(call: Call, request: Request) -> Response:
    """The disks of a domain."""
    return _json(await call.service.disks(request.path_params["domain"]))


async def _start(call: Call, request: Request, model: type[NewPivot]) -> Response:
    """Start a pivot; the answer comes once the request is durable."""
    body = await _body(request, model)
    key = request.headers.get("Idempotency-Key")
    wanted = pivot_request(body, request.path_params["domain"], key, call.service.defaults)
    pivot = await call.service.start(wanted, call.who)
    return _json(shown.pivot(pivot), 202, Location=f"/v1/pivots/{pivot.id}")


async def copy(call: Call, request: Request) -> Response:
    """Copy disks and switch them."""
    return await _start(call, request, CopyRequest)


async def commit(call: Call, request: Request) -> Response:
    """Commit layers of disks."""
    return await _start(call, request, CommitRequest)


async def pull(call: Call, request: Request) -> Response:
    """Pull layers into the active images."""
    return await _start(call, request, PullRequest)


async def snapshot(call: Call, request: Request) -> Response:
    """Put overlays on disks."""
    return await _start(call, request, SnapshotRequest)


async def adopt(call: Call, request: Request) -> Response:
    """Take over block jobs of other clients."""
    return await _start(call, request, AdoptRequest)


async def pivots(call: Call, request: Request) -> Response:
    """Pivots, newest first, or those of which ``id`` is the name."""
    query = request.query_params
    limit = int(_number(request, "limit", limits.PIVOTS_LISTED, limits.PIVOTS_LISTED_MAX))
    chosen = queries.pivot_filter(query, open_only=_flag(request, "open"))
    counted, name, reads = _flag(request, "total"), query.get("id"), call.service.reads
    if name is not None:
        return _list(await reads.named(name, _pivot))
    found, following = await reads.pivots(chosen, limit=limit, before=query.get("before"), encode=_pivot)
    response = _list(found)
    if following is not None:
        response.headers["Link"] = queries.link(request.url, before=following)
    if counted and chosen.indexed:
        response.headers["X-Total-Count"] = str(await reads.count(chosen))
    return response


async def pivot(call: Call, request: Request) -> Response:
    """One pivot with its records."""
    found = await call.service.reads.shown(request.path_params["pivot"], _pivot)
    return Response(found, media_type="application/json")


async def complete(call: Call, request: Request) -> Response:
    """Switch a pivot that waits."""
    found = await call.service.complete(request.path_params["pivot"], call.who)
    return _json(shown.pivot(found), 202, Location=f"/v1/pivots/{found.id}")


async def cancel(call: Call, request: Request) -> Response:
    """Keep the source."""
    found = await call.service.cancel(request.path_params["pivot"], call.who)
    return _json(shown.pivot(found), 202, Location=f"/v1/pivots/{found.id}")


async def bandwidth(call: Call, request: Request) -> Response:
    """Change how fast a pivot copies."""
    body = await _body(request, BandwidthRequest)
    found = await call.service.set_bandwidth(request.path_params["pivot"], body.bandwidth_bytes_per_s, call.who)
    return _json(shown.pivot(found), 202, Location=f"/v1/pivots/{found.id}")


async def undo(call: Call, request: Request) -> Response:
    """Return to the old images."""
    found = await call.service.undo(request.path_params["pivot"], call.who)
    return _json(shown.pivot(found), 202, Location=f"/v1/pivots/{found.id}")


async def release(call: Call, request: Request) -> Response:
    """End the undo window."""
    found = await call.service.release(request.path_params["pivot"], call.who)
    return _json(shown.pivot(found), 202, Location=f"/v1/pivots/{found.id}")


async def wait(call: Call, request: Request) -> Response:
    """Wait until a pivot rests."""
    timeout_s = _number(request, "timeout_s", 30.0, limits.WAIT_TIMEOUT_S_MAX)
    waiting = asyncio.ensure_future(call.service.reads.wait(request.path_params["pivot"], timeout_s))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            return Response(status_code=204)  # the client has gone
        return _json(shown.pivot(waiting.result()))
    finally:
        waiting.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    """Return once the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def progress(call: Call, request: Request) -> Response:
    """How far an open pivot is; null for a closed one."""
    found = await call.service.reads.current(request.path_params["pivot"])
    return _json(call.service.progress(found.id))


async def verdicts(call: Call, request: Request) -> Response:
    """Which image holds the data."""
    query = request.query_params
    local = _flag(request, "local")
    found = await call.service.reads.verdicts(query.get("domain"), query.get("disk"), _verdict, local=local)
    return _list(found)


async def accept(call: Call, request: Request) -> Response:
    """Record a person's word on the image of a disk."""
    body = await _body(request, AcceptRequest)
    path = request.path_params
    return _json(shown.verdict(await call.service.accept(path["domain"], path["disk"], body, call.who)))


async def images(call: Call, request: Request) -> Response:
    """What all of history says of one image."""
    path = request.query_params.get("image", "")
    if not (path.startswith(("/", "json:")) or nbd.is_uri(path)):
        raise BadRequestError(
            f"image={path[:80]}: expected the absolute path of an image, or the address of an NBD export"
        )
    return _list(await call.service.reads.image(path, _image))


async def obsolete(call: Call, request: Request) -> Response:
    """Images that no disk needs any more."""
    limit = int(_number(request, "limit", limits.PIVOTS_LISTED, limits.PIVOTS_LISTED_MAX))
    found, following = await call.service.reads.obsolete(
        request.query_params.get("after_image", ""), limit, shown.image
    )
    return _json(ObsoleteImages(tuple(found), following))


async def fleet_verdicts(call: Call, request: Request) -> Response:
    """Which image holds the data, by the fleet."""
    query = request.query_params
    return _encoded(await call.service.fleet.verdicts(query.get("domain"), query.get("disk"), problems.encode))


async def fleet_domains(call: Call, request: Request) -> Response:
    """All domains of the fleet."""
    return _encoded(await call.service.fleet.domains(problems.encode))


async def fleet_status(call: Call, request: Request) -> Response:
    """State of etcd and of the fleet."""
    return _encoded(await call.service.fleet.status(problems.encode))


async def take(call: Call, request: Request) -> Response:
    """Take a guest from a lost host."""
    body = await _body(request, TakeRequest)
    if not body.fenced:
        raise BadRequestError(
            "fenced: cut the power of the host that runs the guest, or its access to the images; then say so with true",
            field="fenced",
        )
    chosen = {one.disk: one.image for one in body.disks}
    if len(chosen) < len(body.disks):
        raise BadRequestError("a disk is named twice: name each once", field="disks")
    return _json(await call.service.fleet.take(request.path_params["domain"], chosen, call.who))


async def forget(call: Call, request: Request) -> Response:
    """Remove a domain from the fleet."""
    await call.service.fleet.forget(request.path_params["domain"], call.who)
    return Response(status_code=204)


async def journal(call: Call, request: Request) -> Response:
    """How large the journal and its archives are."""
    return _encoded(await call.service.reads.journal(problems.encode))


async def archive(call: Call, request: Request) -> Response:
    """Move old pivots to archives for some seconds, or count them."""
    body = await _body(request, ArchiveRequest)
    return _json(await call.service.archive(body, call.who))


async def events(call: Call, request: Request) -> Response:
    """The event log from a sequence number on: one page, or a stream that does not end."""
    stream = "text/event-stream" in request.headers.get("Accept", "")
    last = request.headers.get("Last-Event-ID")
    if last is not None and not (last.isdecimal() and len(last) < 20):
        raise BadRequestError(f"Last-Event-ID: {last[:40]}: expected a sequence number")
    after = int(last) if last is not None else int(_number(request, "after", 0, limits.SEQ_MAX))
    chosen, tail = queries.event_filter(request.query_params), _flag(request, "tail")
    if stream:
        return EventStream(call.streams, call.who.uid, _stream(call, after, chosen), operator=call.operator)
    limit = int(_number(request, "limit", 100, limits.EVENTS_PAGE_MAX))
    before = int(_number(request, "before_seq", 0, limits.SEQ_MAX))
    if tail:
        found, following = await call.service.reads.last_events(chosen, before or None, limit, _record)
        go_on = {"before_seq": following}
    else:
        found, following = await call.service.reads.events_page(chosen, after, limit, _record)
        go_on = {"after": following}
    response = _list(found)
    if following is not None:
        response.headers["Link"] = queries.link(request.url, **go_on)
    return response


async def _stream(call: Call, after: int, chosen: EventFilter) -> AsyncIterator[bytes]:
    """Yield events as they become durable. The client pulls pages: if it does not read, only its own stream stops."""
    source = call.service.reads.events(after, lambda record: _frame(record) if chosen.takes(record) else b"")
    following: asyncio.Task[list[bytes]] | None = None
    try:
        yield b": pivotd\n\n"
        while not call.service.shutting_down:
            following = following or asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait([following], timeout=HEARTBEAT_S)
            if not done:
                yield ALIVE
                continue
            try:
                frames = following.result()
            except StopAsyncIteration:
                return
            finally:
                following = None
            # Where none is wanted, a sign of life: a client takes silence for a connection that is dead.
            yield b"".join(frames) or ALIVE
    finally:
        if following is not None:
            following.cancel()
