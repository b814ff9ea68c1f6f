"""Whether ``cont`` may leave: what is asked right before it, of a QEMU that plays a migration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from pivotd.errors import QmpRefusedError, QmpUnknownError
from pivotd.qmp.session import Session
from tests.wire.server import FakeQemu, Json, event

Use = Callable[[Session], Coroutine[Any, Any, None]]
USES: dict[str, Use] = {
    "resume": lambda session: session.resume(),
    "cancel": lambda session: session.cancel(["job"], resume=True),
}


@pytest.fixture(params=USES)
def use(request: pytest.FixtureRequest) -> Use:
    return USES[request.param]


@pytest.fixture
async def session(fake: FakeQemu) -> AsyncIterator[Session]:
    session = await Session.connect(fake.path)
    fake.executed.clear()
    yield session
    await session.close()


def migration(fake: FakeQemu, *looks: tuple[str, str]) -> None:
    """Let looks show one pair of migration and run state after the other, then the last one."""
    left = list(looks)

    async def answer(message: Json) -> Json:
        match message["execute"]:
            case "query-migrate":
                return {"return": {"status": left[0][0]}}
            case "query-status":
                state = left[0][1]
                if len(left) > 1:
                    left.pop(0)
                return {"return": {"status": state, "running": False}}
        return {"return": {}}

    fake.answer = answer


async def test_a_guest_in_its_pause_runs_on(fake: FakeQemu, session: Session, use: Use):
    """One look, then cont."""
    migration(fake, ("completed", "paused"))  # it came to this host so
    await use(session)
    assert fake.executed[:2] == ["query-migrate", "query-status"]
    assert fake.executed.count("query-migrate") == 1
    assert fake.executed[-1] == "cont"


async def test_the_question_before_cont_is_asked_every_time(fake: FakeQemu, session: Session, use: Use):
    """What an earlier one has found says nothing of now: a guest may be migrated away within milliseconds."""
    migration(fake, ("none", "paused"), ("completed", "postmigrate"))
    await use(session)
    with pytest.raises(QmpRefusedError, match="postmigrate"):
        await use(session)
    assert fake.executed.count("cont") == 1


async def test_a_connection_that_is_lost_before_the_answer_lets_nothing_run(fake: FakeQemu, session: Session, use: Use):
    """Without an answer nobody knows whether the guest is still here."""
    fake.gate.clear()
    asked = asyncio.ensure_future(use(session))
    while len(fake.received) < 2:
        await asyncio.sleep(0)
    fake.hang_up()
    with pytest.raises(QmpUnknownError):
        await asked
    assert "cont" not in fake.received


async def test_a_migration_that_is_about_to_end_is_waited_for(fake: FakeQemu, session: Session, use: Use):
    """The guest has left by then: it is not started a second time."""
    migration(fake, ("active", "paused"), ("device", "paused"), ("completed", "postmigrate"))
    with pytest.raises(QmpRefusedError, match="postmigrate"):
        await use(session)
    assert fake.executed == ["query-migrate", "query-status"] * 3


async def test_a_migration_that_fails_lets_the_guest_run_on(fake: FakeQemu, session: Session, use: Use):
    """It is still here."""
    migration(fake, ("active", "paused"), ("failed", "paused"))
    await use(session)
    assert fake.executed[:4] == ["query-migrate", "query-status"] * 2
    assert fake.executed[-1] == "cont"


async def test_a_resume_by_somebody_else_meanwhile(fake: FakeQemu, session: Session, use: Use):
    """Whatever holds the guest after that is not pivotd's pause, although it looks the same."""
    migration(fake, ("none", "paused"))
    usual = fake.answer

    async def answer(message: Json) -> Json | None:
        if message["execute"] == "query-status":
            fake.push(event("RESUME"))
            fake.push(event("STOP"))
        return await usual(message)

    fake.answer = answer
    with pytest.raises(QmpRefusedError, match="another client"):
        await use(session)
    assert fake.executed == ["query-migrate", "query-status"]
