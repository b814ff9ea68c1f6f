"""The daemon is killed and started again while pivotctl waits: nothing is missed and nothing is lost."""

from __future__ import annotations

import json
from typing import IO

import pytest

from tests.cli.conftest import Bench
from tests.cli.ctl import ctl, start

pytestmark = pytest.mark.qemu


def await_loss(stderr: IO[str]) -> str:
    """Return the line by which a pivotctl says that its daemon is gone; lines of progress may come before."""
    for line in stderr:
        if "lost pivotd" in line:
            return line
    raise AssertionError("it has ended without a word on the daemon")


def test_copy_again_after_a_kill(bench: Bench) -> None:
    """A request that is sent again to the next daemon gives the pivot of the first one."""
    image = bench.image()
    first = bench.json("copy", "web1", f"disk0={image}", "--no-pivot", "--id", "move-1")
    bench.restart()
    again = bench.json("copy", "web1", f"disk0={image}", "--no-pivot", "--id", "move-1")
    assert (again.status, again.json["id"]) == (0, first.json["id"])
    assert bench.ctl("pivot", "cancel", "move-1").status == 0


def test_waiting_outlives_the_daemon(bench: Bench) -> None:
    """``pivot wait`` says that it lost the daemon, finds the next one and ends with the pivot's outcome."""
    arguments = ["copy", "web1", f"disk0={bench.image()}", "--bandwidth", "64K", "--detach", "--id", "slow"]
    bench.qemu.spy(
        "human-monitor-command",
        {"command-line": 'qemu-io -d /machine/peripheral/disk0/virtio-backend "write -P 7 0 16M"'},
    )
    assert bench.ctl(*arguments).status == 0
    with start("--socket", bench.daemon.socket, "pivot", "wait", "slow") as process:
        assert process.stderr is not None
        process.stderr.readline()
        bench.daemon.kill()
        said = await_loss(process.stderr)
        bench.daemon.start()
        bench.ctl("pivot", "cancel", "slow")
        stdout, rest = process.communicate(timeout=60)
    assert "lost pivotd, trying again" in said
    assert "pivotd answers again" in rest
    assert process.returncode == 5
    assert "web1 disk0: kept" in stdout


def test_events_outlive_the_daemon(bench: Bench) -> None:
    """``events --follow`` gives every record once, in order, over a kill of the daemon."""
    with start("--socket", bench.daemon.socket, "--json", "events", "--follow") as process:
        assert process.stdout is not None
        bench.at_ready()
        seen = [json.loads(process.stdout.readline())["seq"]]
        bench.restart()
        for row in bench.json("pivot", "ls", "--open").json:
            bench.ctl("pivot", "cancel", row["id"])
            bench.ctl("pivot", "wait", row["id"])
        expected = [row["seq"] for row in bench.json("events").rows]
        while seen[-1] < expected[-1]:
            seen.append(json.loads(process.stdout.readline())["seq"])
        process.kill()
    assert seen == expected


def test_verdict_without_daemon(bench: Bench) -> None:
    """After kill -9 the journal alone gives the daemon's verdict."""
    image = bench.image()
    bench.ctl("copy", "web1", f"disk0={image}")
    before = bench.json("verdict", "web1", "disk0").json
    bench.daemon.kill()
    after = ctl("--offline", bench.daemon.state_dir, "--json", "verdict", "web1", "disk0")
    dead = bench.json("verdict")
    bench.daemon.start()
    same = ("image", "format", "outcome", "certain", "pivot", "since")
    assert after.status == 0
    assert {key: after.json[key] for key in same} == {key: before[key] for key in same}
    assert (dead.status, dead.json["error"]["kind"]) == (3, "unreachable")
