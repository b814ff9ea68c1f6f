"""One request, several endpoints: who is asked when, until one has answered or the time is over.

The endpoint that answered last is asked first, the next one as soon as that fails, or after FLEET_SECOND_S: a node that
is frozen costs no more. An endpoint that stays silent gets another copy after a second, since a node whose leader has
just died forgets requests without a word, and one more after twice, four times that. So several copies of a request can
be under way: whoever writes must make sure that only one can have an effect (store.py compares revisions).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pivotd import limits
from pivotd.fleet.endpoint import Endpoint, EndpointError

T = TypeVar("T")


@dataclass(slots=True)
class Ended(Generic[T]):
    """How a race has ended. ``answer`` is None if no endpoint has answered; ``said`` has the last reason of each.

    ``alone``: no other copy of the request can have been carried out. ``hopeless``: no endpoint is worth another try.
    """

    answer: T | None
    endpoint: Endpoint | None
    said: dict[str, str]
    alone: bool
    hopeless: bool = False


@dataclass(slots=True)
class _Lane:
    """The copies that one endpoint gets; ``due`` is when it gets the next one."""

    endpoint: Endpoint
    due: float
    tried: bool = False
    resend_s: float = limits.FLEET_RESEND_S
    again_s: float = limits.FLEET_ENDPOINT_AGAIN_S


@dataclass(slots=True)
class _Race(Generic[T]):
    lanes: list[_Lane]
    attempt: Callable[[Endpoint], Awaitable[T]]
    ends: float
    finished: asyncio.Queue[tuple[_Lane, asyncio.Task[None], T | EndpointError]] = field(default_factory=asyncio.Queue)
    under_way: set[asyncio.Task[None]] = field(default_factory=set)
    said: dict[str, str] = field(default_factory=dict)
    doubtful: bool = False
    """Whether a copy without an answer may have been carried out."""

    def start_due(self, group: asyncio.TaskGroup, now: float) -> None:
        """Send a copy to each endpoint whose turn it is."""
        for lane in self.lanes:
            if lane.due <= now:
                self.under_way.add(group.create_task(self._run(lane)))
                self.said.setdefault(lane.endpoint.url, "no answer")
                lane.tried, lane.due, lane.resend_s = True, now + lane.resend_s, 2 * lane.resend_s

    async def _run(self, lane: _Lane) -> None:
        got: T | EndpointError
        try:
            got = await self.attempt(lane.endpoint)
        except EndpointError as error:
            got = error
        task = asyncio.current_task()
        assert task is not None
        self.finished.put_nowait((lane, task, got))

    def failed(self, lane: _Lane, error: EndpointError, now: float) -> None:
        """Note why an endpoint does not answer; the next one that was not asked yet is asked at once."""
        self.said[lane.endpoint.url] = str(error)
        self.doubtful = self.doubtful or error.sent
        lane.due = math.inf if error.refused else min(lane.due, now + lane.again_s)
        lane.again_s = min(2 * lane.again_s, limits.FLEET_RESEND_S)
        new = [other for other in self.lanes if not other.tried]
        if new:
            new[0].due = now

    async def run(self, group: asyncio.TaskGroup) -> Ended[T]:
        """Return how it has ended."""
        while (now := time.monotonic()) < self.ends:
            self.start_due(group, now)
            due = min(lane.due for lane in self.lanes)
            if due == math.inf and not self.under_way:
                return Ended(None, None, self.said, alone=not self.doubtful, hopeless=True)
            try:
                async with asyncio.timeout(min(due, self.ends) - now):
                    lane, task, got = await self.finished.get()
            except TimeoutError:
                continue
            self.under_way.discard(task)
            if not isinstance(got, EndpointError):
                return Ended(got, lane.endpoint, self.said, alone=not self.doubtful and not self.under_way)
            self.failed(lane, got, time.monotonic())
        return Ended(None, None, self.said, alone=False)


async def race(
    endpoints: Sequence[Endpoint], attempt: Callable[[Endpoint], Awaitable[T]], timeout_s: float
) -> Ended[T]:
    """Return the first answer of ``attempt``, which raises EndpointError where an endpoint has none."""
    now = time.monotonic()
    lanes = [_Lane(endpoint, now + number * limits.FLEET_SECOND_S) for number, endpoint in enumerate(endpoints)]
    state = _Race(lanes, attempt, now + timeout_s)
    async with asyncio.TaskGroup() as group:
        ended = await state.run(group)
        for task in state.under_way:
            task.cancel()
    return ended
