"""Several calls of a reader, of one state."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader


async def test_a_record_that_is_written_between_two_calls(journal: Journal, tmp_path: Path) -> None:
    """Both see the state of the first one, also if one of them is itself made of several; the next look sees it."""
    loop, reader = asyncio.get_running_loop(), Reader.attach(tmp_path)

    def look() -> tuple[int, int]:
        before = reader.last_seq()
        asyncio.run_coroutine_threadsafe(journal.note("domain-added", {}, domain="web1"), loop).result()
        return before, reader.at_once(reader.last_seq)

    before, after = await asyncio.to_thread(reader.at_once, look)
    assert (after, reader.last_seq()) == (before, before + 1)
    reader.close()
