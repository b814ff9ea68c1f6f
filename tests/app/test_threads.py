"""Calls that storage may hold up: so many threads for a path, so many over all, and who comes on top hears it at once."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.host import threads
from pivotd.host.threads import in_thread
from tests.support import waiting
from tests.support.hung_storage import HungStorage

SHORT_S = 0.05
LONG_S = 60.0


class Storage:
    """Calls hang in it until it is released."""

    def __init__(self) -> None:
        self._released = threading.Event()
        self.entered = 0

    def look(self) -> str:
        self.entered += 1
        self._released.wait()
        return "seen"

    def release(self) -> None:
        self._released.set()


@pytest.fixture
async def storage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Storage]:
    monkeypatch.setattr(limits, "FILE_TIMEOUT_S", SHORT_S)
    found = Storage()
    yield found
    found.release()
    await until(lambda: threads.running() == 0)


@pytest.fixture
def at_work(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a thread come to the storage, or to its end, before its caller's patience is looked at."""
    starts = threads.starts

    def begins(thread: threading.Thread) -> bool:
        entered = storage.entered
        return starts(thread) and waiting.until(lambda: storage.entered > entered or not thread.is_alive())

    monkeypatch.setattr(threads, "starts", begins)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.001)


async def hang(storage: Storage, path: str) -> None:
    with pytest.raises(TimeoutError, match=path):
        await in_thread(SHORT_S, storage.look, paths=[path])


async def all_hang() -> None:
    """Wait until every call counts as one that hangs: its thread may have begun a little after its caller's patience."""
    await until(lambda: all(call.hangs for call in list(threads._running)))


@pytest.mark.usefixtures("at_work")
async def test_who_comes_after_a_call_that_hangs_is_refused_at_once(storage: Storage):
    """One line with the path, and no thread."""
    await hang(storage, "/nfs/a")
    await all_hang()
    started_s = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^the storage of /nfs/a does not answer$"):
        await in_thread(60, storage.look, paths=["/other", "/nfs/a"])
    assert time.monotonic() - started_s < 30
    assert storage.entered == 1


async def test_calls_at_once_share_the_threads_of_a_path(storage: Storage):
    """None is refused while the path may still answer: they wait for their turn, within their time."""
    calls = [asyncio.ensure_future(in_thread(60, storage.look, paths=["/nfs/a"])) for _ in range(80)]
    await until(lambda: storage.entered == limits.PATH_THREADS_MAX)
    assert threads.running() == limits.PATH_THREADS_MAX
    assert await in_thread(60, lambda: "at once", paths=["/nfs/b"]) == "at once"
    storage.release()
    assert await asyncio.gather(*calls) == ["seen"] * 80


async def test_a_waiter_s_time_counts_from_when_it_came(storage: Storage):
    """Waiting for a turn is part of it."""
    calls = [asyncio.ensure_future(in_thread(60, storage.look, paths=["/a"])) for _ in range(limits.PATH_THREADS_MAX)]
    await until(lambda: threads.running() == len(calls))
    await hang(storage, "/a")
    storage.release()
    await asyncio.gather(*calls)


