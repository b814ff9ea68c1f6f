"""The demonstrations that README.md offers run to their end, and each of their checks holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet.etcds import missing

ROOT = Path(__file__).parents[1]
DEMOS = dict(
    re.findall(r"^(demo[a-z-]*): .*\n\t\.venv/bin/python -m (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
)
"""Each target of the Makefile, and the program behind it."""


def test_readme_offers_each_demonstration() -> None:
    """All of the Makefile's, and no other one."""
    offered = re.findall(r"^\$ make (demo[a-z-]*) ", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(offered) == sorted(DEMOS) == ["demo", "demo-fleet"]


@pytest.mark.qemu
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", DEMOS)
def test_demonstration(name: str) -> None:
    """Status 0, and one line for each check, of which none has failed."""
    if name == "demo-fleet" and (why := missing()) is not None:
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, "-m", DEMOS[name]], cwd=ROOT, capture_output=True, text=True, timeout=800, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.findall(r"^(?:    ok|FAILED)  ", said, re.MULTILINE).count("    ok  ") > 10, said
    assert "FAILED" not in said, said
    assert "every check is ok" in said, said
