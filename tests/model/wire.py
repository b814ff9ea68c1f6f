"""Between pivotd's monitor and the model: commands run one by one, and any of them late, or unheard, or never."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from pivotd.core.pivot import JsonObject
from pivotd.errors import QmpUnknownError
from tests.model import invariants
from tests.model.points import CHANGING, FOREIGN_PID, QUIET, Alternative, nothing
from tests.model.qemu import RefusedError
from tests.model.session import Message, ModelMonitor, session_on

REFUSABLE = frozenset({"transaction", "blockdev-snapshot", "block-commit", "block-stream"})


class Wire:
    """The part of a World that carries commands."""

    async def burst(self, monitor: ModelMonitor, messages: Sequence[Message], resumes_at: list[int]) -> list[Any]:
        """Run commands that left in one write; between any two of them the world goes on."""
        self._catch_up(messages)
        replies = []
        for index, message in enumerate(messages):
            name, arguments = message["execute"], message.get("arguments", {})
            if name not in QUIET:
                self._before(name, arguments, messages[index:])
            if self.qemu is None:
                self._lost(name)
            replies.append(RefusedError("Operation not permitted") if self.refuses else self.run(name, arguments))
            self.refuses = False
            resumes_at.append(monitor.resumes)
            if name in CHANGING:
                last = index == len(messages) - 1
                alternatives = self.crash_alternatives()
                if last and self.faults:
                    alternatives.append(Alternative("the connection breaks before the answer to", self._lost, (name,)))
                self.point(alternatives)
                if self.qemu is None:
                    self._lost(name)
        commands = [message["execute"] for message in messages]
        if "query-status" in commands:
            self.ghost.told(self, commands, replies[commands.index("query-status")]["status"])
        return replies

    def _before(self, name: str, arguments: JsonObject, rest: Sequence[Message]) -> None:
        if not self.faults:
            return
        alternatives = self.meddling()
        if name in CHANGING:
            alternatives.append(Alternative("the connection breaks before", self._lost, (name,)))
            alternatives.append(
                Alternative("no answer in time: it runs late, with what follows,", self._late, (name, rest))
            )
        if name == "job-finalize" and self.qemu is not None and arguments["id"] in self.qemu.jobs:
            alternatives.append(Alternative("finalizing fails:", self._doom, (arguments["id"], "finalize_fails")))
        if name in REFUSABLE:
            alternatives.append(Alternative("QEMU refuses", self._refuse, (name,)))
        self.point(alternatives)

    def _refuse(self, _name: str) -> None:
        self.refuses = True

    def _lost(self, what: str) -> None:
        if self.monitor is not None:
            self.monitor.lose()
        self.monitor = self.session = None
        self.late = ()
        if self.asked is None or self.asked.state.attempt.ours is None:
            self.ghost.not_told(self)
        raise QmpUnknownError(f"{what}: the monitor closed before the answer")

    def _late(self, _name: str, rest: Sequence[Message]) -> None:
        self.late += tuple((message["execute"], json.dumps(message.get("arguments", {}))) for message in rest)
        raise QmpUnknownError("no answer in time")

    def _catch_up(self, messages: Sequence[Message]) -> None:
        """Commands of one monitor run in order: what was sent before an unanswered time runs before this."""
        if not self.late:
            return
        if self.faults and self.point([Alternative("QEMU still does not answer", nothing)]):
            self._late("", messages if messages[0]["execute"] in CHANGING else ())
        late, self.late = self.late, ()
        for name, arguments in late:
            if self.qemu is not None:
                self.run(name, json.loads(arguments))
        if self.qemu is None:
            self._lost("late commands")

    def connect(self) -> None:
        """Connect if there is somebody; a new connection has heard nothing."""
        if self.qemu is not None and self.session is None:
            self.monitor = ModelMonitor(self, 100 if self.original else FOREIGN_PID)
            self.session = session_on(self.monitor)

    async def settled(self, _timeout_s: float) -> None:
        """Reconnect, or not for now."""
        if not (self.faults and self.point([Alternative("the monitor cannot be reached", nothing)])):
            self.connect()

    async def pause(self, _changed: asyncio.Event, timeout_s: float) -> None:
        """Let time pass while pivotd waits: whatever goes on by itself goes on."""
        qemu = self.qemu
        moving = qemu.moving() if qemu is not None else []
        alternatives = self.meddling()
        if moving and qemu is not None and self.faults:
            if len(moving) > 1:
                alternatives += [
                    Alternative("time passes for one job only:", qemu.progress, (name,)) for name in moving
                ]
            alternatives.append(Alternative("nothing goes on: it is slow", self.pass_time, (timeout_s,)))
        if self.point(alternatives):
            self.hear()
            return
        if moving and qemu is not None:
            self.say("    time passes, jobs go on")
            self.settle_jobs()
            self.hear()
            invariants.at_every_instant(self)
        else:
            self.pass_time(timeout_s)

    def pass_time(self, seconds: float) -> None:
        """Move the clock."""
        self.say(f"    {seconds:g} s pass")
        self.now_s += seconds + 0.001
