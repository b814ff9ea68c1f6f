"""The journal as the source of answers: the same shapes as the daemon gives, without what only it can see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pivotd.cli.errors import CtlError
from pivotd.core import verdict
from pivotd.core.shapes import pivot_to_json, record_to_json, verdict_to_json
from pivotd.core.verdict import Verdict
from pivotd.host import files
from pivotd.journal.reader import Reader

JsonObject = dict[str, Any]


class OfflineJournal:
    """Implements app.Reads. Raises from every method: CtlError, JournalError and its subclasses."""

    def __init__(self, state_dir: str) -> None:
        self.path = state_dir
        self._reader = Reader.offline(Path(state_dir))

    def close(self) -> None:
        """Remove the private copy, if one was made."""
        self._reader.close()

    def domains(self) -> list[JsonObject]:
        """Return the domains added at run time, and those that have pivots."""
        rows = {row.name: _domain(row.name, row.qmp_path, "runtime") for row in self._reader.domains()}
        for pivot, _ in self._reader.every_latest():
            row = rows.setdefault(pivot.domain, _domain(pivot.domain, pivot.qmp, None))
            # An open pivot is the last one of each of its disks.
            if not pivot.closed_at and pivot.id not in row["open_pivots"]:
                row["open_pivots"].append(pivot.id)
        return [rows[name] for name in sorted(rows)]

    def pivots(self, domain: str | None = None, *, open_only: bool = False) -> list[JsonObject]:
        """Return pivots, newest first."""
        return [pivot_to_json(pivot) for pivot in self._reader.pivots(domain, open_only)]

    def pivot(self, pivot: str) -> JsonObject:
        """Return one pivot with its records."""
        found = self._reader.pivot(pivot)
        if found is None:
            raise CtlError("not-found", f"the journal in {self.path} holds no pivot {pivot}", pivot=pivot)
        return pivot_to_json(found, self._reader.records(found.id))

    def verdicts(self, domain: str | None, disk: str | None, image: str | None) -> list[JsonObject]:
        """Return what the journal says of the disks asked for."""
        file = None if image is None else files.named(image)
        found = []
        for pivot, moved in self._reader.every_latest(domain, disk):
            one = verdict.of_pivot(pivot, moved)
            sides = (moved.source, moved.destination)
            if file is None or one.image == image or any(files.same(side, file) for side in sides):
                doubtful = self._reader.beside_daemon and verdict.may_be_overtaken(pivot)
                found.append(verdict.provisional(one) if doubtful else one)
        if image is not None and not found:
            message = f"the journal in {self.path} holds no pivot with image {image}; see `pivotctl verdict`"
            raise CtlError("not-found", message, image=image)
        if domain is not None and disk is not None and not found:
            found = [_never_moved(domain, disk)]
        return [verdict_to_json(v) for v in found]

    def events(self, after: int) -> Iterator[JsonObject]:
        """Yield every record there is with seq > after."""
        while page := self._reader.events(after):
            yield from map(record_to_json, page)
            after = page[-1].seq


def _domain(name: str, qmp: str, origin: str | None) -> JsonObject:
    return {
        "name": name,
        "qmp": qmp,
        "origin": origin,
        "connection": None,
        "detail": "read from the journal alone",
        "run_state": None,
        "qemu_version": None,
        "pid": None,
        "uptime_s": None,
        "open_pivots": [],
    }


def _never_moved(domain: str, disk: str) -> Verdict:
    live = verdict.without_pivot(domain, disk, verdict.Live(image="", format=""))
    reason = "The journal holds no pivot of this disk; only QEMU can tell which image it uses."
    return replace(live, image=None, format=None, reason=reason)
