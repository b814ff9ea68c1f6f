"""The real Driver, one step at a time, without an event loop: nothing in it waits but through the world."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from pivotd.core.actions import Action, RecordOutcome
from pivotd.core.observation import Observation, Root
from pivotd.core.phases import is_resting
from pivotd.core.pivot import Phase
from pivotd.core.request import Requester
from pivotd.core.undo import Undo
from pivotd.engine.converge import Converger
from pivotd.engine.driver import Driver
from pivotd.engine.memory import Memory
from pivotd.errors import JournalError, PhaseConflictError, QmpError
from pivotd.qmp.session import Session
from tests.model.invariants import ViolationError, at_every_instant, at_rest
from tests.model.points import Alternative, Died, canonical, nothing
from tests.model.world import Remembered, World

T = TypeVar("T")
UNDO = "01K9ABCDEFGHJKMNPQRSTVUND0"
"""The pivot that takes the first one back."""
MEMORY_KEPT = (
    "stop_sent", "completing", "deadline", "quick", "not_ours", "rollback_failed", "clean_up_failed", "cancel_requested",
    "back_started", "back_failed", "release_requested", "undo",
)  # fmt: skip
"""What a decision can depend on; the rest of Memory only measures."""


class Domain:
    """The supervisor of the model's one domain."""

    name = "web1"

    def __init__(self, world: World) -> None:
        self.world = world
        self.window = asyncio.Lock()
        self.detail = "model"

    @property
    def session(self) -> Session | None:
        return self.world.session

    async def settled(self, timeout_s: float) -> None:
        await self.world.settled(timeout_s)

    def process_gone(self, identity: Any) -> bool:
        return self.world.process_gone(identity)

    def hurry(self) -> None:
        """Nothing to hurry."""


class ModelFlusher:
    """Flushes at once, or cannot open the files: then ``stop`` waits for its own answer."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def flush(self, paths: Any, timeout_s: float = 0) -> float | None:
        return 1.0 if self.world.quick else None


class SteppedDriver(Driver):
    """Only what needs an event loop is replaced: sleeping, waiting for a flush beside a cancel, a record that hangs."""

    world: World

    async def _sleep(self, timeout_s: float) -> None:
        await self.world.pause(self._woken, timeout_s)

    async def _perform_record_in_time(self, action: Action, seen: Observation) -> None:
        """The storage of the journal answers at once, or only after the deadline of the pause."""
        moved = isinstance(action, RecordOutcome) or Root.DESTINATION in seen.roots.values()
        hangs = Alternative("the journal does not answer before the deadline", nothing)
        if self.pivot.owes_resume and not moved and self.world.faults and self.world.point([hangs]):
            await self._without_record(seen, JournalError("the storage of the journal does not answer"))
        await self._perform_record(action, seen)

    async def _note_in_time(self, event: str, facts: dict[str, Any]) -> None:
        with contextlib.suppress(JournalError):
            await self.world.note(event, facts)

    async def _unless_told(self, work: Coroutine[Any, Any, T]) -> T | None:
        return await work


def step(world: World) -> None:
    """Let one thing happen: somebody dies or starts, or pivotd's driver takes one step. Raises: ViolationError."""
    try:
        if _before_step(world):
            return
        _drive(world)
    except Died:
        _down(world)
    finally:
        world.monitor = world.session = None
    at_rest(world)


def _before_step(world: World) -> bool:
    """Between steps anybody may die, meddle or start; return whether that is all for now."""
    moving = world.qemu.moving() if world.qemu is not None and world.down else []
    alternatives = [*world.crash_alternatives(), *_asked_in_window(world), *_between_steps(world)]
    if moving:
        alternatives.append(Alternative("jobs go on without pivotd", world.qemu.settle, (), 0, 0))
    if world.point(alternatives):
        if world.qemu is not None:
            world.qemu.events.clear()
        at_every_instant(world)
        return True
    if world.down:
        _start(world)
        return True
    return False


def _asked_in_window(world: World) -> list[Alternative]:
    """What a person may ask of an open undo window; neither is a fault."""
    if world.down or world.driver is None or not world.durable.window_open or world.durable.owes_resume:
        return []
    undo = Undo(UNDO, Requester(0, 0, 1))
    return [
        Alternative("the user undoes", lambda: _remember(world, undo=undo), (), 0, 0),
        Alternative("the user releases", lambda: _remember(world, release_requested=True), (), 0, 0),
    ]


