"""Metrics of the daemon in Prometheus' text format: what was counted since the start, and what is so now."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pivotd import __version__, limits
from pivotd.app.reads import Reads
from pivotd.app.registry import Host
from pivotd.app.shared_answer import SharedAnswer
from pivotd.client.answers import Health
from pivotd.core import verdict
from pivotd.core.phases import is_decided
from pivotd.core.pivot import FleetStage, Phase, Pivot, PivotDisk
from pivotd.counts import COUNTS, Histogram
from pivotd.errors import PivotdError
from pivotd.journal.journal import Journal

CONNECTED, SILENT = "connected", "unreachable"


@dataclass(frozen=True, slots=True)
class Now:
    """What is so at the moment of a look."""

    health: Health
    domains: Counter[str]
    """By state: connected or unreachable."""
    phases: Counter[str]
    """Open pivots by phase."""
    in_pause: int
    """Guests in a pause of pivotd."""
    waiting: int
    """Of those, the ones that stay paused for longer than the longest pause."""
    owed: int
    """Guests that pivotd owes their resume, also those whose QEMU does not answer."""
    backlog_bytes: int
    stalled: int
    unconfirmed: int
    """Outcomes that the fleet does not know yet."""
    uncertain: int | None
    """Disks whose image nobody knows for certain, None as long as that could not be found out."""


class Metrics:
    """Answers a scrape. Its library is loaded by the first one, and works in a thread: no pause may wait for it."""

    def __init__(self, host: Host, journal: Journal, reads: Reads, health: Any, *, in_fleet: bool) -> None:
        self._host, self._journal, self._reads, self._health = host, journal, reads, health
        self._in_fleet = in_fleet
        self._uncertain: int | None = None
        self._looked: tuple[int, float] = (-1, float("-inf"))
        self._shared = SharedAnswer(self._text)

    async def text(self) -> bytes:
        """Return the metrics in text format 0.0.4; who asks at once shares them. Raises: TooBusyError."""
        return await self._shared.get()

    async def _text(self) -> bytes:
        now = await self.look()
        await self._journal.calm()
        return await asyncio.to_thread(_written, now, in_fleet=self._in_fleet)

    async def look(self) -> Now:
        """Return what is so now."""
        await self._journal.look_for_names()
        uncertain = await self._uncertain_verdicts()
        supervisors = list(self._host.supervisors.values())
        drivers = [driver for supervisor in supervisors for driver in supervisor.drivers.values()]
        return Now(
            health=self._health(),
            domains=Counter(SILENT if one.session is None else CONNECTED for one in supervisors),
            phases=Counter(driver.pivot.phase.value for driver in drivers),
            in_pause=sum(supervisor.window.locked() for supervisor in supervisors),
            waiting=sum(driver.state.guest_waits_for is not None for driver in drivers),
            owed=sum(driver.pivot.owes_resume for driver in drivers),
            backlog_bytes=sum(driver.pace.backlog_bytes or 0 for driver in drivers),
            stalled=sum(driver.stalled for driver in drivers),
            unconfirmed=sum(
                is_decided(driver.pivot) and driver.pivot.fleet not in {FleetStage.NONE, FleetStage.TOLD}
                for driver in drivers
            ),
            uncertain=uncertain,
        )

    async def _uncertain_verdicts(self) -> int | None:
        """Return how many disks have no certain image, by the journal alone: a scrape asks no QEMU and no etcd.

        Looked up again if there are new records, but not always.
        """
        (seq, at), last, now = self._looked, self._journal.last_seq, time.monotonic()
        if seq != last and now - at > limits.METRICS_VERDICTS_S:
            try:
                latest = await self._reads.latest(None)
            except PivotdError:  # too many readers: the next scrape asks again
                self._uncertain = None
            else:
                self._uncertain = sum(self._is_uncertain(pivot, disk) for pivot, disk in latest)
                self._looked = (last, now)
        return self._uncertain

    def _is_uncertain(self, pivot: Pivot, disk: PivotDisk) -> bool:
        """Return whether a person must look, here: not for a guest that has left."""
        found = verdict.of_pivot(pivot, disk)
        found = verdict.doubtful(found, disk, is_copy=not self._journal.file_checked)
        return not found.certain and not found.pending and disk.left_at is None


def _written(now: Now, *, in_fleet: bool) -> bytes:
    registry = import_module("prometheus_client.registry").CollectorRegistry()

    class Collector:
        def collect(self) -> Iterator[Any]:
            yield from _families(now, in_fleet=in_fleet)

    registry.register(Collector())
    text: bytes = import_module("prometheus_client.exposition").generate_latest(registry)
    return text


def _families(now: Now, *, in_fleet: bool) -> Iterator[Any]:
    core = import_module("prometheus_client.core")

    def gauge(name: str, help_: str, value: float) -> Any:
        return core.GaugeMetricFamily(f"pivotd_{name}", help_, value)

    def by(family: Any, name: str, help_: str, labels: list[str], values: Mapping[Any, float]) -> Any:
        made = family(f"pivotd_{name}", help_, labels=labels)
        for key, value in sorted(values.items()):
            made.add_metric([key] if isinstance(key, str) else list(key), value)
        return made

    def times(name: str, help_: str, labels: list[str], found: dict[tuple[str, ...], Histogram]) -> Any:
        made = core.HistogramMetricFamily(f"pivotd_{name}", help_, labels=labels)
        for key, histogram in sorted(found.items()):
            buckets, total_s = histogram.shown()
            made.add_metric(list(key), buckets, total_s)
        return made

    counter, gauges = core.CounterMetricFamily, core.GaugeMetricFamily
    health = now.health
    yield by(gauges, "build_info", "The version that runs.", ["version"], {__version__: 1})
    yield gauge("up", "1: pivotd answers.", 1)
    yield gauge("healthy", "0: health is degraded; `pivotctl doctor` tells why.", health.status == "ok")
    yield gauge("start_time_seconds", "When this process was started.", COUNTS.started_s)
    states = {CONNECTED: 0, SILENT: 0} | now.domains
    yield by(gauges, "domains", "Domains by the state of their monitor.", ["state"], states)
    phases = {phase.value: 0 for phase in Phase if phase is not Phase.CLOSED} | now.phases
    yield by(gauges, "pivots_open", "Pivots that are not closed.", ["phase"], phases)
    yield gauge("pivots_failing", "Pivots whose last step has failed.", len(health.domains.failing))
    yield gauge("pivots_stalled", "Pivots that copy and make no progress.", now.stalled)
    yield gauge("backlog_bytes", "What the jobs of all open pivots still have to copy.", now.backlog_bytes)
    yield gauge("guests_in_pause", "Guests in a pause of pivotd now.", now.in_pause)
    yield gauge("guests_waiting", "Guests that stay paused for longer than their pivot allows.", now.waiting)
    yield gauge("resumes_owed", "Guests that pivotd has to let run again.", now.owed)
    wrong = len(health.domains.wrong_images)
    yield gauge("disks_on_wrong_image", "Disks of running guests on an image that is stale or in doubt.", wrong)
    if now.uncertain is not None:
        yield gauge("verdicts_unknown", "Disks whose image is not certain: a person must look.", now.uncertain)
    yield gauge("journal_healthy", "0: the last change could not be written.", health.journal.healthy)
    yield gauge("journal_last_seq", "Number of the last record.", health.journal.last_seq)
    yield times("journal_commit_seconds", "Durable transactions of the journal.", [], {(): COUNTS.commits})
    failed = COUNTS.commits_failed
    yield counter("pivotd_journal_commit_failures", "Transactions that failed.", failed)
    what = "Pauses of guests; ended: what the pause has led to."
    yield times("pause_seconds", what, ["kind", "ended"], dict(COUNTS.pauses))  # type: ignore[arg-type]
    yield by(counter, "pivots", "Pivots that have ended.", ["kind", "outcome"], dict(COUNTS.pivots))
    copied: dict[Any, float] = dict(COUNTS.copied_bytes)
    yield by(counter, "copied_bytes", "What the jobs of pivots that have ended have copied.", ["kind"], copied)
    what = "From the start of pivotd until a guest ran that it had found in a pause."
    yield times("recovery_seconds", what, [], {(): COUNTS.recoveries})
    if in_fleet:
        yield gauge("fleet_outcomes_unconfirmed", "Outcomes that the fleet does not know yet.", now.unconfirmed)
        yield times("fleet_request_seconds", "Requests that etcd has answered.", [], {(): COUNTS.fleet})
        yield counter("pivotd_fleet_request_failures", "Requests without an answer of etcd.", COUNTS.fleet_failed)
