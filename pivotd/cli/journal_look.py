"""A look at a journal for `pivotctl doctor`, in a process of its own: ``python -m pivotd.cli.journal_look STATE_DIR``.

Storage may hang, and reading a whole journal takes long: whoever has started this ends it when it takes too long. While
no daemon has the journal, a look keeps daemons out. So this process ends at once if a daemon waits for the journal.

It writes one JSON object a line: ``place``, ``facts``, ``verdicts`` (with --verdicts), ``faults``; or ``error``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from pivotd import limits
from pivotd.core.phases import is_decided
from pivotd.core.pivot import FleetStage, Pivot, Record
from pivotd.errors import ArchiveError, PivotdError
from pivotd.journal import lock, schema
from pivotd.journal.reader import Reader

EXIT_AWAITED = 75
"""A daemon waits for the journal. EX_TEMPFAIL of sysexits.h: try again."""
LOOK_S = 0.05
RECORDS = 1000
"""How many of the last records are compared with the clock, and with each other."""
FAULTS_SHOWN = 20
WEEK_S = 7 * 86_400


def main(arguments: Sequence[str]) -> None:
    """Look at one journal and tell what there is."""
    place, *options = arguments
    path = Path(place)
    path = path / schema.FILE_NAME if path.is_dir() else path
    _tell("place", _place(path))
    threading.Thread(target=make_way, args=(path,), daemon=True).start()
    try:
        reader = Reader.offline(path)
        _tell("facts", _facts(reader))
        if "--verdicts" in options:
            _tell("verdicts", _verdicts(place))
        faults = reader.check()
        _tell("faults", [*faults[:FAULTS_SHOWN], *([f"{len(faults)} in all"] if len(faults) > FAULTS_SHOWN else [])])
        reader.close()
    except PivotdError as error:
        _tell("error", {"kind": error.kind, "message": error.message})


def _tell(what: str, value: Any) -> None:
    print(json.dumps({what: value}), flush=True)


def make_way(path: Path) -> None:
    """End this process as soon as a daemon waits for the journal: the guests that it has to resume come first."""
    while True:
        if lock.is_waited_for(path):
            os._exit(EXIT_AWAITED)
        time.sleep(LOOK_S)


def _place(path: Path) -> dict[str, Any]:
    """Return room, size and permissions of the journal, None for what this user may not see."""
    found: dict[str, Any] = {"path": str(path), "owner_pid": None, "awaited": lock.is_waited_for(path)}
    found["owner_seen"] = _may_read(lock.lock_path(path))
    try:
        room, directory = os.statvfs(path.parent), path.parent.stat()
        found |= {
            "free_bytes": room.f_bavail * room.f_frsize,
            "free_files": room.f_favail if room.f_files else None,
            "read_only": bool(room.f_flag & os.ST_RDONLY),
            "directory_mode": directory.st_mode & 0o7777,
        }
        journal, wal = path.stat(), path.with_name(path.name + "-wal")
        found |= {"size_bytes": journal.st_size, "mode": journal.st_mode & 0o7777, "wal_bytes": 0}
        found["wal_bytes"] = wal.stat().st_size if wal.exists() else 0
        if lock.is_owned(path):
            text = lock.lock_path(path).read_text(errors="replace").partition("\n")[0]
            found["owner_pid"] = int(text) if text.isdecimal() else None
    except OSError as error:
        found["error"] = f"{path}: {error.strerror}"
    return found


def _may_read(path: Path) -> bool:
    """Return whether this user can see what is in a file, or that there is none."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _facts(reader: Reader) -> dict[str, Any]:
    last = reader.last_seq()
    unread = None
    try:
        records = reader.events(max(0, last - RECORDS), RECORDS)
    except ArchiveError as error:  # the archive is told by itself
        records, unread = [], error.message
    pivots = reader.pivots(open_only=True)
    now = datetime.now(UTC)
    return {
        "last_seq": last,
        "unread": unread,
        "archives": [[one.name, one.fault] for one in reader.archives()],
        "last_at": records[-1].at if records else None,
        "ahead_s": (_time(records[-1]) - now).total_seconds() if records else 0.0,
        "set_back": _set_back(records, now),
        "is_copy": reader.is_copy(),
        "live": reader.beside_daemon,
        "open": len(pivots),
        "owed": [_owed(pivot) for pivot in pivots if pivot.owes_resume],
        "untold": [[one.domain, one.id] for one in pivots if one.fleet is FleetStage.ANNOUNCED and is_decided(one)],
    }


def _owed(pivot: Pivot) -> list[str | None]:
    return [pivot.domain, pivot.id, pivot.pausing_since]


def _set_back(records: Sequence[Record], now: datetime) -> list[str] | None:
    """Return the last pair of records within a week of which the second is certainly the earlier one by the clock."""
    for before, after in reversed(list(pairwise(records))):
        back_s = (_time(before) - _time(after)).total_seconds()
        if back_s > limits.DOCTOR_CLOCK_S and abs((now - _time(after)).total_seconds()) < WEEK_S:
            return [before.at, after.at]
    return None


def _time(record: Record) -> datetime:
    return datetime.fromisoformat(record.at)


def _verdicts(state_dir: str) -> list[dict[str, Any]]:
    """Return the verdicts of the journal alone, checked against their files."""
    import msgspec  # noqa: PLC0415 - only without a daemon

    from pivotd.cli.journal_answers import OfflineJournal  # noqa: PLC0415

    journal = OfflineJournal(state_dir)
    try:
        found: list[dict[str, Any]] = msgspec.to_builtins(journal.verdicts())
        return found
    finally:
        journal.close()


if __name__ == "__main__":
    main(sys.argv[1:])
