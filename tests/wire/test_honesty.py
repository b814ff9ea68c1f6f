"""What an error says of a command is compared with what the server knows of it, over random conversations."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from pivotd.errors import DomainUnreachableError, QmpRefusedError, QmpUnknownError, QmpUnsentError
from pivotd.qmp.monitor import Monitor, command
from tests.support.cancel import Leftovers
from tests.support.seeds import seed
from tests.wire.server import FakeQemu, Json, event, line

ROUNDS = int(os.environ.get("PIVOTD_WIRE_ROUNDS", "60"))
COMMANDS = 12
BEHAVIOURS = ("answer", "refuse", "silent", "late", "close before", "close after", "event", "odd", "garbage")
WEIGHTS = (40, 15, 5, 10, 4, 4, 20, 3, 3)


class Conversation:
    """One server with a random mind, and a client that believes what it is told."""

    def __init__(self, rng: random.Random, path: Path) -> None:
        self.rng = rng
        self.fake = FakeQemu(path, self.answer)
        self.ran: set[str] = set()
        self.refused: set[str] = set()
        self.log: list[str] = []

    async def answer(self, asked: Json) -> Json | None:
        name = asked["execute"]
        (how,) = self.rng.choices(BEHAVIOURS, WEIGHTS)
        self.log.append(f"server: {name}: {how}")
        if how == "refuse":
            self.refused.add(name)
            return {"error": {"class": "GenericError", "desc": "no"}}
        if how == "close before":
            self.fake.hang_up()
            return None
        self.ran.add(name)
        match how:
            case "silent":
                return None
            case "late":
                self.fake.push(line({"return": "late", "id": f"not {asked['id']}"}))
            case "close after":
                self.fake.hang_up()
                return None
            case "event":
                self.fake.push(event("JOB_STATUS_CHANGE", id=name, status="ready"))
            case "odd":
                return {"neither": 1}
            case "garbage":
                self.fake.push(b"{]\r\n")
                return None
        return {"return": name}

    def check(self, names: list[str], outcome: Any) -> None:
        """Compare what the client was told with what the server did."""
        self.log.append(f"client: {names}: {outcome!r}")
        if isinstance(outcome, QmpUnsentError):
            assert not set(names) & set(self.fake.received), "unsent, but it arrived"
        elif isinstance(outcome, QmpUnknownError):
            return
        else:
            for name, reply in zip(names, outcome, strict=True):
                if isinstance(reply, QmpRefusedError):
                    assert name in self.refused, "refused, but it was not"
                else:
                    assert reply == name, "the answer of another"
                    assert name in self.ran, "a value, but it never ran"

    async def hold(self) -> None:
        async with self.fake:
            number = 0
            while number < COMMANDS:
                monitor = await Monitor.connect(self.fake.path)
                try:
                    while number < COMMANDS:
                        size = self.rng.randint(1, 4)
                        names = [f"c{number}.{index}" for index in range(size)]
                        number += 1
                        try:
                            outcome: Any = await monitor.burst([command(name) for name in names], 0.05)
                        except (QmpUnsentError, QmpUnknownError) as error:
                            outcome = error
                        self.check(names, outcome)
                        if isinstance(outcome, QmpUnsentError):
                            break
                finally:
                    await monitor.close()
                    assert not monitor._client._pending


async def test_an_error_never_claims_more_than_is_true():
    """Unsent: it never arrived. Refused: QEMU refused it. A value: it ran, and it is its own. Else: unknown."""
    chosen = seed()
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="pw") as directory:
            conversation = Conversation(random.Random(f"{chosen}/{number}"), Path(directory) / "q")
            left = Leftovers()
            try:
                async with asyncio.timeout(60):
                    await conversation.hold()
                await left.nothing()
            except (AssertionError, DomainUnreachableError, TimeoutError) as error:
                error.add_note(f"PIVOTD_SEED={chosen}, round {number}\n" + "\n".join(conversation.log))
                raise


async def test_commands_that_wait_when_their_client_leaves_never_run(tmp_path: Path):
    """The next client's connection proves that: QEMU drops the queue, and pivotd's look comes after."""
    async with FakeQemu(tmp_path / "q") as fake:
        monitor = await Monitor.connect(fake.path)
        fake.gate.clear()
        waiting = asyncio.ensure_future(monitor.burst([command("stop"), command("job-finalize", id="j")], 10))
        while len(fake.received) < 2:
            await asyncio.sleep(0)
        await monitor.close()
        try:
            await waiting
            raise AssertionError("an answer that nobody gave")
        except QmpUnknownError:
            pass
        fake.gate.set()
        again = await Monitor.connect(fake.path)
        assert await again.execute(command("query-status")) == {}
        await again.close()
        assert fake.executed == ["query-status"]
