"""A damaged journal: refused in one line or read, never half understood, and never changed by a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pivotd.app.registry import RUNTIME, Host
from pivotd.cli.journal_answers import OfflineJournal
from pivotd.core.pivot import Pivot
from pivotd.daemon import SystemClock
from pivotd.engine.converge import Converger
from pivotd.engine.driver import Driver
from pivotd.errors import EXIT_REFUSED, JournalCorruptError, JournalError, NotFoundError
from pivotd.host.flush import Flusher
from pivotd.journal.journal import Journal
from tests.cli.ctl import ctl
from tests.fuzz.budget import SEED, examples
from tests.fuzz.damage import DAMAGES, FILES, originals, values
from tests.support.daemon import Daemon

READ_ROUNDS, OPEN_ROUNDS, DRIVE_ROUNDS, PROCESS_ROUNDS = 75, 50, 30, 6
DRIVE_S = 30.0
EXITS = {0, 2, 4, 6}


@pytest.fixture(scope="module")
def sound() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="pj") as directory:
        yield originals(Path(directory))


def _contents(state_dir: Path) -> dict[str, bytes]:
    """Return every file but the lock and the shared memory, which are nobody's record."""
    ours = {"journal.lock", "journal.db-shm", *(f"{name}-shm" for name in FILES)}
    return {path.name: path.read_bytes() for path in state_dir.iterdir() if path.name not in ours}


def _shown(answer: Any) -> str:
    return json.dumps(msgspec.to_builtins(answer))


def _read_all(state_dir: Path) -> None:
    """Read everything that pivotctl can show, as it would be shown."""
    journal = OfflineJournal(str(state_dir))
    try:
        for pivot in journal.pivots(limit=1000):
            _shown(journal.pivot(pivot.id))
        _shown([journal.domains(), journal.verdicts(None, None), list(journal.events(0))])
    finally:
        journal.close()


def _check_line(message: str, what: str) -> None:
    assert message.isprintable(), f"{what}: {message!r}"


async def _open(state_dir: Path) -> None:
    journal = Journal.open(state_dir)
    try:
        journal.open_pivots()
        journal.domains()
        # Damage may show only here; that nothing is left for a record must not.
        with contextlib.suppress(JournalCorruptError):
            await journal.note("opened", {})
    finally:
        await journal.close()


async def _drive(state_dir: Path) -> None:
    """Open, look after every open pivot, and end, like the daemon; its QEMU is gone."""
    journal = Journal.open(state_dir)
    clock, drivers = SystemClock(), []

    def make(pivot: Pivot, domain: Any) -> Driver:
        drivers.append(Driver(pivot, domain, journal, clock, Converger(Flusher(), clock)))
        return drivers[-1]

    host = Host(make)
    running = asyncio.ensure_future(host.run())
    try:
        await host.started()
        pivots: defaultdict[str, list[Pivot]] = defaultdict(list)
        for pivot in journal.open_pivots():
            pivots[pivot.domain].append(pivot)
        for name, own in pivots.items():
            host.add(name, own[-1].qmp, RUNTIME, own)
        async with asyncio.timeout(DRIVE_S):
            await host.all_looked()
            host.end()
            await asyncio.shield(running)
        for driver in drivers:
            assert not driver.waits_for.startswith("another try"), driver.waits_for
    finally:
        running.cancel()
        await asyncio.wait([running])
        await journal.close()


def _damaged(number: int, sound: tuple[Path, Path], directory: Path, label: str) -> tuple[Path, str]:
    rng = random.Random(f"{SEED}/{label}/{number}")
    state_dir = directory / str(number)
    shutil.copytree(rng.choice(sound), state_dir)
    damage = DAMAGES[number % len(DAMAGES)]
    return state_dir, f"PIVOTD_SEED={SEED}, {label} {number}, {damage.__name__}: {damage(rng, state_dir)}"


