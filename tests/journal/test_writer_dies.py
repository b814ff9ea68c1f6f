"""The thread that writes dies: everybody is told, nobody waits for ever, and systemd starts the daemon again."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.core.pivot import Record
from pivotd.errors import JournalError, JournalWriteError
from pivotd.journal.journal import Journal
from pivotd.journal.reader import Reader
from tests.support.daemon import Daemon
from tests.support.manager import Manager

TIMEOUT_S = 90.0
WATCHDOG_US = 200_000


class EscapeError(BaseException):
    """What no handler of the writer takes for an error of one change."""


def dies(connection: sqlite3.Connection) -> tuple[None, list[Record]]:
    raise EscapeError("a fault of ours")


async def test_whoever_waits_and_whoever_comes_later_is_told(tmp_path: Path) -> None:
    """Of the batch that was being written the fate is open; what was queued behind and comes later is not recorded."""
    journal = Journal.open(tmp_path)
    await journal.note("before", {})
    gate = threading.Event()
    journal._writer.call(lambda _: gate.wait(TIMEOUT_S))  # until all of them wait: then the first two are one batch
    waiting = [
        journal.note("in the batch", {}),
        journal._writer.submit(dies),
        *(journal.note("n", {}) for _ in range(limits.JOURNAL_BATCH_MAX)),
    ]
    async with asyncio.timeout(TIMEOUT_S):
        told = asyncio.gather(*waiting, return_exceptions=True)
        while journal._writer._waiting < len(waiting):
            await asyncio.sleep(0)
        gate.set()
        answers = await told
        assert [type(answer) for answer in answers[:2]] == [JournalWriteError] * 2
        assert all(isinstance(answer, JournalError) for answer in answers)
        assert type(answers[-1]) is JournalError
        assert not journal.alive
        assert not journal.healthy
        with pytest.raises(JournalError, match="nothing was recorded"):
            await journal.note("later", {})
        assert not await journal.settle()
        journal.hold_checkpoints()
        journal.release_checkpoints()
        await journal.close()
    after = Journal.open(tmp_path)
    reader = Reader.attach(tmp_path)
    assert [record.event for record in reader.events(0)] == ["before"]
    reader.close()
    await after.close()


async def test_a_task_that_is_queued_behind_is_told(tmp_path: Path) -> None:
    """Settling and closing do not wait for a thread that is gone."""
    journal = Journal.open(tmp_path)
    async with asyncio.timeout(TIMEOUT_S):
        change, settled = asyncio.ensure_future(journal._writer.submit(dies)), asyncio.ensure_future(journal.settle())
        with pytest.raises(JournalWriteError):
            await change
        assert not await settled
        await journal.close()
    await Journal.open(tmp_path).close()


FAULTY = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pivotd.journal import changes
from tests.journal.test_writer_dies import dies
add = changes.add_domain
changes.add_domain = lambda name, path, uid: dies if name == "fatal" else add(name, path, uid)
from pivotd.daemon import main
main()
"""
"""A pivotd in which adding one domain raises what the writer does not expect."""


def test_systemd_is_pinged_no_more(tmp_path: Path) -> None:
    """The request that met the fault and those after it are answered, health is degraded, and the pings end."""
    manager = Manager(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": str(WATCHDOG_US)}
    with Daemon(tmp_path, {}, environment=environment, command=[sys.executable, "-c", FAULTY]) as daemon:
        manager.await_message(b"WATCHDOG=1")
        first, second = (daemon.ctl("domain", "add", name, "--qmp", "/run/none.qmp") for name in ("fatal", "later"))
        assert (first.status, first.json["error"]["kind"]) == (4, "journal-write")
        assert (second.status, second.json["error"]["kind"]) == (4, "journal")
        manager.await_message(b"STATUS=the journal's writer has died")
        for _ in range(3):  # each takes longer than the time between two pings
            daemon.ctl("domain", "ls")
        health = _health(daemon.socket)
        assert (health["status"], health["journal"]["healthy"]) == ("degraded", False)
        assert daemon.terminate() == 0
    assert [message for message in manager.end() if b"WATCHDOG" in message] == []


def _health(path: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /v1/health HTTP/1.0\r\n\r\n")
        answer = b""
        while data := client.recv(1 << 16):
            answer += data
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_a_look_that_is_cancelled_does_not_end_the_writer(tmp_path: Path) -> None:
    """Whoever asked has left; the next change is written."""
    journal = Journal.open(tmp_path)
    release = threading.Event()
    busy = journal._writer.call(lambda _connection: release.wait(TIMEOUT_S))
    look = asyncio.ensure_future(journal.added_domains())
    await asyncio.sleep(0)
    look.cancel()
    with pytest.raises(asyncio.CancelledError):
        await look
    release.set()
    assert busy.result(TIMEOUT_S)
    await journal.note("still there", {})
    assert journal.alive
    await journal.close()
