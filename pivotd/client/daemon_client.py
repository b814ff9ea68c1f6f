"""The daemon's API in Python: one method per route, typed requests and answers."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlencode

from pivotd import limits
from pivotd.client.answers import (
    ArchiveProgress,
    DiskView,
    DoctorReport,
    DomainView,
    FleetDomain,
    FleetStatus,
    FleetVerdict,
    Health,
    ImageVerdict,
    JournalStats,
    ObsoleteImages,
    Pivot,
    PivotWithRecords,
    Progress,
    Record,
    Verdict,
)
from pivotd.client.patience import PATIENCE_S, Patience, Tell
from pivotd.client.requests import AcceptRequest, ArchiveRequest, BandwidthRequest, DomainRequest, NewPivot, TakeRequest
from pivotd.client.transport import REQUEST_TIMEOUT_S, Transport
from pivotd.errors import ClientError, UnknownError

T = TypeVar("T")

DEFAULT_SOCKET = "/run/pivotd/pivotd.sock"
SILENCE_S = 60.0
"""An event stream that is silent for this long is reopened where it ended."""
PIVOTS_PAGE = 100
"""A pivot is about 1 KiB of JSON: the daemon needs some milliseconds for a page."""


def new_request_id() -> str:
    """Return a unique request id."""
    return os.urandom(16).hex()


class Client:
    """One daemon. Each call opens a connection of its own; threads may share a Client.

    ``socket``: its path; None means PIVOTCTL_SOCKET from the environment, else /run/pivotd/pivotd.sock.
    ``patience_s``: how long start(), wait(), progress() and events(follow=True) retry while the daemon is away.
    ``tell``: called with one line when such an outage begins and when it ends, and if the daemon does not answer.
    ``timeout_s``: how long one answer may take, where nothing is waited for.

    Every method raises a ClientError: UnsentError (the request never reached the daemon: a retry is safe), RefusedError
    (the daemon refused: nothing was changed; see ``kind``, ``message`` and ``fields``), or UnknownError (no conclusive
    answer). ``pivot`` is the id of a pivot or its request id.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        patience_s: float = PATIENCE_S,
        tell: Tell = lambda _line: None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self.socket = (socket and os.fspath(socket)) or os.environ.get("PIVOTCTL_SOCKET") or DEFAULT_SOCKET
        self.patience_s = patience_s
        self.tell = tell
        self._transport = Transport(self.socket, timeout_s, lambda line: self.tell(line))  # noqa: PLW0108 - whoever tells by then

    def health(self, timeout_s: float = REQUEST_TIMEOUT_S) -> Health:
        """Return the state of the daemon, its journal and its domains."""
        found: Health = self._transport.shaped(
            self._transport.request("GET", "/v1/health", timeout_s=timeout_s), Health
        )
        return found

    def metrics(self, timeout_s: float = REQUEST_TIMEOUT_S) -> str:
        """Return the metrics of the daemon in Prometheus' text format 0.0.4."""
        return self._transport.text("/metrics", timeout_s=timeout_s)

    def doctor(self, timeout_s: float = REQUEST_TIMEOUT_S) -> DoctorReport:
        """Return what the daemon finds wrong, looking as its own user and in its sandbox."""
        document = self._transport.request("GET", "/v1/doctor", timeout_s=timeout_s)
        found: DoctorReport = self._transport.shaped(document, DoctorReport)
        return found

    # -- domains and disks

    def domains(self) -> list[DomainView]:
        """Return every domain, sorted by name; a domain that hangs is shown as unreachable."""
        return self._get("/v1/domains", list[DomainView])

    def domain(self, name: str) -> DomainView:
        """Return one domain, with the block jobs that other clients started in it."""
        return self._get(f"/v1/domains/{_part(name)}", DomainView)

    def add_domain(self, name: str, qmp: str) -> DomainView:
        """Add a domain by the absolute path of its QMP socket; adding the same domain again is not an error."""
        return self._post("/v1/domains", DomainView, DomainRequest(name=name, qmp=qmp))

    def remove_domain(self, name: str) -> None:
        """Forget a domain; QEMU keeps running. Refused while a pivot of it is open, or if it was configured."""
        self._transport.request("DELETE", f"/v1/domains/{_part(name)}")

    def disks(self, domain: str) -> list[DiskView]:
        """Return the disks of a domain: what QEMU shows, and what the journal says."""
        return self._get(f"/v1/domains/{_part(domain)}/disks", list[DiskView])

    # -- pivots

    def start(self, domain: str, request: NewPivot, *, request_id: str | None = None) -> Pivot:
        """Start a pivot, and return it as soon as it is in the journal; wait() waits for its end.

        The same ``request_id`` again returns the same pivot instead of starting another one. So this method retries
        after a lost connection; an UnknownError has the id in its ``fields``, for a later retry.
        """
        key = request_id or new_request_id()
        target = f"/v1/domains/{_part(domain)}/{request.verb}"
        patience = Patience(self.patience_s, self.tell)
        reached = False
        while True:
            try:
                pivot = self._post(target, Pivot, request, headers={"Idempotency-Key": key})
            except ClientError as failure:
                reached = reached or isinstance(failure, UnknownError)
                if not reached:
                    raise
                failure.fields = {**failure.fields, "request_id": key}
                patience.spend(failure)
            else:
                patience.rest()
                return pivot

    def pivots(  # noqa: PLR0913 - as many as the API can be asked for
        self,
        domain: str | None = None,
        *,
        open_only: bool = False,
        kind: str | None = None,
        outcome: str | None = None,
        since: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Pivot]:
        """Yield pivots, newest first, at most ``limit``; fetches pages as needed.

        ``kind``, ``outcome`` (also ``split``) and ``since`` (RFC 3339): only such pivots, created then or later.
        """
        left = sys.maxsize if limit is None else limit
        wanted = {"domain": domain, "open": "true" if open_only else None, "kind": kind, "outcome": outcome}
        before: str | None = None
        while left > 0:
            size = min(PIVOTS_PAGE, left)
            query = {**wanted, "since": since, "limit": size, "before": before}
            page, following = self._page("/v1/pivots", list[Pivot], "before", **query)
            yield from page[:left]
            left -= len(page)
            if following is None and len(page) == size:
                following = page[-1].id  # an older daemon does not say where to go on
            if following is None or following == before:
                return
            before = following

    def pivot_count(self, domain: str | None = None, *, open_only: bool = False) -> int | None:
        """Return how many pivots there are, None from a daemon that does not count."""
        query = {"domain": domain, "open": "true" if open_only else None, "limit": 0, "total": "true"}
        _, headers = self._transport.page(_target("/v1/pivots", query))
        count = headers.get("X-Total-Count", "")
        return int(count) if count.isdecimal() else None

    def pivots_named(self, name: str) -> list[Pivot]:
        """Return the pivot with this id or request id; else those whose ids begin so, oldest first, at most eleven."""
        return self._get("/v1/pivots", list[Pivot], id=name)

    def pivot(self, pivot: str) -> PivotWithRecords:
        """Return one pivot with all its records."""
        return self._get(f"/v1/pivots/{_part(pivot)}", PivotWithRecords)

    def complete(self, pivot: str) -> Pivot:
        """Let a pivot that waits at ready switch; returns once the request is in the journal."""
        return self._post(f"/v1/pivots/{_part(pivot)}/complete", Pivot)

    def cancel(self, pivot: str) -> Pivot:
        """Ask a pivot to keep the source; a pivot that has already switched is returned unchanged."""
        return self._post(f"/v1/pivots/{_part(pivot)}/cancel", Pivot)

    def set_bandwidth(self, pivot: str, bytes_per_s: int) -> Pivot:
        """Change how fast an open pivot copies; 0: no limit."""
        body = BandwidthRequest(bandwidth_bytes_per_s=bytes_per_s)
        return self._post(f"/v1/pivots/{_part(pivot)}/bandwidth", Pivot, body)

    def undo(self, pivot: str) -> Pivot:
        """Return to the images from before a pivot, while its undo window is open; returns the pivot that does this."""
        return self._post(f"/v1/pivots/{_part(pivot)}/undo", Pivot)

    def release(self, pivot: str) -> Pivot:
        """End the undo window of a pivot: the old images are out of date from then on."""
        return self._post(f"/v1/pivots/{_part(pivot)}/release", Pivot)

    def wait(self, pivot: str, timeout_s: float = float("inf")) -> Pivot:
        """Return the pivot once it rests (see Pivot.rests), or its state after ``timeout_s`` seconds.

        If the daemon restarts meanwhile, this waits for it, up to ``patience_s`` beyond that time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, min(deadline - time.monotonic(), limits.WAIT_TIMEOUT_S_MAX))
            target = f"/v1/pivots/{_part(pivot)}/wait?{urlencode({'timeout_s': left_s})}"
            found: Pivot = self._persistently(target, Pivot, left_s)
            if found.rests or time.monotonic() >= deadline:
                return found

    def progress(self, pivot: str) -> Progress | None:
        """Return the progress of an open pivot, None for a closed one."""
        found: Progress | None = self._persistently(f"/v1/pivots/{_part(pivot)}/progress", Progress | None)
        return found

    # -- verdicts and events

    def verdicts(self, domain: str | None = None, disk: str | None = None, *, local: bool = False) -> list[Verdict]:
        """Return which image holds the data of each disk, and why; of all disks, or of those selected.

        ``local``: the host's word counts alone if its fleet does not answer. You know then that no other host has had
        the guest since its last pivot here.
        """
        given = "true" if local else None
        return self._get("/v1/verdicts", list[Verdict], domain=domain, disk=disk, local=given)

    def image(self, image: str) -> list[ImageVerdict]:
        """Return what all of history says of one image, for each disk that has or had it; empty: never seen.

        ``image``: an absolute path, or the address of an NBD export.
        """
        return self._get("/v1/images", list[ImageVerdict], image=image)

    def obsolete(self) -> Iterator[ImageVerdict]:
        """Yield every image that no disk of the journal needs any more, by name; nobody has looked at the files."""
        after: str | None = ""
        while after is not None:
            page = self._get("/v1/obsolete", ObsoleteImages, after_image=after)
            yield from page.images
            after = page.next

    def accept(self, domain: str, disk: str, request: AcceptRequest) -> Verdict:
        """Record a person's word on which image holds a disk's data, and return the verdict that rests on it."""
        return self._post(f"/v1/domains/{_part(domain)}/disks/{_part(disk)}/accept", Verdict, request)

    # -- the fleet

    def fleet_verdicts(self, domain: str | None = None, disk: str | None = None) -> list[FleetVerdict]:
        """Return which image holds the data of each disk by etcd alone; of all disks, or of those selected.

        Refused by a daemon without [fleet]; an etcd without a majority is an UnknownError of the kind ``fleet-silent``.
        """
        return self._get("/v1/fleet/verdicts", list[FleetVerdict], domain=domain, disk=disk)

    def fleet_domains(self) -> list[FleetDomain]:
        """Return all domains of the fleet, with their owners."""
        return self._get("/v1/fleet/domains", list[FleetDomain])

    def fleet_status(self) -> FleetStatus:
        """Return the state of etcd's nodes, the hosts that were seen, and the pivots without an outcome in etcd."""
        return self._get("/v1/fleet/status", FleetStatus)

    def take(self, domain: str, request: TakeRequest) -> FleetDomain:
        """Make the daemon's host the owner of a guest whose host was fenced; return the images to start it from."""
        return self._post(f"/v1/fleet/domains/{_part(domain)}/take", FleetDomain, request)

    def forget(self, domain: str) -> None:
        """Remove from etcd what it keeps of a domain that is gone for good."""
        self._transport.request("DELETE", f"/v1/fleet/domains/{_part(domain)}")

    def events(
        self,
        after: int = 0,
        *,
        follow: bool = False,
        domain: str | None = None,
        event: str | None = None,
        since: str | None = None,
    ) -> Iterator[Record]:
        """Yield every record with a sequence number above ``after``, oldest first.

        ``follow``: continue with new records as they become durable, for ever, across restarts of the daemon. A caller
        that passes the ``seq`` of the last record it has processed misses nothing and sees nothing twice.
        ``domain``, ``event`` and ``since`` (RFC 3339): only such records, written then or later.
        """
        wanted = {"domain": domain, "event": event, "since": since}
        place: int | None = after
        while not follow and place is not None:
            query = {**wanted, "after": place, "limit": limits.EVENTS_PAGE_MAX}
            page, following = self._page("/v1/events", list[Record], "after", **query)
            yield from page
            if following is None and len(page) == limits.EVENTS_PAGE_MAX:
                following = str(page[-1].seq)  # an older daemon does not say where to go on
            place = None if following is None or int(following) == place else int(following)
        patience = Patience(self.patience_s, self.tell)
        while follow:
            try:
                for record in self._stream(after, wanted):
                    patience.rest()
                    after = record.seq
                    yield record
            except ClientError as failure:
                patience.spend(failure)

    def events_page(self, after: int, limit: int) -> list[Record]:
        """Return up to ``limit`` records with a sequence number above ``after``, oldest first."""
        return self._get("/v1/events", list[Record], after=after, limit=limit)

    def last_events(
        self,
        limit: int,
        before: int = 0,
        *,
        domain: str | None = None,
        event: str | None = None,
        since: str | None = None,
    ) -> list[Record]:
        """Return the last ``limit`` such records, oldest first; ``before``: only below this ``seq``."""
        found: list[Record] = []
        wanted = {"domain": domain, "event": event, "since": since, "tail": "true"}
        while len(found) < limit:
            query = {**wanted, "before_seq": before, "limit": min(limits.EVENTS_PAGE_MAX, limit - len(found))}
            page, following = self._page("/v1/events", list[Record], "before_seq", **query)
            found[:0] = page
            if following is None or int(following) == before:
                break
            before = int(following)
        return found

    def await_event(self, after: int, timeout_s: float) -> None:
        """Return once there is a record above ``after``, or at the stream's next sign of life after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        with closing(self._lines(after)) as lines:
            for line in lines:
                if line.startswith("data:") or time.monotonic() >= deadline:
                    return

    def _lines(self, after: int, **wanted: str | int | None) -> Generator[str, None, None]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        return self._transport.lines(_target("/v1/events", wanted), headers=headers, timeout_s=SILENCE_S)

    def _stream(self, after: int, wanted: Mapping[str, str | int | None]) -> Iterator[Record]:
        data: list[str] = []
        for line in self._lines(after, **wanted):
            if line.startswith("data:"):
                data.append(line[5:].strip())
            elif not line and data:
                record: Record = self._transport.shaped(_json("\n".join(data)), Record)
                data = []
                if record.seq > after:
                    yield record

    # -- the journal

    def journal_stats(self) -> JournalStats:
        """Return how large the journal and its archives are."""
        return self._get("/v1/journal", JournalStats)

    def archive(self, keep_s: int | None = None, *, dry_run: bool = False) -> Iterator[ArchiveProgress]:
        """Move pivots to archives that were closed for longer than ``keep_s``; yield what each step has moved.

        None: as configured. Whoever stops iterating stops archiving.
        """
        after: int | None = 0
        while after is not None:
            body = ArchiveRequest(keep_s=keep_s, dry_run=dry_run, after=after)
            done = self._post("/v1/journal/archive", ArchiveProgress, body)
            yield done
            after = done.next

    # -- how

    def _get(self, target: str, answer: type[T], **query: str | int | None) -> T:
        document = self._transport.request("GET", _target(target, query))
        found: T = self._transport.shaped(document, answer)
        return found

    def _page(self, target: str, answer: type[T], place: str, **query: str | int | None) -> tuple[T, str | None]:
        """Return one page, and the value of ``place`` with which the next one begins, None after the last one."""
        document, headers = self._transport.page(_target(target, query))
        found: T = self._transport.shaped(document, answer)
        link = headers.get("Link", "")
        following = parse_qs(link.partition("?")[2].partition(">")[0]).get(place)
        return found, following[0] if following else None

    def _post(self, target: str, answer: type[T], body: Any = None, **options: Any) -> T:
        found: T = self._transport.shaped(self._transport.request("POST", target, body, **options), answer)
        return found

    def _persistently(self, target: str, answer: Any, takes_s: float = 0.0) -> Any:
        """Return an answer, which the daemon gives after ``takes_s`` at the latest."""
        patience = Patience(self.patience_s, self.tell)
        while True:
            try:
                document = self._transport.request("GET", target, takes_s=takes_s)
            except ClientError as failure:
                patience.spend(failure)
            else:
                patience.rest()
                return self._transport.shaped(document, answer)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _target(path: str, query: Mapping[str, str | int | None]) -> str:
    given = {key: value for key, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _part(name: str) -> str:
    return quote(name, safe="")
