"""Calls to libvirt: each domain has a thread of its own, which makes one call after the other.

A call to a libvirtd that hangs cannot be ended. It keeps this one thread; the caller gets an error in time, and later
callers learn what hangs. Another domain's calls are not concerned.

Calls of whoever only reads (core/standing_back.py) come after all others, and none begins while the guest is in its
pause: each would lengthen it, by milliseconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

from pivotd import limits
from pivotd.core.standing_back import is_patient
from pivotd.errors import QmpUnknownError, QmpUnsentError
from pivotd.host.threads import starts

Ts = TypeVarTuple("Ts")
T = TypeVar("T")


class _Call:
    """One call. ``begun`` and ``given_up`` exclude each other: a call that was given up in the queue is never made."""

    def __init__(self, what: str, work: Callable[[], Any]) -> None:
        self.what = what
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._work = work
        self._lock = threading.Lock()
        self._begun = False
        self._given_up = False

    def make(self) -> None:
        """Make the call unless its caller has gone; in the thread."""
        with self._lock:
            if self._given_up:
                return
            self._begun = True
        resolve: Callable[[Any], None]
        outcome: Any
        try:
            resolve, outcome = self._resolve, self._work()
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            resolve, outcome = self._fail, error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.done.get_loop().call_soon_threadsafe(resolve, outcome)

    def give_up(self) -> bool:
        """Let nobody wait for the call any longer; return whether it had begun, so that its effect is unknown."""
        with self._lock:
            self._given_up = not self._begun
            return self._begun

    def _resolve(self, value: Any) -> None:
        if not self.done.done():
            self.done.set_result(value)

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # counts as told


class _Calls:
    """The calls that wait. None ends them."""

    def __init__(self) -> None:
        self.in_pause: Callable[[], bool] = lambda: False
        self._first: deque[_Call | None] = deque()
        self._patient: deque[_Call] = deque()
        self._come = threading.Condition()
        self._paused_since: float | None = None

    def put(self, call: _Call | None, *, patient: bool = False) -> None:
        """Add a call to the end of its queue."""
        with self._come:
            if call is None or not patient:
                self._first.append(call)
            else:
                self._patient.append(call)
            self._come.notify()

    def get(self) -> _Call | None:
        """Wait for a call that may be made now, and take it."""
        with self._come:
            while not self._first and not (self._patient and self._may_read()):
                self._come.wait(limits.LIBVIRT_PAUSE_LOOK_S if self._patient else None)
            return self._first.popleft() if self._first else self._patient.popleft()

    def _may_read(self) -> bool:
        """Return whether the guest is in no pause, or in one that is longer than pauses are."""
        if not self.in_pause():
            self._paused_since = None
            return True
        now = time.monotonic()
        self._paused_since = self._paused_since or now
        return now >= self._paused_since + limits.LIBVIRT_HELD_BACK_S


class Line:
    """The thread of one domain; it ends with the process, or once end() was called and its calls have returned."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls = _Calls()
        self._now: str | None = None
        self.lost = False
        """Whether a call that changes something got no answer since the last connection was made."""
        self.commands = 0
        """The number of the last command that libvirt has passed on; it counts anew for each connection to QEMU."""
        self.is_anew = False
        """Whether another libvirtd has connected to QEMU since a call was lost: none of the old one's goes on."""
        self._thread: threading.Thread | None = None

    def hold_back(self, in_pause: Callable[[], bool]) -> None:
        """Begin no call of a reader while ``in_pause``, which the thread calls, returns True: at first, see limits."""
        self._calls.in_pause = in_pause

    def lose(self) -> None:
        """Note that a call that changes something got no answer."""
        self.lost, self.is_anew = True, False

    def passed_on(self, number: int) -> None:
        """Note the number of a command to QEMU; in the thread.

        A libvirtd connects to a QEMU once and counts from one. The next one can connect only once that has ended.
        Source: libvirt, src/qemu/qemu_monitor.c, qemuMonitorNextCommandID(); the answer has it as its id.
        """
        self.is_anew = self.is_anew or number <= self.commands
        self.commands = number

    async def call(self, what: str, timeout_s: float, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return the result of function, which calls libvirt; ``what`` names the call for people.

        Raises: QmpUnsentError: it was not made, since an earlier call still hangs, or there is no thread for it.
        QmpUnknownError: it has not returned within timeout_s. Whatever function raises.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=f"libvirt {self._name}", daemon=True)
            if not starts(thread):
                raise QmpUnsentError(f"{what}: this host gives pivotd no thread to call libvirt", command=what)
            self._thread = thread
        call = _Call(what, lambda: function(*args))
        self._calls.put(call, patient=is_patient())
        try:
            await asyncio.wait([call.done], timeout=timeout_s)
        finally:
            begun = call.give_up()
        if call.done.done():
            result: T = call.done.result()
            return result
        if begun:
            raise QmpUnknownError(f"libvirt has not answered {what} within {timeout_s:g} s", command=what)
        raise QmpUnsentError(f"{what}: libvirt has not answered {self._now or 'an earlier call'} yet", command=what)

    def post(self, function: Callable[[], object]) -> None:
        """Have the thread call function after what it has to do; nobody waits, and errors are nobody's."""
        if self._thread is not None:
            self._calls.put(_Call("the end of a connection", function))

    def end(self) -> None:
        """Let the thread end after its present call."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._now = call.what
            call.make()
            self._now = None
