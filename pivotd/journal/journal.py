"""The daemon's journal: every call is durable on return, or raises a typed error that says what is known."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pivotd import limits
from pivotd.core.overwritten import Overwritten
from pivotd.core.pivot import Accepted, FileSeen, JsonObject, Phase, Pivot, PivotDisk, RanOn, Record
from pivotd.core.request import Requester
from pivotd.core.standing import Asked
from pivotd.errors import JournalError, JournalLostError, JournalNewerError
from pivotd.host.fsync import fsync_directory, fsync_file
from pivotd.journal import changes, forgetting, lock, place, schema, upgrade_copy, wal, words
from pivotd.journal.archives import Archives
from pivotd.journal.archiving import Copied
from pivotd.journal.changes import Change
from pivotd.journal.forgetting import Forgotten
from pivotd.journal.open_files import OpenFiles
from pivotd.journal.rows import DomainRow
from pivotd.journal.sqlite_failures import READ_ERRORS, on_read
from pivotd.journal.writer import Writer
from pivotd.log import get_logger

T = TypeVar("T")
log = get_logger()
Subscriber = Callable[[list[Record]], None]


class Journal:
    """The only writer of ``state_dir/journal.db``; owned by the daemon.

    Every coroutine returns after its record is on disk (fsync) and subscribers have seen it. After JournalWriteError
    the record may or may not be there (see ``settle``); after any other error it is certainly absent.

    ``advance`` compares the revision: if two writers have the same ``before``, the second is refused.
    """

    def __init__(self, path: Path, lock_descriptor: int) -> None:
        """Use ``Journal.open``."""
        self.path = path
        self._lock = lock_descriptor
        self._subscribers: list[Subscriber] = []
        self._last_seq = 0
        self._asked: dict[str, dict[str, Requester]] = {}
        self._wal_index = -1
        self._files: OpenFiles | None = None
        self._names_look: asyncio.Future[None] | None = None
        self.lost: str | None = None
        """Why a new record would be lost, as of the last look; None: the names lead to the open files."""
        self.file_checked = False
        """Whether check_file() has succeeded: until then, nobody knows whether this is a restored copy."""
        self.before_upgrade: Path | None = None
        """The copy that was kept because open() has upgraded the schema."""
        self._writer = Writer(path, self._connect, self._settle, self._announce)

    @classmethod
    def open(cls, state_dir: Path) -> Journal:
        """Check, create or upgrade the journal and open it; the directory must exist.

        A refused file does not change by a byte. A copy of an older journal is kept before its upgrade.

        Raises: JournalLockedError, JournalCorruptError, JournalNewerError, JournalFullError, JournalError.
        """
        path = state_dir / schema.FILE_NAME
        descriptor = lock.acquire(path)
        try:
            kept: list[Path] = []
            schema.prepare(path, lambda *old: kept.append(upgrade_copy.keep(*old)))
            journal = cls(path, descriptor)
            journal.before_upgrade = kept[0] if kept else None
            journal._writer.start()
            journal._last_seq = journal._writer.committed_seq
        except READ_ERRORS as error:
            lock.release(descriptor)
            raise on_read(error, path) from error
        except JournalNewerError as error:
            lock.release(descriptor)
            raise upgrade_copy.way_back(path, error) from error
        except BaseException:
            lock.release(descriptor)
            raise
        return journal

    @property
    def last_seq(self) -> int:
        """Sequence number of the last durable record; subscribers have seen every record up to it."""
        return self._last_seq

    @property
    def healthy(self) -> bool:
        """False from a failed commit until the next successful one, and while the names of the files are lost."""
        return self._writer.healthy and self.lost is None

    @property
    def alive(self) -> bool:
        """False once the thread that writes has died: only a restart helps."""
        return self._writer.alive

    def open_pivots(self) -> list[Pivot]:
        """Return every pivot that is not closed, oldest first, and learn what was asked of them.

        At start-up only: it blocks.
        """
        self._asked = self._start_up(changes.asked)
        return self._start_up(changes.open_pivots)

    def asked_of(self, pivot: str) -> Mapping[str, Requester]:
        """Return who had asked for what, by the event, of a pivot that was open at start-up."""
        return self._asked.get(pivot, {})

    def domains(self) -> list[DomainRow]:
        """Return the domains added at run time, by name. At start-up only: it blocks."""
        return self._start_up(changes.domains)

    async def accept(
        self, pivot: Pivot, facts: JsonObject, overwritten: Sequence[Overwritten] = ()
    ) -> tuple[Pivot, bool]:
        """Make a request durable with the record ``accepted``; returns False with a pivot that existed already.

        ``overwritten``: the disks of which nobody is certain any more.

        For a known request id, return its present pivot and write nothing.

        Raises: DiskBusyError (fields ``pivot``, ``disk``), JournalLostError (nothing written), JournalError.
        """
        try:
            return await self._writer.submit(self._if_named(changes.accept(pivot, facts, overwritten)))
        except changes.ArchivedRequestError as known:
            return await asyncio.to_thread(self._archived, known.fields["pivot"], known.fields["archive"]), False

    def _archived(self, pivot: str, name: str) -> Pivot:
        found = Archives(self.path, {}, owner=True)
        try:
            return found.pivots([(pivot, name)])[pivot]
        finally:
            found.close()

    async def advance(self, before: Pivot, event: str, facts: JsonObject, **new: Any) -> Pivot:
        """Change fields of a pivot with one record, if it is still at ``before.revision``; return the new pivot.

        ``new`` are fields of Pivot. ``disks`` may change in their images, job and outcome, ``pauses`` may only grow.
        No intent is recorded in files whose names are lost.

        Raises: RevisionConflictError, JournalLostError (nothing written), JournalError, TypeError for a field that
        never changes.
        """
        change = changes.advance(before, event, facts, new)
        is_intent = new.get("phase") is Phase.PAUSING
        return await self._writer.submit(self._if_named(change) if is_intent else change)

    async def accept_image(  # noqa: PLR0913 - the word, and what was known when it was given
        self,
        before: Pivot,
        known: PivotDisk,
        word: Accepted,
        facts: JsonObject,
        *,
        mark: str | None,
        fleet_epoch: int | None,
        file: FileSeen | None = None,
    ) -> Pivot:
        """Keep a word on the image of a disk with the disk's last pivot, which is closed; return the new pivot.

        It ends the doubts about the disk. ``known`` and ``mark``, the pivot of core.overwritten, say which ones were
        known when the word was given: if there are others by now, nothing is written. ``file``: what the name of the
        image leads to, if somebody has seen that.

        Raises: RevisionConflictError (nothing written), JournalError.
        """
        change = words.accept_image(before, known, mark, word, facts, fleet_epoch, file)
        return await self._writer.submit(self._if_named(change))

    async def hand_over(self, before: Pivot, successor: Pivot, facts: JsonObject) -> Pivot:
        """Close a pivot and record its successor, which takes over its jobs and nodes, as one; return the closed one.

        Raises: RevisionConflictError, ConflictError (nothing written), JournalError.
        """
        change = changes.hand_over(before, successor, facts, changes.utc_now())
        return await self._writer.submit(self._if_named(change))

    async def check_file(self) -> bool:
        """Return whether this is another file than the one that the last daemon left; then every disk is in doubt.

        A restored journal, or one from before an upgrade, may lack the latest moves. Raises: JournalError.
        """
        try:
            identity = await asyncio.to_thread(place.identity, self.path)
        except OSError as error:
            raise on_read(error, self.path) from error
        is_another = await self._writer.submit(changes.check_file(identity))
        self.file_checked = True
        return is_another

    async def look_for_names(self) -> None:
        """Bring ``lost`` up to date; storage that does not answer in limits.JOURNAL_NAMES_S leaves it as it was."""
        if self._names_look is None or self._names_look.done():
            try:
                self._names_look = asyncio.wrap_future(self._writer.call(lambda _: self._check_names()))
            except JournalError:
                return  # it is being closed
            self._names_look.add_done_callback(lambda done: done.cancelled() or done.exception())  # counts as told
        with suppress(JournalError, TimeoutError):
            async with asyncio.timeout(limits.JOURNAL_NAMES_S):
                await asyncio.shield(self._names_look)

    def _if_named(self, change: Change[T]) -> Change[T]:
        """Return a change that is made only if its record would outlive this process; the writer's thread looks."""

        def checked(connection: sqlite3.Connection) -> tuple[T, Sequence[Record]]:
            self._check_names()
            return change(connection)

        return checked

    def _check_names(self) -> None:
        """On the writer's thread. Raises: JournalLostError."""
        assert self._files is not None
        before, self.lost = self.lost, self._files.lost()
        if self.lost is None:
            return
        if before is None:
            log.error("journal.lost", error=self.lost)
        raise JournalLostError(self.lost)

    async def seen(self, pivot: str, domain: str, disk: str) -> None:
        """End the doubt about a disk: QEMU was seen on the image that its last pivot names. Raises: JournalError."""
        await self._writer.submit(changes.seen(pivot, domain, disk))

    async def ran_on(
        self,
        pivot: Pivot,
        disk: PivotDisk,
        image: tuple[str, str],
        asked: Asked | None = None,
        *,
        by_fleet: bool = False,
    ) -> bool:
        """Put a disk in doubt: its guest was seen to run on another image than its last pivot names.

        ``image``: its name and format; ``asked``: the same by all its names; ``by_fleet``: only the fleet names another
        one. Return whether that is new.

        Raises: JournalError.
        """
        other = RanOn(*image, changes.utc_now(), by_fleet)
        last = pivot.id, disk.accepted
        return await self._writer.submit(changes.ran_on(pivot.domain, disk.disk, last, other, asked))

    async def is_used(
        self, pivot: Pivot, disk: PivotDisk, image: tuple[str, str], asked: Asked, by: tuple[str, str]
    ) -> None:
        """Keep an old image of a disk, name and format, from being called out of use: ``by`` runs on it.

        ``asked``: the same by all its names. Raises: JournalError.
        """
        seen = RanOn(*image, changes.utc_now())
        await self._writer.submit(changes.is_used((pivot.domain, disk.disk), pivot.id, seen, asked, by))

    async def saw_file(self, pivot: str, domain: str, disk: str, seen: FileSeen) -> None:
        """Keep the file that QEMU has as the right image of a disk. Raises: JournalError."""
        await self._writer.submit(changes.saw_file(pivot, domain, disk, seen))

    async def left(self, domain: str) -> None:
        """Put every disk of a domain in doubt: its guest leaves this host by a migration. Raises: JournalError."""
        await self._writer.submit(changes.left(domain, changes.utc_now()))

    async def owe_release(self, domain: str, epoch: int) -> None:
        """Note that the fleet has to release a guest that this host owns under this epoch. Raises: JournalError."""
        await self._writer.submit(changes.owe_release(domain, epoch))

    async def settle_release(self, domain: str, why: str) -> None:
        """Note that no release of a guest is owed any more; ``why`` goes into the record. Raises: JournalError."""
        await self._writer.submit(changes.settle_release(domain, why))

    async def owed_releases(self) -> dict[str, int]:
        """Return the epochs under which guests have left that the fleet has to release, by domain.

        Raises: JournalError.
        """
        return await self._look(changes.owed_releases)

    async def other_images(self, domain: str | None = None) -> list[tuple[Pivot, PivotDisk]]:
        """Return the disks, of all domains or one, whose guest has run on another image, each with its last pivot.

        Raises: JournalError.
        """
        return await self._look(lambda connection: changes.other_images(connection, domain))

    async def added_domains(self) -> list[DomainRow]:
        """Return the domains that were added at run time, by name. Raises: JournalError."""
        return await self._look(changes.domains)

    async def read(self, pivot: str) -> Pivot:
        """Return a pivot as stored on disk, after every change submitted earlier. Raises: JournalError."""
        return await self._look(lambda connection: changes.pivot(connection, pivot))

    async def note(
        self, event: str, facts: JsonObject, *, domain: str | None = None, pivot: str | None = None
    ) -> Record:
        """Append a record that changes no state; ``pivot`` must be in the journal. Raises: JournalError."""
        return await self._writer.submit(changes.note(event, facts, domain, pivot))

    async def add_domain(self, name: str, qmp_path: str, uid: int) -> None:
        """Add a domain with the record ``domain-added``; the same name and path again writes nothing.

        Raises: ConflictError where the name has another path, JournalError.
        """
        await self._writer.submit(self._if_named(changes.add_domain(name, qmp_path, uid)))

    async def remove_domain(self, name: str, uid: int) -> None:
        """Forget a domain with the record ``domain-removed``; its pivots stay.

        Raises: NotFoundError, ConflictError while it has an open pivot, JournalError.
        """
        await self._writer.submit(self._if_named(changes.remove_domain(name, uid)))

    async def forget(self, archive: str, copied: Sequence[Copied]) -> Forgotten:
        """Delete what is durable in an archive, a bounded part of it at once. Raises: JournalError."""
        return await self._writer.submit(forgetting.forget(archive, copied))

    async def give_back(self) -> int:
        """Make the file smaller by some free pages; return how many more there are. Raises: JournalError."""
        return await self._writer.submit(forgetting.give_back())

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call back in the event loop after each durable batch, records in order; return a function that ends this.

        The callback runs before the coroutines that wrote the records return. It must not block.
        """
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            with suppress(ValueError):
                self._subscribers.remove(callback)

        return unsubscribe

    @property
    def guest_paused(self) -> bool:
        """Whether a guest is in its pause: checkpoints are held."""
        return self._writer.held

    async def calm(self, patience_s: float | None = None) -> None:
        """Return once no guest is in its pause; at once if one was during all of the last ``patience_s``.

        None: limits.READ_HELD_BACK_S.
        """
        if self._writer.held:
            await self._writer.released(limits.READ_HELD_BACK_S if patience_s is None else patience_s)

    def hold_checkpoints(self) -> None:
        """Keep checkpoints, and readers, away while a guest is in its pause; counted.

        Call it before the record of the intent: that record then waits for a running checkpoint, so that none
        extends into the pause.
        """
        self._writer.hold(+1)

    def release_checkpoints(self) -> None:
        """Undo one ``hold_checkpoints``."""
        self._writer.hold(-1)

    async def settle(self) -> bool:
        """Make the files contain what readers see, and nothing else; True if that is certain.

        After JournalWriteError the change is rolled back for every reader, but its frames may be complete in the WAL,
        and a crash and restart would bring them back. The writer has already tried once to remove them. After True
        the failed record is certainly absent and ``advance`` from the same ``before`` may be tried again. After False
        nothing is known yet: the storage still fails; ask again. A later change that succeeds has the same effect, as
        it overwrites the frames of the failed one.
        """
        try:
            return await asyncio.shield(asyncio.wrap_future(self._writer.call(self._settle)))
        except JournalError:  # the thread that could tell is gone
            return False

    async def close(self) -> None:
        """Write the queue, checkpoint, close, release the lock. A second call does nothing."""
        with suppress(JournalError):
            await asyncio.shield(asyncio.wrap_future(self._writer.call(self._close, last=True)))
        if not self._writer.alive and self._lock >= 0:
            self._close_index()
            lock.release(self._lock)
            self._lock = -1

    async def _look(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            # Shielded: a future that its caller has cancelled would be a fault to the writer's thread.
            return await asyncio.shield(asyncio.wrap_future(self._writer.call(function)))
        except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
            raise on_read(error, self.path) from error

    def _start_up(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._writer.call(function).result()
        except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
            raise on_read(error, self.path) from error

    def _announce(self, records: list[Record]) -> None:
        self._last_seq = records[-1].seq
        for callback in tuple(self._subscribers):
            try:
                callback(records)
            except Exception as error:  # noqa: BLE001 - a listener's fault must not keep a writer waiting for ever
                context = {"message": "a subscriber of the journal failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def _connect(self) -> sqlite3.Connection:
        """Return the writing connection, with the names of its files made durable."""
        connection = schema.connect(self.path)
        try:
            changes.last_seq(connection)  # the first read makes the WAL
            self._wal_index = wal.open_index(self.path)
            # A predecessor that was killed may have written a record that it did not live to fsync. It can be read now
            # and will be acted on: it must not be lost with the power after that.
            fsync_file(wal.path_of(self.path))
            fsync_directory(self.path.parent)
            self._files = OpenFiles([self.path, wal.path_of(self.path), lock.lock_path(self.path)])
        except BaseException:
            self._disconnect(connection)
            raise
        return connection

    def _settle(self, connection: sqlite3.Connection) -> bool:
        try:
            if changes.last_seq(connection) != self._writer.committed_seq:
                return False  # a record that was reported as failed is visible: a person must look
            wal.cut(connection, self.path, self._wal_index)
        except (sqlite3.Error, OSError):
            return False
        self._writer.in_doubt = False
        return True

    def _close(self, connection: sqlite3.Connection) -> None:
        try:
            # The last connection to go checkpoints and removes the WAL; if it cannot, the WAL keeps the records.
            self._disconnect(connection)
        finally:
            lock.release(self._lock)

    def _disconnect(self, connection: sqlite3.Connection) -> None:
        try:
            connection.close()
        finally:
            self._close_index()

    def _close_index(self) -> None:
        if self._wal_index >= 0:
            os.close(self._wal_index)
            self._wal_index = -1
