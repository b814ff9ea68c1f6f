"""One round of chaos: a real QEMU, a real pivotd, a SIGKILL at one chosen point, and the question who has the data.

There is no guest kernel here; the test itself is the guest. Blocks go through the disk's own device by its monitor, at
the two moments that tell the images apart: right before ``stop`` is forwarded (only the source has them, the mirror has
not copied them yet) and before the answer to ``cont`` is forwarded (only the new root has them). Every block counts as
acknowledged once a flush has returned. A verdict that names the wrong image at any instant then lacks blocks.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pivotd.core.verdict import verdicts
from pivotd.journal.reader import Reader
from tests.support.daemon import Daemon
from tests.support.proxy import Direction, Hook, KillAt, Message, When
from tests.support.qemu import Disk, Qemu, create_image

ROUND_TIMEOUT_S = 40.0
POLL_S = 0.005
BLOCK = 4096
BLOCKS_PER_BURST = 4
PIVOTD = Path(sys.executable).parent / "pivotd"


class ChaosDaemon(Daemon):
    """A daemon that may be under strace the first time."""

    @property
    def alive(self) -> bool:
        """Whether the newest process runs."""
        return self._process is not None and self._process.poll() is None

    def restart_plain(self, *, wait: bool = True) -> None:
        """Start pivotd itself; killed again while it starts is no error here."""
        self.kill()
        self._command = [str(PIVOTD)]
        with contextlib.suppress(*([] if wait else [RuntimeError])):
            self.start(wait=wait)


class Api(http.client.HTTPConnection):
    """HTTP over the daemon's socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(daemon: Daemon, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """Return the JSON answer; HTTP errors are answers too, connection errors are raised."""
    api = Api(daemon.socket)
    try:
        data = None if body is None else json.dumps(body)
        api.request(method, path, data, {"Content-Type": "application/json", **headers})
        return json.loads(api.getresponse().read() or b"null")
    finally:
        api.close()


@dataclass(frozen=True, slots=True)
class Setup:
    """What kind of domain a round uses."""

    disks: int = 1
    paused: bool = False
    legacy: bool = False
    binary: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """Where to strike: a QMP message, or the nth fdatasync of a thread of pivotd."""

    label: str
    nth: int = 1
    direction: Direction | None = None
    when: When = When.BEFORE
    fdatasync: int = 0

    def __str__(self) -> str:
        if self.fdatasync:
            return f"fdatasync {self.fdatasync}"
        return f"{self.direction} {self.label} #{self.nth} {self.when}"


@dataclass
class World:
    """Everything of one round."""

    directory: Path
    setup: Setup
    qemu: Qemu
    lock: threading.Lock = field(default_factory=threading.Lock)
    blocks: dict[str, dict[int, int]] = field(default_factory=dict)
    """disk -> block number -> pattern, acknowledged."""
    _numbers: Any = field(default_factory=itertools.count)

    def write(self) -> None:
        """Write blocks through every disk's device and flush; after that they are acknowledged."""
        for disk in range(self.setup.disks):
            name = f"disk{disk}"
            written = {}
            for _ in range(BLOCKS_PER_BURST):
                number = next(self._numbers)
                # Scattered over the disk, so that a block is not copied along with its neighbour's cluster.
                place = (number * 37) % 900
                written[place] = 1 + number % 250
                self.device_io(disk, f"write -q -P {written[place]} {place * 65536} {BLOCK}")
            self.device_io(disk, "flush")
            self.blocks.setdefault(name, {}).update(written)

    def device_io(self, disk: int, command: str) -> str:
        """Run a qemu-io command on the device of a disk."""
        if self.setup.legacy:
            line = f'qemu-io drive{disk} "{command}"'
        else:
            line = f'qemu-io -d /machine/peripheral/disk{disk}/virtio-backend "{command}"'
        with self.lock:
            return str(self.qemu.spy("human-monitor-command", {"command-line": line}))

    def spy(self, command: str, **arguments: Any) -> Any:
        """Ask QEMU on the test's own monitor."""
        with self.lock:
            return self.qemu.spy(command, **arguments)

    def missing(self, disk: str, image: str) -> list[int]:
        """Return the acknowledged blocks that an image file does not hold. QEMU must have ended."""
        wanted = self.blocks.get(disk, {})
        checks = list(itertools.chain.from_iterable(
            ("-c", f"read -q -P {pattern} {place * 65536} {BLOCK}") for place, pattern in wanted.items()
        ))  # fmt: skip
        done = subprocess.run(
            ["qemu-io", "-r", "-f", "qcow2", *checks, image], capture_output=True, text=True, check=False
        )
        if done.returncode and "Pattern" not in done.stdout:
            raise AssertionError(f"{image}: {done.stdout} {done.stderr}")
        failed = done.stdout.count("Pattern verification failed")
        return list(wanted)[:failed]


