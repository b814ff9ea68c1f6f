"""How large the journal and its archives are, and what is in them."""

from __future__ import annotations

from pathlib import Path

from pivotd.client.answers import ArchiveStats, JournalStats
from pivotd.journal import archives
from pivotd.journal.reader import Reader


def stats(reader: Reader) -> JournalStats:
    """Return the figures of a journal; nothing is counted row by row. Raises: JournalError."""
    found = reader.sizes()
    directory = archives.directory(reader.path)
    states = [
        ArchiveStats(
            str(directory / one.name), _size(directory / one.name), one.pivots, one.records, one.first_seq,
            one.last_seq, one.first_closed_at, one.last_closed_at, one.fault,
        )
        for one in reader.archives()
    ]  # fmt: skip
    return JournalStats(
        path=str(reader.path),
        size_bytes=_size(reader.path) or 0,
        wal_bytes=_size(reader.path.with_name(reader.path.name + "-wal")) or 0,
        free_bytes=found.free_pages * found.page_bytes,
        pivots=found.pivots,
        open_pivots=found.open_pivots,
        records=found.records,
        last_seq=found.last_seq,
        oldest=found.oldest_at,
        archives=tuple(states),
    )


def _size(path: Path) -> int | None:
    """Return bytes, None if there is no such file. By stat alone: closing a descriptor would drop SQLite's locks."""
    try:
        return path.stat().st_size
    except OSError:
        return None
