"""Every await of the monitor and of the session, cancelled: nothing stays, and the next use works."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.errors import DomainUnreachableError, UnsupportedQemuError
from pivotd.qmp.monitor import Monitor, command
from pivotd.qmp.session import Session
from tests.core.build import pivot
from tests.support.cancel import When, everywhere, replies_due
from tests.wire.server import FakeQemu, Json, greeting

PIVOT = pivot(Phase.PAUSING)
DISK = PIVOT.disks[0]
STATES = ["running", "concluded"]
"""What query-jobs shows of the mirror, one time after the other."""


def replies() -> Callable[[Json], Coroutine[Any, Any, Json]]:
    """Return the answers of a QEMU with one disk, one mirror and the pivot's nodes; they change nothing."""
    asked = 0
    inserted = {
        "node-name": DISK.source.node,
        "drv": "qcow2",
        "ro": False,
        "cache": {"direct": True, "no-flush": False},
        "image": {"filename": DISK.source.filename, "format": "qcow2", "virtual-size": DISK.size_bytes},
    }
    nodes = [
        {"id": 1, "type": "block-driver", "name": DISK.source.node},
        {"id": 2, "type": "block-driver", "name": DISK.destination.node},
    ]

    async def answer(message: Json) -> Json:
        nonlocal asked
        match message["execute"]:
            case "query-status":
                value: Any = {"status": "paused", "running": False}
            case "query-jobs":
                value = [{"id": DISK.job, "type": "mirror", "status": STATES[asked % 2]}]
                asked += 1
            case "query-block-jobs":
                flags = {"auto-finalize": False, "auto-dismiss": False}
                value = [{"device": DISK.job, "type": "mirror", "status": "running", "len": 10, "offset": 5, **flags}]
            case "query-block":
                value = [{"device": "", "qdev": DISK.qdev, "inserted": inserted}]
            case "x-debug-query-block-graph":
                value = {"nodes": nodes, "edges": []}
            case "qom-list":
                value = [{"name": PIVOT.identity.nonce, "type": "child<secret>"}]
            case "query-chardev":
                value = [{"label": "mon0", "frontend-open": True, "filename": "unix:"}]
            case _:
                value = {}
        return {"return": value}

    return answer


def closed_pivot(outcome: Outcome) -> Pivot:
    """Return the pivot as clean_up sees it."""
    decided = pivot(Phase.DECIDED)
    return replace(decided, disks=tuple(replace(disk, outcome=outcome) for disk in decided.disks))


USES: dict[str, Callable[[Session], Coroutine[Any, Any, Any]]] = {
    "look": lambda session: session.look(PIVOT),
    "run_state": lambda session: session.run_state(),
    "disks": lambda session: session.disks(),
    "chardevs": lambda session: session.chardevs(),
    "place_nonce": lambda session: session.place_nonce(PIVOT),
    "stop": lambda session: session.stop([DISK.job], lambda: None),
    "complete": lambda session: session.complete([DISK.job]),
    "finalize": lambda session: session.finalize(PIVOT, [DISK.job]),
    "cancel": lambda session: session.cancel([DISK.job], resume=True),
    "resume": lambda session: session.resume(),
    "reverse": lambda session: session.reverse(PIVOT, DISK, session.resumes),
    "clean_up of a switch": lambda session: session.clean_up(closed_pivot(Outcome.SWITCHED)),
    "clean_up of none": lambda session: session.clean_up(closed_pivot(Outcome.KEPT)),
    "go_on": lambda session: session.go_on([DISK.job]),
    "write_blocking": lambda session: session.write_blocking(PIVOT),
    "execute": lambda session: session._monitor.execute(command("query-status")),
    "burst": lambda session: session._monitor.burst([command("query-status"), command("query-jobs")], 5),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
async def test_a_cancelled_use_leaves_the_session_usable(
    fake: FakeQemu, use: Callable[[Session], Coroutine[Any, Any, Any]]
):
    """No answer is awaited for ever, no subscriber stays, the next look is right."""
    fake.answer = replies()
    session = await Session.connect(fake.path)

    async def then() -> None:
        assert not session._monitor._callbacks
        seen = await session.look(PIVOT)
        assert seen.has_nonce
        assert replies_due(session._monitor) == 0

    points = await everywhere(lambda: use(session), then)
    assert points >= len(When), "each use waits at least once"
    await session.close()


async def test_a_cancelled_connect_leaves_no_descriptor(fake: FakeQemu):
    """And the next one is greeted."""

    async def use() -> None:
        monitor = await Monitor.connect(fake.path)
        await monitor.close()

    assert await everywhere(use, use) >= 8


@pytest.mark.parametrize("said", [b"garbage\r\n", greeting({"qemu": {"major": 5, "minor": 2, "micro": 0}})])
async def test_a_cancelled_refusal_to_connect_leaves_no_descriptor(fake: FakeQemu, said: bytes):
    """The way out of an error is cancelled, too."""
    fake.greeting = said

    async def use() -> None:
        with pytest.raises((DomainUnreachableError, UnsupportedQemuError)):
            await Monitor.connect(fake.path)

    assert await everywhere(use, use) >= 8


async def test_a_cancelled_close_is_made_up_for(fake: FakeQemu):
    """The connection ends all the same, and a second close() is harmless."""
    monitors: list[Monitor] = []

    async def use() -> None:
        monitors[:] = [await Monitor.connect(fake.path)]
        await monitors[0].execute(command("query-status"))
        await monitors[0].close()

    async def then() -> None:
        for monitor in monitors:
            await monitor.close()
            await monitor.close()
            assert not monitor.connected

    assert await everywhere(use, then) >= 8


async def test_a_cancelled_close_leaves_no_traceback_in_the_log(fake: FakeQemu, caplog: pytest.LogCaptureFixture):
    """The reader's error is nobody's any more, and asyncio must not find it when it clears away."""
    gc.collect()  # what earlier tests have left behind is not told here
    caplog.clear()
    caplog.set_level(logging.ERROR, "asyncio")

    async def use() -> None:
        monitor = await Monitor.connect(fake.path)
        try:
            fake.push(b"no message\r\n")
            await monitor.closed()
        finally:
            await monitor.close()

    async def then() -> None:
        gc.collect()

    assert await everywhere(use, then) >= 8
    assert "never retrieved" not in caplog.text


async def test_a_cancelled_wait_for_the_end_leaves_nothing(fake: FakeQemu):
    """closed() waits as long as a connection lives."""

    async def use() -> None:
        monitor = await Monitor.connect(fake.path)
        try:
            fake.hang_up()
            await monitor.closed()
        finally:
            await monitor.close()

    assert await everywhere(use) >= 8


async def test_nobody_listens_and_the_attempt_is_cancelled(tmp_path: Path):
    """Before there is a connection at all."""

    async def use() -> None:
        with pytest.raises(DomainUnreachableError):
            await Monitor.connect(str(tmp_path / "none"))

    await everywhere(use)
