"""Work for a journal on a forgetful disk, and the judge of what a failure left of it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pivotd.core.pivot import Phase, Record
from pivotd.errors import JournalError, JournalWriteError
from pivotd.journal.journal import Journal
from tests.journal.samples import make_pivot
from tests.journal_disk.disk import Disk, put
from tests.journal_disk.store import Contents

PHASES = (Phase.COPYING, Phase.READY, Phase.PAUSING, Phase.DECIDED, Phase.CLOSED)
Told = tuple[str, str]
"""A pivot and a phase of it that somebody was told is durable."""


@dataclass
class Promises:
    """What the journal has said: ``kept`` must be there after any failure, ``refused`` must not."""

    kept: set[Told] = field(default_factory=set)
    refused: set[Told] = field(default_factory=set)
    errors: list[JournalError] = field(default_factory=list)

    def hear(self, disk: Disk, records: list[Record]) -> None:
        for record in records:
            assert record.phase is not None
            told = (record.pivot or "", record.phase.value)
            self.kept.add(told)
            disk.mark(" ".join(told))


class Work:
    """Pivots through all their phases, several at once, with checkpoints and a closing in between."""

    def __init__(self, disk: Disk, promises: Promises) -> None:
        self._disk, self._promises = disk, promises
        self._number = 0

    async def run(self, times: int = 2) -> None:
        """Open, work, close, and again; errors of the journal are noted and the work goes on."""
        for _ in range(times):
            try:
                journal = Journal.open(self._disk.where)
            except JournalError as error:
                self._promises.errors.append(error)
                continue
            journal.subscribe(lambda records: self._promises.hear(self._disk, records))
            try:
                await self._pivot(journal)
                await asyncio.gather(*(self._pivot(journal) for _ in range(3)))
                await journal.settle()
                await self._pivot(journal)
            finally:
                await journal.close()

    async def _pivot(self, journal: Journal) -> None:
        self._number += 1
        pivot = make_pivot(self._number)
        try:
            pivot, _ = await journal.accept(pivot, {})
        except JournalError as error:
            self._failed(pivot.id, pivot.phase, error)
            return
        for phase in PHASES:
            try:
                pivot = await journal.advance(pivot, phase.value, {"text": "x" * 300}, phase=phase)
            except JournalError as error:
                self._failed(pivot.id, phase, error)
                return

    def _failed(self, pivot: str, phase: Phase, error: JournalError) -> None:
        self._promises.errors.append(error)
        if not isinstance(error, JournalWriteError):
            self._promises.refused.add((pivot, phase.value))


def stored(path: Path) -> list[str | Told]:
    """Return what a closed journal holds, in order, and before that whatever is wrong with it."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        wrong = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        rows = connection.execute("SELECT seq, pivot, phase FROM record ORDER BY seq").fetchall()
        heads = dict(connection.execute("SELECT id, phase FROM pivot").fetchall())
    if [row[0] for row in rows] != list(range(1, len(rows) + 1)):
        wrong.append(f"the numbers of the records have gaps: {[row[0] for row in rows]}")
    if (last := {pivot: phase for _, pivot, phase in rows}) != heads:
        wrong.append(f"records end at {last}, pivots are {heads}")
    return [*wrong, *((pivot, phase) for _, pivot, phase in rows)]


def judge(contents: Contents, directory: Path, kept: set[Told], refused: set[Told]) -> list[str]:
    """Start a journal on what was left and return every broken promise."""
    put(contents, directory)
    try:
        journal = Journal.open(directory)
    except JournalError as error:
        return [f"the daemon does not start again: {error.message}"]
    asyncio.run(journal.close())
    found = stored(journal.path)
    problems = [one for one in found if isinstance(one, str)]
    if missing := sorted(kept - set(found)):
        problems.append(f"acknowledged and lost: {missing}")
    if back := sorted(refused & set(found)):
        problems.append(f"refused and yet there: {back}")
    return problems
