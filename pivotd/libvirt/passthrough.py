"""Queries to the QEMU of a domain of libvirt's: libvirt passes them on, and its events take the place of QEMU's.

libvirt marks the domain ``custom-monitor`` at the first of them (`virsh dominfo`, and its log).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pivotd import limits
from pivotd.errors import QmpRefusedError, QmpUnknownError, QmpUnsentError
from pivotd.libvirt import library
from pivotd.libvirt.connection import translated
from pivotd.libvirt.line import Line
from pivotd.qmp.burst import Command
from pivotd.qmp.monitor import Monitor, value_of

Query = Callable[[Sequence[str]], list[dict[str, Any]]]
"""Sends queries, in the domain's thread, and returns QEMU's replies."""
TELLS_NO_CHANGES, TELLS_CHANGES = 9_000_000, 11_003_000
"""libvirt tells of definitions. Up to the first release it does not tell of a disk that is changed in one, from the
second one on it does; of those between, pivotd learns it from the first change of its own."""
TOLD_S = 1.0
"""libvirt tells of a change within milliseconds."""
_learned: set[int] = set()
"""The releases between that were seen not to tell of pivotd's changes."""
HARMLESS = frozenset({"qom-list", "x-debug-query-block-graph"})
"""What pivotd sends besides ``query-…``: nothing that changes QEMU behind libvirt's back."""


