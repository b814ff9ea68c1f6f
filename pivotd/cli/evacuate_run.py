"""Carries out an evacuation: so many pivots at a time, one bandwidth for all of them, until nothing new is found."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from msgspec import Struct

from pivotd.cli.evacuate_plan import Move, Plan
from pivotd.cli.evacuate_start import Starter
from pivotd.cli.several_display import Shown
from pivotd.cli.several_running import Running, Totals, look, totals
from pivotd.cli.waiting import complaint, exit_status
from pivotd.client import Client, ClientError, Pivot
from pivotd.client.patience import Patience
from pivotd.errors import EXIT_DONE, EXIT_KEPT, EXIT_UNREACHABLE, PivotdError

T = TypeVar("T")


class Result(Struct, frozen=True):
    """How a move ended. ``pivot`` None: none has begun, or the disks were there already; ``error`` None: it is done."""

    move: Move
    pivot: Pivot | None
    error: str | None
    exit_status: int

    @property
    def done(self) -> bool:
        """Whether the disks are on their new images."""
        return self.exit_status == EXIT_DONE


@dataclass(eq=False, kw_only=True)
class Moving(Running):
    """A move under way. ``bytes_per_s``: the limit of each of its jobs as this process knows it; 0: none."""

    move: Move
    bytes_per_s: int

    @property
    def jobs(self) -> int:
        """How many jobs copy: devices on one image share one."""
        return len({disk.source for disk in self.pivot.disks})


class Evacuation:
    """All moves of one command. ``look``: returns the plan as of now, of one domain or of all: guests come and go.

    ``ended``: called with the end of each move.
    """

    def __init__(  # noqa: PLR0913 - the choices of the command
        self,
        client: Client,
        starter: Starter,
        look: Callable[[str | None], Plan],
        display: Shown,
        *,
        ended: Callable[[Result], None],
        parallel: int,
        bytes_per_s: int,
        stop_on_failure: bool,
    ) -> None:
        self._client, self._starter, self._look = client, starter, look
        self._display, self._say_end = display, ended
        self._parallel, self._bytes_per_s, self._stop_on_failure = parallel, bytes_per_s, stop_on_failure
        self._waiting: deque[Move] = deque()
        self._seen: set[tuple[str, str, str]] = set()
        self.running: list[Moving] = []
        self.results: list[Result] = []
        self.beginning: Move | None = None
        """The move whose request is under way: pivotd may have taken it."""

    @property
    def not_begun(self) -> list[Move]:
        """Moves that nobody has asked for yet."""
        return list(self._waiting)

    def run(self, plan: Plan) -> Plan:
        """Carry out a plan, and what comes up meanwhile; return the plan as of the end, with what is left.

        Raises: ClientError: the daemon is away for too long; what runs goes on.
        """
        while True:
            self._take(plan.moves)
            while self.running or (self._waiting and not self._stopped):
                self._fill()
                self._share()
                self._follow()
            plan = self._ask(lambda: self._look(None))
            if self._stopped or not any(self._is_new(move) for move in plan.moves):
                return plan

    def _take(self, moves: Iterable[Move]) -> None:
        for move in moves:
            if self._is_new(move):
                self._seen |= _keys(move)
                # What runs already waits for nobody.
                self._waiting.appendleft(move) if move.pivot else self._waiting.append(move)

    def _is_new(self, move: Move) -> bool:
        """Return whether no disk of a move was moved, or tried, by this command."""
        return self._seen.isdisjoint(_keys(move))

    @property
    def _stopped(self) -> bool:
        return self._stop_on_failure and not all(result.done for result in self.results)

    def _fill(self) -> None:
        """Begin what may begin now."""
        while self._waiting and not self._stopped:
            if len(self.running) >= self._parallel and self._waiting[0].pivot is None:
                return
            planned = self._waiting.popleft()
            if (move := self._as_it_is(planned)) is not None:
                self.beginning = move
                self._begin(move)
                self.beginning = None

    def _as_it_is(self, move: Move) -> Move | None:
        """Return the same move as of now; None if the disks are elsewhere: what is to be done instead is taken up."""
        found = self._ask(lambda: self._look(move.domain)).moves
        now = next((one for one in found if one.series == move.series), None)
        if now is None:
            self._seen -= _keys(move)
            self._take(found)
        return now

    def _begin(self, move: Move) -> None:
        limit = self._share(len(move.disks))
        try:
            pivot = self._ask(lambda: self._starter.begin(move, limit))
        except PivotdError as failure:
            if _is_away(failure):
                raise
            self._end(Result(move, None, failure.message, failure.exit_status))
            return
        if pivot is None:
            self._end(Result(move, None, None, EXIT_DONE))
        else:
            limited = pivot.options.bandwidth_bytes_per_s
            self.running.append(Moving(move.domain, pivot, move.copy_bytes, move=move, bytes_per_s=limited))

    def _ask(self, question: Callable[[], T]) -> T:
        return patiently(self._client, question)

    def _share(self, more: int = 0) -> int:
        """Give each job that copies the same part of the bandwidth, and return that part.

        ``more``: jobs that are about to begin. Limits fall before any rises, so that the sum is never more.
        """
        copying = [one for one in self.running if one.copies]
        jobs = sum(one.jobs for one in copying) + more
        if not self._bytes_per_s or not jobs:
            return self._bytes_per_s
        part = max(1, self._bytes_per_s // jobs)
        for one in sorted(copying, key=lambda one: one.bytes_per_s or float("inf"), reverse=True):
            if one.bytes_per_s != part:
                try:
                    self._client.set_bandwidth(one.pivot.id, part)
                except ClientError:
                    continue  # it has just ended, or nothing answers: the next look tells, and the next turn asks again
                one.bytes_per_s = part
        return part

    def _follow(self) -> None:
        """Look at everything that runs, and wait a moment for the first one."""
        self._display.show(self.running, self._totals())
        look(self._client, self.running, self._display.interval_s)
        for one in [one for one in self.running if one.pivot.rests]:
            self.running.remove(one)
            self._end(_result(one))

    def _end(self, result: Result) -> None:
        self.results.append(result)
        self._say_end(result)

    def _totals(self) -> Totals:
        done = [result.move.copy_bytes for result in self.results if result.done]
        waiting = [move.copy_bytes for move in self._waiting]
        return totals(self.running, waiting=waiting, done=done, failed=len(self.results) - len(done))


def patiently(client: Client, question: Callable[[], T]) -> T:
    """Return the answer to a question that may be asked again, also if the daemon is away for a while.

    Raises: PivotdError.
    """
    patience = Patience(client.patience_s, client.tell)
    while True:
        try:
            answer = question()
        except ClientError as failure:
            patience.spend(failure)
        else:
            patience.rest()
            return answer


def _keys(move: Move) -> set[tuple[str, str, str]]:
    return {(move.domain, disk.disk, disk.image) for disk in move.disks}


def _result(one: Moving) -> Result:
    """Return the end of a pivot that rests. One that waits at ready has failed: an evacuation waits for nobody."""
    pivot, status = one.pivot, exit_status(one.pivot)
    if pivot.phase == "ready" and pivot.outcome is None:
        status = EXIT_KEPT
    return Result(one.move, pivot, None if status == EXIT_DONE else complaint(pivot), status)


def _is_away(failure: PivotdError) -> bool:
    """Return whether the daemon itself cannot be reached, in contrast to one domain."""
    return (
        isinstance(failure, ClientError) and failure.exit_status == EXIT_UNREACHABLE and failure.kind == "unreachable"
    )
