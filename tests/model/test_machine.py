"""Rung 3: hypothesis plays crashes, cancels, deadlines, disconnects and other people against one pivot.

The journal is the real one, on disk; the driver is the real one, in virtual time; QEMU is the model. PIVOTD_SEED
repeats a run, PIVOTD_EXAMPLES makes it longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import pivotd.qmp.rollback
from pivotd.core import names
from pivotd.core.pivot import Phase, Pivot
from tests.conftest import LONG
from tests.model import invariants
from tests.model.explore import Bounds, first_world
from tests.model.live import COMMAND_S, LiveJournal, LiveWorld, VirtualLoop
from tests.model.messages import WHO
from tests.model.session import model_kernel
from tests.support.moves import Move
from tests.support.seeds import seed

MEDDLINGS_MAX = 6
"""Of other people in one example."""
EXAMPLES = int(os.environ.get("PIVOTD_EXAMPLES", "1000" if LONG else "200"))
STEPS = 14
REST_WITHIN_S = 90.0
"""Virtual time in which a pivot comes to rest once nothing more goes wrong: every attempt, its pause and back-off."""
NAMES = itertools.count(1)
BEFORE_THE_PAUSE = frozenset({Phase.PREPARING, Phase.COPYING, Phase.READY})


class Machine(RuleBasedStateMachine):
    """One pivot and everything that may happen to it."""

    directory: Path
    loop: VirtualLoop
    journal: LiveJournal | None = None
    ends: ClassVar[Counter[str | None]] = Counter()
    """How the examples ended."""

    def __init__(self) -> None:
        super().__init__()
        self.world: Any = None
        self.meddled = 0

    def pass_time(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @initialize(
        disks=st.integers(1, 3), quick=st.booleans(), legacy=st.booleans(),
        found=st.sampled_from(["running", "running", "running", "paused", "prelaunch", "io-error", "shutdown"]),
        attempts=st.integers(1, 3), hold=st.booleans(), move=st.sampled_from(Move),
    )  # fmt: skip
    def request(self, disks: int, quick: bool, legacy: bool, found: str, attempts: int, hold: bool, move: Move) -> None:
        """Accept one pivot and start its driver."""
        first = first_world(Bounds(disks, 0, 0, quick, found, legacy, attempts=attempts, move=move))
        assert first.qemu is not None
        pivot = renamed(first.durable, next(NAMES))
        pivot = replace(pivot, options=replace(pivot.options, pivot=not hold))
        self.world = LiveWorld(pivot, first.qemu, self.loop, quick=quick)
        cls = type(self)
        if cls.journal is None:
            cls.journal = LiveJournal(self.world, self.directory)
        cls.journal.world = self.world
        self.loop.run_until_complete(cls.journal.accept(pivot))
        self.world.start(pivot, cls.journal)

    @rule(seconds=st.sampled_from([0.0005, 0.001, 0.002, 0.003, 0.005, 0.008, 0.02, 0.05, 0.2, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        """Nothing else happens for a while."""
        self.pass_time(seconds)

    @precondition(lambda self: self.world.live is not None and self.world.durable.phase in BEFORE_THE_PAUSE)
    @rule(further=st.integers(0, 16), data=st.data())
    def the_pause_begins(self, further: int, data: st.DataObject) -> None:
        """The most delicate milliseconds: by chance alone few steps would fall into them."""
        self.loop.run_until_complete(self.until_the_pause())
        self.pass_time(further * COMMAND_S)
        if self.world.qemu is not None and data.draw(st.booleans(), label="meddle"):
            self.meddle(data)

    async def until_the_pause(self) -> None:
        """Wait for the record of the intent, or for two seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self.world.durable.phase in BEFORE_THE_PAUSE:
                    await self.world.live.advanced.wait()

    @precondition(lambda self: self.world.live is not None)
    @rule()
    def the_user_cancels(self) -> None:
        self.ask(self.world.live.cancel(WHO))

    @precondition(lambda self: self.world.live is not None and self.world.durable.hold)
    @rule()
    def the_user_completes(self) -> None:
        self.ask(self.world.live.complete(WHO))

    @precondition(lambda self: self.world.live is not None)
    @rule()
    def the_user_sets_the_bandwidth(self) -> None:
        self.ask(self.world.live.set_bandwidth(1, WHO))

    def ask(self, request: Coroutine[Any, Any, Pivot]) -> None:
        """Send a request, and wait a moment for its answer; whatever it is, the invariants hold."""
        answer = self.loop.create_task(request)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.loop.run_until_complete(asyncio.wait([answer], timeout=0.1))

    @precondition(lambda self: self.world.live is not None)
    @rule()
    def pivotd_dies(self) -> None:
        self.world.kill()

    @precondition(lambda self: self.world.live is None)
    @rule()
    def pivotd_starts(self) -> None:
        self.restart()

    @precondition(lambda self: self.world.qemu is not None)
    @rule()
    def the_connection_breaks(self) -> None:
        self.world.disconnect()

    @rule()
    def qemu_hangs_or_goes_on(self) -> None:
        self.world.stuck = not self.world.stuck

    @rule()
    def jobs_become_slow_or_fast(self) -> None:
        self.world.slow = not self.world.slow

    @rule()
    def finalizing_will_fail(self) -> None:
        self.world.finalize_fails = True

    @precondition(lambda self: self.world.qemu is not None)
    @rule()
    def qemu_dies(self) -> None:
        self.world.kill_qemu()

    @precondition(lambda self: self.world.qemu is None)
    @rule(wrong=st.booleans())
    def the_guest_is_started_again(self, wrong: bool) -> None:
        for one in self.world.replacements()[-1 if wrong else 0 :][:1]:
            one.act(*one.arguments)

    @precondition(lambda self: self.world.qemu is not None)
    @rule(data=st.data())
    def somebody_meddles(self, data: st.DataObject) -> None:
        """Somebody else's command, the guest's own doing, or storage that fails."""
        self.meddle(data)

    def meddle(self, data: st.DataObject) -> None:
        """Draw one and do it, MEDDLINGS_MAX times in all."""
        if self.meddled >= MEDDLINGS_MAX:
            return
        self.meddled += 1
        world = self.world
        world.faults = 1
        choices = world._others(world.qemu) + world._guest(world.qemu)
        world.faults = 0
        one = data.draw(st.sampled_from(choices), label="meddling") if choices else None
        if one is not None:
            one.act(*one.arguments)

    @invariant()
    def every_promise_holds(self) -> None:
        if self.world is not None and self.world.broken:
            raise self.world.broken[0]

    def restart(self) -> None:
        """Start pivotd: the journal is opened again and says what is to be done."""
        journal = type(self).journal
        assert journal is not None
        world = self.world
        for pivot in self.loop.run_until_complete(journal.reopen()):
            if pivot.id == world.durable.id:
                world.durable = pivot
                world.start(pivot, journal)

    def teardown(self) -> None:
        """With the faults ended the pivot comes to rest, and rests well."""
        if self.world is None:
            return
        world = self.world
        world.stuck = world.slow = world.finalize_fails = False
        if world.qemu is not None:
            world.qemu.snapshots = frozenset()
        if world.live is None and not world.closed:
            self.restart()
        until_s = self.loop.now_s + REST_WITHIN_S
        while not world.at_rest and self.loop.now_s < until_s and not world.broken:
            self.pass_time(0.1)
        world.jobs_go_on.cancel()
        if world.live is not None:
            world.kill()
        self.every_promise_holds()
        assert world.at_rest, f"no rest within {REST_WITHIN_S} s: {world.durable.phase}"
        invariants.at_rest(world)
        type(self).ends[world.durable.outcome] += 1


