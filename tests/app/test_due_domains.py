"""A domain whose look takes long delays no other one."""

from __future__ import annotations

import asyncio

import pytest

from pivotd import limits
from pivotd.app.due_domains import DueDomains


class Looks:
    """Looks that go on until they are let go, for domains whose name begins with ``slow``."""

    def __init__(self, **options: int) -> None:
        self.begun: list[str] = []
        self.going_on, self.going_on_max = 0, 0
        self.let_go = asyncio.Event()
        self.due = DueDomains(self._look, **options)

    async def _look(self, domain: str) -> None:
        self.begun.append(domain)
        self.going_on += 1
        self.going_on_max = max(self.going_on, self.going_on_max)
        if domain.startswith("slow"):
            await self.let_go.wait()
        self.going_on -= 1

    async def until(self, *begun: str) -> None:
        async with asyncio.timeout(20):
            while self.begun != list(begun):
                await asyncio.sleep(0.01)


async def test_a_look_that_takes_long_lets_the_next_one_begin():
    looks = Looks()
    running = asyncio.ensure_future(looks.due.run())
    for name in ("slow", "web1", "web2"):
        looks.due.ask(name)
    await looks.until("slow", "web1", "web2")
    running.cancel()


async def test_a_domain_is_never_looked_at_twice_at_once():
    """What is asked for during a look is looked at after it, once."""
    looks = Looks()
    running = asyncio.ensure_future(looks.due.run())
    looks.due.ask("slow")
    await looks.until("slow")
    looks.due.ask("slow")
    looks.due.ask("slow")
    looks.due.ask("web1")
    await looks.until("slow", "web1")
    looks.let_go.set()
    await looks.until("slow", "web1", "slow")
    running.cancel()


async def test_only_so_many_looks_go_on_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "LOOK_TURN_S", 0.0)
    looks = Looks(at_once=2)
    running = asyncio.ensure_future(looks.due.run())
    for number in range(4):
        looks.due.ask(f"slow{number}")
    await looks.until("slow0", "slow1")
    looks.let_go.set()
    await looks.until("slow0", "slow1", "slow2", "slow3")
    assert looks.going_on_max == 2
    running.cancel()