class GuestHook:
    """Plays the guest at the proxy, then passes each message on to the next hook."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.next: Hook | None = None
        self.seen: list[tuple[Direction, str, int]] = []
        self._stopped = False
        self._resumed = False
        self.silent = False

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if when is When.BEFORE:
            self.seen.append((direction, message.label, message.nth))
        guest_runs = message.label == "return:cont" and when is When.BEFORE
        if guest_runs and self.world is not None and not self.silent and not self._resumed:
            # QEMU has executed `cont`, and pivotd does not know yet: the guest is as quick as it can be.
            self._resumed = True
            self.world.write()
        if self.next is not None and when is When.BEFORE:
            self.next(direction, index, message, when)
        if self.world is not None and not self.silent:
            last_moment = "command:job-complete" if self.world.setup.paused else "command:stop"
            if message.label == last_moment and when is When.BEFORE and not self._stopped:
                self._stopped = True
                self.world.write()
        if self.next is not None and when is When.AFTER:
            self.next(direction, index, message, when)


@dataclass
class Result:
    """What a round showed. ``struck``: the point was reached. ``problems``: broken promises, empty if none."""

    struck: bool
    problems: list[str]
    messages: list[tuple[Direction, str, int]]
    outcome: str | None = None


def run_round(
    setup: Setup,
    point: Point | None,
    *,
    kill_qemu: bool = False,
    again: Point | None = None,
    keep: Callable[[Path], None] | None = None,
) -> Result:
    """Copy the disks of one domain, strike at ``point``, recover (struck ``again`` there), and judge."""
    directory = Path(tempfile.mkdtemp(prefix="pv"))
    try:
        result = _Round(directory, setup, point, kill_qemu=kill_qemu, again=again).run()
        if result.problems and keep is not None:
            keep(directory)
        return result
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Round:
    def __init__(
        self, directory: Path, setup: Setup, point: Point | None, *, kill_qemu: bool, again: Point | None
    ) -> None:
        self.directory, self.setup, self.point = directory, setup, point
        self.kill_qemu, self.again = kill_qemu, again
        self.hook = GuestHook()
        self.problems: list[str] = []
        self.images = [directory / f"old{index}.qcow2" for index in range(setup.disks)]
        self.targets = [directory / f"new{index}.qcow2" for index in range(setup.disks)]

    def run(self) -> Result:
        for image in self.images:
            create_image(image)
        proxy = Qemu.proxy_for(self.directory, on_message=self.hook)
        disks = [Disk(image, legacy=self.setup.legacy) for image in self.images]
        binary = list(self.setup.binary) if self.setup.binary else None
        with ExitStack() as stack:
            qemu = stack.enter_context(
                Qemu(self.directory, disks, proxy=proxy, paused=self.setup.paused, binary=binary)
            )
            self.world = self.hook.world = World(self.directory, self.setup, qemu)
            before = qemu.run_state()
            self.world.write()
            daemon = ChaosDaemon(self.directory, {"web1": qemu.qmp}, command=self._command())
            stack.callback(daemon.kill)
            struck = self._first(daemon, qemu)
            if struck and self.kill_qemu:
                self._judge_dead(daemon, qemu)
            else:
                self._judge_alive(daemon, qemu, before, struck=struck)
        return Result(struck, self.problems, self.hook.seen, self.outcome)

    outcome: str | None = None

    def _command(self) -> Sequence[str] | None:
        if self.point is None or not self.point.fdatasync:
            return None
        inject = f"inject=fdatasync,fsync:signal=SIGKILL:when={self.point.fdatasync}"
        # -D: pivotd itself is the child, so that it can be killed by its pid.
        return [
            "strace",
            "-D",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fdatasync,fsync",
            "-e",
            inject,
            str(PIVOTD),
        ]

    def _strike(self, point: Point, daemon: ChaosDaemon, qemu: Qemu) -> KillAt | None:
        if point.fdatasync:
            return None
        pids = (lambda: [daemon.pid, qemu.pid]) if self.kill_qemu else (lambda: [daemon.pid])
        return KillAt(pids, point.when, label=point.label, nth=point.nth, direction=point.direction)

    def _first(self, daemon: ChaosDaemon, qemu: Qemu) -> bool:
        """Start pivotd, ask for the copy, and strike; return whether the point was reached."""
        kill = self._strike(self.point, daemon, qemu) if self.point else None
        self.hook.next = kill
        body = {"disks": [{"disk": f"disk{i}", "image": str(t)} for i, t in enumerate(self.targets)]}
        try:
            daemon.start()
            answer = call(daemon, "POST", "/v1/domains/web1/copy", body, **{"Idempotency-Key": "chaos"})
            if "id" not in answer and "Location" not in answer:
                self.problems.append(f"copy was refused: {answer}")
                return False
        except (OSError, http.client.HTTPException, RuntimeError, ValueError):
            pass  # killed before or while it answered
        return self._await_end(daemon, kill)

    def _await_end(self, daemon: ChaosDaemon, kill: KillAt | None) -> bool:
        """Wait until pivotd was killed (True) or the pivot is closed (False)."""
        deadline_s = time.monotonic() + ROUND_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if kill is not None and kill.struck.is_set():
                daemon.kill()
                return True
            if not daemon.alive:
                return True
            found = self._journal()
            if found and found[0].phase == "closed":
                return False
            time.sleep(POLL_S)
        self.problems.append("the pivot did not close in time")
        return False

    def _journal(self) -> Any:
        path = self.directory / "state"
        if not (path / "journal.db").exists():
            return []
        reader = Reader.offline(path)
        try:
            return reader.disk_history()
        finally:
            reader.close()

    def _judge_dead(self, daemon: ChaosDaemon, qemu: Qemu) -> None:
        """Both dead: the journal alone names images that hold every acknowledged block."""
        self.hook.silent = True
        qemu.kill()
        named = self._check_images("with both dead")
        # Then the daemon comes back to find QEMU gone: the verdict stays, the pivot closes.
        daemon.restart_plain()
        if self._journal():
            self._await_end(daemon, None)
        daemon.kill()
        if self._check_images("after recovery without QEMU") != named:
            self.problems.append("the recovery without QEMU changed its mind")

    def _check_images(self, when: str) -> list[str]:
        found = self._journal()
        self.outcome = found[0].outcome if found else None
        named = {v.disk: v.image for v in verdicts(found)} or {
            f"disk{i}": str(image) for i, image in enumerate(self.images)
        }
        for disk, image in named.items():
            missing = self.world.missing(disk, str(image))
            if missing:
                self.problems.append(f"{when}: {image} lacks acknowledged blocks {missing} of {disk}")
        return sorted(str(image) for image in named.values())

    def _judge_alive(self, daemon: ChaosDaemon, qemu: Qemu, before: str, *, struck: bool) -> None:
        """QEMU lives: after the restart the verdict is what QEMU uses, and the run state is what it was."""
        if struck and self.again is not None:
            self.hook.next = self._strike(self.again, daemon, qemu)
            daemon.restart_plain(wait=False)
            self._await_end(daemon, self.hook.next)
            daemon.kill()
        self.hook.next = None
        if struck:
            daemon.restart_plain()
            if self._journal():
                self._await_end(daemon, None)
        self.hook.silent = True
        found = self._journal()
        self.outcome = found[0].outcome if found else None
        if found and found[0].phase != "closed":
            self.problems.append(f"the journal did not close: {found[0].phase}")
        state = self.world.spy("query-status")["status"]
        if state != before:
            self.problems.append(f"the guest is {state}, it was {before}")
        roots = {f"disk{i}": qemu.root(f"disk{i}").filename for i in range(self.setup.disks)}
        for verdict in verdicts(found):
            if verdict.image != roots[verdict.disk]:
                self.problems.append(f"verdict {verdict.image}, QEMU uses {roots[verdict.disk]} for {verdict.disk}")
        if self.world.spy("query-jobs"):
            self.problems.append(f"jobs are left: {self.world.spy('query-jobs')}")
        nodes = len(self.world.spy("query-named-block-nodes"))
        if nodes != 2 * self.setup.disks:
            self.problems.append(f"{nodes} nodes are left, not {2 * self.setup.disks}")
        daemon.kill()
        self.world.write()
        qemu.kill(15)
        qemu.wait()
        for disk, image in roots.items():
            missing = self.world.missing(disk, image)
            if missing:
                self.problems.append(f"{image}, which QEMU used, lacks acknowledged blocks {missing}")
