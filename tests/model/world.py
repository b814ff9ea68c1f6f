"""One model host: storage, QEMU, journal, pivotd's process, somebody else's monitor, and what may go wrong of each.

Everything that happens is one of a few alternatives at a numbered point; a path is the list of alternatives taken, so
that a search can run the real driver again and again and take another turn each time. The first is always "nothing
special". Others cost a crash or a fault; a world has so many of each left.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pivotd.core.words import Identity, JsonObject, Phase, Pivot, Record
from pivotd.errors import JournalFullError, JournalWriteError, PhaseConflictError, QmpUnknownError
from pivotd.qmp.session import Session
from tests.model import invariants
from tests.model.qemu import ENDED, EXECUTING, IO_ERROR, Qemu, RefusedError
from tests.model.session import Message, ModelMonitor, session_on
from tests.model.storage import Storage

PIVOTD, OTHER, GUEST = "pivotd", "other", "guest"
QUIET = frozenset({"query-block-jobs", "x-debug-query-block-graph", "qom-list", "query-migrate", "query-chardev"})
"""Queries before which nothing is tried: it would be the same as before the next one."""
SOMEBODY = "somebody else:"
START_S = 1000.0
FOREIGN_PID = 200


class Died(BaseException):
    """pivotd's process ends here; no code of its own may catch this."""


