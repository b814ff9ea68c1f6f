"""The real Driver, one step at a time, without an event loop: nothing in it waits but through the world."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from pivotd import limits
from pivotd.core.attempt import Attempt
from pivotd.core.phases import is_resting
from pivotd.core.pivot import Phase, Pivot
from pivotd.engine.converge import Converger
from pivotd.engine.driver import Driver
from pivotd.engine.driver_state import DriverState
from pivotd.errors import JournalError, PhaseConflictError, PivotdError, QmpError
from pivotd.qmp.session import Session
from tests.model.invariants import ViolationError, at_every_instant, at_rest
from tests.model.messages import NAMES, message
from tests.model.points import Alternative, Died, canonical, nothing
from tests.model.qemu import Qemu
from tests.model.world import Remembered, World

T = TypeVar("T")


class Domain:
    """The supervisor of the model's one domain."""

    name = "web1"

    def __init__(self, world: World) -> None:
        self.world = world
        self.window = asyncio.Lock()
        self.pause = asyncio.Lock()
        self.detail = "model"

    @property
    def session(self) -> Session | None:
        return self.world.session

    async def settled(self, timeout_s: float) -> None:
        await self.world.settled(timeout_s)

    async def beside(self, pivot: Any) -> Any:
        return await self.world.beside(pivot.identity)

    def pause_of(self, identity: Any) -> asyncio.Lock:
        return self.pause

    def process_gone(self, identity: Any) -> bool:
        return self.world.process_gone(identity)


class ModelFlusher:
    """Flushes at once, or cannot open the files: then ``stop`` waits for its own answer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.failed: dict[str, str] = {}

    async def flush(self, paths: Any, timeout_s: float = 0) -> float | None:
        return 1.0 if self.world.quick else None


class SteppedState(DriverState):
    """Only what needs an event loop is replaced: sleeping, waiting beside a cancel, a record that hangs."""

    world: World

    async def sleep(self, timeout_s: float) -> None:
        await self.world.pause(self.inbox.woken, timeout_s)

    def begin_record(self, event: str, facts: dict[str, Any], *, after_s: float = 0.0, **changes: Any) -> None:
        """It is on disk at once, or not before something waits for it."""
        before = self.pivot
        work = _Written(lambda: self.world.write(before, event, **changes))
        self._begun = event, facts, work
        if not self.world.point([Alternative(f"{event} is not on disk yet", nothing, (), 0, 0)]):
            work.now()

    def beside(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """It is done at once."""
        try:
            work.send(None)
        except StopIteration as done:
            return _Done(done.value)
        except QmpError as error:
            return _Done(partial(_fail, error))
        raise AssertionError("it waits")

    async def telling(self, work: Awaitable[T], _reason: str) -> T:
        return await work

    async def note_in_time(self, event: str, facts: dict[str, Any]) -> None:
        with contextlib.suppress(JournalError):
            await self.world.note(event, facts)

    async def unless_told(self, work: Coroutine[Any, Any, T]) -> T | None:
        return await work

    async def unless_late(
        self, work: Coroutine[Any, Any, T], timeout_s: float, late: Callable[[], Awaitable[None]]
    ) -> T:
        """The storage of the journal answers at once, or only after the deadline of the pause."""
        hangs = Alternative("the journal does not answer before the deadline", nothing)
        try:
            if self.world.faults and self.world.point([hangs]):
                await late()
        except BaseException:
            work.close()  # pivotd has died before the record
            raise
        return await work


class _Written:
    """A record that is written when it is awaited, or before."""

    def __init__(self, write: Callable[[], Pivot]) -> None:
        self._write = write

    def now(self) -> None:
        """Write it."""
        try:
            written = self._write()
        except JournalError as error:
            self._write = partial(_fail, error)
        else:
            self._write = lambda: written

    def __await__(self) -> Iterator[Any]:
        return self._write()
        yield


class _Done:
    """What is known already; a callable: it raises."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Iterator[Any]:
        return self._value() if callable(self._value) else self._value
        yield


def _fail(error: PivotdError) -> Pivot:
    raise error


def driver_on(world: World) -> Driver:
    """Return the real driver of the world's pivot."""
    driver = Driver(world.durable, Domain(world), world, world, Converger(ModelFlusher(world), world), world.fleet)
    driver.state = SteppedState(
        world.durable, driver.state.domain, world, world, Converger(ModelFlusher(world), world), world.fleet
    )
    driver.state.world = world
    return driver


def step(world: World) -> None:
    """Let one thing happen: somebody dies or starts, or pivotd's driver takes one step. Raises: ViolationError."""
    try:
        if _before_step(world):
            return
        _drive(world)
    except Died:
        _down(world)
    finally:
        world.monitor = world.session = world.asked = None
        world.stepping = False
        for request in world.requests:
            request.close()
    at_rest(world)