class Passthrough(Monitor):
    """QEMU's monitor as libvirt lends it. Commands that could change QEMU are refused here, save in taking_back()."""

    def __init__(self, line: Line, connection: Any, domain: Any, pid: int) -> None:
        super().__init__()
        self.pid = pid
        self.line = line
        self.connection = connection
        self._defined = 0
        """Number of times that libvirt has told of a new definition for the domain's next boot."""
        self._defined_here = 0
        """How many of them it tells of what pivotd has written."""
        self.switched: set[str] = set()
        """The disks, by libvirt's names, that a copy or an active commit has switched while these events were told.

        Empty again once a device was unplugged: another image may have been plugged in under the same name.
        """
        self._domain = domain
        self._may_change = False
        self._release = 0
        self._written_at = 0.0
        self._ended = asyncio.Event()
        self._closed = False
        """Whether the connection is closed; the thread's alone."""
        self._loop = asyncio.get_running_loop()
        self._registered: list[int] = []

    @property
    def out_of_band(self) -> bool:
        """Whether QEMU takes out-of-band commands: libvirt passes none on."""
        return False

    @property
    def connected(self) -> bool:
        """Whether queries can be sent now."""
        return not self._ended.is_set()

    async def closed(self) -> None:
        """Return once libvirt's daemon is gone, or the guest has ended."""
        await self._ended.wait()

    async def close(self) -> None:
        """Disconnect; never raises, and waits for no call that hangs."""
        self.lost()
        self.line.post(self._close)

    def lost(self) -> None:
        """Note that the connection is of no use any more."""
        if not self._ended.is_set():
            self._ended.set()
            self._wake()

    def _close(self) -> None:
        self._closed = True
        # Each by itself: one that is refused, as all are once libvirt's daemon is gone, must not keep the others.
        for number in self._registered:
            with suppress(Exception):
                self.connection.domainEventDeregisterAny(number)
        for end in (self.connection.unregisterCloseCallback, self.connection.close):
            with suppress(Exception):
                end()

    async def call(self, what: str, timeout_s: float, function: Callable[[], Any]) -> Any:
        """Return the result of a call to libvirt, made in the domain's thread.

        Raises: QmpUnsentError, QmpRefusedError, QmpUnknownError; without a connection the session ends.
        """
        ended = QmpUnsentError(f"{what}: the connection to libvirt has ended", command=what)
        if self._ended.is_set():
            raise ended

        def make() -> Any:
            if self._closed:  # while the call has let others go first
                raise ended
            return translated(self.connection, what, function)

        try:
            return await self.line.call(what, timeout_s, make)
        except QmpUnknownError:
            self.lost()  # whatever hangs: only a new connection shows what has become of it
            raise

    async def _run(
        self, messages: Sequence[Command], timeout_s: float, leaving: Callable[[], None] | None = None
    ) -> tuple[list[Any], list[int]]:
        assert leaving is None, "no command of a pause goes this way"
        refused = next((one for one in map(name_of, messages) if not self._may_change and not harmless(one)), None)
        if refused is not None:
            raise QmpRefusedError(f"{refused} is not sent to a QEMU that libvirt manages", command=refused)
        texts = [json.dumps(message) for message in messages]
        replies = await self.call(name_of(messages[0]), timeout_s, lambda: self.query(texts))
        values = [value_of(reply, message) for reply, message in zip(replies, messages, strict=True)]
        return values, [self.resumes] * len(values)

    @contextmanager
    def taking_back(self) -> Iterator[None]:
        """Permit commands that change QEMU: only to take back a switch of which libvirt has not learnt."""
        self._may_change = True
        try:
            yield
        finally:
            self._may_change = False

    def query(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Send queries, in the domain's thread, and return QEMU's replies. Raises: libvirtError, ValueError."""
        monitor = library.load().qemu.qemuMonitorCommand
        replies = [json.loads(monitor(self._domain, text, 0)) for text in texts]
        for reply in replies:
            number = str(reply.get("id", "")).removeprefix("libvirt-")
            if number.isascii() and number.isdecimal():
                self.line.passed_on(int(number))
        return replies

    # -- events; they come in libvirt's thread --------------------------------------------------------------------

    def listen(self) -> None:
        """Ask libvirt for the events of the domain and of the connection; in the domain's thread.

        Raises: QmpRefusedError, QmpUnknownError.
        """
        if self._domain is not None:
            translated(self.connection, "its events", self._register)

    def _register(self) -> None:
        api = library.load().api
        self._release = self.connection.getLibVersion()
        self.connection.registerCloseCallback(lambda *_: self._soon(self.lost), None)
        for event, callback in (
            (api.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
            (api.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, self._on_job),
            (api.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._on_removed),
        ):
            self._registered.append(self.connection.domainEventRegisterAny(self._domain, event, callback, None))

    def hear(self) -> None:
        """Wait, in the domain's thread, until pivotd's loop has been told of all that came before; for the next await.

        libvirtd queues an event for its main loop, and that sends it before it reads the next request: so one more is
        made. An answer can be quicker than the events before it.
        """
        with suppress(library.load().api.libvirtError):  # as good: the domain has gone, or the connection
            self._domain.isActive()
        library.await_events(limits.QUERY_TIMEOUT_S)

    def _soon(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the daemon's loop has ended
            self._loop.call_soon_threadsafe(function)

    def _on_lifecycle(self, _connection: Any, _domain: Any, event: int, _detail: int, _opaque: Any) -> None:
        api = library.load().api
        if event == api.VIR_DOMAIN_EVENT_RESUMED:
            self._soon(self._on_resume)
        elif event in {api.VIR_DOMAIN_EVENT_SUSPENDED, api.VIR_DOMAIN_EVENT_SHUTDOWN}:
            self._soon(self._on_stop)
        elif event == api.VIR_DOMAIN_EVENT_DEFINED:
            self._soon(self._on_defined)
        elif event in {api.VIR_DOMAIN_EVENT_STOPPED, api.VIR_DOMAIN_EVENT_CRASHED, api.VIR_DOMAIN_EVENT_STARTED}:
            self._soon(self.lost)

    def _on_job(self, _connection: Any, _domain: Any, disk: str, kind: int, status: int, _opaque: Any) -> None:
        api = library.load().api
        switches = {api.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY, api.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT}
        if kind in switches and status == api.VIR_DOMAIN_BLOCK_JOB_COMPLETED:
            self._soon(lambda: self.switched.add(disk))
        self._soon(self._on_block)

    def _on_removed(self, *_: Any) -> None:
        self._soon(self.switched.clear)
        self._soon(self._on_block)

    def _on_defined(self) -> None:
        self._defined += 1

    @property
    def defined_by_others(self) -> int:
        """Number of times that somebody else has defined the domain for its next boot.

        Of a release between the known ones it is learned here: it does not tell of changes if one was not told.
        """
        between = TELLS_NO_CHANGES < self._release < TELLS_CHANGES
        if between and self._defined < self._defined_here and time.monotonic() >= self._written_at + TOLD_S:
            _learned.add(self._release)
        if not self._tells_changes:
            self._defined_here = 0
        return max(0, self._defined - self._defined_here)

    @property
    def _tells_changes(self) -> bool:
        return self._release > TELLS_NO_CHANGES and self._release not in _learned

    def has_defined(self, times: int) -> None:
        """Note that pivotd has changed so many disks in the definition of the next boot."""
        if self._tells_changes:
            self._defined_here += times
            self._written_at = time.monotonic()

    def _on_resume(self) -> None:
        self.resumes += 1
        self._wake()

    def _on_stop(self) -> None:
        self.stops += 1
        self._wake()

    def _on_block(self) -> None:
        self.detached += 1
        self._wake()


def name_of(message: Command) -> str:
    """Return the name of a command."""
    return str(message.get("execute") or message["exec-oob"])


def harmless(name: str) -> bool:
    """Return whether a command only looks."""
    return name.startswith("query-") or name in HARMLESS
