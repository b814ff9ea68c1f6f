"""What the engine needs from the journal and from QEMU. Tests supply a model of QEMU through the same interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pivotd.core.actions import Step
from pivotd.core.dirty_bitmaps import Bitmaps
from pivotd.core.fleet import FleetView, OnSilence
from pivotd.core.observation import Asked, Observation, Root
from pivotd.core.pivot import Identity, JsonObject, Pivot, PivotDisk, Record
from pivotd.core.request import Limits, Requester


class Journal(Protocol):
    """The only writer. Every method returns after its record is on disk."""

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
        """Return a pivot as stored on disk. Raises: JournalError."""
        ...

    def asked_of(self, pivot: str) -> Mapping[str, Requester]:
        """Return who has asked for what, by the event, of a pivot that an earlier process has left open."""
        ...

    async def note(
        self, event: str, facts: JsonObject, *, domain: str | None = None, pivot: str | None = None
    ) -> Record:
        """Append a record that changes no pivot."""
        ...

    def hold_checkpoints(self) -> None:
        """Keep the writer from checkpointing while a guest is paused; counted."""
        ...

    def release_checkpoints(self) -> None:
        """End one hold."""
        ...

    async def calm(self, patience_s: float) -> None:
        """Return once no guest is in its pause; at once if one was during all of the last ``patience_s``."""
        ...

    async def settle(self) -> bool:
        """After a failed write: make disk and memory agree; True if the contents of the disk are now certain."""
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
        """QEMU's version, empty where QEMU was not asked yet."""
        ...

    @property
    def resumes(self) -> int:
        """Number of RESUME events received."""
        ...

    @property
    def job_status(self) -> Mapping[str, str]:
        """The last status of each job by events: a hint."""
        ...

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call callback at every event; return a function that ends this."""
        ...

    async def look(self, pivot: Pivot) -> Observation:
        """Look at run state, jobs and graph, in this order; identify the QEMU process."""
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
        """Let the mirrors copy each guest write at once; False if this QEMU cannot change that."""
        ...

    async def set_bandwidth(self, pivot: Pivot) -> None:
        """Set the bandwidth of each running job of the pivot."""
        ...

    async def io_limits(self, pivot: Pivot) -> Mapping[str, Limits]:
        """Return the I/O limits of each disk that has limits of its own, by QOM path."""
        ...

    async def writes(self, pivot: Pivot) -> Mapping[str, tuple[int, int]]:
        """Return bytes and number of the guest's writes so far, by QOM path."""
        ...

    async def unwritten(self, pivot: Pivot) -> frozenset[str]:
        """Return the disks to whose present root nothing was written since QEMU has opened it."""
        ...

    async def place_limits(self, pivot: Pivot) -> None:
        """Set the last limits of the pivot."""
        ...

    async def place_thresholds(self, pivot: Pivot) -> None:
        """Set the write thresholds of the sources on the destinations of switched disks."""
        ...

    async def restore_limits(self, pivot: Pivot) -> list[str]:
        """Restore the earlier limits; return the disks on which another client has set limits since."""
        ...

    async def intent_facts(self) -> JsonObject:
        """Return what the record of an intent says of the guest besides what a look shows."""
        ...

    async def stop(self, complete: Sequence[str], leaving: Callable[[], None]) -> tuple[str, bool, int]:
        """Pause the guest and complete these jobs in one write; call ``leaving`` right before that leaves.

        Returns: the run state right before, whether another client resumed the guest between that and ``stop``, and the
        number of RESUME events by then.
        """
        ...

    async def complete(self, jobs: Sequence[str]) -> None:
        """Ask jobs to go to pending."""
        ...

    async def refusal_of_bitmaps(self, pivot: Pivot) -> str | None:
        """Return why QEMU would not copy the bitmaps now, None if it would; nothing is changed."""
        ...

    async def carry_bitmaps(self, pivot: Pivot) -> Bitmaps:
        """Copy the sources' dirty bitmaps to the destinations and return them. Raises: QmpRefusedError."""
        ...

    async def finalize(self, pivot: Pivot, jobs: Sequence[str]) -> Mapping[str, Root]:
        """Finalize and read the roots, in one write: job-finalize is done when it answers."""
        ...

    async def snapshot(self, pivot: Pivot) -> Mapping[str, Root]:
        """Put the overlays on all disks and read the roots, in one write. Raises: QmpRefusedError: nothing changed."""
        ...

    async def keep_synced(self, pivot: Pivot, resumes: int) -> str | None:
        """Start the mirrors back to the sources; return why they cannot follow the guest, None if they do.

        Only while the guest is still; a guest resumed since ``resumes`` was counted has written data that they lack.
        """
        ...

    async def cancel(self, jobs: Sequence[str], *, resume: bool) -> None:
        """Cancel jobs, then let the guest run if asked, in one write."""
        ...

    async def cut(self, pivot: Pivot, disks: Sequence[PivotDisk]) -> bool:
        """Cut the connections to NBD destinations of disks, out of band; return whether QEMU did."""
        ...

    async def resume(self) -> None:
        """Resume the guest."""
        ...

    async def reverse(self, pivot: Pivot, disk: PivotDisk, resumes: int) -> bool:
        """Take a finished switch back; True when the source is the root again. Only while the guest is still.

        A guest that was resumed since ``resumes`` was counted keeps its destination.
        """
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...

    async def clean_up(self, pivot: Pivot) -> list[str]:
        """Dismiss jobs, delete nodes, remove objects; return what QEMU did not remove."""
        ...


