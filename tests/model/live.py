"""A model host in virtual time: the real driver runs in an event loop that never waits, over the real SQLite journal."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pivotd.core.phases import is_resting
from pivotd.core.pivot import Identity, JsonObject, Phase, Pivot, Record
from pivotd.core.request import Requester
from pivotd.engine.converge import Converger
from pivotd.engine.driver import Driver
from pivotd.errors import QmpUnknownError
from pivotd.journal.journal import Journal
from tests.model import invariants
from tests.model.qemu import Qemu
from tests.model.session import Message, ModelMonitor
from tests.model.stepped import Domain, ModelFlusher
from tests.model.world import World

T = TypeVar("T")
COMMAND_S = 0.001
"""Virtual time that one command takes: whoever acts in between finds half a burst done."""
JOB_STEP_S = 0.004


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time jumps to the next timer, but not while the journal's thread still works."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.working = 0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled and not self.working:
            self.now_s = max(self.now_s, self._scheduled[0].when())
        super()._run_once()

    def run_until_complete(self, future: Any) -> Any:
        """Return once nothing is left to do at this moment: what is found then is the same in every run."""
        found = super().run_until_complete(future)
        super().run_until_complete(self._settle())
        return found

    async def _settle(self) -> None:
        while self.working or self._ready:
            await asyncio.sleep(0)


class LiveJournal:
    """The real journal; the judge learns of every record, also where nobody waits for the answer any more."""

    def __init__(self, world: LiveWorld, directory: Path) -> None:
        self.world = world
        self.directory = directory
        self.real = Journal.open(directory)

    async def work(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the journal's thread; virtual time stands still meanwhile."""
        loop = self.world.loop
        loop.working += 1
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.world.loop.working -= 1
        if not task.cancelled() and task.exception() is None and isinstance(task.result(), Pivot):
            before, self.world.durable = self.world.durable, task.result()
            self.world.judge(lambda: invariants.when_recorded(self.world, before))
            self.world.judge(lambda: invariants.at_every_instant(self.world))

    async def accept(self, pivot: Pivot) -> Pivot:
        found, _ = await self.work(self.real.accept(pivot, {}))
        return found

    async def advance(self, before: Pivot, event: str, facts: JsonObject, **changes: Any) -> Pivot:
        return await self.work(self.real.advance(before, event, facts, **changes))

    def asked_of(self, pivot: str) -> Mapping[str, Requester]:
        return self.real.asked_of(pivot)

    async def note(self, event: str, facts: JsonObject, **whose: Any) -> Record:
        return await self.work(self.real.note(event, facts, **whose))

    async def settle(self) -> bool:
        return await self.work(self.real.settle())

    async def read(self, pivot: str) -> Pivot:
        return await self.work(self.real.read(pivot))

    def hold_checkpoints(self) -> None:
        self.real.hold_checkpoints()

    def release_checkpoints(self) -> None:
        self.real.release_checkpoints()

    async def calm(self, patience_s: float) -> None:
        await self.real.calm(patience_s)

    async def reopen(self) -> list[Pivot]:
        """Close and open again, as a new process does; return what it finds open."""
        await self.work(self.real.close())
        self.real = Journal.open(self.directory)
        return self.real.open_pivots()


class LiveWorld(World):
    """The model host, with time passing by itself."""

    def __init__(self, pivot: Pivot, qemu: Qemu, loop: VirtualLoop, *, quick: bool) -> None:
        super().__init__(pivot, qemu, quick=quick)
        self.loop = loop
        self.slow = False
        self.stuck = False
        self.task: asyncio.Task[None] | None = None
        self.live: Driver | None = None
        self.broken: list[Exception] = []
        self.finalize_fails = False
        self.jobs_go_on = loop.create_task(self._jobs_go_on())

    def judge(self, check: Any) -> None:
        """Keep what the judge finds: inside a driver it would be taken for one more error."""
        try:
            check()
        except invariants.ViolationError as error:
            self.broken.append(error)

    def run(self, name: str, arguments: JsonObject, who: str = "pivotd") -> Any:
        try:
            return super().run(name, arguments, who)
        except invariants.ViolationError as error:
            self.broken.append(error)
            raise

    async def burst(self, monitor: ModelMonitor, messages: Sequence[Message], resumes_at: list[int]) -> list[Any]:
        replies = []
        for message in messages:
            await asyncio.sleep(COMMAND_S)
            while self.stuck and monitor.connected:
                await asyncio.sleep(COMMAND_S)
            if self.qemu is None or not monitor.connected:
                raise QmpUnknownError("the monitor closed before the answer")
            name, arguments = message["execute"], message.get("arguments", {})
            if name == "job-finalize" and self.finalize_fails and arguments["id"] in self.qemu.jobs:
                self.finalize_fails = False
                self._doom(arguments["id"], "finalize_fails")
            replies.append(self.run(name, arguments))
            resumes_at.append(monitor.resumes)
        commands = [message["execute"] for message in messages]
        if "query-status" in commands:
            self.ghost.told(self, commands, replies[commands.index("query-status")]["status"])
        return replies

    def disconnect(self) -> None:
        """Break the connection of pivotd."""
        if self.monitor is not None:
            self.monitor.lose()
        self.monitor = self.session = None

    async def settled(self, timeout_s: float) -> None:
        await asyncio.sleep(COMMAND_S)
        if not self.stuck:
            self.connect()
            if self.monitor is not None and self.live is not None:
                self.monitor.subscribe(self.live.wake)

    def monotonic(self) -> float:
        return self.loop.now_s

    async def _jobs_go_on(self) -> None:
        while True:
            await asyncio.sleep(JOB_STEP_S)
            if self.qemu is not None and not self.slow:
                for name in self.qemu.moving():
                    self.qemu.progress(name)
                self.hear()
                self.judge(lambda: invariants.at_every_instant(self))

    # -- pivotd's process -----------------------------------------------------------------------------------------

    def start(self, pivot: Pivot, journal: LiveJournal) -> None:
        """Start a driver, as the supervisor does."""
        self.down = False
        domain = Domain(self)
        domain.name = pivot.domain
        self.live = Driver(pivot, domain, journal, self, Converger(ModelFlusher(self), self))
        self.task = self.loop.create_task(self.live.run())

    def kill(self) -> None:
        """End pivotd wherever it is."""
        assert self.task is not None
        self.disconnect()
        self.task.cancel()
        self.loop.run_until_complete(asyncio.wait([self.task]))
        self.task = self.live = None
        self.down = True
        self.ghost.forgot(self)

    @property
    def at_rest(self) -> bool:
        """Whether the pivot goes no further by itself."""
        return is_resting(self.durable)

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self.durable.phase is Phase.CLOSED

    def process_gone(self, identity: Identity) -> bool:
        return (self.qemu is None or not self.original) if identity.pid == 100 else False
