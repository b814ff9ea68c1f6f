"""pivotd.client with the real daemon and a real QEMU: typed answers, and what is known of a request that failed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pivotd.client import (
    Client,
    CommitDisk,
    CommitRequest,
    CopyDisk,
    CopyRequest,
    RefusedError,
    TakeRequest,
    UnknownError,
    UnsentError,
    daemon_client,
)
from tests.cli.conftest import Bench
from tests.cli.test_socket import answering, http

pytestmark = pytest.mark.qemu


STREAMS = 70
"""More than the daemon keeps open."""


def client_of(bench: Bench) -> Client:
    return Client(str(bench.daemon.socket))


def copy_of(bench: Bench, disk: str = "disk0", **options: object) -> CopyRequest:
    return CopyRequest(disks=[CopyDisk(disk=disk, image=str(bench.image()))], **options)


def whole_request(connection: socket.socket) -> bytes:
    """Return the head and the body, which come in pieces."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < int(length.split(b":")[1]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def losing_the_first_answer(path: Path, daemon: Path) -> Iterator[list[bytes]]:
    """Pass requests on to the daemon, and lose the first answer on the way back. Yield the requests."""
    seen: list[bytes] = []

    def relay() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with near, socket.socket(socket.AF_UNIX) as far:
                far.connect(str(daemon))
                seen.append(whole_request(near))
                far.sendall(seen[-1])
                answer = b"".join(iter(lambda: far.recv(65536), b""))
                if len(seen) > 1:
                    near.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=relay)
        thread.start()
        try:
            yield seen
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_copy_from_start_to_verdict(bench: Bench) -> None:
    """Each answer is an object with types of its own."""
    client, request = client_of(bench), copy_of(bench, max_pause_ms=900)
    started = client.start("web1", request)
    assert (started.kind, started.options.max_pause_ms, started.disks[0].disk) == ("copy", 900, "disk0")
    ended = client.wait(started.id)
    assert (ended.phase, ended.outcome, ended.disks[0].outcome) == ("closed", "switched", "switched")
    (verdict,) = client.verdicts("web1", "disk0")
    assert (verdict.image, verdict.certain, verdict.pivot) == (request.disks[0].image, True, started.id)
    assert [record.event for record in client.pivot(started.id).records][-1] == "closed"
    assert client.progress(started.id) is None


def test_domains_and_disks(bench: Bench) -> None:
    """As pivotctl shows them."""
    client = client_of(bench)
    assert client.health().status == "ok"
    assert [(domain.name, domain.connection) for domain in client.domains()] == [("web1", "connected")]
    assert client.domain("web1").jobs == ()
    assert [disk.disk for disk in client.disks("web1")] == ["disk0", "disk1"]
    added = client.add_domain("web2", "/nonexistent/web2.qmp")
    assert added.connection == "unreachable"
    client.remove_domain("web2")
    with pytest.raises(RefusedError):
        client.domain("web2")


def test_nobody_there_is_unsent(tmp_path: Path) -> None:
    """The request has gone nowhere."""
    client = Client(str(tmp_path / "none.sock"), patience_s=0)
    for call in (client.health, lambda: client.start("web1", CommitRequest(disks=[CommitDisk(disk="disk0")]))):
        with pytest.raises(UnsentError) as caught:
            call()
        assert (caught.value.kind, caught.value.exit_status) == ("unreachable", 3)


def test_a_refusal_says_why(bench: Bench) -> None:
    """Kind, message, exit status and the facts of the daemon."""
    with pytest.raises(RefusedError) as caught:
        client_of(bench).start("web1", copy_of(bench, "disk9"))
    assert (caught.value.kind, caught.value.exit_status) == ("not-found", 4)
    assert "disk9" in caught.value.message
    assert client_of(bench).health().status == "ok"


def test_no_answer_is_unknown_and_has_the_id_to_ask_again(tmp_path: Path) -> None:
    """Whether the pivot was started is not known."""
    with answering(tmp_path / "s", b""), pytest.raises(UnknownError) as caught:
        Client(str(tmp_path / "s"), patience_s=0).start(
            "web1", CommitRequest(disks=[CommitDisk(disk="disk0")]), request_id="mine"
        )
    assert caught.value.fields["request_id"] == "mine"


