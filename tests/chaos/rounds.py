"""One round of chaos: a real QEMU, a real pivotd, SIGKILL at one chosen point, and the question who has the data."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pivotd.core.pivot import Pivot
from tests.chaos.asking import SLOW_DATA_BYTES, Asking
from tests.chaos.image_check import Judge, root_path
from tests.chaos.plan import CANCEL_PHASES, NEW_JOURNAL, Cancel, Heir, Plan, Point, Victims
from tests.chaos.process import ChaosDaemon, call, has_record, journal, make_journal, try_call
from tests.chaos.world import GuestHook, World, lay_chain, layers_of
from tests.support.proxy import Direction, KillAt
from tests.support.qemu import Disk, Qemu, create_image

__all__ = ["Result", "call", "run_round"]

ROUND_TIMEOUT_S = 120.0
POLL_S = 0.005
CANCEL_HOLD_S = 45.0
CANCEL_EVERY_S = 0.25
HANG_PATIENCE_S = 20.0
"""After that a server that hangs is ended: nothing else frees a QEMU whose main loop waits for it."""
REQUEST_ID = "chaos"


@dataclass
class Result:
    """What a round showed. ``struck``: the point was reached. ``problems``: broken promises, empty if none.

    ``messages`` are those of the first QEMU's monitor, ``cancelled_after`` how many of them came before the cancel,
    ``recovery`` those of an heir's monitor. ``kept_in`` is where a round with problems can be looked at.
    """

    struck: bool
    problems: list[str]
    messages: list[tuple[Direction, str, int]]
    outcome: str | None = None
    cancelled_after: int | None = None
    recovery: list[tuple[Direction, str, int]] | None = None
    kept_in: Path | None = None
    helped: bool = False
    """The servers that hang had to be ended."""


def run_round(plan: Plan) -> Result:
    """Copy the disks of one domain, strike, recover, and judge; a round with problems leaves its directory."""
    directory = Path(tempfile.mkdtemp(prefix="pv"))
    keep = True
    try:
        result = _Round(directory, plan).run()
        keep = bool(result.problems)
        if keep:
            result.kept_in = directory
    except BaseException as error:
        error.add_note(f"in the round [{plan}], kept in {directory}")
        raise
    finally:
        if keep:
            (directory / "round.txt").write_text(f"{plan}\n{_versions(plan)}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return result


def _versions(plan: Plan) -> str:
    binary = plan.setup.binary or ("qemu-system-x86_64",)
    said = [subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
            for command in (binary, ["strace"], ["uname", "-sr"])]  # fmt: skip
    return "".join(f"{lines[0]}\n" for lines in said if lines)


class _Round:
    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory, self.plan, self.setup = directory, plan, plan.setup
        self.images = [directory / f"old{index}.qcow2" for index in range(plan.setup.disks)]
        self.asking = Asking(plan.setup, directory, self.images)
        self.below: dict[str, dict[int, int]] = {}
        """The blocks that lie in layers below each disk's image."""
        self.state_dir = directory / "state"
        self.hook = GuestHook(plan.setup)
        self.hook.on_cancel = self._cancel_and_hold
        self.heir_hook = GuestHook(plan.setup)
        self.answers: list[Any] = []
        """What pivotd answered to cancels."""
        self.helped = False
        self._cancelling: threading.Thread | None = None
        self._cancelled_at = 0.0

    def run(self) -> Result:
        """Play the round."""
        with ExitStack() as stack:
            if self.setup.nbd:
                self.asking.start_servers(stack)
            self.qemu = self._old_qemu(stack)
            world = self.world = self.hook.world = World(self.setup, self.qemu, blocks=self.below)
            self.judge = Judge(world, self.plan, self.images, self.state_dir)
            before = self.qemu.run_state()
            if self.plan.point is None or self.plan.point.syscall != NEW_JOURNAL:
                make_journal(self.state_dir)
            self.daemon = ChaosDaemon(self.directory, {"web1": self.qemu.qmp})
            stack.callback(self._end_cancel)
            stack.callback(self.daemon.kill)
            if self.setup.cancel is Cancel.COPYING:
                for disk in range(self.setup.disks):
                    world.device_io(disk, f"write -q -P 251 {32 << 20} {SLOW_DATA_BYTES}")
            if self.setup.bitmap:
                world.add_bitmaps()
            if self.setup.outrun:
                world.limit()
            if self.setup.hangs:
                self.hook.on_stop = self._hang
            world.write()
            if self.setup.adopted:
                self.asking.start_jobs(world)
            struck = self._first()
            recovery = None
            if struck and self.plan.victims is not Victims.PIVOTD:
                struck, recovery = self._without_old_qemu(stack)
            else:
                self._with_old_qemu(before, struck=struck)
            self._end_cancel()
            self.judge.check_answers(self.answers, self._pivot())
            outcome = pivot.outcome if (pivot := self._pivot()) else None
        return Result(
            struck, self.judge.problems, self.hook.seen, outcome, self.hook.cancelled_after, recovery,
            helped=self.helped,
        )  # fmt: skip

    def _old_qemu(self, stack: ExitStack) -> Qemu:
        for index, image in enumerate(self.images):
            if self.setup.move.needs_chain:
                self.below[f"disk{index}"] = lay_chain(image)
            else:
                create_image(image)
        self.proxy = Qemu.proxy_for(self.directory, on_message=self.hook, log=self.directory / "messages.jsonl")
        disks = [
            Disk.of_named_nodes([layer for layer in layers_of(image) if layer.exists()], index)
            if self.setup.named
            else Disk(image, legacy=self.setup.legacy)
            for index, image in enumerate(self.images)
        ]
        binary = list(self.setup.binary) if self.setup.binary else None
        qemu = Qemu(self.directory, disks, proxy=self.proxy, paused=self.setup.paused, binary=binary)
        return stack.enter_context(qemu)

    def _pivot(self) -> Pivot | None:
        found = journal(self.state_dir)
        return found[0] if found else None

    # -- the first life

    def _first(self) -> bool:
        """Start pivotd, ask for the copy, and strike; return whether the point was reached."""
        point = self.plan.point
        kill = self._strike(point)
        self.daemon.launch(point)
        answer = try_call(
            self.daemon, "POST", self.asking.path, self.asking.body, **{"Idempotency-Key": REQUEST_ID}
        )  # fmt: skip
        if answer is not None and "phase" not in answer:
            self.judge.problems.append(f"the {self.setup.move} was refused: {answer}")
            return False
        return self._await_end(kill)

    def _strike(self, point: Point | None) -> KillAt | None:
        """Have the proxy strike at a message; strace strikes at system calls by itself."""
        self.hook.next = None
        if point is None or point.syscall:
            return None
        victims = {Victims.PIVOTD: [self.daemon], Victims.QEMU: [self.qemu], Victims.BOTH: [self.daemon, self.qemu]}
        chosen: list[Any] = victims[self.plan.victims]
        kill = KillAt(
            lambda: [victim.pid for victim in chosen],
            point.when, label=point.label, nth=point.nth, direction=point.direction,
        )  # fmt: skip
        self.hook.next = kill
        return kill

    def _await_end(self, kill: KillAt | None = None, *, cancel: bool = False) -> bool:
        """Wait until somebody was killed (True) or the pivot is closed (False); ``cancel`` asks for that repeatedly."""
        began_s = time.monotonic()
        while (waited_s := time.monotonic() - began_s) < ROUND_TIMEOUT_S:
            self.proxy.check()
            if kill is not None and kill.struck.is_set():
                if self.plan.victims is not Victims.QEMU:
                    self.daemon.kill()
                return True
            if not self.daemon.alive:
                return True
            pivot = self._pivot()
            if pivot is not None and pivot.phase == "closed":
                # A pivotd that lives may have seen QEMU's end, and closed the pivot, since the look above.
                return kill is not None and kill.struck.is_set()
            if pivot is not None and pivot.window_open and not pivot.owes_resume:
                self._undo()
            if pivot is not None and pivot.hold and pivot.phase == "ready" and self.setup.outrun:
                self.asking.outrun(self.world, pivot)
                try_call(self.daemon, "POST", f"/v1/pivots/{REQUEST_ID}/complete")
            if self.setup.hangs and waited_s > HANG_PATIENCE_S and not self.helped:
                self._end_servers()
            if pivot is not None and CANCEL_PHASES.get(self.setup.cancel) == pivot.phase and not self._cancelling:
                self.hook.cancel()
            if cancel and time.monotonic() - self._cancelled_at > CANCEL_EVERY_S:
                self._ask_cancel()
            time.sleep(POLL_S)
        self.judge.problems.append("the pivot did not close in time")
        return False

    def _hang(self) -> None:
        for server in self.asking.servers:
            server.hang()

    def _end_servers(self) -> None:
        self.helped = True
        for server in self.asking.servers:
            server.kill()

    def _undo(self) -> None:
        """Write what only the window can bring into the old images, then ask to return to them."""
        if not self.hook.going_back:
            self.world.write()
            self.hook.going_back = True
        try_call(self.daemon, "POST", f"/v1/pivots/{REQUEST_ID}/undo", timeout_s=ROUND_TIMEOUT_S)

    # -- cancelling

    def _cancel_and_hold(self) -> None:
        """Ask for the cancel in a thread, and return when the journal has it: the caller holds a message meanwhile."""
        self._cancelling = threading.Thread(target=self._ask_cancel, daemon=True)
        self._cancelling.start()
        deadline_s = time.monotonic() + CANCEL_HOLD_S
        while self.daemon.alive and self._cancelling.is_alive() and time.monotonic() < deadline_s:
            if has_record(self.state_dir, "cancel-requested"):
                return
            time.sleep(POLL_S)

    def _ask_cancel(self) -> None:
        answer = try_call(self.daemon, "POST", f"/v1/pivots/{REQUEST_ID}/cancel", timeout_s=ROUND_TIMEOUT_S)
        self._cancelled_at = time.monotonic()
        if answer is not None:
            self.answers.append(answer)

    def _end_cancel(self) -> None:
        if self._cancelling is not None:
            self._cancelling.join(ROUND_TIMEOUT_S)

    # -- recovery

    def _recover(self, strike: Callable[[Point], KillAt | None]) -> None:
        """Start pivotd until the pivot is closed, striking it again where the plan says so."""
        cancel = self.setup.cancel is not Cancel.NEVER
        for point in self.plan.again:
            kill = strike(point)
            self.daemon.launch(point, wait=False)
            if self._pivot():
                self._await_end(kill, cancel=cancel)
            self.daemon.kill()
            if self.plan.victims is not Victims.PIVOTD:
                self.judge.check_images(f"after the kill at {point}")
        for hook in (self.hook, self.heir_hook):
            hook.next = None
        self.daemon.launch()
        if self._pivot():
            self._await_end(cancel=cancel)

    def _with_old_qemu(self, before: str, *, struck: bool) -> None:
        """QEMU lives: after the restart the verdict is what QEMU uses, and the run state is what it was."""
        if struck:
            self._recover(self._strike)
        elif self.plan.point is not None and self.plan.point.syscall:
            self.daemon.launch()  # not under strace: it would be struck by what the judge asks
        self.hook.silent = True
        self.hook.next = None
        self.judge.check_alive(self.qemu, before)
        self.judge.check_told(call(self.daemon, "GET", "/v1/verdicts?domain=web1"), "with QEMU alive")
        self.daemon.kill()
        if self.setup.move.switches:
            self.world.write()
        roots = {f"disk{i}": root_path(self.qemu, f"disk{i}") for i in range(self.setup.disks)}
        # A merged image must hold everything also if QEMU has no time to write what it has in memory.
        self.qemu.kill(15 if self.setup.move.switches else 9)
        self.qemu.wait()
        self.judge.check_images("after QEMU's end", roots)

    def _without_old_qemu(self, stack: ExitStack) -> tuple[bool, list[tuple[Direction, str, int]] | None]:
        """QEMU is dead: the journal names images that hold every acknowledged block, now and for ever."""
        self.hook.silent = True
        self.qemu.kill()
        alone = self.plan.victims is Victims.BOTH
        named = self.judge.check_images("right after the kill")
        left = self._pivot()
        heir = None
        if self.plan.heir is not Heir.NOBODY:
            heir = self._start_heir(stack)
            if heir is None:
                return False, None
        if alone:
            self._recover(self._strike_heir)
        elif left:
            self._await_end()
        again = self.judge.check_images("after recovery without the old QEMU")
        if alone and again != named:
            self.judge.problems.append(f"the recovery changed its mind from {named} to {again}")
        recovery = list(self.heir_hook.seen)
        if heir is not None:
            # This makes pivotd connect again at once, if it lived and waits for its next try.
            call(self.daemon, "GET", "/v1/domains/web1/disks")
            told = call(self.daemon, "GET", "/v1/verdicts?domain=web1")
            self.judge.check_heir(heir, self.heir_hook.seen, left, self._pivot(), told, alone=alone)
        self.daemon.kill()
        return True, recovery if heir else None

    def _start_heir(self, stack: ExitStack) -> Qemu | None:
        """Start another QEMU on the same socket; None where the image cannot be opened yet. It is paused."""
        self.qemu.stop()
        images = self.images if self.plan.heir is Heir.SOURCE else self.asking.targets
        for image in images:
            checked = subprocess.run(
                ["qemu-img", "check", "-q", "-f", "qcow2", image], capture_output=True, check=False
            )
            if checked.returncode == 1:
                return None
        proxy = Qemu.proxy_for(self.directory, on_message=self.heir_hook, log=self.directory / "heir.jsonl")
        # Paused: a pivotd that took it for the old one would feel free to resume it.
        return stack.enter_context(
            Qemu(self.directory, [Disk(image) for image in images], proxy=proxy, paused=True)
        )  # fmt: skip

    def _strike_heir(self, point: Point) -> KillAt | None:
        if point.syscall or self.plan.heir is Heir.NOBODY:
            return None
        kill = KillAt(
            lambda: [self.daemon.pid], point.when, label=point.label, nth=point.nth, direction=point.direction
        )  # fmt: skip
        self.heir_hook.next = kill
        return kill