def _between_steps(world: World) -> list[Alternative]:
    if not world.faults:
        return []
    found = world.replacements()
    pivot = world.durable
    if world.driver is None or world.down:
        return found + world.meddling()
    if is_resting(pivot) and pivot.phase is Phase.READY:
        found.append(Alternative("the user completes", _complete, (world,)))
    world.cancel = lambda: _remember(world, cancel_requested=True)
    world.end = lambda: setattr(world, "driver", _ending(world))
    found += world.meddling()
    world.cancel = world.end = None
    return found


def _remember(world: World, **changes: Any) -> None:
    assert world.driver is not None
    memory = dict(zip(MEMORY_KEPT, world.driver.memory, strict=True)) | changes
    old = world.driver
    world.driver = Remembered(old.pivot, tuple(memory.values()), old.has_window, old.ending)


def _ending(world: World) -> Remembered:
    assert world.driver is not None
    return Remembered(world.driver.pivot, world.driver.memory, world.driver.has_window, True)


def _complete(world: World) -> None:
    disks = tuple(replace(disk, outcome=None) for disk in world.durable.disks)
    world.durable = replace(world.durable, hold=False, attempt=0, disks=disks)
    old = world.driver
    assert old is not None
    world.driver = Remembered(canonical(world.durable), old.memory, old.has_window, old.ending)


def _down(world: World) -> None:
    world.down, world.driver, world.late, world.heard = True, None, (), ()
    world.ghost.forgot(world)
    if world.qemu is not None:
        world.qemu.events.clear()


def _start(world: World) -> None:
    """Start pivotd: read the journal, remember nothing."""
    world.say("--- pivotd starts")
    world.read_journal()
    world.down = False
    pivot = world.durable
    memory = Memory.of_earlier_process() if pivot.phase is Phase.PAUSING else Memory()
    in_window = pivot.phase is Phase.PAUSING or pivot.owes_resume
    world.driver = Remembered(canonical(pivot), _memory_of(memory, world), in_window)


def _drive(world: World) -> None:
    driver, memory = _revive(world)
    if driver._done():
        _down(world)
        return
    try:
        _finish(driver._step())
    except (JournalError, PhaseConflictError, QmpError) as error:
        world.say(f"  error: {error}")
    except (ViolationError, Died):
        raise
    except Exception as error:
        raise ViolationError(f"no decision: {error!r}") from error
    world.heard = tuple(sorted(world.monitor.job_status.items())) if world.monitor is not None else ()
    if world.qemu is not None:
        world.qemu.events.clear()
    world.driver = Remembered(canonical(driver.pivot), _memory_of(memory, world), driver._has_window, driver._ending)
    if world.monitor is None:
        world.heard = ()
    if driver.successor is not None and not driver._ending:
        world.driver = Remembered(canonical(driver.successor), _memory_of(Memory(), world), False)
    elif driver._done() and (driver.pivot.phase is not Phase.CLOSED or driver.successor is not None):
        _down(world)


def _revive(world: World) -> tuple[SteppedDriver, Memory]:
    remembered = world.driver
    assert remembered is not None
    world.connect()
    if world.monitor is not None:
        world.monitor.job_status.update(world.heard)
    domain = Domain(world)
    driver = SteppedDriver(world.durable, domain, world, world, Converger(ModelFlusher(world), world))
    driver.world = world
    memory = Memory(**dict(zip(MEMORY_KEPT, remembered.memory, strict=True)))
    if memory.deadline is not None:
        memory.deadline += world.now_s
    driver._memory = memory
    driver._ending = remembered.ending
    if remembered.has_window:
        _finish(driver._enter_window())
    world.cancel = None if memory.cancel_requested else driver.cancel
    world.end = None if remembered.ending else driver.end
    return driver, memory


def _memory_of(memory: Memory, world: World) -> tuple[Any, ...]:
    kept = {name: getattr(memory, name) for name in MEMORY_KEPT}
    if memory.deadline is not None:
        kept["deadline"] = -1.0 if memory.deadline <= world.now_s else 0.5
    return tuple(kept.values())


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits for a loop."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise ViolationError("the driver waits for something outside the model")
