"""Calls to libvirt never block: each ends in time, and it is known whether it may still have an effect."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pivotd import limits
from pivotd.core.standing_back import patient
from pivotd.errors import QmpUnknownError, QmpUnsentError
from pivotd.libvirt.line import Line


async def test_a_call_that_hangs_is_unknown_and_the_next_one_is_never_made(monkeypatch: pytest.MonkeyPatch):
    """The first may still happen; the second was given up in the queue, also once the first returns."""
    line, free, made = Line("web1"), threading.Event(), []
    begins, wait = asyncio.Event(), asyncio.wait

    def hang() -> bool:
        loop.call_soon_threadsafe(begins.set)
        return free.wait()

    async def wait_once_it_hangs(*facts: Any, **more: Any) -> Any:
        await begins.wait()
        return await wait(*facts, **more)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(asyncio, "wait", wait_once_it_hangs)
    with pytest.raises(QmpUnknownError, match=r"libvirt has not answered the pivot within 0\.05 s"):
        await line.call("the pivot", 0.05, hang)
    with pytest.raises(QmpUnsentError, match="libvirt has not answered the pivot yet"):
        await line.call("the resume", 0.05, made.append, "late")
    free.set()
    assert await line.call("a look", 5, lambda: "answer") == "answer"
    assert made == []
    line.end()


async def test_a_caller_that_goes_away_takes_its_call_along():
    """A cancelled task must not have something done later that nobody waits for."""
    line, free, made = Line("web1"), threading.Event(), []
    first = asyncio.ensure_future(line.call("the pivot", 5, free.wait))
    second = asyncio.ensure_future(line.call("the resume", 5, made.append, "late"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    free.set()
    assert await first is True
    await line.call("a look", 5, lambda: None)
    assert made == []
    line.end()


async def test_an_error_is_the_callers():
    """As it was raised."""
    line = Line("web1")
    with pytest.raises(ZeroDivisionError):
        await line.call("a look", 5, lambda: 1 // 0)
    line.end()


async def test_one_line_does_not_wait_for_another():
    """A QEMU that hangs holds up its own domain."""
    hanging, other, free = Line("web1"), Line("web2"), threading.Event()
    waiting = asyncio.ensure_future(hanging.call("a look", 5, free.wait))
    assert await other.call("a look", 5, lambda: "answer") == "answer"
    free.set()
    assert await waiting is True
    hanging.end()
    other.end()


async def test_readers_let_others_go_first():
    """Whoever waits already, and only reads, comes after the driver, which may have a guest in its pause."""
    line, free, made = Line("web1"), threading.Event(), []
    waiting = [asyncio.ensure_future(line.call("a look", 5, free.wait))]
    with patient():
        waiting += [asyncio.ensure_future(line.call("a list", 5, made.append, number)) for number in range(3)]
    waiting.append(asyncio.ensure_future(line.call("the resume", 5, made.append, "resume")))
    await asyncio.sleep(0)
    free.set()
    await asyncio.gather(*waiting)
    assert made == ["resume", 0, 1, 2]
    line.end()


async def test_no_reader_calls_while_the_guest_is_paused(monkeypatch: pytest.MonkeyPatch):
    """But for a guest that is paused for so long that a person looks after it."""
    line, paused, made = Line("web1"), [True], []
    monkeypatch.setattr(limits, "LIBVIRT_HELD_BACK_S", 60.0)
    line.hold_back(lambda: paused[0])
    with patient():
        reading = asyncio.ensure_future(line.call("a list", 20, made.append, "read"))
    await asyncio.sleep(0)
    assert await line.call("a look", 20, made.copy) == []
    paused[0] = False
    await reading
    assert made == ["read"]
    paused[0] = True
    monkeypatch.setattr(limits, "LIBVIRT_HELD_BACK_S", 0.01)
    with patient():
        assert await line.call("a list", 20, lambda: "read") == "read"
    line.end()


def test_a_libvirtd_that_counts_anew_is_another_one():
    """Its commands to one QEMU are numbered from one; only what is seen after a loss says anything of the lost call."""
    line = Line("web1")
    for number in (20, 21, 22):
        line.passed_on(number)
    assert not line.is_anew
    line.lose()
    line.passed_on(23)
    assert not line.is_anew
    line.passed_on(13)
    line.passed_on(40)
    assert line.is_anew
    line.lose()
    line.passed_on(41)
    assert not line.is_anew


async def test_a_host_without_threads_makes_no_call_and_the_next_one_is_made():
    """A line that had taken its thread for started would never answer again."""
    line = Line("web1")
    threading.stack_size(1 << 47)  # more than an address space has: no thread can start
    try:
        with pytest.raises(QmpUnsentError, match="a look: this host gives pivotd no thread"):
            await line.call("a look", 5, lambda: "answer")
    finally:
        threading.stack_size(0)
    assert await line.call("a look", 5, lambda: "answer") == "answer"
    line.end()
