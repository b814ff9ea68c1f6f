"""The kinds of errors are a promise of docs/api.md: its table has every one, as pivotd and its client take it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pivotd.app.not_started import KIND as NOT_STARTED
from pivotd.cli.complaints import InterruptError, OutputError
from pivotd.cli.cursor import CursorError
from pivotd.client import transport
from pivotd.client.transport import LOST, UNREACHABLE
from pivotd.errors import (
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    ClientError,
    ConfigError,
    PivotdError,
    RefusedError,
    UnknownError,
    UnsentError,
)
from tests.documents import ROOT

LATE = {InterruptError, OutputError}
"""pivotctl has sent its request before it fails so."""
AFTER = {RefusedError: "refused", UnknownError: "unknown", UnsentError: "unsent"}
ROW = re.compile(r"^\| `([a-z-]+)` \|(?: (\d+))? \| (\d+) \| ([a-z, ]+) \| .+ \|$", re.MULTILINE)


def every(error: type[PivotdError]) -> Iterator[type[PivotdError]]:
    yield error
    for one in error.__subclasses__():
        if one is not ClientError and one.__module__.startswith("pivotd."):
            yield from every(one)


def after(kind: str) -> str:
    """Return what a client takes a problem for: of a request that changes something, and of one that reads."""
    document = {"kind": kind, "detail": "why"}
    found = [AFTER[type(transport._problem(dict(document), reads=reads))] for reads in (False, True)]
    return ", ".join(dict.fromkeys(found))


def test_the_table_has_every_kind_of_error_as_it_is() -> None:
    """A kind that is new, gone or shown otherwise has to be written down there, and in the changelog."""
    page = (ROOT / "docs/api.md").read_text()
    table = page[page.index("## Kinds of errors") : page.index("## What is stable")]
    told = {kind: (http, int(status), what) for kind, http, status, what in ROW.findall(table)}
    kinds = {one.kind: (str(one.http_status), one.exit_status, after(one.kind)) for one in every(PivotdError)}
    local = [one for one in every(PivotdError) if one.__module__.startswith("pivotd.cli.")]
    kinds |= {one.kind: ("", one.exit_status, "unknown" if one in LATE else "refused") for one in local}
    kinds |= {
        "wrong-method": ("405", EXIT_REFUSED, after("wrong-method")),
        "not-allowed": (*kinds["not-allowed"][:2], "refused, unsent"),
        NOT_STARTED: ("503", EXIT_UNREACHABLE, after(NOT_STARTED)),
        ConfigError.kind: ("", ConfigError.exit_status, after(ConfigError.kind)),
        UNREACHABLE: ("", EXIT_UNREACHABLE, "unsent"),
        LOST: ("", EXIT_UNREACHABLE, "unknown"),
        "not-pivotd": ("", EXIT_UNREACHABLE, "unknown"),
    }
    assert told == kinds
    assert CursorError in local, "modules with errors were imported"
    assert table.count("\n| `") == len(told), "a row that is not read"
