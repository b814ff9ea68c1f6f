"""tests/README.md says what every folder is for."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_folder_is_in_the_table_and_nothing_else() -> None:
    """Each once; a folder without a row is one that nobody knows when to add to."""
    rows = re.findall(r"^\| `([^`]*)/` \|", (TESTS / "README.md").read_text(), re.MULTILINE)
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/*.py")}
    assert sorted(rows) == sorted(folders)


def test_it_fits_on_one_screen() -> None:
    """What is longer is not read before a test is written."""
    assert len((TESTS / "README.md").read_text().splitlines()) <= 40
