"""What the engine needs from the journal and from QEMU. Tests supply a model of QEMU through the same door."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pivotd.core.actions import Step
from pivotd.core.dirty_bitmaps import Bitmaps
from pivotd.core.observation import Observation, Root
from pivotd.core.pivot import Identity, JsonObject, Pivot, PivotDisk, Record
from pivotd.core.request import Limits


class Journal(Protocol):
    """The one writer. Every method returns after its record is on disk."""

    async def accept(self, pivot: Pivot, facts: JsonObject) -> tuple[Pivot, bool]:
        """Record a new pivot; a known request id returns the stored one and False. Raises: DiskBusyError."""
        ...

    async def advance(self, before: Pivot, event: str, facts: JsonObject, **changes: Any) -> Pivot:
        """Record an event and the changed pivot. Raises: PhaseConflictError, JournalError."""
        ...

    async def hand_over(self, before: Pivot, successor: Pivot, facts: JsonObject) -> Pivot:
        """Close a pivot and accept its successor as one; return the closed one. Raises: as advance() and accept()."""
        ...

    async def read(self, pivot: str) -> Pivot:
        """Return a pivot as it is on disk. Raises: JournalError."""
        ...

    async def note(
        self, event: str, facts: JsonObject, *, domain: str | None = None, pivot: str | None = None
    ) -> Record:
        """Record something that changes no pivot."""
        ...

    def hold_checkpoints(self) -> None:
        """Keep the writer from checkpointing while a guest is paused; counted."""
        ...

    def release_checkpoints(self) -> None:
        """End one hold."""
        ...

    async def settle(self) -> bool:
        """After a failed write: make disk and memory agree; True if what is on disk is certain now."""
        ...


class Session(Protocol):
    """One connected QEMU. Every method raises QmpError subclasses, which say what is known about the effect."""

    pid: int

    @property
    def connected(self) -> bool:
        """Whether commands can be sent."""
        ...

    @property
    def version_text(self) -> str:
        """QEMU's version."""
        ...

    @property
    def resumes(self) -> int:
        """How many RESUME events have come."""
        ...

    @property
    def job_status(self) -> Mapping[str, str]:
        """What events have said of each job: a hint."""
        ...

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have callback run at every event; return how to end that."""
        ...

    async def look(self, pivot: Pivot) -> Observation:
        """Look at run state, jobs and graph, in this order; tell the same QEMU from another one."""
        ...

    async def place_nonce(self, pivot: Pivot) -> None:
        """Put the nonce into the process."""
        ...

    async def prepare(self, pivot: Pivot, disk: PivotDisk, step: Step) -> None:
        """Do one step of the preparation."""
        ...

    async def go_on(self, jobs: Sequence[str]) -> None:
        """Let interrupted jobs try again."""
        ...

    async def write_blocking(self, pivot: Pivot) -> bool:
        """Let the mirrors copy each guest write at once; False where this QEMU cannot change that."""
        ...

    async def set_bandwidth(self, pivot: Pivot) -> None:
        """Give each job of the pivot that still runs its bandwidth."""
        ...

    async def io_limits(self, pivot: Pivot) -> Mapping[str, Limits]:
        """Return the limits of the I/O of each disk that has its own, by QOM path."""
        ...

    async def writes(self, pivot: Pivot) -> Mapping[str, tuple[int, int]]:
        """Return bytes and number of the guest's writes so far, by QOM path."""
        ...

    async def place_limits(self, pivot: Pivot) -> None:
        """Put the last limits of the pivot in place."""
        ...

    async def restore_limits(self, pivot: Pivot) -> list[str]:
        """Put the limits from before back; return the disks that somebody else has limited since."""
        ...

    async def chardevs(self) -> list[str]:
        """Return the labels of open character devices: other monitors are among them."""
        ...

    async def stop(self, complete: Sequence[str], leaving: Callable[[], None]) -> tuple[str, bool, int]:
        """Pause the guest and complete these jobs in one write; call ``leaving`` right before that leaves.

        Returns: the run state right before, whether somebody resumed the guest between that and ``stop``, and how many
        RESUME events there were by then.
        """
        ...

    async def complete(self, jobs: Sequence[str]) -> None:
        """Ask jobs to go to pending."""
        ...

    async def carry_bitmaps(self, pivot: Pivot) -> Bitmaps:
        """Give the destinations the sources' dirty bitmaps and return these. Raises: QmpRefusedError."""
        ...

    async def finalize(self, pivot: Pivot, jobs: Sequence[str]) -> Mapping[str, Root]:
        """Finalize and read the roots, in one write: job-finalize is done when it answers."""
        ...

    async def snapshot(self, pivot: Pivot) -> Mapping[str, Root]:
        """Put the overlays on all disks and read the roots, in one write. Raises: QmpRefusedError: nothing changed."""
        ...

    async def keep_synced(self, pivot: Pivot, resumes: int) -> str | None:
        """Start the mirrors back to the sources; return why they cannot follow the guest, None where they do.

        Only while the guest is still; one that was resumed since ``resumes`` was counted has written what they lack.
        """
        ...

    async def cancel(self, jobs: Sequence[str], *, resume: bool) -> None:
        """Cancel jobs, then let the guest run if asked, in one write."""
        ...

    async def cut(self, pivot: Pivot, disks: Sequence[PivotDisk]) -> bool:
        """Cut the connections to NBD destinations of disks, out of band; return whether that was done."""
        ...

    async def resume(self) -> None:
        """Let the guest run."""
        ...

    async def reverse(self, pivot: Pivot, disk: PivotDisk, resumes: int) -> bool:
        """Take a finished switch back; True when the source is the root again. Only while the guest is still.

        A guest that was resumed since ``resumes`` was counted keeps its destination.
        """
        ...

    async def clean_up(self, pivot: Pivot) -> list[str]:
        """Dismiss, delete, remove; return what QEMU did not let go of."""
        ...


class Domain(Protocol):
    """What a driver needs from the supervisor of its domain."""

    name: str
    window: asyncio.Lock
    """Held from an intent until the guest runs again: one pause at a time."""

    @property
    def session(self) -> Session | None:
        """The connection, None while there is none."""
        ...

    @property
    def detail(self) -> str:
        """One sentence on why there is no connection."""
        ...

    async def settled(self, timeout_s: float) -> None:
        """Wait until the present attempt to connect has ended, at most timeout_s."""
        ...

    def process_gone(self, identity: Identity) -> bool:
        """Return whether that QEMU process has certainly ended."""
        ...

    def hurry(self) -> None:
        """Connect again at once."""
        ...


class Clock(Protocol):
    """Time comes in here, so that tests can own it."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    def utc_now(self) -> str:
        """Return the wall clock, RFC 3339 with microseconds."""
        ...
