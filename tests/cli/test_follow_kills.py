"""The follower is killed at chosen system calls and at random, its daemon too: no pivot is missed, none overtakes."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Bench
from tests.cli.following import Following, decisions, end, without_repetition
from tests.support import seeds
from tests.support.waiting import until

pytestmark = [pytest.mark.qemu, pytest.mark.chaos]
PIVOTS = 12
KILLS = 25
LIFE_S = 0.15
SLOW = 'sleep 0.05; cat >>"$LOG"'


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("call", "nth", "runs"),
    [
        ("memfd_create", 1, 1),  # before the command
        ("pidfd_open", 1, 2),  # the command has been started
        ("waitid", 1, 2),  # it has ended, and nobody has asked how
        ("fsync", 3, 2),  # the new cursor is not durable yet; the first two calls are those of the start
        ("rename", 2, 2),  # it is durable, and not the cursor yet
        ("fsync", 4, 1),  # it is the cursor, perhaps not for long
    ],
)
@pytest.mark.thinned(2)
def test_killed_at_a_system_call(bench: Bench, directory: Path, call: str, nth: int, runs: int) -> None:
    """The next follower runs the command again, unless the cursor says that it has ended with 0."""
    follower = Following(directory, bench.daemon.socket)
    # -D: the follower itself is the child. Not -f: its command must live.
    strace = ["strace", "-D", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    process = follower.start(before=[*strace, "-e", f"inject={call}:signal=SIGKILL:when={nth}"])
    try:
        assert until(lambda: "pivotctl: running" in follower.said()), follower.said()
        pivots = [bench.json("copy", "web1", f"disk0={bench.image()}").json["id"] for _ in range(2)]
        assert process.wait(60) == -9
    finally:
        end(process, 9)
    assert until(lambda: follower.to_the_end().returncode == 0)
    assert follower.ids() == [pivots[0]] * runs + [pivots[1]]
    assert follower.to_the_end().returncode == 0
    assert len(follower.ids()) == runs + 1


@pytest.mark.long
def test_killed_at_random_while_pivots_are_made_and_the_daemon_dies(bench: Bench, directory: Path) -> None:
    """Each pivot's command has ended with 0, in the order of the decisions; only the last one is ever repeated."""
    rng = seeds.rng("follower")
    follower = Following(directory, bench.daemon.socket, SLOW)
    with follower.running():
        began = follower.place()
    nobody = threading.Event()

    def work() -> None:
        for number in range(PIVOTS):
            bench.json("copy", "web1", f"disk{number % 2}={bench.image()}")
            if number % 4 == 3:
                bench.restart()

    worker = threading.Thread(target=work)
    worker.start()
    for number in range(KILLS):
        said = len(follower.said())
        process = follower.start()
        if number % 4:
            assert until(lambda: "running" in follower.said()[said:] or process.poll() is not None)  # noqa: B023
        nobody.wait(rng.uniform(0, LIFE_S))
        end(process, 9)
    worker.join()
    expected = decisions(bench.daemon, began)
    assert len(expected) >= PIVOTS
    assert until(lambda: follower.to_the_end().returncode == 0)
    assert without_repetition(follower.ids()) == expected
    assert len(follower.ids()) > len(expected), "no kill met a command"
