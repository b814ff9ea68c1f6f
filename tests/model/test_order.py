"""The order of records and commands in one pivot that nobody disturbs: docs/protocol.md, the steps."""

from __future__ import annotations

import asyncio

import pytest

from pivotd.core.pivot import Phase
from tests.model import stepped
from tests.model.explore import Bounds, first_world
from tests.model.session import model_kernel
from tests.model.world import World
from tests.support.moves import Move

STEPS_MAX = 60
BEFORE, AFTER = "record:pausing stop", "cont record:resumed job-dismiss"
SWITCH = {
    Move.COPY: "job-complete job-finalize record:switched",
    Move.COMMIT: "job-complete job-finalize record:switched",
    Move.INNER_COMMIT: "job-finalize record:merged",
    Move.PULL: "job-finalize record:merged",
    Move.SNAPSHOT: "transaction record:switched",
}


def played(world: World) -> list[str]:
    """Play a pivot to its end; return its records and pivotd's commands, in order."""

    async def pause(_changed: asyncio.Event, timeout_s: float) -> None:
        await world.pause(_changed, timeout_s)

    story: list[str] = []
    with model_kernel(lambda: world, pause):
        for _ in range(STEPS_MAX):
            world.refresh(())
            world.trace = story
            stepped.step(world)
            if world.durable.phase is Phase.CLOSED:
                break
    words = [line.split() for line in story]
    return [
        f"record:{line[1]}" if line[0] == "record:" else line[1] for line in words if line[0] in {"record:", "pivotd:"}
    ]


@pytest.mark.parametrize("move", Move)
def test_records_and_commands_come_in_the_order_of_the_protocol(move: Move):
    """The intent before `stop`, `stop` before anything that moves a root, the outcome before `cont`, then the rest."""
    order = played(first_world(Bounds(crashes=0, faults=0, move=move)))
    wanted = f"{BEFORE} {SWITCH[move]} {AFTER}".split()
    begin = order.index(wanted[0])
    assert list(dict.fromkeys(order[begin:]))[: len(wanted)] == wanted
