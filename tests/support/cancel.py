"""Cancels a coroutine at each of its suspensions in turn, and sees what that leaves behind."""

from __future__ import annotations

import asyncio
import os
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from pivotd.qmp.monitor import Monitor

SETTLE_S = 10.0
"""Closing a connection takes a few turns of the loop; longer means that it does not happen."""
POINTS_MAX = 5000
PACKAGE = f"{os.sep}pivotd{os.sep}"

Place = tuple[str, ...]
"""Where a task is suspended: function and line of every frame of pivotd, outermost first."""


class When(StrEnum):
    """When the cancellation comes, seen from what is awaited."""

    WAITING = "waiting"
    """It is still going on."""
    ENDED = "ended"
    """It has just ended, and the task has not run since: the result is lost."""


@types.coroutine
def _stepped(coro: Any, suspending: Callable[[Any], None]) -> Generator[Any, Any, Any]:
    """Run a coroutine and call ``suspending`` with what it waits for, right before each suspension."""
    step, value = coro.send, None
    while True:
        try:
            waiting = step(value)
        except StopIteration as stop:
            return stop.value
        suspending(waiting)
        try:
            step, value = coro.send, (yield waiting)
        except BaseException as error:  # noqa: BLE001 - it is the coroutine's
            step, value = coro.throw, error


def _cancel(task: asyncio.Task[Any], waiting: Any, when: When) -> None:
    if when is When.WAITING or waiting is None:
        task.cancel()
    else:
        # Called before the task's own callback: the task is cancelled while what it waits for is done.
        waiting.add_done_callback(lambda _: task.cancel())


async def cancelled_at(work: Coroutine[Any, Any, Any], number: int, when: When) -> bool:
    """Run work and cancel it at suspension ``number``, from 1; return False if it ended before that.

    Raises: AssertionError if work went on as if nothing had happened.
    """
    count = 0
    task: asyncio.Task[Any]

    def suspending(waiting: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            _cancel(task, waiting, when)

    async def run() -> Any:
        return await _stepped(work, suspending)

    task = asyncio.get_running_loop().create_task(run())
    await asyncio.wait([task])
    if count < number:
        task.result()
        return False
    assert task.cancelled(), f"suspension {number} ({when}): the cancellation was swallowed: {task!r}"
    return True


async def everywhere(
    work: Callable[[], Coroutine[Any, Any, Any]], then: Callable[[], Coroutine[Any, Any, Any]] | None = None
) -> int:
    """Run work again and again, cancelled at each of its suspensions once per When, until it gets through.

    After each round ``then`` is a further use, and its end; no task and no descriptor may be left then.
    Returns how many rounds were cancelled.
    """
    rounds = 0
    for when in When:
        for number in range(1, POINTS_MAX):
            left = Leftovers()
            try:
                reached = await cancelled_at(work(), number, when)
                if then is not None:
                    await then()
                await left.nothing()
            except BaseException as error:
                error.add_note(f"cancelled at suspension {number}, {when}")
                raise
            if not reached:
                break
            rounds += 1
    return rounds


class Places:
    """Cancels one task at the first suspension, of any task started meanwhile, at a place where none was yet.

    For work that waits a different number of times in each run: what counts is where.
    """

    def __init__(self, when: When) -> None:
        self.seen: set[Place] = set()
        self.when = when

    async def cancelled_at_a_new_one(self, work: Coroutine[Any, Any, Any]) -> Place | None:
        """Run work; return the place at which it was cancelled, None if it ended and every place had its turn."""
        found: Place | None = None
        task: asyncio.Task[Any] | None = None
        loop = asyncio.get_running_loop()

        def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
            def suspending(waiting: Any) -> None:
                nonlocal found
                place = _place(coro)
                if found is None and task is not None and place and place not in self.seen:
                    found = place
                    self.seen.add(place)
                    self._cancel_soon(task, waiting)

            async def run() -> Any:
                return await _stepped(coro, suspending)

            return asyncio.Task(run(), loop=loop, **options)

        loop.set_task_factory(factory)
        try:
            task = loop.create_task(work)
            await asyncio.wait([task])
        finally:
            loop.set_task_factory(None)
        if found is None:
            task.result()
        return found

    def _cancel_soon(self, task: asyncio.Task[Any], waiting: Any) -> None:
        if self.when is When.WAITING or waiting is None:
            # At the next turn: the task of this place may have been started by the one to cancel, in this very step.
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            waiting.add_done_callback(lambda _: task.cancel())


def _place(coro: Any) -> Place:
    """Return where a suspended coroutine is, by the frames of pivotd's own code."""
    place = []
    while coro is not None:
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None) or getattr(coro, "ag_frame", None)
        if frame is not None and PACKAGE in frame.f_code.co_filename:
            place.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None) or getattr(coro, "ag_await", None)
    return tuple(place)


class Leftovers:
    """What was there before; see later what has come and not gone."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._descriptors = _descriptors()

    async def nothing(self) -> None:
        """Return as soon as every task and descriptor that came has gone. Raises: AssertionError if one stays."""
        deadline_s = time.monotonic() + SETTLE_S
        while left := self._left():
            assert time.monotonic() < deadline_s, f"left behind: {left}"
            await asyncio.sleep(0.001)

    def _left(self) -> list[str]:
        tasks = [repr(task) for task in asyncio.all_tasks() - self._tasks if not task.done()]
        new = _descriptors() - self._descriptors
        return tasks + [f"descriptor {number} of {what}" for number, what in new]


def _descriptors() -> frozenset[tuple[str, str]]:
    """Return every open descriptor of this process with what it is of."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(entry.readlink())
            if "/proc/" not in target:
                found.add((entry.name, target))
    return frozenset(found)


def replies_due(monitor: Monitor) -> int:
    """Return how many replies a connection still expects, also where nobody waits for them."""
    return len(monitor._client._pending)