def test_reading_a_damaged_journal_is_a_typed_error_or_an_answer(sound: tuple[Path, Path], tmp_path: Path):
    """And changes nothing, whichever it is."""
    for number in range(examples(READ_ROUNDS)):
        state_dir, what = _damaged(number, sound, tmp_path, "read")
        before = _contents(state_dir)
        try:
            _read_all(state_dir)
        except JournalError as error:
            _check_line(error.message, what)
        except NotFoundError:
            pass  # "not found": the client makes one line of it when it is shown
        except Exception as error:
            error.add_note(what)
            raise
        assert _contents(state_dir) == before, what
        shutil.rmtree(state_dir)


def test_opening_a_damaged_journal_is_a_typed_error_or_works(sound: tuple[Path, Path], tmp_path: Path):
    """One that is refused is left as it was."""
    for number in range(examples(OPEN_ROUNDS)):
        state_dir, what = _damaged(number, sound, tmp_path, "open")
        before = _contents(state_dir)
        try:
            asyncio.run(_open(state_dir))
        except JournalError as error:
            _check_line(error.message, what)
            if "nothing was recorded" not in error.message:
                assert _contents(state_dir) == before, what
        except Exception as error:
            error.add_note(what)
            raise
        shutil.rmtree(state_dir)


def test_what_can_be_opened_can_be_driven(sound: tuple[Path, Path], tmp_path: Path):
    """Wrong values are found before a driver works with them."""
    for number in range(examples(DRIVE_ROUNDS)):
        state_dir = tmp_path / str(number)
        shutil.copytree(sound[0], state_dir)
        rng = random.Random(f"{SEED}/drive/{number}")
        what = f"PIVOTD_SEED={SEED}, drive {number}: {values(rng, state_dir)}"
        try:
            asyncio.run(_drive(state_dir))
        except JournalError as error:
            _check_line(error.message, what)
        except BaseException as error:
            error.add_note(what)
            raise
        shutil.rmtree(state_dir)


def test_a_journal_without_a_number_left_is_refused(sound: tuple[Path, Path], tmp_path: Path):
    """SQLite says that the disk is full, and a guest in its pause would wait for space."""
    for number in (2**63 - 1, -1):
        state_dir = tmp_path / str(number)
        shutil.copytree(sound[0], state_dir)
        with contextlib.closing(sqlite3.connect(state_dir / FILES[0])) as connection:
            connection.execute("INSERT INTO record VALUES (?, 'at', NULL, NULL, 'event', NULL, '{}')", (number,))
            connection.commit()
        with pytest.raises(JournalCorruptError, match="has number"):
            Journal.open(state_dir)


def test_the_programs_say_one_line_or_work(sound: tuple[Path, Path]):
    """The client without a daemon, then the daemon itself: exit status, no traceback, no hang."""
    for number in range(examples(PROCESS_ROUNDS)):
        with tempfile.TemporaryDirectory(prefix="pj") as name:
            state_dir, what = _damaged(number * 7, sound, Path(name), "process")
            for arguments in (["verdict"], ["pivot", "ls"], ["--json", "events"]):
                answer = ctl("--offline", state_dir, *arguments)
                assert answer.status in EXITS, f"{what}: {arguments}: {answer}"
                assert answer.status in {0, 6} or len(answer.stderr.splitlines()) <= 1, f"{what}: {answer}"
            _check_daemon(state_dir, Path(name), what)


def _check_daemon(state_dir: Path, directory: Path, what: str) -> None:
    daemon = Daemon(directory, {})
    shutil.rmtree(daemon.state_dir)
    shutil.copytree(state_dir, daemon.state_dir)
    before = _contents(daemon.state_dir)
    try:
        ready = _is_ready(daemon.start(wait=False))
        status = daemon.terminate()
        log = daemon.log_path.read_text()
        assert status == (0 if ready else EXIT_REFUSED), f"{what}: {status}: {log}"
        if not ready:
            assert len(log.splitlines()) == 1, f"{what}: {log}"
            assert _contents(daemon.state_dir) == before, what
        assert "Traceback" not in log, f"{what}: {log}"
        assert "pivot.failed" not in log, f"{what}: {log}"
    except subprocess.TimeoutExpired as error:
        error.add_note(f"{what}: {daemon.log_path.read_text()}")
        raise
    finally:
        daemon.kill()


def _is_ready(daemon: Daemon) -> bool:
    try:
        daemon.await_ready()
    except RuntimeError:
        return False
    return True