class LibvirtSession(Session, Protocol):
    """One guest of libvirt's. Of the steps that change the guest, each is a call to libvirt.

    QmpRefusedError: libvirt has answered with an error, and QEMU got no command that could still switch the disk.
    QmpUnknownError: the answer was lost (libvirtd died, or does not answer); the call may still be carried out.
    """

    async def stop(self, complete: Sequence[str], leaving: Callable[[], None]) -> tuple[str, bool, int]:
        """As of any session, with no ``complete``: ask for the run state, and suspend only a guest that runs.

        The answer to that question must not be lost with the answer to the call: it says whose the pause is.
        """
        ...

    async def resume(self) -> None:
        """As of any session: ask for the run state and a migration right before the call, here libvirt.

        Raises: QmpRefusedError.
        """
        ...

    async def ask_libvirt(self, pivot: Pivot, disks: Sequence[str], *, switch: bool) -> Asked | None:
        """Have libvirt end its jobs on disks, one after the other, and wait until it has; without the switch: abort.

        For a snapshot: put the overlays on all disks in one call. Returning means that libvirt has finished.

        Beside the look after a switch, a definition of the next boot that names every destination already is written
        again as by agree(): in most pauses nothing else is due.

        Returns: what was seen after a switch, None if that could not be read.
        """
        ...

    async def agree(self, pivot: Pivot, images: Mapping[str, Root]) -> tuple[frozenset[str], bool]:
        """Have libvirt write the definition for the next boot with these images of the pivot, by disk; make it durable.

        Compares right before: a disk for which the definition names neither image of the pivot is left alone. Where
        it names the right image already it is written again, since libvirt ignores that it could not save it after a
        switch. Only the disk is changed, nothing else of the definition. Returns after fsync of the file and of its
        directory. A transient guest has no such definition: nothing is done.

        Returns: the disks that were written, and whether somebody else has defined the guest between the comparison and
        the answer.
        """
        ...


class Domain(Protocol):
    """What a driver needs from the supervisor of its domain."""

    name: str
    window: asyncio.Lock
    """Held from an intent until the guest runs again: one pause at a time."""

    def pause_of(self, identity: Identity) -> asyncio.Lock:
        """Return the lock that is held meanwhile for the QEMU process of a pivot: another domain may have it, too."""
        ...

    @property
    def session(self) -> Session | None:
        """The connection, None while there is none."""
        ...

    @property
    def detail(self) -> str:
        """One sentence that says why there is no connection."""
        ...

    async def settled(self, timeout_s: float) -> None:
        """Wait until the present attempt to connect has ended, at most timeout_s."""
        ...

    async def beside(self, pivot: Pivot) -> Session | None:
        """Return a connection to a pivot's QEMU that does not go through libvirt, None if there is none; close it."""
        ...

    def process_gone(self, identity: Identity) -> bool:
        """Return whether that QEMU process has certainly ended."""
        ...


class Fleet(Protocol):
    """What all hosts of a fleet know of a domain, kept by a majority. Only pivotd on these hosts writes there."""

    host: str
    """The name of this host in the fleet."""
    boot_id: str
    timeout_s: float
    """How long an answer may take where no paused guest waits for it."""
    on_silence: OnSilence
    """What a pivot that begins now does if the fleet does not confirm its switch in time."""

    async def read(self, domain: str, timeout_s: float) -> FleetView:
        """Return everything of a domain, as of one moment that is not before this call. Raises: FleetSilentError."""
        ...

    async def write(self, before: FleetView, after: FleetView, timeout_s: float) -> FleetView:
        """Replace everything of a domain in one transaction, if nothing of it has changed since ``before`` was read.

        ``after`` has an owner. Returns it with its new revision. Copies may be sent to several nodes within the time,
        of which at most one has an effect; after an error only the caller knows what to do.

        Raises: FleetConflictError, FleetRefusedError: nothing was written; FleetSilentError: it may be written, now or
        later.
        """
        ...


class Clock(Protocol):
    """The source of time, which tests can replace."""

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        ...

    def utc_now(self) -> str:
        """Return the wall clock, RFC 3339 with microseconds."""
        ...
