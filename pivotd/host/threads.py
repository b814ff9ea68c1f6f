"""Calls that can block on storage for ever: each runs in a thread of its own, with few threads for each path.

A thread that hangs in the kernel cannot be ended. So a path with a hanging call gets no further thread until that call
has returned, and a caller that needs one gets an error at once.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from pivotd import limits

Ts = TypeVarTuple("Ts")
S = TypeVar("S")
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Call:
    """One call that has a thread, even after its caller has given up."""

    paths: tuple[str, ...]
    patience_s: float
    started_s: float = field(default_factory=time.monotonic)
    at: str | None = None
    """The path that it looks at now, if it has reported one."""
    given_up: bool = False
    """Whether its caller waits no more."""

    @property
    def age_s(self) -> float:
        """How long the call has had a thread."""
        return time.monotonic() - self.started_s

    @property
    def hangs(self) -> bool:
        """Whether the call hangs; a caller's short time limit alone does not show that the storage hangs."""
        return self.age_s >= max(self.patience_s, limits.FILE_TIMEOUT_S)

    @property
    def held_by(self) -> tuple[str, ...]:
        """The paths whose storage does not answer, if the call hangs."""
        return self.paths if self.at is None else (self.at,)

    @property
    def keeps(self) -> tuple[str, ...]:
        """The paths of which the call has a thread: one whose caller has given up keeps none from its other paths."""
        return self.held_by if self.given_up else self.paths


_running: set[_Call] = set()
"""Threads remove themselves: copy the set before you iterate over it."""
_waiting: dict[_Call, asyncio.Future[None]] = {}
"""Calls whose paths have no thread left, in order of arrival."""
_here = threading.local()


def look_at(path: str) -> None:
    """Report the path that this thread looks at next: if the call hangs, the storage of this path does not answer."""
    call: _Call | None = getattr(_here, "call", None)
    if call is not None:
        call.at = path


def running() -> int:
    """Return how many calls have a thread now."""
    return len(_running)


