"""A QEMU that runs and cannot be asked, whatever is in the way: no answer on its disks is certain, nor is a word taken."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.cli.ctl import complaint
from tests.cli.test_images import Guest, guest
from tests.support.qemu import Disk, Qemu, create_image

__all__ = ["guest"]
pytestmark = [pytest.mark.qemu]
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": ["oob"]}}


@contextmanager
def taken(monitor: Path) -> Iterator[None]:
    """Be the client of a monitor."""
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as stream:
        client.connect(str(monitor))
        stream.readline()
        yield


@contextmanager
def full(monitor: Path) -> Iterator[None]:
    """Have as many clients wait at a monitor as its QEMU takes."""
    with ExitStack() as stack:
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(monitor))
            except BlockingIOError:
                break
        yield


@contextmanager
def unlinked(monitor: Path) -> Iterator[None]:
    """Have no name for a monitor."""
    monitor.unlink()
    yield


@contextmanager
def answered_by(monitor: Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """Be the QEMU behind a monitor."""
    monitor.unlink()
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as clients:
        server.bind(str(monitor))
        server.listen()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client = clients.enter_context(server.accept()[0])
                    answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def blocked(monitor: Path) -> Iterator[None]:
    """Be a QEMU whose main loop hangs after the greeting."""
    return answered_by(monitor, lambda client: client.sendall(json.dumps(GREETING).encode() + b"\n"))  # type: ignore[return-value]


def closing(monitor: Path) -> Iterator[None]:
    """Be a QEMU that closes each connection."""
    return answered_by(monitor, lambda client: client.shutdown(socket.SHUT_RDWR))  # type: ignore[return-value]


def old(monitor: Path) -> Iterator[None]:
    """Be a QEMU that is too old for pivotd."""
    greeting = json.dumps(GREETING).replace('"major": 7', '"major": 4').encode() + b"\n"

    def answer(client: socket.socket) -> None:
        client.sendall(greeting)
        with client.makefile("rb") as stream:
            for _ in stream:
                client.sendall(b'{"return": {}}\n')

    return answered_by(monitor, answer)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "how",
    [taken, full, unlinked, pytest.param(blocked, marks=pytest.mark.long), closing, old],
    ids=lambda how: how.__name__,
)
@pytest.mark.thinned(2)
def test_a_guest_on_a_stale_image(guest: Guest, how: Callable[[Path], Iterator[None]]):
    """It runs there, and after its end the journal's word counts: in between nothing is certain, and no word is taken."""
    new = guest.moved()
    guest.qemu.stop()
    guest.daemon.kill()
    monitor = guest.qemu.qmp
    name = "web1" if how is unlinked else "named"
    guest.qemu = Qemu(guest.directory, [Disk(guest.disks[0]), Disk(guest.disks[1])], name=name).start()
    if how is not unlinked:  # the kernel shows the name that QEMU has for it alone
        monitor.unlink(missing_ok=True)
        monitor.symlink_to(guest.qemu.qmp)
    word = ("verdict", "accept", "web1", "disk0", new, "--reason", "so")
    with how(guest.qemu.qmp):  # type: ignore[attr-defined]
        guest.daemon.start()
        for command in (["image", "web1", "disk0"], ["guard", "web1", f"disk0={new}"]):
            answer = guest.ctl(*command, "--wait", "0")
            assert (answer.status, answer.stdout) == (6, ""), answer
            assert "cannot tell which image" in complaint(answer)
        by_image = guest.json("verdict", "--image", new)
        assert [(row["standing"], row["certain"]) for row in by_image.json] == [("unknown", False)]
        refused = guest.ctl(*word)
        assert (refused.status, "your word has to wait: " in complaint(refused)) == (4, True), refused
    guest.qemu.stop()
    assert guest.ctl("image", "web1", "disk0", "--wait", "60s").stdout == f"{new}\n"


def test_the_word_for_the_image_before_the_one_it_runs_on(guest: Guest):
    """A guest runs on its new image, and its monitor is taken: the old one cannot be made the right one."""
    new = guest.moved()
    guest.daemon.kill()
    word = ("verdict", "accept", "web1", "disk0", guest.disks[0], "--reason", "a slip")
    with taken(guest.qemu.qmp):
        guest.daemon.start()
        refused = guest.ctl(*word)
        assert (refused.status, "your word has to wait: " in complaint(refused)) == (4, True), refused
    guest.qemu.stop()
    assert guest.ctl("image", "web1", "disk0", "--wait", "60s").stdout == f"{new}\n"


@pytest.mark.parametrize("restored", [False, True])
def test_a_word_for_what_another_guest_needs(guest: Guest, restored: bool):
    """The image below its right one, or the right one by a journal that was restored: not while nobody can ask it."""
    below = guest.disks[0]
    top = guest.moved("snapshot", "top")
    assert guest.ctl("domain", "add", "web2", "--qmp", guest.directory / "web2.qmp").status == 0
    with Qemu(guest.directory, [Disk(create_image(guest.path("mine")))], name="web2"):
        assert guest.ctl("copy", "web2", f"disk0={guest.path('yours')}").status == 0
    wanted = top if restored else below
    word = ("verdict", "accept", "web2", "disk0", wanted, "--format", "qcow2", "--reason", "so")
    assert guest.daemon.terminate() == 0
    if restored:
        journal = guest.daemon.state_dir / "journal.db"
        shutil.copy2(journal, guest.directory / "backup")
        (guest.directory / "backup").replace(journal)
    with taken(guest.qemu.qmp):
        guest.daemon.start()
        refused = guest.ctl(*word)
        assert (refused.status, "whether web1 disk0 needs it" in complaint(refused)) == (4, True), refused
    guest.until("connected", "connection")
    refused = guest.ctl(*word)
    assert (refused.status, f"{wanted} cannot be the image of web2 disk0" in complaint(refused)) == (4, True), refused
