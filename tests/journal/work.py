"""A process that works on a journal until it is killed: ``work.py STATE_DIR [hold|look]``.

Prints ``open`` and then one line ``SEQ PIVOT PHASE`` for each change that the journal has acknowledged. With ``hold``
it writes a little, says ``held`` and waits for its end with the journal open. With ``look`` it says ``looked`` and reads,
as ``pivotctl --offline`` does, again and again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from pivotd.core.pivot import Phase, Record
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.journal.samples import make_pivot

PHASES = (Phase.COPYING, Phase.READY, Phase.PAUSING, Phase.DECIDED, Phase.CLOSED)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def work(journal: Journal, worker: int) -> None:
    number = journal.last_seq * 100 + worker
    while True:
        number += 10
        pivot, _ = await journal.accept(make_pivot(number), {})
        for phase in PHASES:
            pivot = await journal.advance(pivot, phase.value, {"text": "x" * 300}, phase=phase, attempt=number)


def acknowledge(records: list[Record]) -> None:
    for record in records:
        say(f"{record.seq} {record.pivot} {record.phase}")


def look_for_ever(state_dir: Path) -> None:
    said = False
    while True:
        reader = Reader.offline(state_dir)
        reader.last_seq()
        reader.close()
        if not said:
            say("looked")
        said = True


async def main() -> None:
    journal = Journal.open(Path(sys.argv[1]))
    say("open")
    journal.subscribe(acknowledge)
    if "hold" in sys.argv:
        pivot, _ = await journal.accept(make_pivot(1), {"first": True})
        await journal.advance(pivot, "copying", {}, phase=Phase.COPYING)
        say("held")
        await asyncio.get_running_loop().create_future()
    await asyncio.gather(*(work(journal, worker) for worker in range(4)))


if __name__ == "__main__":
    if "look" in sys.argv:
        look_for_ever(Path(sys.argv[1]))
    asyncio.run(main())
