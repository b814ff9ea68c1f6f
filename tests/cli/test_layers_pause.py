"""Merges below the active image pause the guest too: how long and how often is for the caller to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Bench
from tests.cli.ctl import ctl

pytestmark = pytest.mark.qemu


def chain(bench: Bench) -> list[Path]:
    """Put two overlays on disk0; return them, the active one last."""
    overlays = [bench.image(), bench.image()]
    for overlay in overlays:
        assert bench.ctl("snapshot", "web1", f"disk0={overlay}").status == 0
    return overlays


def test_the_pause_of_a_pull_is_bounded_as_asked_for(bench: Bench) -> None:
    """--max-pause and --attempts are in the journal, and the pause that was made is within the bound."""
    chain(bench)
    pivot = bench.json("pull", "web1", "disk0", "--max-pause", "20s", "--attempts", "2").json
    assert (pivot["options"]["max_pause_ms"], pivot["options"]["attempts"]) == (20000, 2)
    assert (pivot["outcome"], len(pivot["pauses"])) == ("merged", 1)
    assert 0 < pivot["pause_ms"] < 20000


def test_a_pull_waits_at_ready_for_its_pause(bench: Bench) -> None:
    """--no-pivot: everything is copied, the guest was not paused, and `pivot complete` merges."""
    chain(bench)
    pivot = bench.json("pull", "web1", "disk0", "--no-pivot").json
    assert (pivot["phase"], pivot["pauses"]) == ("ready", [])
    assert bench.json("pivot", "complete", pivot["id"]).json["outcome"] == "merged"


def test_the_pause_of_an_inner_commit_is_bounded_as_asked_for(bench: Bench) -> None:
    """The same for layers in the middle."""
    inner, _ = chain(bench)
    pivot = bench.json("commit", "web1", "disk0", "--top", inner, "--max-pause", "25s").json
    assert pivot["options"]["max_pause_ms"] == 25000
    assert (pivot["outcome"], len(pivot["pauses"])) == ("merged", 1)


@pytest.mark.parametrize("command", ["commit", "pull"])
def test_help_does_not_deny_the_pause(command: str) -> None:
    """What pauses the guest says so."""
    said = " ".join(ctl(command, "--help").stdout.split())
    assert "not paused" not in said
    assert "--max-pause" in said
    assert "pauses the guest" in said or "pivotd pauses it" in said
