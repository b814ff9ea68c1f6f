"""Whether ``cont`` may leave: what is asked right before it, of a QEMU that plays a migration."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from pivotd import limits
from pivotd.errors import QmpError, QmpRefusedError
from pivotd.qmp.session import Session
from tests.support.cancel import replies_due
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


async def test_what_was_asked_ahead_is_not_asked_again(
    fake: FakeQemu, session: Session, use: Use, monkeypatch: pytest.MonkeyPatch
):
    """Once; the second time is another pause."""
    monkeypatch.setattr(limits, "AHEAD_S", 10.0)  # whatever this machine is busy with
    migration(fake, ("none", "paused"))
    session.look_ahead()
    await use(session)
    await use(session)
    assert [name for name in fake.executed if name != "job-cancel"] == ["query-migrate", "query-status", "cont"] * 2


async def test_what_was_asked_long_ago_does_not_count(fake: FakeQemu, session: Session, use: Use):
    """The guest may have been migrated away since."""
    migration(fake, ("none", "paused"), ("completed", "postmigrate"))
    session.look_ahead()
    await asyncio.sleep(10 * limits.AHEAD_S)
    with pytest.raises(QmpRefusedError, match="postmigrate"):
        await use(session)
    assert fake.executed == ["query-migrate", "query-status"] * 2


@pytest.mark.parametrize("ahead", [("active", "paused"), ("none", "io-error")])
async def test_what_was_seen_ahead_and_forbids_it_is_asked_again(
    fake: FakeQemu, session: Session, use: Use, monkeypatch: pytest.MonkeyPatch, ahead: tuple[str, str]
):
    """Only what allows it counts."""
    monkeypatch.setattr(limits, "AHEAD_S", 10.0)
    migration(fake, ahead, ("completed", "postmigrate"))
    session.look_ahead()
    with pytest.raises(QmpRefusedError, match="postmigrate"):
        await use(session)
    assert fake.executed == ["query-migrate", "query-status"] * 2


async def test_a_resume_by_somebody_else_since_what_was_asked_ahead(
    fake: FakeQemu, session: Session, use: Use, monkeypatch: pytest.MonkeyPatch
):
    """It is asked again, as if nothing had been asked."""
    monkeypatch.setattr(limits, "AHEAD_S", 10.0)
    migration(fake, ("none", "paused"), ("none", "io-error"))
    session.look_ahead()
    while len(fake.executed) < 2:
        await asyncio.sleep(0)
    fake.push(event("RESUME"))
    with pytest.raises(QmpRefusedError, match="io-error"):
        await use(session)
    assert fake.executed == ["query-migrate", "query-status"] * 2


async def test_a_connection_lost_after_asking_ahead(
    fake: FakeQemu, session: Session, use: Use, caplog: pytest.LogCaptureFixture
):
    """Nobody waits for the answer yet; the loop does not complain of it, and nothing runs."""
    fake.gate.clear()
    session.look_ahead()
    fake.hang_up()
    await session.closed()
    with pytest.raises(QmpError):
        await use(session)
    assert "cont" not in fake.executed
    session.look_ahead()  # of a connection that is gone: nothing to ask
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_what_was_asked_ahead_and_not_used_is_forgotten(fake: FakeQemu, session: Session):
    """At most one such question is kept, however often a pause ends in another way."""
    for _ in range(100):
        session.look_ahead()
    assert replies_due(session._monitor) == 2


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
    with pytest.raises(QmpRefusedError, match="somebody else"):
        await use(session)
    assert fake.executed == ["query-migrate", "query-status"]
