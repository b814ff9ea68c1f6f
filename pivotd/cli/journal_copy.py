"""A copy of a journal for a bundle, in a process of its own: ``python -m pivotd.cli.journal_copy STATE_DIR TARGET``.

SQLite's backup makes the copy, also of a running journal. Secrets are removed from the copy. Of a journal that is too
large, the last records are written as text. As in journal_look, a daemon that waits for the journal goes first.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pivotd import limits
from pivotd.cli import journal_look, redaction
from pivotd.errors import PivotdError
from pivotd.journal import offline, schema
from pivotd.journal.reader import Reader

PAGES = 512
RECORDS_MAX = 10_000
"""The last records of a journal that is too large to be copied, about 5 MiB."""


def main(arguments: Sequence[str]) -> None:
    """Write a copy of a journal, or the last of its records, into a directory; tell in one clause what it is."""
    place, target = arguments
    path = Path(place)
    path = path / schema.FILE_NAME if path.is_dir() else path
    threading.Thread(target=journal_look.make_way, args=(path,), daemon=True).start()
    try:
        small = path.stat().st_size <= limits.DOCTOR_BUNDLE_BYTES_MAX
        said = _copy(path, Path(target)) if small else _excerpt(path, Path(target))
    except PivotdError as error:
        said = f"left out: {error.message}"
    except (OSError, sqlite3.Error) as error:
        said = f"left out: {path}: {error}"
    print(json.dumps(said), flush=True)


def _copy(path: Path, directory: Path) -> str:
    partial, whole = directory / "partial", directory / "journal.db"
    opened = offline.open_journal(path)
    try:
        with closing(sqlite3.connect(partial)) as copy:
            opened.connection.backup(copy, pages=PAGES)
    finally:
        opened.close()
    changed = _clean(partial)
    partial.rename(whole)  # nothing that was not cleaned has this name, whenever this process ends
    return f"the whole journal; {changed} values with secrets were changed"


def _clean(partial: Path) -> int:
    """Remove secrets from every text, and what is left of them in unused pages; return how many values had one."""
    changed = 0
    with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
        copy.create_function("cleaned", 1, lambda text: text and redaction.clean(text), deterministic=True)
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()
        copy.execute("PRAGMA secure_delete = ON").fetchall()
        triggers = copy.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for trigger, _ in triggers:
            copy.execute(f'DROP TRIGGER "{trigger}"')  # they protect the history, and this is no journal of anybody's
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        for (table,) in copy.execute(tables).fetchall():
            for _, column, kind, *_ in copy.execute(f'PRAGMA table_info("{table}")').fetchall():
                if kind.upper() == "TEXT":
                    change = f'UPDATE OR REPLACE "{table}" SET "{column}" = cleaned("{column}")'  # noqa: S608 - schema
                    changed += copy.execute(f'{change} WHERE "{column}" <> cleaned("{column}")').rowcount
        for _, made_by in triggers:
            copy.execute(made_by)
        copy.execute("VACUUM")
    return changed


def _excerpt(path: Path, directory: Path) -> str:
    reader = Reader.offline(path)
    after = max(0, reader.last_seq() - RECORDS_MAX)
    with (directory / "records.jsonl").open("w", encoding="utf-8") as file:
        while page := reader.events(after):
            for one in page:
                shown = {
                    name: getattr(one, name) for name in ("seq", "at", "domain", "pivot", "event", "phase", "facts")
                }
                file.write(redaction.clean(json.dumps(shown)) + "\n")
            after = page[-1].seq
    reader.close()
    return f"the last {RECORDS_MAX} records of a journal of {path.stat().st_size >> 20} MiB"


if __name__ == "__main__":
    main(sys.argv[1:])
