"""One model host: storage, QEMU, journal, pivotd's process, somebody else's monitor, and what may go wrong of each.

Everything that happens is one of a few alternatives at a numbered point; a path is the list of alternatives taken, so
that a search can run the real driver again and again and take another turn each time. The first is always "nothing
special". Others cost a crash or a fault; a world has so many of each left.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from pivotd.core.attempt import Attempt
from pivotd.core.pivot import Identity, JsonObject, Phase, Pivot
from pivotd.core.request import Kind
from pivotd.engine.driver import Driver
from pivotd.qmp.session import Session
from tests.model import invariants
from tests.model.mischief import Mischief
from tests.model.model_journal import Ledger
from tests.model.points import CHANGING, OTHER, PIVOTD, START_S, Alternative, canonical, short
from tests.model.qemu import Qemu, RefusedError
from tests.model.session import ModelMonitor
from tests.model.storage import Storage
from tests.model.wire import Wire


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a living pivotd has in memory between two steps. ``messages``: what its driver was asked and has not taken."""

    pivot: Pivot
    attempt: Attempt
    messages: tuple[str, ...] = ()
    has_window: bool = False
    ending: bool = False
    failures: int = 0


class World(Wire, Ledger, Mischief):
    """All of it. The search owns ``path``; ``ghost`` holds what only the judge knows."""

    fleet: Any = None
    """The port of the fleet to which the host belongs."""

    def __init__(self, pivot: Pivot, qemu: Qemu, *, quick: bool = True, bandwidth: bool = False) -> None:
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
        self.quick, self.bandwidth = quick, bandwidth
        self.crashes = self.faults = 0
        self.ghost = invariants.Ghost(pause_of=OTHER if qemu.run_state != "running" else None)
        self.refresh(())

    def refresh(self, path: Sequence[int]) -> None:
        """Forget what belongs to one step only."""
        self.path = path
        self.widths: list[int] = []
        self.now_s = START_S
        self.monitor: ModelMonitor | None = None
        self.session: Session | None = None
        self.asked: Driver | None = None
        """The driver that works at this moment, and can be asked."""
        self.stepping = False
        """A driver is at work, and answers one request at a time."""
        self.requests: list[Coroutine[Any, Any, Pivot]] = []
        """Those that wait for its answer."""
        self.journal_fails: str | None = None
        self.refuses = False
        """QEMU says no to the next command."""
        self.trace: list[str] | None = None

    def copy(self, path: Sequence[int] = ()) -> Self:
        """Return an independent copy that will take this path."""
        return self._copied(type(self).__new__(type(self)), path)

    def _copied(self, other: Self, path: Sequence[int]) -> Self:
        """Copy into a new object; what a subclass adds is there already."""
        other.storage = self.storage.copy()
        other.qemu = None if self.qemu is None else self.qemu.copy(other.storage)
        other.original, other.began_in_this = self.original, self.began_in_this
        other.durable, other.maybe = self.durable, self.maybe
        other.driver, other.down = self.driver, self.down
        other.late, other.heard = self.late, self.heard
        other.quick, other.bandwidth = self.quick, self.bandwidth
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
        if name == "query-block" and who == PIVOTD:
            self.ghost.shown = bool(self.losing())
        reply: Any
        try:
            reply = qemu.execute(name, arguments)
        except RefusedError as error:
            reply = error
        if (name in CHANGING or who == OTHER) and self.trace is not None:
            self.say(f"{who:>7}: {name} {short(arguments)} -> {reply if isinstance(reply, RefusedError) else 'ok'}")
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
            elif self.driver is not None and self.driver.attempt.intended and ("RESUME", "", "") in events:
                # Between two steps: the connection has what the next one will see.
                self.driver = replace(self.driver, attempt=replace(self.driver.attempt, intended=(None, 1)))

    def settle_jobs(self) -> None:
        """Let time pass until every job stands still."""
        if self.qemu is not None:
            self.qemu.settle()

    def moved_by_others(self) -> frozenset[str]:
        """Return the disks that somebody else may have switched after pivotd's last look, which no record says yet."""
        return frozenset()

    def stuck(self) -> bool:
        """Return whether only a person can help: then nothing goes on, either."""
        return self.durable.phase is Phase.READY and bool(self.losing())

    def losing(self) -> list[str]:
        """Return the nodes whose image has got an internal snapshot that a disk would lose by the pivot."""
        pivot = self.durable
        if self.qemu is None or pivot.kind is Kind.SNAPSHOT or (pivot.kind is Kind.COMMIT and not pivot.switches):
            return []
        return sorted({disk.source.node for disk in pivot.disks} & self.qemu.snapshots)

    def forgotten(self) -> bool:
        """Return whether nothing can be decided, and no request answered, before a person does something."""
        return False

    def process_gone(self, identity: Identity) -> bool:
        """Return whether the QEMU in which the pivot began has ended."""
        return (self.qemu is None or not self.original) if identity.pid == 100 else False

    def monotonic(self) -> float:
        """Return the time of this step."""
        return self.now_s

    def utc_now(self) -> str:
        """Return a wall clock that nobody looks at."""
        return "2026-11-23T09:00:00.000000Z"