@pytest.mark.usefixtures("at_work")
async def test_a_bound_over_all(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    """Whatever the paths are; the line says which storage it is that holds them."""
    monkeypatch.setattr(limits, "THREADS_MAX", 3)
    for number in range(3):
        await hang(storage, f"/dev/nbd{number}")
    await all_hang()
    with pytest.raises(TimeoutError, match=r"^the storage of /dev/nbd0 and 2 others does not answer; .*/well"):
        await in_thread(60, storage.look, paths=["/well"])
    assert storage.entered == 3


async def test_a_file_system_that_hangs_leaves_threads_for_the_others(storage: Storage, tmp_path: Path):
    """However many images are on it."""
    hung, well = tmp_path / "hung", tmp_path / "well"
    hung.mkdir()
    well.touch()
    with HungStorage(hung):
        looks = [str(hung / f"{number}.qcow2") for number in range(limits.THREADS_MAX + 1)]
        for path in looks:
            with pytest.raises(TimeoutError, match=str(hung)):
                await in_thread(SHORT_S, os.stat, path, paths=[path])
            await all_hang()
        assert threads.running() == limits.MOUNT_THREADS_MAX
        assert (await in_thread(60, os.stat, str(well), paths=[str(well)])).st_size == 0


async def test_a_path_is_free_again_once_its_storage_has_answered(storage: Storage):
    """However late."""
    await hang(storage, "/nfs/a")
    storage.release()
    await until(lambda: threads.running() == 0)
    assert await in_thread(60, storage.look, paths=["/nfs/a"]) == "seen"


async def test_a_cancelled_caller_leaves_its_thread_counted(storage: Storage):
    """The thread hangs on, whoever has gone."""
    call = asyncio.ensure_future(in_thread(60, storage.look, paths=["/nfs/a"]))
    await until(lambda: storage.entered == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert threads.running() == 1


async def test_what_the_function_raises_is_raised():
    """And its thread is free."""

    def fail() -> None:
        raise OSError("no such thing")

    for _ in range(limits.THREADS_MAX + 1):
        with pytest.raises(OSError, match="no such thing"):
            await in_thread(60, fail, paths=["/a"])


@pytest.mark.usefixtures("at_work")
async def test_a_call_says_which_of_its_paths_it_looks_at(storage: Storage):
    """Only that one is blamed where it hangs."""

    def look() -> str:
        threads.look_at("/nfs/b")
        return storage.look()

    with pytest.raises(TimeoutError, match=r"^the storage of /nfs/b does not answer$"):
        await in_thread(SHORT_S, look, paths=["/well/a", "/nfs/b"])
    assert await in_thread(60, lambda: "seen", paths=["/well/a"]) == "seen"


async def test_a_time_limit_of_the_function_s_own_is_raised():
    """NFS that gives up says so by itself."""

    def fail() -> None:
        raise TimeoutError("Connection timed out")

    with pytest.raises(TimeoutError, match="Connection timed out"):
        await in_thread(60, fail, paths=["/nfs/a"])


async def test_a_host_without_threads_is_like_storage_that_does_not_answer(storage: Storage):
    """Whoever asks can handle that: any other error has ended a task of the daemon, and the daemon with it."""
    threading.stack_size(1 << 47)  # more than an address space has: no thread can start
    try:
        with pytest.raises(TimeoutError, match=r"gives pivotd no thread to look at /nfs/a$"):
            await in_thread(SHORT_S, storage.look, paths=["/nfs/a"])
    finally:
        threading.stack_size(0)
    assert threads.running() == 0
    storage.release()
    assert await in_thread(60, storage.look, paths=["/nfs/a"]) == "seen"


@pytest.mark.usefixtures("at_work")
async def test_each_of_many_paths(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    """What hangs costs itself alone, whoever looked there before."""
    monkeypatch.setattr(limits, "FILES_AT_ONCE", 8)
    paths, entered = [f"/p{number}" for number in range(20)], 0

    def look(path: str) -> str:
        return storage.look() if path == "/p3" else path

    for _ in range(3):
        found, silent = await threads.of_each(1, look, {path: path for path in paths})
        assert found == {path: path for path in paths if path != "/p3"}
        assert silent == {"/p3": "the storage of /p3 does not answer"}
        await all_hang()
        # The first call may be just about to count as one that hangs when this path is looked at alone.
        entered = entered or storage.entered
        assert storage.entered == entered
    assert entered <= 2
    assert await threads.of_each(60, look, {}) == ({}, {})
    storage.release()
    await until(lambda: threads.running() == 0)
    found, silent = await threads.of_each(60, look, {path: path for path in paths})
    assert (found.keys(), silent) == ({*paths}, {})


@pytest.mark.usefixtures("at_work")
async def test_a_call_that_was_given_up_keeps_no_thread_from_its_other_paths(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    """Not even before it counts as hanging."""
    monkeypatch.setattr(limits, "FILE_TIMEOUT_S", 60.0)

    def look() -> str:
        threads.look_at("/hung")
        return storage.look()

    for _ in range(limits.PATH_THREADS_MAX):
        with pytest.raises(TimeoutError, match=r"^the storage of /hung does not answer$"):
            await in_thread(SHORT_S, look, paths=["/hung", "/well"])
    assert await in_thread(60, lambda: "seen", paths=["/well"]) == "seen"
    with pytest.raises(TimeoutError, match="/hung"):
        await in_thread(SHORT_S, storage.look, paths=["/hung"])
    assert storage.entered == limits.PATH_THREADS_MAX


async def test_a_call_whose_caller_has_given_up_leaves_its_other_paths(storage: Storage) -> None:
    """Who waits for one of those gets its turn at once, not when the calls count as hanging."""

    def look() -> str:
        threads.look_at("/hung")
        return storage.look()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await in_thread(SHORT_S, look, paths=["/hung", "/free"])

    async def wait() -> float:
        begun = time.monotonic()
        await in_thread(limits.FILE_TIMEOUT_S, str, paths=["/free"])
        return time.monotonic() - begun

    limits.FILE_TIMEOUT_S = LONG_S  # the fixture puts it back
    given_up = [asyncio.ensure_future(give_up()) for _ in range(limits.PATH_THREADS_MAX)]
    await until(lambda: storage.entered == limits.PATH_THREADS_MAX)
    assert await wait() < LONG_S / 2
    await asyncio.gather(*given_up)
