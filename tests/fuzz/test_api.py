"""The API of a real daemon with a real QEMU, asked what its own OpenAPI document allows, and what it does not."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotd.api.routes import ROUTES, Route
from pivotd.journal.reader import Reader
from tests.fuzz.budget import fuzz
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu

ANSWER_S = 90
TYPED_503 = {"domain-unreachable", "monitor-busy"}
CAUSED = {"accepted", "domain-added", "domain-removed", "cancel-requested", "complete-requested"}
"""Records that only a request can bring about."""
HEADS = (
    b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n",
    b'POST /v1/domains HTTP/1.1\r\nHost: x\r\nContent-Length: 31\r\n\r\n{"name": "a", "qmp": "/nowhere"}',
    b"POST /v1/domains HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}   \r\n0\r\n\r\n",
    b"GET /v1/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nLast-Event-ID: 1\r\n\r\n",
)


@dataclass(frozen=True, slots=True)
class Ground:
    """A daemon, what it works on, and names that mean something to it."""

    daemon: Daemon
    directory: Path
    schema: Any
    session: Any
    reader: Reader
    pivots: tuple[str, ...]

    def caused(self, after: int) -> list[str]:
        """Return the events after a sequence number that only a request can bring about."""
        return [record.event for record in self.reader.events(after) if record.event in CAUSED]

    def last(self) -> int:
        """Return the newest sequence number."""
        return self.reader.last_seq()


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    import schemathesis  # noqa: PLC0415 - two seconds, only for these tests

    from tests.fuzz.unix_http import session  # noqa: PLC0415 - the same

    with tempfile.TemporaryDirectory(prefix="pa") as name:
        directory = Path(name)
        disks = [Disk(create_image(directory / f"old{n}", size="1M")) for n in range(3)]
        with Qemu(directory, disks) as qemu, Daemon(directory, {"web1": qemu.qmp}) as daemon:
            made = daemon.ctl("copy", "web1", f"disk0={directory}/new0").json
            held = daemon.ctl("copy", "web1", f"disk1={directory}/new1", "--no-pivot", "--id", "held").json
            http = session(daemon.socket)
            document = http.get("http://localhost/v1/openapi.json", timeout=ANSWER_S).json()
            pivots = (made["id"], held["id"], "held")
            reader = Reader.offline(daemon.state_dir)
            yield Ground(daemon, directory, schemathesis.openapi.from_dict(document), http, reader, pivots)
            reader.close()
            http.close()
            _check_daemon(daemon)


def _check_daemon(daemon: Daemon) -> None:
    """Check that it lives, feels well and has complained of nothing unexpected."""
    assert daemon.ctl("domain", "ls").status == 0
    log = daemon.log_path.read_text()
    assert "Traceback" not in log, log[-5000:]
    for line in log.splitlines():
        entry = json.loads(line)
        assert entry["event"] not in {"request.failed", "pivot.failed", "daemon.died"}, entry
    assert daemon.terminate() == 0


def _tame(data: Any, ground: Ground, case: Any) -> None:
    """Put in names that mean something, and keep whatever QEMU would create inside the directory."""
    parameters = case.path_parameters or {}
    known = {"domain": ["web1"], "disk": ["disk0", "disk1"], "pivot": list(ground.pivots)}
    for name in parameters:
        if data.draw(st.booleans()):
            parameters[name] = data.draw(st.sampled_from(known[name]))
    if isinstance(case.query, dict) and "timeout_s" in case.query and ground.pivots:
        case.query["timeout_s"] = data.draw(st.sampled_from(["0", "0.1", "-1", "nan", "x"]))
    elif case.path.endswith("/wait"):
        case.query = {"timeout_s": "0.1"}
    body = case.body
    disks = body.get("disks") if isinstance(body, dict) else None
    for disk in disks if isinstance(disks, list) else []:
        if not isinstance(disk, dict):
            continue
        if "disk" in disk and data.draw(st.booleans()):
            disk["disk"] = data.draw(st.sampled_from(["disk0", "disk1", "disk2"]))
        if isinstance(disk.get("image"), str):
            disk["image"] = str(ground.directory / "i") + disk["image"].replace("/", "_")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_answers_as_documented_whatever_it_is_asked(ground: Ground, route: Route):
    """No 5xx but an unreachable QEMU, the documented shape, and what was refused has left no record."""
    from schemathesis import GenerationMode  # noqa: PLC0415 - see above
    from schemathesis.specs.openapi import checks  # noqa: PLC0415

    operation = ground.schema[route.path][route.method]
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    # There is nothing to get wrong where there are neither parameters nor a body.
    takes_something = bool(route.query or route.body or "{" in route.path)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE) if takes_something else right

    @fuzz(15 if takes_something else 3)
    @given(data=st.data(), mode=st.booleans())
    def ask(data: Any, mode: bool) -> None:
        case = data.draw(right if mode else wrong)
        _tame(data, ground, case)
        before = ground.last()
        response = case.call(base_url="http://localhost", session=ground.session, timeout=ANSWER_S)
        if response.status_code >= 500:
            assert response.status_code == 503, response.text
            assert response.json()["kind"] in TYPED_503, response.text
        conformance = [
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ]
        case.validate_response(response, checks=conformance)
        if response.status_code >= 400:
            problem = response.json()
            assert problem["status"] == response.status_code
            assert "\n" not in problem["detail"]
            assert ground.caused(before) == [], problem

    ask()


@fuzz(150)
@given(data=st.data())
def test_bytes_that_are_no_request_hurt_nobody(ground: Ground, data: Any):
    """Real requests with bytes changed, cut and doubled: an answer or a closed connection, and the daemon goes on."""
    raw = bytearray(data.draw(st.sampled_from(HEADS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "double", "insert"])):
            case "byte":
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at + 1 :]
            case "double":
                raw += raw[at:]
            case _:
                raw[at:at] = data.draw(st.binary(max_size=20) | st.sampled_from([b"\r\n", b"\0", b"%00", b"%ff"]))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(ground.daemon.socket))
        client.settimeout(ANSWER_S)
        try:
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(1 << 16)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1."), answer[:200]
    assert b" 500 " not in answer.split(b"\r\n")[0], answer


def test_the_daemon_still_runs_as_the_user_of_the_test(ground: Ground):
    """After all that, health is ok."""
    answer = ground.session.get("http://localhost/v1/health", timeout=ANSWER_S)
    assert answer.json()["journal"]["healthy"], (os.getuid(), answer.text)
