"""What is left after kill -9."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pivotd.core.pivot import Phase
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.journal.process import wait_for, working
from tests.support.seeds import rng

ROUNDS = 12


@pytest.mark.chaos
def test_every_acknowledged_record_survives_kill_9(tmp_path: Path) -> None:
    """After each of many kills of a writer every acknowledged record is there, and the file is whole."""
    chance = rng("journal kill")
    acknowledged: dict[int, tuple[str, str]] = {}
    for _ in range(ROUNDS):
        with working(tmp_path) as process:
            wait_for(process, "open")
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(chance.randrange(1, 1500))]
            process.kill()
            # The last line may be cut.
            lines += process.stdout.read().splitlines()
            for line in lines:
                if len(line.split()) == 3 and line is not lines[-1]:
                    seq, pivot, phase = line.split()
                    acknowledged[int(seq)] = (pivot, phase)
        reader = Reader.offline(tmp_path)
        assert reader.check() == []
        stored: dict[int, tuple[str | None, Phase | None]] = {}
        after = 0
        while page := reader.events(after):
            stored |= {record.seq: (record.pivot, record.phase) for record in page}
            after = page[-1].seq
        reader.close()
        assert list(stored) == list(range(1, len(stored) + 1))
        assert acknowledged.items() <= stored.items()
    assert len(acknowledged) > ROUNDS


@pytest.mark.chaos
def test_rows_and_records_agree_after_kill_9(tmp_path: Path) -> None:
    """A killed writer leaves each pivot in the phase of its last record, and the next daemon gets them."""
    with working(tmp_path) as process:
        wait_for(process, "open")
        assert process.stdout is not None
        for _ in range(777):
            process.stdout.readline()
    journal = Journal.open(tmp_path)
    reader = Reader.attach(tmp_path)
    for pivot in reader.pivots():
        assert pivot.phase is reader.records(pivot.id)[-1].phase
    assert journal.open_pivots() == reader.pivots(open_only=True)[::-1]
    reader.close()
    asyncio.run(journal.close())
