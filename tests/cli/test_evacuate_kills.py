"""`pivotctl evacuate` is killed at each message, or pivotd is; the same command then ends it, and no disk moves twice.

A relay between pivotctl and pivotd counts the messages, and kills before one is passed on or after it was answered: the
answer is lost then. `make test` takes some points by the seed, PIVOTD_LONG=1 all of them.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cli.ctl import start
from tests.cli.evacuating import Bed, image, running_daemon
from tests.conftest import LONG
from tests.support import seeds
from tests.support.daemon import Daemon

pytestmark = [pytest.mark.qemu, pytest.mark.chaos]

MESSAGES = 18
"""An evacuation of two guests, undisturbed, sends at least so many: the point past the last one is an undisturbed run."""
FIRST_LOOK = 4
"""The domains, the verdicts, and the disks of each guest."""
POINTS = [(number, when) for number in range(1, MESSAGES + 1) for when in ("before", "after")]


def points(victim: str) -> list[tuple[int, str]]:
    return POINTS if LONG else sorted(seeds.rng("evacuate", victim).sample(POINTS, 2))


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon() as running:
        yield running


@pytest.fixture
def bed(daemon: Daemon) -> Iterator[Bed]:
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name, ExitStack() as stack:
        found = Bed(Path(name), daemon, stack)
        found.guest("web1", image(found.old / "a/disk.qcow2"), image(found.old / "b/disk.qcow2"))
        found.guest("web2", image(found.old / "web2.qcow2", 18))
        yield found
        for known in found.client.domains():
            found.client.remove_domain(known.name)


def whole_request(connection: socket.socket) -> bytes:
    """Return the head and the body, if it has one; what there is of it if the client was killed meanwhile."""
    with connection.makefile("rb") as stream:
        head: list[bytes] = []
        while (line := stream.readline()) not in {b"\r\n", b""}:
            head.append(line)
        length = next((int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length:")), 0)
        return b"".join(head) + b"\r\n" + stream.read(length)


class Relay:
    """Passes messages on, one after the other, and calls ``cut`` at one of them."""

    def __init__(self, path: Path, daemon: Path, number: int, when: str, cut: Callable[[], None]) -> None:
        self.path, self._daemon, self._number, self._when, self._cut = path, daemon, number, when, cut
        self.passed = 0

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with near, socket.socket(socket.AF_UNIX) as far:
                request = whole_request(near)
                self.passed += 1
                here = self.passed == self._number
                if here and self._when == "before":
                    self._cut()
                    continue
                try:
                    far.connect(str(self._daemon))
                    far.sendall(request)
                    answer = b"".join(iter(lambda: far.recv(65536), b""))
                    if here:
                        self._cut()
                    else:
                        near.sendall(answer)
                except OSError:
                    continue  # the daemon is away, or pivotctl is


@contextmanager
def relayed(relay: Relay) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(relay.path))
        listener.listen()
        thread = threading.Thread(target=relay.serve, args=(listener,))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def evacuate(bed: Bed, number: int, when: str, victim: str) -> tuple[int, str]:
    """Run the command with a kill at one message; return its status, and what it said."""
    running: list[subprocess.Popen[str]] = []
    known = threading.Event()

    def cut() -> None:
        if victim == "pivotd":
            bed.daemon.kill()
            bed.daemon.start()
        else:
            known.wait()
            running[0].kill()

    relay = Relay(bed.directory / "relay.sock", bed.daemon.socket, number, when, cut)
    arguments = bed.command("--parallel", "2")
    arguments[1] = relay.path
    with relayed(relay), start(*arguments) as process:
        running.append(process)
        known.set()
        _, told = process.communicate(timeout=100)
    assert relay.passed >= number, f"only {relay.passed} messages"
    return process.returncode, told


def check(bed: Bed) -> None:
    """Each disk is on its new image, by one pivot, which has the data of the old one."""
    assert bed.images() == {"web1": ["new/a/disk.qcow2", "new/b/disk.qcow2"], "web2": ["new/web2.qcow2"]}
    ends = sorted(bed.outcomes())
    assert ends == [("web1", "switched"), ("web2", "switched")], [pivot.error for pivot in bed.pivots()]
    for qemu in bed.qemus.values():
        qemu.stop()
    for new in bed.new.rglob("*.qcow2"):
        same = ["qemu-img", "compare", "-q", str(bed.old / new.relative_to(bed.new)), str(new)]
        subprocess.run(same, check=True)


@pytest.mark.parametrize(("number", "when"), points("pivotctl"))
@pytest.mark.thinned(2)
def test_pivotctl_is_killed(bed: Bed, number: int, when: str) -> None:
    """The same command goes on, whatever it had asked for."""
    status, told = evacuate(bed, number, when, "pivotctl")
    assert status == -9, told
    again = bed.json("--parallel", "2")
    assert again.status == 0, [pivot.error for pivot in bed.pivots()]
    check(bed)


@pytest.mark.parametrize(("number", "when"), points("pivotd"))
@pytest.mark.thinned(2)
def test_pivotd_is_killed(bed: Bed, number: int, when: str) -> None:
    """The command waits for the next pivotd and goes on; before it has begun anything, it says that pivotd is away."""
    status, told = evacuate(bed, number, when, "pivotd")
    if number <= FIRST_LOOK:
        assert (status, bed.pivots()) == (3, []), told
        status, told = bed.run().status, ""
    assert status == 0, told
    check(bed)