class Alternative(NamedTuple):
    """One thing that may happen: act(*arguments). ``crashes`` and ``faults`` are what it costs."""

    label: str
    act: Callable[..., object]
    arguments: tuple[Any, ...] = ()
    crashes: int = 0
    faults: int = 1

    def __str__(self) -> str:
        return " ".join([self.label, *(str(argument) for argument in self.arguments if isinstance(argument, str))])


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a living pivotd has in memory between two steps, with times reduced to what they mean."""

    pivot: Pivot
    memory: tuple[Any, ...]
    has_window: bool
    ending: bool = False


class World:
    """All of it. The search owns ``path``; ``ghost`` holds what only the judge knows."""

    def __init__(self, pivot: Pivot, qemu: Qemu, *, quick: bool = True, crashes: int = 0, faults: int = 0) -> None:
        self.storage: Storage = qemu.storage
        self.qemu: Qemu | None = qemu
        self.original = True
        """The QEMU that lives is the one in which the pivot began."""
        self.began_in_this = True
        self.durable = pivot
        self.maybe: Pivot | None = None
        """Written with an error: it may be on disk."""
        self.driver: Remembered | None = None
        self.down = True
        self.late: tuple[tuple[str, str], ...] = ()
        self.heard: tuple[tuple[str, str], ...] = ()
        self.quick = quick
        self.crashes, self.faults = crashes, faults
        self.ghost = invariants.Ghost(pause_of=OTHER if qemu.run_state != "running" else None)
        self.refresh(())

    def refresh(self, path: Sequence[int]) -> None:
        """Forget what belongs to one step only."""
        self.path = path
        self.widths: list[int] = []
        self.now_s = START_S
        self.monitor: ModelMonitor | None = None
        self.session: Session | None = None
        self.cancel: Callable[[], None] | None = None
        self.end: Callable[[], None] | None = None
        self.journal_fails: str | None = None
        self.trace: list[str] | None = None

    def copy(self, path: Sequence[int] = ()) -> World:
        """Return an independent copy that will take this path."""
        other = World.__new__(World)
        other.storage = self.storage.copy()
        other.qemu = None if self.qemu is None else self.qemu.copy(other.storage)
        other.original, other.began_in_this = self.original, self.began_in_this
        other.durable, other.maybe = self.durable, self.maybe
        other.driver, other.down = self.driver, self.down
        other.late, other.heard, other.quick = self.late, self.heard, self.quick
        other.crashes, other.faults = self.crashes, self.faults
        other.ghost = replace(self.ghost)
        other.refresh(path)
        return other

    def key(self) -> object:
        """Return what tells two worlds apart."""
        return (
            self.storage.key(),
            None if self.qemu is None else self.qemu.key(),
            (self.original, self.began_in_this, self.down, self.late, self.heard, self.quick),
            (canonical(self.durable), None if self.maybe is None else canonical(self.maybe)),
            self.driver,
            (self.crashes, self.faults),
            self.ghost.key(),
        )

    # -- alternatives -------------------------------------------------------------------------------------------

    def point(self, alternatives: Sequence[Alternative]) -> bool:
        """Take the turn that the path says, or none; return whether one was taken. All must be affordable."""
        if not alternatives:
            return False
        at = len(self.widths)
        turn = self.path[at] if at < len(self.path) else 0
        self.widths.append(len(alternatives))
        if turn == 0:
            return False
        one = alternatives[turn - 1]
        self.crashes -= one.crashes
        self.faults -= one.faults
        if self.trace is not None:
            self.say(f"*** {one}")
        one.act(*one.arguments)
        return True

    def say(self, line: str) -> None:
        """Add a line to the story, where one is told."""
        if self.trace is not None:
            self.trace.append(line)

    # -- QEMU ---------------------------------------------------------------------------------------------------

    def run(self, name: str, arguments: JsonObject, who: str = PIVOTD) -> Any:
        """Have QEMU run one command of somebody; the judge looks on."""
        qemu = self.qemu
        assert qemu is not None
        before = qemu.run_state
        reply: Any
        try:
            reply = qemu.execute(name, arguments)
        except RefusedError as error:
            reply = error
        if (name in CHANGING or who == OTHER) and self.trace is not None:
            self.say(f"{who:>7}: {name} {_short(arguments)} -> {reply if isinstance(reply, RefusedError) else 'ok'}")
        if name in {"stop", "cont"}:
            self.ghost.run_state_changed(self, before, qemu.run_state, who)
        if who == OTHER:
            self.ghost.meddled(self, name)
        self.hear()
        if name in CHANGING:
            invariants.at_every_instant(self)
        return reply

    def hear(self) -> None:
        """Let pivotd's monitor take QEMU's events."""
        if self.qemu is not None and self.qemu.events:
            events = tuple(self.qemu.events)
            self.qemu.events.clear()
            if self.monitor is not None:
                self.monitor.hear(events)

    async def burst(self, monitor: ModelMonitor, messages: Sequence[Message]) -> list[Any]:
        """Run commands that left in one write; between any two of them the world goes on."""
        self._catch_up(messages)
        replies = []
        for index, message in enumerate(messages):
            name, arguments = message["execute"], message.get("arguments", {})
            if name not in QUIET:
                self._before(name, arguments, messages[index:])
            if self.qemu is None:
                self._lost(name)
            replies.append(self.run(name, arguments))
            if name in CHANGING:
                last = index == len(messages) - 1
                alternatives = self.crash_alternatives()
                if last and self.faults:
                    alternatives.append(Alternative("the connection breaks before the answer to", self._lost, (name,)))
                self.point(alternatives)
                if self.qemu is None:
                    self._lost(name)
        commands = [message["execute"] for message in messages]
        if "query-status" in commands:
            self.ghost.told(self, commands, replies[commands.index("query-status")]["status"])
        return replies

    def _before(self, name: str, arguments: JsonObject, rest: Sequence[Message]) -> None:
        if not self.faults:
            return
        alternatives = self.meddling()
        if name in CHANGING:
            alternatives.append(Alternative("the connection breaks before", self._lost, (name,)))
            alternatives.append(
                Alternative("no answer in time: it runs late, with what follows,", self._late, (name, rest))
            )
        if name == "job-finalize" and self.qemu is not None and arguments["id"] in self.qemu.jobs:
            alternatives.append(Alternative("finalizing fails:", self._doom, (arguments["id"], "finalize_fails")))
        self.point(alternatives)

    def _doom(self, name: str, how: str) -> None:
        assert self.qemu is not None
        changes: JsonObject = {"finalize_fails": True} if how == "finalize_fails" else {"doomed": how}
        self.qemu.jobs[name] = replace(self.qemu.jobs[name], **changes)

    def _lost(self, what: str) -> None:
        if self.monitor is not None:
            self.monitor.lose()
        self.monitor = self.session = None
        self.late = ()
        raise QmpUnknownError(f"{what}: the monitor closed before the answer")

    def _late(self, _name: str, rest: Sequence[Message]) -> None:
        self.late += tuple((message["execute"], json.dumps(message.get("arguments", {}))) for message in rest)
        raise QmpUnknownError("no answer in time")

    def _catch_up(self, messages: Sequence[Message]) -> None:
        """Commands of one monitor run in order: what was sent before an unanswered time runs before this."""
        if not self.late:
            return
        if self.faults and self.point([Alternative("QEMU still does not answer", _nothing)]):
            self._late("", messages if messages[0]["execute"] in CHANGING else ())
        late, self.late = self.late, ()
        for name, arguments in late:
            if self.qemu is not None:
                self.run(name, json.loads(arguments))
        if self.qemu is None:
            self._lost("late commands")

    # -- the connection, as a supervisor keeps it -----------------------------------------------------------------

    def connect(self) -> None:
        """Connect if there is somebody; a new connection has heard nothing."""
        if self.qemu is not None and self.session is None:
            self.monitor = ModelMonitor(self, 100 if self.original else FOREIGN_PID)
            self.session = session_on(self.monitor)

    async def settled(self, _timeout_s: float) -> None:
        """Reconnect, or not for now."""
        if not (self.faults and self.point([Alternative("the monitor cannot be reached", _nothing)])):
            self.connect()

    def process_gone(self, identity: Identity) -> bool:
        """Return whether the QEMU in which the pivot began has ended."""
        return (self.qemu is None or not self.original) if identity.pid == 100 else False

    def monotonic(self) -> float:
        """Return the time of this step."""
        return self.now_s

    def utc_now(self) -> str:
        """Return a wall clock that nobody looks at."""
        return "2026-11-23T09:00:00.000000Z"

    async def pause(self, _changed: asyncio.Event, timeout_s: float) -> None:
        """Let time pass while pivotd waits: whatever goes on by itself goes on."""
        qemu = self.qemu
        moving = qemu.moving() if qemu is not None else []
        alternatives = self.meddling()
        if moving and qemu is not None and self.faults:
            if len(moving) > 1:
                alternatives += [
                    Alternative("time passes for one job only:", qemu.progress, (name,)) for name in moving
                ]
            alternatives.append(Alternative("nothing goes on: it is slow", self.pass_time, (timeout_s,)))
        if self.point(alternatives):
            self.hear()
            return
        if moving and qemu is not None:
            self.say("    time passes, jobs go on")
            qemu.settle()
            self.hear()
            invariants.at_every_instant(self)
        else:
            self.pass_time(timeout_s)

    def pass_time(self, seconds: float) -> None:
        """Move the clock."""
        self.say(f"    {seconds:g} s pass")
        self.now_s += seconds + 0.001

    # -- what may happen ------------------------------------------------------------------------------------------

    def crash_alternatives(self) -> list[Alternative]:
        """Return who may die here."""
        if not self.crashes:
            return []
        found = []
        if self.qemu is not None:
            found = [
                Alternative("QEMU dies", self.kill_qemu, (), 1, 0),
                Alternative("power cut", self.cut_power, (), 1, 0),
            ]
        if not self.down:
            found.append(Alternative("pivotd dies", self._die, (), 1, 0))
            if self.qemu is not None:
                found.append(Alternative("pivotd and QEMU die", self._both_die, (), 1, 0))
        return found

    def _both_die(self) -> None:
        self.kill_qemu()
        self._die()

    def kill_qemu(self) -> None:
        """End the QEMU process."""
        self.qemu = None
        self.storage.forget_untold()
        self.late = ()
        if self.monitor is not None:
            self.monitor.lose()
        self.monitor = self.session = None
        invariants.at_every_instant(self)

    def cut_power(self) -> None:
        """End everything and lose what was not flushed."""
        self.storage.cut_power()
        self.kill_qemu()
        if not self.down:
            self._die()

    def _die(self) -> None:
        raise Died

    def meddling(self) -> list[Alternative]:
        """Return what others, the guest, the storage and the user may do now."""
        if not self.faults:
            return []
        found = []
        if self.cancel is not None:
            found.append(Alternative("the user cancels", self.cancel))
        if self.end is not None:
            found.append(Alternative("the daemon is told to end", self.end))
        if self.qemu is None:
            return found
        return found + self._others(self.qemu) + self._guest(self.qemu)

    def _others(self, qemu: Qemu) -> list[Alternative]:
        state = qemu.run_state
        found = [Alternative(SOMEBODY, self.other, ("stop",))] if state == "running" else []
        if state not in EXECUTING and state != "shutdown":
            found.append(Alternative(SOMEBODY, self.other, ("cont",)))
        if state == "paused":
            found.append(Alternative(SOMEBODY, self.other, ("system_reset",)))
        for name, job in qemu.jobs.items():
            if job.kind == "mirror" and job.status not in ENDED:
                found.append(Alternative(SOMEBODY, self.other, ("job-cancel", name)))
                if job.status == "ready":
                    found.append(Alternative(SOMEBODY, self.other, ("job-complete", name)))
                    found.append(Alternative(SOMEBODY, self.other, ("block-job-cancel", name)))
                elif job.status == "pending":
                    found.append(Alternative(SOMEBODY, self.other, ("job-finalize", name)))
        for name, disk in qemu.disks.items():
            if disk.root is not None:
                found.append(Alternative(SOMEBODY, self.other, ("device_del", name)))
        return found

    def other(self, name: str, job: str = "") -> None:
        """Have somebody else run a command."""
        self.run(name, {"id": job} if job else {}, OTHER)

    def _guest(self, qemu: Qemu) -> list[Alternative]:
        found = []
        if qemu.run_state == "running":
            states = ("shutdown", "guest-panicked", "io-error")
            found = [Alternative("the guest goes into", self.guest_stops, (state,)) for state in states]
        for name, job in qemu.jobs.items():
            if job.status not in {"pending", "concluded"} and job.doomed is None:
                found.append(Alternative("it fails:", self._doom, (name, IO_ERROR)))
        return found

    def guest_stops(self, state: str) -> None:
        """The guest itself ends its running."""
        assert self.qemu is not None
        self.qemu.run_state = state
        self.ghost.pause_of = GUEST

    def replacements(self) -> list[Alternative]:
        """Return who may start a new QEMU after the first one died: with the right image, or with the wrong one."""
        if self.qemu is not None or not self.original:
            return []
        names = {invariants.image_by_rule(self.durable, disk).filename for disk in self.durable.disks}
        found = [Alternative("the guest is started again on the image by the rule", self._start)]
        if any(disk.destination.filename not in names for disk in self.durable.disks):
            found.append(Alternative("the guest is started on the destination", self._start, (True,)))
        return found

    def _start(self, wrong: bool = False) -> None:
        qemu = Qemu(self.storage)
        self.qemu, self.original = qemu, False
        self.ghost.pause_of = None
        self.ghost.replaced_wrongly = self.ghost.replaced_wrongly or wrong
        for disk in self.durable.disks:
            image = disk.destination if wrong else invariants.image_by_rule(self.durable, disk)
            if not self.storage.exists(image.filename):
                self.storage.create(image.filename)
            self.storage.assign(image.filename, disk.disk)
            missing = self.storage.images[image.filename]
            qemu.attach(disk.disk, f"new{disk.index}", image.filename)
            self.storage.images[image.filename] = missing
        qemu.guest_runs()

    # -- the journal ----------------------------------------------------------------------------------------------

    async def advance(self, before: Pivot, event: str, facts: JsonObject, **changes: Any) -> Pivot:
        """Record, or fail to."""
        return self._write(before, replace(before, **changes), event)

    async def hand_over(self, before: Pivot, successor: Pivot, facts: JsonObject) -> Pivot:
        """Record the end of one pivot and the beginning of the next as one, or fail to."""
        self._write(before, successor, "undo-requested")
        return replace(before, phase=Phase.CLOSED, hold=False)

    def _write(self, before: Pivot, after: Pivot, event: str) -> Pivot:
        if self.journal_fails is None and self.faults:
            self.point([
                Alternative("no record is written: the disk is", self._journal, ("full",)),
                Alternative("no record may be written: an I/O", self._journal, ("error",)),
                *self.meddling(),
            ])  # fmt: skip
        if self.durable.phase is not before.phase:
            raise PhaseConflictError(f"{self.durable.phase} is not {before.phase}")
        self.say(
            f" record: {event} {after.phase}{'' if self.journal_fails is None else ' FAILED: ' + self.journal_fails}"
        )
        if self.journal_fails == "full":
            raise JournalFullError("no space left")
        if self.journal_fails is not None:
            self.maybe = after
            self.point(self.crash_alternatives())
            raise JournalWriteError("the record may or may not be there")
        self.durable, self.maybe = after, None
        invariants.when_recorded(self, before)
        invariants.at_every_instant(self)
        self.point(self.crash_alternatives())
        return after

    def _journal(self, how: str) -> None:
        self.journal_fails = how

    async def note(self, event: str, facts: JsonObject, **_whose: Any) -> Record:
        """Record something that changes no pivot."""
        self.say(f" record: {event}")
        if self.journal_fails is not None:
            raise JournalFullError("no space left")
        self.maybe = None
        return Record(0, self.utc_now(), None, None, event, None, facts)

    async def settle(self) -> bool:
        """Make the failed record certainly absent, if the disk lets us."""
        if self.faults and self.point([Alternative("the journal's disk still fails", _nothing)]):
            return False
        self.maybe = None
        return True

    def hold_checkpoints(self) -> None:
        """Nothing to keep away."""

    def release_checkpoints(self) -> None:
        """Nothing was kept away."""

    def read_journal(self) -> None:
        """Start anew from what is on disk: a record of unknown fate is there or is not."""
        if self.maybe is None:
            return
        maybe, self.maybe = self.maybe, None
        self.point([Alternative("the failed record is there after all", self._found, (maybe,), 0, 0)])

    def _found(self, pivot: Pivot) -> None:
        self.durable = pivot


CHANGING = frozenset({
    "stop", "cont", "system_reset", "device_del", "job-complete", "job-finalize", "job-cancel", "block-job-cancel",
    "job-dismiss", "blockdev-mirror", "blockdev-add", "blockdev-del", "blockdev-create", "object-add", "object-del",
})  # fmt: skip


def _nothing() -> None:
    """The alternative is that something does not happen."""


def canonical(pivot: Pivot) -> Pivot:
    """Return the pivot without what no decision looks at."""
    return replace(pivot, pauses=(), pausing_since=None, error=None, decided_at=None, closed_at=None)


def _short(arguments: JsonObject) -> str:
    return " ".join(str(value)[-4:] if len(str(value)) > 12 else str(value) for value in arguments.values())
