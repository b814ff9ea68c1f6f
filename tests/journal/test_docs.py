"""docs/journal.md names what there is in a journal."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

from pivotd.core.phases import TRANSITIONS
from pivotd.core.pivot import Outcome
from pivotd.core.request import Kind
from pivotd.journal.journal import Journal

PAGE = Path(__file__).parents[2] / "docs" / "journal.md"
SHARED = re.compile(r"`(\w+?)_filename`, `_format`, `_node`, `_file_id`")


def columns_of_the_page() -> set[str]:
    text = PAGE.read_text()
    shared = {
        f"{side}_{column}" for side in SHARED.findall(text) for column in ("filename", "format", "node", "file_id")
    }
    return set(re.findall(r"`(\w+)`", text)) | shared | {"requested_by_gid", "requested_by_pid"}


async def test_every_column_is_on_the_page(tmp_path: Path):
    """Whoever opens the file with sqlite3 finds each column explained."""
    await Journal.open(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        ours = [table for table in tables if not table.startswith(("sqlite_", "_sqlite"))]
        columns = {row[1] for table in ours for row in connection.execute(f"PRAGMA table_info({table})")}
    assert columns
    assert columns - columns_of_the_page() == set()


def test_every_word_is_on_the_page():
    """Kinds, outcomes and phases."""
    text = PAGE.read_text()
    words = [*Kind, *Outcome, *TRANSITIONS]
    assert [word for word in words if f"`{word.value}`" not in text] == []
