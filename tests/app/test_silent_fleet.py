"""An etcd that hangs, and readers who ask for the fleet: they hold up nothing but each other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from tests.app.conftest import Host
from tests.support import waiting

READERS = 60
TIMEOUT_MS = 50_000
NAMES = Path(__file__).with_name("slow_names.c")
RESOLVER_S = 30
END_S = TIMEOUT_MS / 2000
"""Long on a busy machine, and half as long as etcd is waited for."""


@pytest.fixture
def silent() -> Iterator[str]:
    """An address whose connections are accepted, and never answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2 * READERS)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def readers(host: Host, silent: str) -> Iterator[Host]:
    """A host of that fleet, of which many clients ask for the fleet's status."""
    host.start({}, f'[fleet]\nendpoints = {json.dumps([silent])}\nhost = "h1"\ntimeout_ms = {TIMEOUT_MS}')
    with ExitStack() as stack:
        for _ in range(READERS):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(host.daemon.socket))
            client.sendall(b"GET /v1/fleet/status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert host.health()["status"] == "ok"  # whose turn comes after theirs
        yield host


def test_the_configuration_is_reloaded_beside_them(readers: Host):
    """`systemctl reload` says at once that it worked."""
    program = Path(sys.executable).parent / "pivotd"
    done = subprocess.run(
        [str(program), "--reload", str(readers.daemon.pid)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "reloaded: nothing had changed\n"), done.stderr


def test_pivotd_ends_beside_them(readers: Host):
    """What hangs may have its thread, and keeps nobody from ending."""
    assert readers.daemon.terminate(timeout_s=END_S) == 0


def test_pivotd_ends_beside_a_resolver_that_hangs(host: Host, monkeypatch: pytest.MonkeyPatch):
    """The address of etcd is looked up in a thread that keeps nobody from ending; needs gcc."""
    library = host.directory / "slow_names.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, NAMES], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    daemon = host.start({}, '[fleet]\nendpoints = ["http://etcd.invalid:2379"]\nhost = "h1"\ntimeout_ms = 100')
    assert waiting.until(lambda: "fleet.not-usable" in daemon.log_path.read_text(), look_s=0.01)
    assert daemon.terminate(timeout_s=RESOLVER_S / 2) == 0


def test_they_have_few_threads(readers: Host):
    assert readers.threads() <= limits.FLEET_READERS_AT_ONCE + 8


def test_pivotd_ends_while_etcd_is_asked_for_a_guest(host: Host, silent: str):
    """Etcd may have given it the guest: the journal knows who has asked for that."""
    host.start({}, f'[fleet]\nendpoints = {json.dumps([silent])}\nhost = "h1"\ntimeout_ms = {TIMEOUT_MS}')
    body = json.dumps({"fenced": True, "disks": [{"disk": "disk0", "image": "/images/b.qcow2"}]})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(host.daemon.socket))
        head = f"POST /v1/fleet/domains/web1/take HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall((head + body).encode())

        def asked() -> list[dict[str, Any]]:
            records = host.call("GET", "/v1/events").json
            return [one for one in records if one["event"] == "take-requested"]

        assert waiting.until(lambda: bool(asked()), look_s=0.1)
        (record,) = asked()
        assert (record["domain"], record["facts"]["images"]) == ("web1", {"disk0": "/images/b.qcow2"})
        assert record["facts"]["uid"] == os.getuid()
