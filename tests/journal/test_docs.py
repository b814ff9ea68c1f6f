"""docs/journal.md names what there is in a journal."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

from pivotd.core.event_names import EVENTS
from pivotd.core.phases import TRANSITIONS
from pivotd.core.pivot import Outcome
from pivotd.core.request import Kind
from pivotd.journal.journal import Journal
from tests.cli.every_kind import fill

PAGE = Path(__file__).parents[2] / "docs" / "journal.md"
OF_AN_IMAGE = ("filename", "format", "node", "file_id", "born")
SHARED = re.compile(r"`(\w+?)_filename`, `_format`, `_node`, `_file_id`, `_born`")

CODE = Path(__file__).parents[2] / "pivotd"
RECORDING = {"record", "note", "note_in_time", "advance", "note_resumed", "_append"}
"""Functions that take the name of an event."""


def columns_of_the_page() -> set[str]:
    text = PAGE.read_text()
    shared = {f"{side}_{column}" for side in SHARED.findall(text) for column in OF_AN_IMAGE}
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


def recorded_events() -> set[str]:
    """Return each name of an event that stands in a call of a function that records one."""
    found = set()
    for path in CODE.rglob("*.py"):
        calls = [one for one in ast.walk(ast.parse(path.read_text())) if isinstance(one, ast.Call)]
        for call in calls:
            if getattr(call.func, "attr", getattr(call.func, "id", None)) in RECORDING:
                parts = [
                    part
                    for one in call.args[:3]
                    for part in ([one.body, one.orelse] if isinstance(one, ast.IfExp) else [one])
                ]
                texts = [part.value for part in parts if isinstance(part, ast.Constant)]
                found |= {text for text in texts if isinstance(text, str)}
    return found


def test_every_event_is_known_and_on_the_page():
    """An event that is recorded is one that can be asked for, and each is explained; there are no others."""
    table = PAGE.read_text().partition("## Events")[2].partition("## Durability")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    recorded = recorded_events()
    assert {"resumed", "stalled", "release-owed", "rolling-back"} <= recorded
    assert recorded - EVENTS == set()
    assert explained ^ EVENTS == {"copying", "ready"}


async def test_the_questions_are_answered(tmp_path: Path):
    """The SQL of the page, on a journal with every kind of pivot; the third answer is that of pivotctl, for each disk."""
    await fill(tmp_path)
    questions = dict(re.findall(r"^\| ([a-z ]+\?) \| `(SELECT .*?)` \|$", PAGE.read_text(), re.MULTILINE))
    assert len(questions) == 4
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        pivot = connection.execute("SELECT pivot FROM disk_latest WHERE domain = 'web1' AND disk = 'disk0'").fetchone()[
            0
        ]
        found = {words: connection.execute(sql.replace("ID", pivot)).fetchall() for words, sql in questions.items()}
        one = questions["which image holds a disk?"].replace("'web1'", "?").replace("'disk0'", "?")
        disks = connection.execute("SELECT domain, disk FROM disk_latest").fetchall()
        images = {disk: right_image(*connection.execute(one, disk).fetchone()) for disk in disks}
    assert all(found.values())
    pivotctl = [Path(sys.executable).parent / "pivotctl", "--offline", tmp_path, "--json", "verdict"]
    done = subprocess.run(pivotctl, capture_output=True, text=True, check=False)
    verdicts = {(row["domain"], row["disk"]): row for row in json.loads(done.stdout)}
    assert {row["outcome"] for row in verdicts.values()} >= {"switched", "kept", "unknown", "accepted"}
    assert images == {disk: None if row["outcome"] == "unknown" else row["image"] for disk, row in verdicts.items()}


def right_image(
    accepted: str | None, outcome: str | None, source: str, destination: str, asking: int, *_doubts: object
) -> str | None:
    """Return what the page says of an answer: the image, or None where either may be it."""
    if accepted is not None:
        return accepted
    if outcome == "unknown" or (outcome is None and asking):
        return None
    return destination if outcome == "switched" else source
