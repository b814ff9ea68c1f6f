"""The end of pivotd beside an etcd that hangs: what waits for it is given up, and done by the next pivotd."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd.client import AcceptRequest, Client, ClientError, CopyDisk, CopyRequest, Pivot
from tests.fleet.conftest import served
from tests.fleet.etcd import Cluster
from tests.fleet.wires import Message, Place, Wires
from tests.support import waiting
from tests.support.daemon import Daemon
from tests.support.qemu import Qemu

pytestmark = pytest.mark.qemu
TIMEOUT_MS = 60_000
END_S = TIMEOUT_MS / 2000
"""Long on a busy machine, and half as long as etcd is waited for."""
WAIT_S = 30.0


@pytest.fixture(scope="module")
def node(
    etcd_release: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with served(request, tmp_path_factory.mktemp("etcd"), size=1) as cluster:
        yield cluster


class Site:
    """A pivotd with one guest, which the fleet knows as its own; ``freeze`` lets etcd stand still."""

    def __init__(self, node: Cluster, wires: Wires, qemu: Qemu, directory: Path) -> None:
        self.node, self.wires, self.qemu, self.directory = node, wires, qemu, directory
        self.frozen = False

    def start(self, on_silence: str) -> Client:
        endpoints, prefix = json.dumps(self.wires.urls), json.dumps(f"/{self.directory.name}/")
        lines = f'[fleet]\nendpoints = {endpoints}\nprefix = {prefix}\nhost = "h1"\ntimeout_ms = {TIMEOUT_MS}\n'
        lines += f'on_silence = "{on_silence}"\n'
        # Long enough for a switch on busy cores; the guest of "resume" waits so long for etcd.
        lines += f"[pause]\nmax_ms = {20_000 if on_silence == 'wait' else 3000}"
        self.daemon = Daemon(self.directory, {"web1": self.qemu.qmp}, configuration=lines)
        self.client = Client(str(self.daemon.start().socket))
        assert waiting.until(lambda: "fleet.claimed" in self.daemon.log_path.read_text(), look_s=0.01)
        return self.client

    def copy(self) -> Pivot:
        return self.client.start("web1", CopyRequest(disks=[CopyDisk("disk0", str(self.directory / "new.qcow2"))]))

    def freeze(self) -> None:
        self.node.nodes[0].freeze()
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            self.node.nodes[0].thaw()
        self.frozen = False

    def hang_at(self, message: Message) -> Pivot:
        """Begin a copy, and let etcd stand still before it gets this message."""
        struck = self.wires.arm(message, Place.BEFORE)
        pivot = self.copy()
        assert struck.reached.wait(WAIT_S)
        self.freeze()
        self.wires.go_on()
        return pivot

    def is_told(self, pivot: Pivot) -> bool:
        found = self.client.wait(pivot.id, WAIT_S)
        return (found.phase, found.outcome, found.fleet) == ("closed", "switched", "told")


@pytest.fixture
def site(node: Cluster, qemu: Qemu, tmp_path: Path) -> Iterator[Site]:
    with Wires(node.urls) as wires:
        site = Site(node, wires, qemu, tmp_path)
        try:
            yield site
        finally:
            site.thaw()
            site.daemon.kill()


def test_a_pivot_that_was_not_announced_yet(site: Site) -> None:
    """Its guest runs; the next pivotd announces it."""
    site.start("wait")
    pivot = site.hang_at(Message.INTEND)
    assert site.daemon.terminate(timeout_s=END_S) == 0
    assert site.qemu.run_state() == "running"
    site.thaw()
    site.daemon.start()
    assert site.is_told(pivot)


def test_an_outcome_whose_guest_runs_again(site: Site) -> None:
    """It is told by the next pivotd, from the journal."""
    site.start("resume")
    pivot = site.hang_at(Message.PUBLISH)
    assert waiting.until(lambda: site.qemu.run_state() == "running", look_s=0.05)
    assert site.daemon.terminate(timeout_s=END_S) == 0
    site.thaw()
    site.daemon.start()
    assert site.is_told(pivot)


def test_an_outcome_whose_guest_waits(site: Site) -> None:
    """The guest stays paused, and the next pivotd resumes it once etcd has answered."""
    site.start("wait")
    pivot = site.hang_at(Message.PUBLISH)
    assert site.daemon.terminate(timeout_s=END_S) == 0
    assert site.qemu.run_state() == "paused"
    site.thaw()
    site.daemon.start()
    assert site.is_told(pivot)
    assert site.qemu.run_state() == "running"


def test_the_word_of_a_person_and_a_reload(site: Site) -> None:
    """A reload waits for nothing; the word is not recorded, and may be repeated."""
    client = site.start("wait")
    pivot = site.copy()
    assert site.is_told(pivot)
    site.freeze()
    image = str(site.directory / "new.qcow2")

    failed: list[ClientError] = []

    def accept() -> None:
        try:
            client.accept("web1", "disk0", AcceptRequest(image, "looked"))
        except ClientError as error:
            failed.append(error)

    asking = threading.Thread(target=accept)
    asking.start()
    program = Path(sys.executable).with_name("pivotd")
    done = subprocess.run(
        [program, "--reload", str(site.daemon.pid)], capture_output=True, text=True, check=False, timeout=END_S
    )
    assert done.stdout == "reloaded: nothing had changed\n", done.stderr
    assert site.daemon.terminate(timeout_s=END_S) == 0
    asking.join(WAIT_S)
    assert [one.exit_status for one in failed] == [3], "whoever asked is told that nobody knows"
    site.thaw()
    site.daemon.start()
    assert "image-accepted" not in [record.event for record in client.pivot(pivot.id).records]
