"""Retention: old pivots move from the journal to archives, in small batches, while no guest is in its pause.

The order of each batch: copy it, make the copy durable, then delete it from the journal in one transaction or several.
After a kill the next run begins with what is still in the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, TypeVar

from pivotd import limits
from pivotd.core.request import Requester
from pivotd.errors import ArchiveError, BadRequestError, PivotdError
from pivotd.journal import archives
from pivotd.journal.archiving import Archiver, Candidate, Copied
from pivotd.journal.journal import Journal
from pivotd.log import get_logger

log = get_logger()
T = TypeVar("T")


@dataclass(slots=True)
class Progress:
    """What one step has moved, or would. ``following``: the number of a pivot to go on from, None: it is done.

    ``obstacles``: one line for each archive that could not be used; what belongs there has stayed in the journal.
    """

    pivots: int = 0
    records: int = 0
    following: int | None = None
    names: set[str] = field(default_factory=set)
    obstacles: list[str] = field(default_factory=list)


class Retention:
    """Archives what was closed for longer than ``keep_s``; None: nothing, unless a request says so."""

    def __init__(self, journal: Journal, keep_s: int | None) -> None:
        self._journal = journal
        self._keep_s = keep_s
        self._one_at_a_time = asyncio.Lock()
        self._changed = asyncio.Event()
        self.obstacles: tuple[str, ...] = ()
        """Why old pivots have stayed in the journal when it was last archived without a request, a line each."""

    def use(self, keep_s: int | None) -> None:
        """Keep pivots for another time from now on."""
        if keep_s != self._keep_s:
            self._keep_s = keep_s
            self._changed.set()

    async def run(self) -> None:
        """Upgrade the archives, and archive now and then; ends only when it is cancelled."""
        await self._try(self._with_archiver(self._upgrade))
        delay_s = limits.ARCHIVE_FIRST_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._changed.wait()
            self._changed.clear()
            delay_s = limits.ARCHIVE_EVERY_S
            await self._try(self._all())

    async def _try(self, work: Awaitable[None]) -> None:
        """Do something that may be done later as well: whatever is wrong must not end the daemon."""
        try:
            await work
        except PivotdError as error:
            self.obstacles = (error.message,)
            log.warning("journal.not-archived", error=error.message)
        except Exception as error:
            self.obstacles = (repr(error),)
            log.exception("journal.not-archived", error=repr(error))

    async def _all(self) -> None:
        """Archive as configured, step by step: a request finds its turn in between."""
        after: int | None = 0
        told = set[str]()
        while after is not None and self._keep_s is not None:
            done = await self.step(None, after)
            after = done.following
            for obstacle in done.obstacles:
                if obstacle not in told:
                    log.warning("journal.not-archived", error=obstacle)
            told |= set(done.obstacles)
        self.obstacles = tuple(sorted(told))

    async def step(
        self,
        keep_s: int | None,
        after: int = 0,
        *,
        dry_run: bool = False,
        deadline_s: float = limits.ARCHIVE_STEP_S,
        who: Requester | None = None,
    ) -> Progress:
        """Archive pivots with larger numbers than ``after`` for about ``deadline_s``; return what became of them.

        ``keep_s``: None: as configured. Raises: BadRequestError: nothing is configured; JournalError, JournalFullError.
        """
        keep_s = self._keep_s if keep_s is None else keep_s
        if keep_s is None:
            raise BadRequestError("nothing says how long to keep pivots: give --keep, or set keep in [journal]")
        before_at, done = _ago(keep_s), Progress(following=after)

        async def work(archiver: Archiver) -> None:
            await self._step(archiver, before_at, done, dry_run, deadline_s)

        async with self._one_at_a_time:
            try:
                await self._with_archiver(work)
            finally:  # also what was moved before it failed, or before the daemon ends
                await self._tell(done, before_at, who)
        return done

    async def _tell(self, done: Progress, before_at: str, who: Requester | None) -> None:
        """Record what was moved, if anything was."""
        if not done.names:
            return
        facts = {"pivots": done.pivots, "records": done.records, "archives": sorted(done.names)}
        by = {} if who is None else {"by": {"uid": who.uid, "pid": who.pid}}
        await self._journal.note("archived", {**facts, "closed_before": before_at, **by})
        log.info("journal.archived", **facts)

    async def _step(self, archiver: Archiver, before_at: str, done: Progress, dry_run: bool, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline_s
        while done.following is not None:
            await self._calm()
            found, following = await _in_thread(lambda: archiver.candidates(done.following or 0, before_at))
            blocked: set[tuple[str, str]] = set()
            for batch in _batches(found):
                if dry_run:
                    done.pivots += sum(one.archive is None for one in batch)
                    done.records += sum(one.records for one in batch)
                    continue
                if _place(batch[0]) in blocked:
                    continue
                began = loop.time()
                try:
                    await self._move(archiver, batch, done)
                except ArchiveError as error:
                    blocked.add(_place(batch[0]))
                    done.obstacles += [error.message] if error.message not in done.obstacles else []
                await asyncio.sleep(limits.ARCHIVE_REST * (loop.time() - began))
                if loop.time() >= until and done.records:
                    return  # the next step sees these candidates again, without those that are moved
            done.following = following
            if loop.time() >= until:
                break
        if done.pivots and not dry_run:
            await self._give_back()

    async def _move(self, archiver: Archiver, batch: Sequence[Candidate], done: Progress) -> None:
        await self._calm()
        name, copied = await _in_thread(lambda: archiver.copy(batch))
        while copied:
            await self._calm()
            copied = await _finished(self._forget(name, copied, done))

    async def _forget(self, name: str, copied: Sequence[Copied], done: Progress) -> list[Copied]:
        """Delete a part of what an archive has, and count it; return what is left to be deleted."""
        gone = await self._journal.forget(name, copied)
        done.pivots += gone.pivots
        done.records += gone.records
        done.names.add(name)
        return list(gone.left)

    async def _give_back(self) -> None:
        """Make the file smaller by what the archived rows took."""
        left = 1
        while left:
            await self._calm()
            left = await self._journal.give_back()
            await asyncio.sleep(0)

    async def _upgrade(self, archiver: Archiver) -> None:
        obstacles = await _in_thread(lambda: archives.upgrade(self._journal.path, archiver.names()))
        for obstacle in obstacles:
            log.warning("journal.archive-unusable", error=obstacle)

    async def _calm(self) -> None:
        await self._journal.calm(limits.ARCHIVE_CALM_S)

    async def _with_archiver(self, work: Callable[[Archiver], Awaitable[T]]) -> T:
        with ExitStack() as opened:  # in the thread: it opens to the end also for a cancelled caller
            return await work(await _in_thread(lambda: opened.enter_context(closing(Archiver(self._journal.path)))))


def _ago(seconds: int) -> str:
    """Return the time so long ago, as the journal writes it; the oldest that it can write if that is before it."""
    try:
        then = datetime.now(UTC) - timedelta(seconds=seconds)
    except OverflowError:
        then = datetime.min.replace(tzinfo=UTC)
    return then.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _place(one: Candidate) -> tuple[str, str]:
    """Return what is the same for candidates that belong into one archive."""
    return one.archive or "", one.year


def _batches(found: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Yield candidates that belong into one archive together, as many as one transaction takes."""
    for _, group in groupby(sorted(found, key=_place), _place):
        batch: list[Candidate] = []
        for one in group:
            full = len(batch) == limits.ARCHIVE_PIVOTS
            if batch and (full or sum(each.records for each in batch) + one.records > limits.ARCHIVE_RECORDS):
                yield batch
                batch = []
            batch.append(one)
        yield batch


async def _in_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread; a cancelled caller closes the connections only after its end."""
    return await _finished(asyncio.to_thread(work))


async def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work, which runs to its end; a cancelled caller waits for that."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
