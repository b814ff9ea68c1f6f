"""Requests to an open pivot: messages to its driver, which alone acts on them and records.

Each carries a future. The driver answers it from the pivot as the journal stores it, so every answer is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from pivotd.core import kinds
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Requester
from pivotd.core.undo import Undo
from pivotd.errors import PhaseConflictError, PivotdError

STAYED = frozenset({Phase.CANCELLING, Phase.DECIDED, Phase.CLOSED})
"""Phases in which a cancel has nothing left to do."""
Answer = Pivot | PivotdError


@dataclass(slots=True, eq=False)
class Message:
    """One request. ``taken``: the driver has begun to act on it, so it can no longer be withdrawn."""

    who: Requester
    taken: bool = False
    future: asyncio.Future[Pivot] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def answer(self, pivot: Pivot, _successor: Pivot | None) -> Answer | None:
        """Return the answer for this state of the pivot; None: no answer yet."""
        return PhaseConflictError(f"pivot {pivot.id} has ended") if pivot.phase is Phase.CLOSED else None


@dataclass(slots=True, eq=False)
class Complete(Message):
    """Let a pivot that waits at READY continue; answered once this is recorded."""

    def answer(self, pivot: Pivot, _successor: Pivot | None) -> Answer | None:
        """Return the refusal if the pivot does not wait."""
        return None if self.taken else not_waiting(pivot)


@dataclass(slots=True, eq=False)
class SetBandwidth(Message):
    """Limit the bandwidth from now on; answered once this is recorded."""

    bytes_per_s: int = 0

    def answer(self, pivot: Pivot, _successor: Pivot | None) -> Answer | None:
        """Return the refusal if the pivot no longer copies."""
        if self.taken or (pivot.phase not in STAYED and kinds.of(pivot).has_jobs):
            return None
        return PhaseConflictError(f"pivot {pivot.id} is {pivot.phase}: nothing is copied any more")


@dataclass(slots=True, eq=False)
class Cancel(Message):
    """Keep the source; answered once this or the switch is decided."""

    def answer(self, pivot: Pivot, _successor: Pivot | None) -> Answer | None:
        """Return the pivot once a cancel has nothing left to do."""
        return pivot if pivot.phase in STAYED else None


@dataclass(slots=True, eq=False)
class Release(Message):
    """End the undo window; answered once this is recorded."""

    def answer(self, pivot: Pivot, successor: Pivot | None) -> Answer | None:
        """Return the pivot once its window is closed, or the refusal if that was its undo."""
        if successor is not None:
            return taken_back(pivot, successor)
        return None if pivot.window_open else pivot


@dataclass(slots=True, eq=False)
class TakeBack(Message):
    """Undo the switch; answered with the pivot that does this, once it is recorded."""

    undo: Undo | None = None

    def answer(self, pivot: Pivot, successor: Pivot | None) -> Answer | None:
        """Return the successor, or the refusal if the pivot's window has ended."""
        if successor is not None:
            return successor
        why = f"pivot {pivot.id} cannot be taken back now: its window has just ended"
        return None if pivot.window_open else PhaseConflictError(why)


class Inbox:
    """The messages to one driver, in order of arrival."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        """Set by every message, and by everything else that makes the driver look again."""
        self.ending = False
        """The daemon ends: the driver leaves as soon as the guest is not in the driver's pause."""
        self.closed = False
        """The driver has left: no message is acted upon any more."""
        self.posted = 0
        """Number of messages received so far."""
        self._messages: list[Message] = []

    def __iter__(self) -> Iterator[Message]:
        """Iterate over the messages without an answer."""
        return iter(tuple(self._messages))

    def post(self, message: Message) -> None:
        """Add a message; the driver finds it before its next decision."""
        self._messages.append(message)
        self.posted += 1
        self.woken.set()

    def end(self) -> None:
        """Tell the driver to leave."""
        self.ending = True
        self.woken.set()

    def remove(self, message: Message) -> None:
        """Forget a message; it need not be there."""
        if message in self._messages:
            self._messages.remove(message)

    @property
    def interrupts(self) -> bool:
        """Whether the driver should stop long work: a user cancels, or the daemon ends."""
        return self.ending or any(isinstance(message, Cancel) for message in self._messages)

    def answered(self, message: Message, answer: Answer) -> None:
        """Answer one message."""
        self.remove(message)
        if message.future.done():
            return
        if isinstance(answer, Pivot):
            message.future.set_result(answer)
        else:
            message.future.set_exception(answer)
            message.future.exception()  # the caller may have left

    def settle(self, pivot: Pivot, successor: Pivot | None) -> None:
        """Answer every message that the present state of the pivot answers."""
        for message in self:
            answer = message.answer(pivot, successor)
            if answer is not None:
                self.answered(message, answer)

    def close(self, pivot: Pivot) -> None:
        """Answer all remaining and all later messages: the driver has left."""
        self.closed = True
        for message in self:
            gone = f"pivot {pivot.id} is {pivot.phase}, and its driver has ended: ask again"
            self.answered(message, PhaseConflictError(gone))


def not_waiting(pivot: Pivot) -> PhaseConflictError | None:
    """Return the refusal to complete a pivot that does not wait at READY."""
    if pivot.phase is Phase.READY and pivot.hold:
        return None
    return PhaseConflictError(f"pivot {pivot.id} is {pivot.phase}: only one that waits at ready can be completed")


def taken_back(pivot: Pivot, successor: Pivot) -> PhaseConflictError:
    """Return the refusal to release a pivot that is being, or was, undone: its old images are not out of date."""
    return PhaseConflictError(
        f"pivot {pivot.id} has no undo window any more: pivot {successor.id} takes it back; `pivotctl verdict "
        f"{pivot.domain}` says which images are right then",
        pivot=successor.id,
    )


def too_late(pivot: Pivot) -> PhaseConflictError | None:
    """Return the refusal to cancel a pivot whose outcome is recorded, None if it kept its sources."""
    if pivot.outcome == Outcome.KEPT.value:
        return None
    undoable = "; `pivot undo` returns to the old images" if pivot.window_open else ""
    return PhaseConflictError(
        f"pivot {pivot.id} is {pivot.phase} with outcome {pivot.outcome}: too late to cancel{undoable}"
    )
