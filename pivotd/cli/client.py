"""The daemon's API as Python: one method per route, and patience where a restart must not end a wait."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from pivotd.cli.errors import LostError, NotPivotdError, UnreachableError
from pivotd.cli.transport import REQUEST_TIMEOUT_S, Transport

T = TypeVar("T")
JsonObject = dict[str, Any]

PATIENCE_S = 30.0
"""How long a wait outlives its daemon: systemd restarts it at once, and recovery looks at every guest first."""
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0
SILENCE_S = 60.0
"""An event stream that is silent for so long is opened again where it ended."""
EVENTS_PAGE = 1000

Tell = Callable[[str], None]


class Client:
    """Typed calls. Raises from every method: CtlError and its subclasses."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._transport = Transport(socket)

    def health(self) -> JsonObject:
        """Return how the daemon is."""
        return self._object("GET", "/v1/health")

    # -- domains and disks

    def domains(self) -> list[JsonObject]:
        """Return every domain."""
        return self._list("/v1/domains", "domains")

    def domain(self, name: str) -> JsonObject:
        """Return one domain."""
        return self._object("GET", f"/v1/domains/{_part(name)}")

    def add_domain(self, name: str, qmp: str) -> JsonObject:
        """Add a domain; the same again is no error."""
        return self._object("POST", "/v1/domains", {"name": name, "qmp": qmp})

    def remove_domain(self, name: str) -> None:
        """Forget a domain."""
        self._transport.request("DELETE", f"/v1/domains/{_part(name)}")

    def disks(self, domain: str) -> list[JsonObject]:
        """Return the disks of a domain."""
        return self._list(f"/v1/domains/{_part(domain)}/disks", "disks")

    # -- pivots

    def start(self, kind: str, domain: str, body: JsonObject, request_id: str) -> JsonObject:
        """Start a pivot; the same request id again returns the same pivot."""
        headers = {"Idempotency-Key": request_id}
        return self._object("POST", f"/v1/domains/{_part(domain)}/{kind}", body, headers=headers)

    def pivots(self, domain: str | None = None, *, open_only: bool = False) -> list[JsonObject]:
        """Return pivots, newest first."""
        return self._list("/v1/pivots", "pivots", domain=domain, open="true" if open_only else None)

    def pivot(self, pivot: str) -> JsonObject:
        """Return one pivot, by its id or its request id, with its records."""
        return self._object("GET", f"/v1/pivots/{_part(pivot)}")

    def complete(self, pivot: str) -> JsonObject:
        """Let a pivot that waits at ready switch."""
        return self._object("POST", f"/v1/pivots/{_part(pivot)}/complete")

    def cancel(self, pivot: str) -> JsonObject:
        """Ask a pivot to keep the source."""
        return self._object("POST", f"/v1/pivots/{_part(pivot)}/cancel")

    def set_bandwidth(self, pivot: str, bytes_per_s: int) -> JsonObject:
        """Change how fast an open pivot copies."""
        body = {"bandwidth_bytes_per_s": bytes_per_s}
        return self._object("POST", f"/v1/pivots/{_part(pivot)}/bandwidth", body)

    def undo(self, pivot: str) -> JsonObject:
        """Return to the images before a pivot; the pivot that does it."""
        return self._object("POST", f"/v1/pivots/{_part(pivot)}/undo")

    def release(self, pivot: str) -> JsonObject:
        """End the undo window of a pivot."""
        return self._object("POST", f"/v1/pivots/{_part(pivot)}/release")

    def wait(self, pivot: str, timeout_s: float) -> JsonObject:
        """Return the pivot when it rests, or as it is after ``timeout_s``."""
        target = f"/v1/pivots/{_part(pivot)}/wait?{urlencode({'timeout_s': timeout_s})}"
        return self._object("GET", target, timeout_s=timeout_s + REQUEST_TIMEOUT_S)

    def progress(self, pivot: str) -> JsonObject | None:
        """Return how far an open pivot is, None for a closed one."""
        found = self._transport.request("GET", f"/v1/pivots/{_part(pivot)}/progress")
        return found if isinstance(found, dict) else None

    # -- verdicts and events

    def verdicts(self, domain: str | None, disk: str | None, image: str | None) -> list[JsonObject]:
        """Return the verdicts asked for."""
        return self._list("/v1/verdicts", "verdicts", domain=domain, disk=disk, image=image)

    def events(self, after: int) -> Iterator[JsonObject]:
        """Yield every record there is with seq > after."""
        while page := self._list("/v1/events", "events", after=after, limit=EVENTS_PAGE):
            yield from page
            after = int(page[-1]["seq"])

    def follow(self, after: int, tell: Tell) -> Iterator[JsonObject]:
        """Yield every record with seq > after, then new ones, across restarts of the daemon."""
        patience = Patience(tell)
        while True:
            try:
                for record in self._stream(after):
                    patience.rest()
                    after = int(record["seq"])
                    yield record
            except (LostError, UnreachableError) as failure:
                patience.spend(failure)

    def _stream(self, after: int) -> Iterator[JsonObject]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        data: list[str] = []
        for line in self._transport.lines("/v1/events", headers=headers, timeout_s=SILENCE_S):
            if line.startswith("data:"):
                data.append(line[5:].strip())
            elif not line and data:
                try:
                    record = json.loads("\n".join(data))
                    data = []
                    if int(record["seq"]) > after:
                        yield record
                except (ValueError, KeyError, TypeError):
                    raise NotPivotdError(self.socket, "an event without sequence number") from None

    # -- shapes

    def _object(self, method: str, target: str, body: Any = None, **options: Any) -> JsonObject:
        found = self._transport.request(method, target, body, **options)
        if not isinstance(found, dict):
            raise NotPivotdError(self.socket, "an answer of another shape")
        return found

    def _list(self, target: str, name: str, **query: str | int | None) -> list[JsonObject]:
        given = {key: value for key, value in query.items() if value is not None}
        found = self._transport.request("GET", f"{target}?{urlencode(given)}" if given else target)
        rows = found.get(name) if isinstance(found, dict) else found
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise NotPivotdError(self.socket, "an answer of another shape")
        return rows


class Patience:
    """Bounds how long lost connections are borne in a row. ``tell`` is called once for each time of trouble."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._deadline: float | None = None
        self._pause_s = RETRY_FIRST_S

    def rest(self) -> None:
        """The daemon answered: the next trouble starts from zero."""
        if self._deadline is not None:
            self._tell("pivotd answers again")
        self._deadline = None
        self._pause_s = RETRY_FIRST_S

    def spend(self, failure: LostError | UnreachableError) -> None:
        """Sleep a little before the next try. Raises: the failure, once patience has run out."""
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + PATIENCE_S
            self._tell(f"lost pivotd, trying again for {PATIENCE_S:.0f} s")
        if now >= self._deadline:
            raise UnreachableError(
                f"pivotd did not come back within {PATIENCE_S:.0f} s ({failure.message}); "
                "what the journal holds is safe: `pivotctl --offline STATE_DIR verdict`"
            ) from None
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, RETRY_MAX_S)


def persistently(call: Callable[[], T], tell: Tell) -> T:
    """Return what ``call`` returns, repeating it while the daemon is away; ``call`` must be safe to repeat."""
    patience = Patience(tell)
    while True:
        try:
            result = call()
        except (LostError, UnreachableError) as failure:
            patience.spend(failure)
        else:
            patience.rest()
            return result


def _part(name: str) -> str:
    return quote(name, safe="")