def renamed(pivot: Pivot, index: int) -> Pivot:
    """Return the pivot under an id and a domain of its own: all examples share one journal."""
    new = f"01K9ABCDEFGHJKMNPQRS{index:06d}"
    disks = []
    for disk in pivot.disks:
        # The base of a commit was there before, under a name that nobody chose.
        ours = names.belongs_to(disk.destination.node, pivot.id)
        node = names.destination_node(new, disk.index) if ours else disk.destination.node
        renamed_disk = replace(disk, job=names.mirror_job(new, disk.index))
        disks.append(replace(renamed_disk, destination=replace(disk.destination, node=node)))
    identity = replace(pivot.identity, nonce=names.nonce_object(new))
    return replace(pivot, id=new, request_id=new, domain=f"web{index}", disks=tuple(disks), identity=identity)


@pytest.mark.timeout(1800)
def test_no_example_breaks_a_promise(capsys: pytest.CaptureFixture[str]):
    """G1, G2 and G3 at every instant, and rest within its bound once nothing more goes wrong."""
    chosen = seed()
    with capsys.disabled():
        print(f"\nPIVOTD_SEED={chosen} ({EXAMPLES} examples)", end="", flush=True)  # noqa: T201 - to repeat it
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="pv", dir=memory if memory.is_dir() else None))
    loop = VirtualLoop()
    machine = with_seed(chosen)(type("Machine", (Machine,), {"directory": directory, "loop": loop}))
    profile = settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        with model_kernel(lambda: machine.journal.world, pivotd.qmp.rollback._until, loop=True):
            run_state_machine_as_test(machine, settings=profile)
    finally:
        if machine.journal is not None:
            loop.run_until_complete(machine.journal.real.close())
        loop.close()
    with capsys.disabled():
        print(f", ended {dict(machine.ends)}", end="", flush=True)  # noqa: T201
    assert {"switched", "kept", "merged"} <= machine.ends.keys(), "what never happens is not tested"
    shutil.rmtree(directory)