def starts(thread: threading.Thread) -> bool:
    """Start a thread; return False if this host gives pivotd no more of them: then nothing has begun."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


async def in_thread(timeout_s: float, function: Callable[[*Ts], T], *args: *Ts, paths: Sequence[str]) -> T:
    """Return the result of function, which looks at the storage of ``paths``.

    Raises: TimeoutError: the storage does not answer within timeout_s, or an earlier call still hangs there, or this
    host gives pivotd no more threads; the message is one line with the path. Whatever function raises.
    """
    call = _Call(tuple(paths), timeout_s)
    result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    try:
        async with asyncio.timeout(timeout_s):
            while (silent := _refusal(call)) is None and not _has_room(call):
                await _turn(call)
            if silent is None:
                call.started_s = time.monotonic()
                if _start(call, result, function, *args):
                    return await result
                silent = f"this host gives pivotd no thread to look at {_named(call.paths)}"
            _wake()  # its turn, if it had one, is the next one's
    except TimeoutError as error:
        if result.done() and not result.cancelled() and result.exception() is error:
            raise  # function's own
        silent = f"the storage of {_named(call.held_by)} does not answer"
    finally:
        if call in _running:
            call.given_up = True
            _wake()
    raise TimeoutError(silent)


async def of_each(
    timeout_s: float, function: Callable[[S], T], items: Mapping[S, str]
) -> tuple[dict[S, T], dict[S, str]]:
    """Return the result of function for each item, and why there is none: what in_thread says of its path.

    ``items``: the path of each. A thread looks at limits.FILES_AT_ONCE of them, one after the other; only where one of
    these hangs each gets a thread of its own.
    """
    found: dict[S, T] = {}
    silent: dict[S, str] = {}

    def look(part: Mapping[S, str]) -> dict[S, T]:
        seen = {}
        for item, path in part.items():
            look_at(path)
            seen[item] = function(item)
        return seen

    async def alone(item: S, path: str) -> None:
        try:
            found[item] = await in_thread(timeout_s, function, item, paths=[path])
        except TimeoutError as error:
            silent[item] = str(error)

    for first in range(0, len(items), limits.FILES_AT_ONCE):
        part = dict(islice(items.items(), first, first + limits.FILES_AT_ONCE))
        try:
            found |= await in_thread(timeout_s, look, part, paths=list(part.values()))
        except TimeoutError:
            await asyncio.gather(*(alone(*one) for one in part.items()))
    return found, silent


def _refusal(call: _Call) -> str | None:
    """Return why the call would also hang, None if it may run."""
    hanging = [other for other in list(_running) if other.hangs]
    silent = [path for other in hanging for path in other.held_by if path in call.paths]
    if silent:
        return f"the storage of {_named(silent)} does not answer"
    held = [path for other in sorted(hanging, key=lambda other: other.started_s) for path in other.held_by]
    if len(hanging) >= limits.MOUNT_THREADS_MAX:
        mounts = _mounts()
        own = {_mount(path, mounts) for path in call.paths}
        same = [path for path in held if _mount(path, mounts) in own]
        if len(same) >= limits.MOUNT_THREADS_MAX:
            return f"the storage of {_named(same)} does not answer, and {_named(call.paths)} is on the same"
    if len(hanging) >= limits.THREADS_MAX:
        return f"the storage of {_named(held)} does not answer; no thread is left to look at {_named(call.paths)}"
    return None


def _mounts() -> list[str]:
    """Return the mount points of this host, without accessing them. Source: proc(5), mountinfo."""
    points = [line.split(b" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n") if line]
    return [os.fsdecode(re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), point)) for point in points]


def _mount(path: str, mounts: Sequence[str]) -> str:
    """Return the mount point of a path; each device in /dev counts as storage of its own."""
    if path.startswith("/dev/"):
        return path
    return max((mount for mount in mounts if f"{path}/".startswith(f"{mount.rstrip('/')}/")), key=len, default=path)


def _has_room(call: _Call) -> bool:
    others = list(_running)
    taken = Counter(path for other in others for path in other.keeps)
    return len(others) < limits.THREADS_MAX and all(taken[path] < limits.PATH_THREADS_MAX for path in call.paths)


async def _turn(call: _Call) -> None:
    """Wait until there may be a thread for the call."""
    woken = _waiting[call] = asyncio.get_running_loop().create_future()
    try:
        await woken
    except asyncio.CancelledError:
        if _waiting.pop(call, None) is None:
            _wake()  # its turn is the next one's
        raise


def _wake() -> None:
    """Wake as many waiting calls as there are threads for."""
    free = limits.THREADS_MAX - len(_running)
    for call in list(islice(filter(_has_room, _waiting), max(0, free))):
        woken = _waiting.pop(call)
        if not woken.done():
            woken.set_result(None)


def _start(call: _Call, result: asyncio.Future[T], function: Callable[[*Ts], T], *args: *Ts) -> bool:
    """Start a thread for the call; return False if there is none to be had."""
    loop = result.get_loop()

    def end(resolve: Callable[[], None]) -> None:
        if not result.done():
            resolve()
        _wake()

    def work() -> None:
        _here.call = call
        try:
            value = function(*args)
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            failure = error
            resolve = lambda: result.set_exception(failure)  # noqa: E731
        else:
            resolve = lambda: result.set_result(value)  # noqa: E731
        _running.discard(call)
        with suppress(RuntimeError):  # the loop is closed: no task waits any more
            loop.call_soon_threadsafe(end, resolve)

    _running.add(call)
    started = starts(threading.Thread(target=work, name=getattr(function, "__name__", "call"), daemon=True))
    if not started:
        _running.discard(call)
    return started


def _named(paths: Sequence[str]) -> str:
    """Return the first path, and how many others there are."""
    distinct = list(dict.fromkeys(paths))
    more = f" and {len(distinct) - 1} other{'s'[: len(distinct) - 2]}" if len(distinct) > 1 else ""
    return f"{distinct[0] if distinct else 'an image'}{more}"
