"""The way of one host to etcd: a proxy before each node, all in one thread, and a hand on each message of a pivot.

    with Wires(cluster.urls) as wires:
        struck = wires.arm(Message.PUBLISH, Place.ANSWER_LOST)
        struck.reached.wait(60)     # etcd has it, and nobody was told
        ...                         # kill
        wires.go_on()

A client that has no answer sends a copy to another node; while a message is held, its copies are held with it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self, TypeVar

from tests.fleet.proxy import TXN, Fate, Proxy

CALL_TIMEOUT_S = 60.0
DELAY_MAX_S = 0.3
T = TypeVar("T")


class Message(StrEnum):
    """The transactions of the protocol."""

    CLAIM = "claim"
    """It looks like a publication if it enters a guest that was forgotten, with its images."""
    INTEND = "intend"
    PUBLISH = "publish"
    WITHDRAW = "withdraw"
    RELEASE = "release"
    TAKE = "take"
    """By pivotctl: whatever the host of the take-over writes."""


class Place(StrEnum):
    """Where on its way a message is struck."""

    BEFORE = "before"
    """It does not arrive."""
    AFTER = "after"
    """It was answered."""
    ANSWER_LOST = "answer lost"
    LATE = "late"
    """It is delivered by deliver()."""


_FATES = {Place.BEFORE: Fate.LOST, Place.AFTER: Fate.PASS, Place.ANSWER_LOST: Fate.ANSWER_LOST, Place.LATE: Fate.LATE}
_NOISE = (Fate.LOST, Fate.ANSWER_LOST, Fate.REFUSED, Fate.CLOSED, Fate.LATE, Fate.TWICE)


@dataclass
class Struck:
    """A message that is waited for. ``reached`` is set when it is where it is to be struck."""

    message: Message
    place: Place
    reached: threading.Event = field(default_factory=threading.Event)
    body: bytes | None = None


def message_of(request: bytes) -> Message | None:
    """Return what a transaction is, None if it is about no domain. A take-over looks like a claim or a publication."""
    changes = json.loads(_body(request))["success"]
    puts = {_text(put["key"]): _text(put["value"]) for change in changes if (put := change.get("requestPut"))}
    owner = next((json.loads(value) for key, value in puts.items() if key.endswith("/owner")), None)
    if owner is None:
        return None
    if owner.get("host") is None:
        return Message.RELEASE
    if any(key.endswith("/intent") for key in puts):
        return Message.INTEND
    if any("/disks/" in key for key in puts):
        return Message.PUBLISH
    deletes = [_text(change["requestDeleteRange"]["key"]) for change in changes if "requestDeleteRange" in change]
    return Message.WITHDRAW if any(key.endswith("/intent") for key in deletes) else Message.CLAIM


class Wires:
    """The proxies of one host; ``urls`` are its endpoints. The proxies run while the block is open."""

    def __init__(self, targets: tuple[str, ...]) -> None:
        self._targets = targets
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._stack = AsyncExitStack()
        self._proxies: list[Proxy] = []
        self._struck: Struck | None = None
        self._go = asyncio.Event()
        self._noise: random.Random | None = None
        self._share = 0.0
        self._losing: Message | None = None
        self.cut = False
        """Whether nothing passes at all."""

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()

    @property
    def urls(self) -> list[str]:
        """Return where the host reaches each node."""
        return [proxy.url for proxy in self._proxies]

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run something in the thread of the proxies, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(CALL_TIMEOUT_S)

    def arm(self, message: Message, place: Place) -> Struck:
        """Strike the next message of this kind."""
        self._go = asyncio.Event()
        self._struck = struck = Struck(message, place)
        return struck

    def go_on(self) -> None:
        """Let a struck message take its fate, and strike none."""
        self._struck = None
        self._loop.call_soon_threadsafe(self._go.set)

    def make_noise(self, rng: random.Random, share: float) -> None:
        """Let this share of all transactions be lost, late, doubled or slow."""
        self._noise, self._share = rng, share

    def lose_answers_of(self, message: Message | None) -> None:
        """Let every message of this kind be carried out, and never be answered; None: no more."""
        self._losing = message

    def deliver(self) -> None:
        """Deliver what was kept back; what was for a node that has not started yet is lost with its connection."""
        for proxy in self._proxies:
            with contextlib.suppress(OSError):
                self.run(proxy.deliver())

    async def _open(self) -> None:
        for target in self._targets:
            proxy = await self._stack.enter_async_context(Proxy(target))
            proxy.decide, proxy.on_carried_out = self._decide, self._on_carried_out
            self._proxies.append(proxy)

    async def _decide(self, path: str, request: bytes) -> Fate | None:
        if self.cut:
            return Fate.REFUSED
        if path != TXN:
            return None
        if (struck := self._struck) is not None and self._is_it(struck, request):
            go = self._go
            struck.body = _body(request)
            if struck.place in {Place.BEFORE, Place.LATE}:
                struck.reached.set()
                await go.wait()
            return _FATES[struck.place]
        if self._losing is not None and message_of(request) is self._losing:
            return Fate.CLOSED
        if self._noise is not None and self._noise.random() < self._share:
            if self._noise.random() < 0.5:
                await asyncio.sleep(self._noise.uniform(0.0, DELAY_MAX_S))
                return Fate.PASS
            return self._noise.choice(_NOISE)
        return None

    @staticmethod
    def _is_it(struck: Struck, request: bytes) -> bool:
        if struck.body is not None:
            return struck.body == _body(request)
        found = message_of(request)
        if struck.message is Message.TAKE:
            return found is not None
        return found is struck.message or (struck.message, found) == (Message.CLAIM, Message.PUBLISH)

    def _on_carried_out(self, request: bytes) -> None:
        if (struck := self._struck) is not None and struck.body == _body(request):
            struck.reached.set()


def _body(request: bytes) -> bytes:
    return request.partition(b"\r\n\r\n")[2]


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()
