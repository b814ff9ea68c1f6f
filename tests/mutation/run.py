"""A copy of the tree with one defect built in, and what the tests say of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.defects import Defect

ROOT = Path(__file__).parents[2]
TESTS_TIMEOUT_S = 400.0
TESTS_FAILED = 1
"""pytest's exit status; 2 and more mean that the tests could not even be run."""
COPIED = ("pivotd", "migrations", "tests", "systemd", "docs", "pyproject.toml", "README.md")


@dataclass(frozen=True, slots=True)
class Caught:
    """Whether a test turned red, and which, or what pytest said instead."""

    red: bool
    by: str


def broken(defect: Defect) -> str:
    """Return the file of a defect with that built in. Raises: AssertionError: what to change is not there exactly once."""
    text = (ROOT / defect.file).read_text()
    assert text.count(defect.old) == 1, f"{defect.name}: what to change stands {text.count(defect.old)} times"
    return text.replace(defect.old, defect.new)


def broken_copy(defect: Defect, directory: Path) -> None:
    """Copy the tree and build the defect in. Raises: AssertionError, as broken() does.

    The bytecode of pivotd is copied too, but for that of the changed file: the tests start pivotd again and again.
    """
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            # A process that writes bytecode at this moment renames NAME.pyc.NUMBER.
            left_out = shutil.ignore_patterns("*.pyc.*" if name == "pivotd" else "__pycache__")
            shutil.copytree(source, directory / name, ignore=left_out)
        else:
            shutil.copy(source, directory / name)
    # Tests find their interpreter and the test guest where they always are.
    for name in (".venv", ".cache"):
        if (ROOT / name).exists():
            (directory / name).symlink_to(ROOT / name)
    file = directory / defect.file
    file.write_text(broken(defect))
    for sound in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        sound.unlink()


def try_defect(defect: Defect) -> Caught:
    """Return what the tests say of the broken copy; they stop at the first that is red."""
    with tempfile.TemporaryDirectory(prefix="pj") as name:
        directory = Path(name)
        broken_copy(defect, directory)
        environment = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        if any("::" in one for one in defect.tests):
            environment["PIVOTD_LONG"] = "1"  # a test that is named alone runs, however long it takes
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *defect.tests],
            cwd=directory, env=environment, capture_output=True, text=True, timeout=TESTS_TIMEOUT_S, check=False,
        )  # fmt: skip
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == TESTS_FAILED and failed:
        return Caught(red=True, by=failed[1])
    return Caught(red=False, by=f"pytest ended with {done.returncode}: {(done.stdout or done.stderr).strip()[-300:]}")