def _before_step(world: World) -> bool:
    """Between steps anybody may die, meddle or start; return whether that is all for now."""
    connected_to = world.qemu
    moving = world.qemu.moving() if world.qemu is not None and world.down else []
    alternatives = [*world.crash_alternatives(), *_between_steps(world)]
    if moving:
        alternatives.append(Alternative("jobs go on without pivotd", world.settle_jobs, (), 0, 0))
    if world.point(alternatives):
        _hear_between_steps(world, connected_to)
        at_every_instant(world)
        return True
    if world.down:
        _start(world)
        return True
    return False


def _between_steps(world: World) -> list[Alternative]:
    return world.replacements() * bool(world.faults) + world.meddling()


def _hear_between_steps(world: World, connected_to: Qemu | None) -> None:
    """Take QEMU's events; the connection to a QEMU that has gone is lost, and with it what was counted on it."""
    world.hear()
    if world.driver is not None and world.qemu is not connected_to:
        world.driver = replace(world.driver, attempt=replace(world.driver.attempt, intended=None))


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
    in_window = pivot.phase is Phase.PAUSING or pivot.owes_resume
    world.driver = Remembered(
        canonical(pivot),
        _relative(Attempt.at_start(pivot, in_fleet=world.fleet is not None), world),
        has_window=in_window,
    )


def _drive(world: World) -> None:
    driver = _revive(world)
    state = driver.state
    if driver._done():
        _down(world)
        return
    try:
        _finish(driver._step())
    except (JournalError, PhaseConflictError, QmpError) as error:
        world.say(f"  error: {error}")
        driver._failures.in_a_row += 1
    except (ViolationError, Died):
        raise
    except Exception as error:
        raise ViolationError(f"no decision: {error!r}") from error
    else:
        driver._failures.ended()
    with contextlib.suppress(JournalError, PhaseConflictError):
        _finish(state.finish_record())
    world.heard = tuple(sorted(world.monitor.job_status.items())) if world.monitor is not None else ()
    if world.qemu is not None:
        world.qemu.events.clear()
    world.driver = Remembered(
        canonical(driver.pivot),
        _relative(state.attempt, world),
        tuple(NAMES[type(one)] for one in state.inbox),
        state._has_window,
        state.inbox.ending,
        min(driver._failures.in_a_row, limits.FAILED_BEFORE_END),
    )
    if world.monitor is None:
        world.heard = ()
    if driver.successor is not None and not state.inbox.ending:
        world.driver = Remembered(
            canonical(driver.successor), _relative(Attempt(in_fleet=world.fleet is not None), world)
        )
    elif driver._done() and (driver.pivot.phase is not Phase.CLOSED or driver.successor is not None):
        _down(world)


def _revive(world: World) -> Driver:
    remembered = world.driver
    assert remembered is not None
    world.connect()
    if world.monitor is not None:
        world.monitor.job_status.update(world.heard)
    driver = driver_on(world)
    state = driver.state
    deadline = remembered.attempt.deadline
    state.attempt = replace(
        remembered.attempt,
        deadline=None if deadline is None else world.now_s + deadline,
        fleet_silent_at=None if remembered.attempt.fleet_silent_at is None else world.now_s,
    )
    if (intended := remembered.attempt.intended) is not None and world.session is not None:
        state.attempt = replace(state.attempt, intended=(world.session, -intended[1]))
    driver._failures.in_a_row = remembered.failures
    for name in remembered.messages:
        state.inbox.post(message(name))
    state.inbox.ending = remembered.ending
    if remembered.has_window:
        _finish(state.enter_window())
    world.asked, world.stepping = driver, True
    return driver


def _relative(attempt: Attempt, world: World) -> Attempt:
    """Return the attempt without what only measures, and with the deadline counted from now.

    What was counted on a connection ends with the step of the model, except whether the guest was resumed since the
    intent: 0 or 1, as long as the connection lasts.
    """
    deadline, intended, monitor = attempt.deadline, attempt.intended, world.monitor
    same = intended is not None and monitor is not None and intended[0] is world.session
    return replace(
        attempt,
        deadline=None if deadline is None else -1.0 if deadline <= world.now_s else 0.5,
        deadline_passed=False, window_over=False, paused_at=None,
        resumed_at=None if attempt.resumed_at is None else 0.0, retry_at=0.0,
        fleet_asked_at=None, fleet_retry_at=0.0, fleet_due=True, fleet_since=None,
        fleet_silent=None if attempt.fleet_silent is None else "silent",
        fleet_silent_at=None if attempt.fleet_silent_at is None else 0.0, fleet_silence_stale=False,
        looked=None, unmoved=None, unwritten=False,
        intended=(None, min(1, monitor.resumes - intended[1])) if same else None,
    )  # fmt: skip


def resting(world: World) -> bool:
    """Return whether nothing goes on by itself: the pivot rests, and nobody has asked for anything."""
    if world.driver is None or world.down:
        return False
    if world.forgotten():
        return True
    return not world.driver.messages and (is_resting(world.durable) or world.stuck())


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits for a loop."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise ViolationError("the driver waits for something outside the model")
