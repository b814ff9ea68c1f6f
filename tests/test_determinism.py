"""`make test` makes the same choices in every run; what is random belongs to the campaigns, which print their seed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SEEDS = TESTS / "support/seeds.py"
"""The one place that draws, and the one that reads PIVOTD_SEED."""
FORBIDDEN_NAMES = {"SystemRandom", "urandom", "getrandom", "uuid1", "uuid4", "randbits", "token_bytes", "token_hex"}


def violations(source: str) -> Iterator[str]:
    """Yield what draws without a seed, with its line."""
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_NAMES) or (
            isinstance(node, ast.ImportFrom) and node.module in {"random", "secrets", "uuid"}
        ):
            yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Constant) and node.value == "PIVOTD_SEED":
            yield f"{node.lineno}: PIVOTD_SEED"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("random."):
            of_its_own = ast.unparse(node.func) == "random.Random" and node.args
            if not of_its_own:
                yield f"{node.lineno}: {ast.unparse(node)}"


def test_no_test_draws_without_a_seed() -> None:
    """Not from the system, and not from the generator that all tests of a process share."""
    found = [
        f"{path.relative_to(TESTS)}:{what}"
        for path in sorted(TESTS.rglob("*.py"))
        if path not in {SEEDS, Path(__file__)}
        for what in violations(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "random.SystemRandom()",
        "os.urandom(3)",
        "random.Random()",
        "random.choice(x)",
        "uuid.uuid4()",
        "from random import choice",
    ],
)
def test_the_search_finds(source: str) -> None:
    """Each way to draw without a seed."""
    assert list(violations(source))


@pytest.mark.timeout(400)
def test_two_collections_are_the_same(tmp_path: Path) -> None:
    """The same tests with the same parameters, whatever the hashes of this process are."""
    collections = []
    for seed in ("1", "2"):
        environment = {name: value for name, value in os.environ.items() if name != "PIVOTD_SEED"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS)],
            env=environment | {"PYTHONHASHSEED": seed}, cwd=TESTS.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        collections.append([line for line in done.stdout.splitlines() if "::" in line])
    assert len(collections[0]) > 1000
    assert collections[0] == collections[1]


KILLED = """
import os, signal, subprocess
def test_it():
    subprocess.run(["mount", "-t", "tmpfs", "none", {place!r}], check=True)
    open({seen!r}, "w").close()
    os.kill(0, signal.SIGKILL)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a test mounts something")
def test_a_killed_test_leaves_no_mount_behind(tmp_path: Path) -> None:
    """Removing the directories of old runs would fail at it."""
    place, seen = tmp_path / "mounted", tmp_path / "seen"
    place.mkdir()
    (tmp_path / "test_killed.py").write_text(KILLED.format(place=str(place), seen=str(seen)))
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", TESTS.parent / "pyproject.toml", "--basetemp",
         tmp_path / "base", tmp_path / "test_killed.py"],
        cwd=TESTS.parent, start_new_session=True, capture_output=True, check=False,
    )  # fmt: skip
    assert seen.exists()
    assert not os.path.ismount(place)