@pytest.mark.parametrize("kind", ["internal", "journal-write", "qmp-unknown"])
def test_an_error_that_tells_nothing_of_the_effect_is_unknown(tmp_path: Path, kind: str) -> None:
    """The daemon answered, but it does not know either."""
    body = f'{{"kind": "{kind}", "detail": "nobody knows", "exit_status": 4}}'.encode()
    content = http("500 Internal Server Error", "application/problem+json", body)
    with answering(tmp_path / "s", content), pytest.raises(UnknownError) as caught:
        Client(str(tmp_path / "s")).cancel("P1")
    assert (caught.value.kind, caught.value.message) == (kind, "nobody knows")


@pytest.mark.parametrize("kind", ["fleet", "fleet-silent", "unanswered"])
def test_silence_is_unknown_only_of_a_request_that_changes_something(tmp_path: Path, kind: str) -> None:
    """The fleet, or the pivot's driver, may have got it; whoever only reads is refused."""
    content = http("503 Service Unavailable", "application/problem+json", f'{{"kind": "{kind}"}}'.encode())
    with answering(tmp_path / "s", content), pytest.raises(UnknownError):
        Client(str(tmp_path / "s")).take("web1", TakeRequest(fenced=True))
    with answering(tmp_path / "s2", content), pytest.raises(RefusedError):
        Client(str(tmp_path / "s2")).fleet_domains()


def test_a_lost_answer_does_not_start_a_second_pivot(bench: Bench, tmp_path: Path) -> None:
    """The request is sent again with its id, and gives the pivot of the first time."""
    said: list[str] = []
    before = {pivot.id for pivot in client_of(bench).pivots()}
    with losing_the_first_answer(tmp_path / "s", bench.daemon.socket) as requests:
        client = Client(str(tmp_path / "s"), tell=said.append)
        started = client.start("web1", copy_of(bench))
    assert len(requests) == 2
    assert requests[0] == requests[1]
    assert {pivot.id for pivot in client_of(bench).pivots()} - before == {started.id}
    assert said == ["lost pivotd, trying again for 30 s", "pivotd answers again"]
    client_of(bench).wait(started.id)


def test_waiting_ends_with_its_time(bench: Bench) -> None:
    """The pivot is returned as it is; one that waits at ready rests."""
    client = client_of(bench)
    held = client.start("web1", copy_of(bench, pivot=False))
    assert client.wait(held.id).phase == "ready"
    assert client.wait(held.id, timeout_s=0).rests
    client.complete(held.id)
    assert client.wait(held.request_id).outcome == "switched"


def test_pivots_come_in_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pivot once, the newest first, whatever the size of a page; and no more than were asked for."""
    client = client_of(bench)
    while len(every := [pivot.id for pivot in client.pivots()]) < 5:
        client.wait(client.start("web1", copy_of(bench)).id)
    for size in (1, 2, len(every) - 1, len(every), len(every) + 1):
        monkeypatch.setattr(daemon_client, "PIVOTS_PAGE", size)
        assert [pivot.id for pivot in client.pivots()] == every
        assert [pivot.id for pivot in client.pivots(limit=3)] == every[:3]
    assert list(client.pivots("web1", open_only=True)) == []
    assert len(bench.json("pivot", "ls", "--limit", "2").json) == 2
    assert "the newest 2 of 5 pivots" in bench.ctl("pivot", "ls", "--limit", "2").stderr


def test_events_resume_where_they_ended(bench: Bench) -> None:
    """A stream goes on with the record after the last one seen."""
    client = client_of(bench)
    held = client.start("web1", copy_of(bench, pivot=False))
    client.wait(held.id)
    every = list(client.events())
    assert [record.seq for record in every] == list(range(1, len(every) + 1))
    following = client.events(every[-3].seq, follow=True)
    assert [next(following), next(following)] == every[-2:]
    client.cancel(held.id)
    assert next(following).seq == every[-1].seq + 1
    following.close()


def test_waiting_for_an_event_leaves_no_stream_behind(bench: Bench) -> None:
    """It returns at once for a record that is there, at a sign of life once the time is over, and frees its place."""
    client = client_of(bench)
    for pivot in client.pivots(open_only=True):
        client.wait(pivot.id)
    for _ in range(2):
        client.add_domain("spare", str(bench.directory / "spare.qmp"))
        client.remove_domain("spare")
    last = client.health().journal.last_seq
    assert [record.seq for record in client.events_page(last - 2, 1)] == [last - 1]
    assert client.events_page(last, 1) == []
    client.await_event(last - 1, 60)
    for _ in range(STREAMS):
        client.await_event(last, 0)
