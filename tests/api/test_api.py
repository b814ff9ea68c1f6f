"""The API of a real daemon, over its Unix socket."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from pivotd import limits
from pivotd.api.access import AccessClass
from pivotd.api.routes import ROUTES
from pivotd.client import answers, requests
from pivotd.core import pivot, request, standing
from pivotd.core import verdict as verdicts
from tests.support.waiting import until

from .conftest import Api, Connection

pytestmark = pytest.mark.qemu

CALL_AS = """
import http.client, os, socket, sys
path, uid, gid, groups, method, target = sys.argv[1:]
os.setgroups([int(g) for g in groups.split()]); os.setgid(int(gid)); os.setuid(int(uid))
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(path)
connection.request(method, target, b"{}")
print(connection.getresponse().status)
"""


def status_as(
    api: Api, user: str, method: str, target: str, *, gid: int | None = None, groups: tuple[int, ...] = ()
) -> int:
    """Return the status of one call of a process with this user's uid, and no groups but those given."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    found = pwd.getpwnam(user)
    who = [str(found.pw_uid), str(found.pw_gid if gid is None else gid), " ".join(map(str, groups))]
    done = subprocess.run(
        [sys.executable, "-c", CALL_AS, str(api.daemon.socket), *who, method, target],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


# -- who may ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("user", "look", "change"), [("nobody", 403, 403), ("mail", 200, 403), ("daemon", 200, 400)])
def test_access_goes_by_peer_credentials(api: Api, user: str, look: int, change: int):
    """A stranger may nothing, a reader may look, an operator may change (and is told that the body is empty)."""
    assert status_as(api, user, "GET", "/v1/domains") == look
    assert status_as(api, user, "POST", "/v1/domains/web1/copy") == change


def test_groups_are_those_that_the_process_has(api: Api):
    """The kernel's word counts: a group given to the process lets it in, one that it has dropped does not."""
    mail, nogroup = grp.getgrnam("mail").gr_gid, grp.getgrnam("nogroup").gr_gid
    assert status_as(api, "nobody", "GET", "/v1/domains", groups=(mail,)) == 200
    assert status_as(api, "nobody", "GET", "/v1/domains", groups=(*range(70000, 70200), mail)) == 200
    assert status_as(api, "mail", "GET", "/v1/domains", gid=nogroup) == 403


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_no_route_is_open_to_strangers(api: Api, route: Any):
    """Every line of the table is checked before its handler runs."""
    target = route.path.format(domain="web1", pivot="x", disk="disk0")
    assert status_as(api, "nobody", route.method, target) == 403


def test_whatever_changes_something_needs_an_operator():
    """By the table: everything but GET."""
    for route in ROUTES:
        assert (route.access is AccessClass.READER) == (route.method == "GET"), route.path


def test_who_asked_is_in_the_journal(api: Api):
    """uid, gid and pid as the kernel told them."""
    who = api.copied()["requested_by"]
    assert who == {"uid": os.getuid(), "gid": os.getgid(), "pid": os.getpid()}


# -- requests -----------------------------------------------------------------------------------------------------


def test_the_same_request_id_returns_the_same_pivot(api: Api):
    """A retry is safe, also after the pivot has ended."""
    body = {"disks": [{"disk": "disk0", "image": api.image()}]}
    first = api.call("POST", "/v1/domains/web1/copy", body, Idempotency_Key="twice")
    api.call("GET", f"{first.headers['location']}/wait?timeout_s=50")
    again = api.call("POST", "/v1/domains/web1/copy", body, Idempotency_Key="twice")
    assert (again.status, again.json["id"]) == (202, first.json["id"])


def test_a_used_request_id_with_another_wish_is_a_conflict(api: Api):
    """It must not look like success."""
    api.copied(Idempotency_Key="once")
    body = {"disks": [{"disk": "disk0", "image": api.image()}]}
    answer = api.call("POST", "/v1/domains/web1/copy", body, Idempotency_Key="once")
    assert (answer.status, answer.json["kind"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        ({}, "disks"),
        ({"disks": []}, "disks"),
        ({"disks": [{"disk": "disk0", "image": "relative"}]}, "image"),
        ({"disks": [{"disk": "disk0", "image": "/a\nb"}]}, "image"),
        ({"disks": [{"disk": "disk0", "image": "/a", "format": "vmdk"}]}, "format"),
        ({"disks": [{"disk": "disk0", "image": "/a"}, {"disk": "disk0", "image": "/b"}]}, "disk0 is named twice"),
        ({"disks": [{"disk": "disk0", "image": "/a"}], "max_pause_ms": 0}, "max_pause_ms"),
        ({"disks": [{"disk": "disk0", "image": "/a"}], "speed": 1}, "speed"),
        ({"disks": [{"disk": "disk0", "image": "/a"}], "bandwidth_bytes_per_s": 2**63}, "bandwidth"),
    ],
)
def test_a_bad_body_names_what_is_wrong(api: Api, body: Any, named: str):
    """One line, with the field."""
    answer = api.call("POST", "/v1/domains/web1/copy", body)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert named in answer.json["detail"]
    assert "\n" not in answer.json["detail"]


ONE = {"disk": "disk0", "image": "/a"}
ABSOLUTE = "an absolute path of at most 4096 characters on one line"
IMAGE = "an absolute path, nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=/PATH, of at most 4096 characters on one line"
NAME = "at most 64 of A-Z a-z 0-9 . _ - that starts with a letter or digit"


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("domains", {"name": "a b", "qmp": "/a"}, f'name cannot be "a b": give {NAME}'),
        ("domains", {"name": "a", "qmp": "a"}, f'qmp cannot be "a": give {ABSOLUTE}'),
        ("domains/web1/copy", 5, "the body cannot be 5: give an object with fields of max_pause_ms, attempts,"),
        ("domains/web1/copy", {}, "disks is missing: give a list of 1 to 64 objects"),
        ("domains/web1/copy", {"disks": [{"disk": "a"}]}, f"image of a is missing: give {IMAGE}"),
        ("domains/web1/copy", {"disks": [ONE | {"disk": ""}]}, 'disk of disk number 1 cannot be "": give text of 1 to 256'),
        ("domains/web1/copy", {"disks": [ONE, ONE | {"image": "b"}]}, f'image of disk0 cannot be "b": give {IMAGE}'),
        ("domains/web1/copy", {"disks": [ONE | {"format": "vmdk"}]}, 'format of disk0 cannot be "vmdk": give qcow2 or raw, or'),
        ("domains/web1/copy", {"disks": [ONE | {"speed": 1}]}, '"speed" of disk0 is no field of this request; its fields are: disk, i'),
        ("domains/web1/copy", {"disks": [ONE], "sync": "some"}, 'sync cannot be "some": give full or top'),
        ("domains/web1/copy", {"disks": [ONE], "granularity_bytes": 3000}, "granularity_bytes cannot be 3000: give a power of two"),
        ("domains/web1/copy", {"disks": [ONE], "granularity_bytes": 256}, "granularity_bytes cannot be 256: give a whole number of bytes"),
        ("domains/web1/copy", {"disks": [ONE], "reuse": None}, "reuse cannot be null: give true or false"),
        ("domains/web1/copy", {"disks": [ONE], "max_pause_ms": 0}, "max_pause_ms cannot be 0: give a whole number of milliseconds from 1 to"),
        ("domains/web1/copy", {"disks": [ONE], "keep_synced_s": 1.5}, "keep_synced_s cannot be 1.5: give a whole number of seconds from 1 to"),
        ("domains/web1/copy", {"disks": [ONE], "image_options": {"refcount_bits": 5}}, "refcount_bits cannot be 5: give 1, 2, 4, 8, 16, 32 or 64"),
        ("domains/web1/copy", {"disks": [ONE], "image_options": {"cluster_size": 5}}, "cluster_size cannot be 5: give a whole number of bytes from"),
        ("domains/web1/snapshot", {"disks": [ONE | {"image": "x" * 5000}]}, "x… (5000 characters)"),
        ("domains/web1/commit", {"disks": [{"disk": "disk0", "top": "a"}]}, f'top of disk0 cannot be "a": give {ABSOLUTE}, or leave it out'),
        ("domains/web1/pull", {"disks": [ONE]}, '"image" of disk0 is no field of this request; its fields are: disk, base'),
        ("domains/web1/adopt", {"disks": []}, "disks cannot be a list of 0: give a list of 1 to 64"),
    ],
)  # fmt: skip
def test_a_bad_body_is_refused_in_words(api: Api, path: str, body: Any, detail: str):
    """The field, of which disk, the value, and what to give: no path, type or regular expression."""
    answer = api.call("POST", f"/v1/{path}", body)
    assert answer.status == 400
    assert detail in answer.json["detail"]


@pytest.mark.parametrize(
    "disks",
    [[{"image": "/a"}], [{"disk": "disk0", "job": "j", "image": "/a"}], [{"job": "j"}, {"job": "j"}]],
    ids=["neither", "both", "twice"],
)
def test_a_job_is_adopted_by_its_disk_or_by_its_id(api: Api, disks: list[dict[str, str]]):
    """One of the two, and each job once."""
    answer = api.call("POST", "/v1/domains/web1/adopt", {"disks": disks, "sync": "full"})
    assert (answer.status, answer.json["kind"]) == (400, "bad-request")
    assert re.search("one of the two|job j is named twice", answer.json["detail"])


def test_the_document_has_the_shape_of_a_domain(api: Api):
    """Field by field, the jobs of others too."""
    components = api.call("GET", "/v1/openapi.json").json["components"]["schemas"]
    shown = api.call("GET", "/v1/domains/web1").json
    assert list(shown) == list(components["DomainView"]["properties"])
    assert shown["jobs"] == []
    assert list(components["JobView"]["properties"]) == ["id", "type", "status", "disk", "adoptable", "reason"]


def test_an_endless_head_is_cut(api: Api):
    """Before anything is known of who sends it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(api.daemon.socket))
        client.sendall(b"GET /v1/health HTTP/1.1\r\nX: ")
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            client.sendall(b"x" * (4 << 20))


FLOOD = """
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([]); os.setgid(uid); os.setuid(uid)
held = []
for _ in range(400):
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    held.append(client)
print(len(held), flush=True)
sys.stdin.read()
"""


def test_a_stranger_cannot_use_up_the_daemon(api: Api):
    """Hundreds of idle connections of one user leave room for everybody else."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    command = [sys.executable, "-c", FLOOD, str(api.daemon.socket), str(pwd.getpwnam("nobody").pw_uid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as flood:
        assert flood.stdout is not None
        assert int(flood.stdout.readline()) == 400
        assert api.call("GET", "/v1/health").status == 200
        open_files = len(list(Path(f"/proc/{api.daemon.pid}/fd").iterdir()))
        assert open_files < 300
        assert flood.stdin is not None
        flood.stdin.close()


@pytest.mark.parametrize("name", ["a\n", "../x", "", "x" * 65, "-x"])
def test_a_bad_domain_name_is_refused(api: Api, name: str):
    """Also with a newline at the end, where `$` would match."""
    assert api.call("POST", "/v1/domains", {"name": name, "qmp": "/run/x.qmp"}).status == 400


def test_a_file_name_that_is_no_text_does_not_break_the_events(api: Api):
    """Linux file names are bytes; the journal keeps what was asked for."""
    api.call("POST", "/v1/domains", {"name": "bytes", "qmp": "/run/x\udcff.qmp"})
    assert api.call("GET", "/v1/events?limit=1000").status == 200
    api.call("DELETE", "/v1/domains/bytes")


def test_one_image_under_two_spellings_is_named_twice(api: Api):
    """/a and /a/../a are one image."""
    body = {"disks": [{"disk": "disk0", "image": "/a"}, {"disk": "disk1", "image": "/b/../a"}]}
    assert "twice" in api.call("POST", "/v1/domains/web1/copy", body).json["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/", 404, "not-found"),
        ("PUT", "/v1/domains", 405, "wrong-method"),
        ("HEAD", "/v1/domains", 405, "wrong-method"),
        ("GET", "/v1/domains/none", 404, "not-found"),
        ("GET", "/v1/domains/none/disks", 404, "not-found"),
        ("GET", "/v1/pivots/none", 404, "not-found"),
        ("GET", "/v1/pivots/none/wait", 404, "not-found"),
        ("GET", "/v1/pivots?open=perhaps", 400, "bad-request"),
        ("GET", "/v1/pivots?opne=true", 400, "bad-request"),
        ("GET", "/v1/pivots?limit=1001", 400, "bad-request"),
        ("GET", "/v1/pivots?kind=move", 400, "bad-request"),
        ("GET", "/v1/pivots?outcome=lost", 400, "bad-request"),
        ("GET", "/v1/pivots?since=yesterday", 400, "bad-request"),
        ("GET", "/v1/pivots?since=2026-11-23T09:00:00", 400, "bad-request"),
        ("GET", "/v1/events?tail=5", 400, "bad-request"),
        ("GET", "/v1/events?before_seq=-1", 400, "bad-request"),
        ("GET", "/v1/pivots?before=nobody", 404, "not-found"),
        ("GET", "/v1/domains/", 404, "not-found"),
        ("GET", "/v1/events?after=x", 400, "bad-request"),
        ("GET", "/v1/events?after=nan", 400, "bad-request"),
        ("GET", "/v1/verdicts?domain=web1&disk=none", 404, "not-found"),
        ("GET", "/v1/images", 400, "bad-request"),
        ("GET", "/v1/images?image=none.qcow2", 400, "bad-request"),
    ],
)
def test_errors_are_problem_documents(api: Api, method: str, path: str, status: int, kind: str):
    """RFC 9457 with a stable kind."""
    answer = api.call(method, path)
    assert answer.status == status
    if method != "HEAD":
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.json["kind"], answer.json["status"]) == (kind, status)


# -- domains ------------------------------------------------------------------------------------------------------


def test_a_domain_is_added_and_removed(api: Api):
    """Also where its monitor is not there yet: it is shown as unreachable with the reason."""
    added = api.call("POST", "/v1/domains", {"name": "later", "qmp": "/nonexistent/later.qmp"})
    assert (added.status, added.json["connection"]) == (201, "unreachable")
    assert "no such socket" in added.json["detail"]
    assert api.call("DELETE", "/v1/domains/later").status == 204
    assert api.call("GET", "/v1/domains/later").status == 404


def test_one_monitor_has_one_owner(api: Api):
    """A second domain on the same socket is refused."""
    answer = api.call("POST", "/v1/domains", {"name": "other", "qmp": str(api.qemu.qmp)})
    assert (answer.status, answer.json["domain"]) == (409, "web1")


def test_disks_show_what_qemu_and_journal_say(api: Api):
    """Image, format, size, and the last pivot."""
    pivot = api.copied()
    (disk,) = api.call("GET", "/v1/domains/web1/disks").json
    assert (disk["disk"], disk["format"], disk["size_bytes"]) == ("disk0", "qcow2", 64 << 20)
    assert (disk["image"], disk["pivot"]) == (pivot["disks"][0]["destination"], pivot["id"])


# -- events -------------------------------------------------------------------------------------------------------


def test_a_stream_resumes_by_its_last_id_without_a_gap(api: Api):
    """Every sequence number after the last one seen, in order, also those that come later."""
    start = api.call("GET", "/v1/health").json["journal"]["last_seq"]
    connection = Connection(api.daemon.socket)
    connection.request("GET", "/v1/events", headers={"Accept": "text/event-stream", "Last-Event-ID": str(start)})
    stream = connection.getresponse()
    pivot = api.copied()
    seen = []
    while not seen or seen[-1][1] != "closed":
        line = stream.readline().decode()
        if line.startswith("id:"):
            number = int(line[3:])
        if line.startswith("event:"):
            seen.append((number, line[6:].strip()))
    connection.close()
    assert [number for number, _ in seen] == list(range(start + 1, start + 1 + len(seen)))
    records = api.call("GET", f"/v1/pivots/{pivot['id']}").json["records"]
    assert [(r["seq"], r["event"]) for r in records] == seen


def test_a_stream_of_which_nothing_is_wanted_lives(api: Api):
    """A host that is busy with other records does not look dead to a reader with a filter: pivotctl would go away."""
    start = api.call("GET", "/v1/health").json["journal"]["last_seq"]
    connection = Connection(api.daemon.socket)
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(start)}
    connection.request("GET", "/v1/events?event=none-such", headers=headers)
    stream = connection.getresponse()
    assert [stream.readline(), stream.readline()] == [b": pivotd\n", b"\n"]
    api.copied()
    assert stream.readline() == b": still here\n", "sooner than after HEARTBEAT_S of silence"
    connection.close()


def test_pages_of_events_continue_one_another(api: Api):
    """By after and limit."""
    api.copied()
    first = api.call("GET", "/v1/events?after=0&limit=2").json
    second = api.call("GET", f"/v1/events?after={first[-1]['seq']}&limit=2").json
    assert [r["seq"] for r in first + second] == [1, 2, 3, 4]


def test_filters_go_on_where_a_page_ended(api: Api):
    """The link of each page leads to the next one, with the same filters, until there is none."""
    pivot = api.copied()
    path: str | None = "/v1/pivots?domain=web1&kind=copy&outcome=switched&since=2020-01-01T00%3A00%3A00Z&limit=1"
    found: list[str] = []
    while path is not None:
        answer = api.call("GET", path)
        found += [row["id"] for row in answer.json]
        path = re.sub(r"^<(.*)>; rel=\"next\"$", r"\1", answer.headers["link"]) if "link" in answer.headers else None
    every = api.call("GET", "/v1/pivots?limit=1000").json
    assert found == [row["id"] for row in every if row["outcome"] == "switched"]
    assert found[0] == pivot["id"]
    assert len(api.call("GET", "/v1/pivots?limit=1000&since=0001-01-01T00:00:00Z").json) == len(every)
    for nothing in ("outcome=split", "kind=pull", "since=2100-01-01T00:00:00Z", "domain=web2"):
        answer = api.call("GET", f"/v1/pivots?{nothing}")
        assert (answer.json, "link" in answer.headers) == ([], False)


def test_how_many_pivots_there_are(api: Api):
    """The header counts what an index counts, and is left out otherwise."""
    every = len(api.call("GET", "/v1/pivots?limit=1000").json)
    assert api.call("GET", "/v1/pivots?limit=0&total=true").headers["x-total-count"] == str(every)
    assert api.call("GET", "/v1/pivots?limit=1&open=true&domain=web1&total=true").headers["x-total-count"] == "0"
    assert "x-total-count" not in api.call("GET", "/v1/pivots?outcome=split&total=true").headers
    assert "x-total-count" not in api.call("GET", "/v1/pivots").headers


def test_pivots_by_name(api: Api):
    """An id, a request id, or the beginning of ids; the other filters mean nothing then."""
    pivot = api.copied(Idempotency_Key="by-name")
    for name in (pivot["id"], "by-name", pivot["id"][:-1].lower()):
        assert pivot["id"] in [row["id"] for row in api.call("GET", f"/v1/pivots?id={name}").json]
    assert api.call("GET", "/v1/pivots?id=by-nam").json == []


def test_filtered_records(api: Api):
    """From the beginning, from the end, and in a stream, which sends nothing else."""
    pivot = api.copied()
    every = api.call("GET", "/v1/events?limit=1000").json
    closed = [row["seq"] for row in every if row["event"] == "closed"]

    def seqs(query: str) -> list[int]:
        return [row["seq"] for row in api.call("GET", f"/v1/events?{query}").json]

    assert seqs("event=closed&limit=1000&domain=web1") == closed
    assert seqs("tail=true&event=closed&limit=1") == closed[-1:]
    assert seqs(f"tail=true&limit=2&before_seq={closed[-1]}") == [closed[-1] - 2, closed[-1] - 1]
    assert seqs("since=2100-01-01T00:00:00Z") == seqs("domain=web2") == []
    assert seqs(f"since={pivot['created'].replace('+', '%2B')}&limit=1")[0] >= closed[-2] if len(closed) > 1 else True
    connection = Connection(api.daemon.socket)
    connection.request("GET", "/v1/events?event=closed", headers={"Accept": "text/event-stream", "Last-Event-ID": "0"})
    lines = (line.decode().strip() for line in connection.getresponse())
    ids = (int(line.removeprefix("id: ")) for line in lines if line.startswith("id: "))
    assert [next(ids) for _ in closed] == closed
    connection.close()


def test_pages_of_pivots_continue_one_another(api: Api):
    """By before and limit, newest first."""
    made = [api.copied()["id"] for _ in range(3)]
    first = api.call("GET", "/v1/pivots?domain=web1&limit=2").json
    second = api.call("GET", f"/v1/pivots?domain=web1&limit=1&before={first[-1]['id']}").json
    assert [pivot["id"] for pivot in first + second] == made[::-1]
    assert [pivot["undo_of"] for pivot in first + second] == [None] * 3


def streams_have_ended(api: Api) -> bool:
    """Wait until the daemon has no connection any more, and has worked on since: a stream's place is free then."""
    path = str(api.daemon.socket)

    def only_listens() -> bool:
        return sum(row.endswith(path) for row in Path("/proc/net/unix").read_text().splitlines()) == 1

    return until(only_listens) and api.call("GET", "/v1/health").status == 200


@pytest.fixture
def no_streams(api: Api) -> None:
    """Those of the tests before have ended for the daemon, too."""
    assert streams_have_ended(api)


@pytest.mark.usefixtures("no_streams")
def test_too_many_streams_are_refused_and_ended_ones_make_room(api: Api):
    """Bounded: a client that leaks streams cannot use up the daemon."""
    held = []
    try:
        for _ in range(limits.STREAMS_MAX):
            connection = Connection(api.daemon.socket)
            connection.request("GET", "/v1/events", headers={"Accept": "text/event-stream"})
            assert connection.getresponse().status == 200
            held.append(connection)
        answer = api.call("GET", "/v1/events", Accept="text/event-stream")
        assert (answer.status, answer.json["kind"]) == (409, "conflict")
    finally:
        for connection in held:
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()


HOLD = """
import http.client, os, socket, sys
path, uid, gid, wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
os.setgroups([]); os.setgid(gid); os.setuid(uid)
held, said = [], []
for _ in range(wanted):
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("GET", "/v1/events", headers={"Accept": "text/event-stream"})
    answer = connection.getresponse()
    said.append(answer.status)
    held.append((connection, answer))
print(*said, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding_streams(api: Api, uid: int, gid: int, wanted: int) -> Iterator[list[int]]:
    """Open event streams in a process of another user; yield the status of each."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    command = [sys.executable, "-c", HOLD, str(api.daemon.socket), str(uid), str(gid), str(wanted)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield [int(word) for word in process.stdout.readline().split()]
        process.stdin.close()


@pytest.mark.usefixtures("no_streams")
def test_one_reader_has_a_share_of_the_streams(api: Api):
    """The 17th stream of one user is refused, another reader is let in, and so is the first one after leaving."""
    mail = grp.getgrnam("mail").gr_gid
    share = limits.STREAMS_PER_UID_MAX
    with holding_streams(api, 71001, mail, share + 1) as said, holding_streams(api, 71002, mail, 1) as other:
        assert said == [200] * share + [409]
        assert other == [200]
    assert streams_have_ended(api)
    with holding_streams(api, 71001, mail, 1) as again:
        assert again == [200]


@pytest.mark.usefixtures("no_streams")
def test_readers_leave_room_for_operators_and_root(api: Api):
    """However many readers there are: what is reserved is not theirs."""
    mail, operator = grp.getgrnam("mail").gr_gid, pwd.getpwnam("daemon")
    share, total = limits.STREAMS_PER_UID_MAX, limits.STREAMS_MAX - limits.STREAMS_RESERVED
    with contextlib.ExitStack() as stack:
        said = []
        for number in range(-(-total // share) + 1):
            said += stack.enter_context(holding_streams(api, 71001 + number, mail, share))
        assert said.count(200) == total
        assert set(said) == {200, 409}
        assert stack.enter_context(holding_streams(api, operator.pw_uid, operator.pw_gid, 1)) == [200]
        assert stack.enter_context(holding_streams(api, 0, 0, 1)) == [200]


@pytest.mark.parametrize("size_bytes", [limits.REQUEST_BODY_BYTES_MAX + 1, 150 << 10, 190 << 10, 3 << 20])
def test_a_body_that_is_too_large_is_told_so(api: Api, size_bytes: int):
    """Also where most of it comes in one piece."""
    body = b'{"disks": [], "x": "' + b"0" * size_bytes + b'"}'
    answer = api.call("POST", "/v1/domains/web1/snapshot", body)
    assert (answer.status, answer.json["kind"]) == (413, "too-large")


def test_a_refusal_by_the_head_alone_waits_for_the_body(api: Api):
    """A client that still writes its body finds the answer, not a connection that has ended."""
    head = b"POST /v1/domains?nonsense=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(api.daemon.socket))
            begun_s = time.monotonic()
            client.sendall(head)
            early = select.select([client], [], [], 0.2)[0]
            with contextlib.suppress(BrokenPipeError):
                client.sendall(b"null")
            took_s = time.monotonic() - begun_s
            answer = b"".join(iter(lambda client=client: client.recv(65536), b""))
        if took_s < limits.REFUSED_BODY_S:  # else the daemon has not waited for a client that was so slow
            break
    assert not early, "answered, and ended, before the body"
    assert took_s < limits.REFUSED_BODY_S
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"there is no parameter nonsense" in answer


# -- the document -------------------------------------------------------------------------------------------------


def test_the_document_lists_exactly_the_routes(api: Api):
    """openapi.json is made from the table."""
    document = api.call("GET", "/v1/openapi.json").json
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert listed == {(route.method, route.path) for route in ROUTES}


def test_every_reference_of_the_document_leads_somewhere(api: Api):
    """No dangling $ref."""
    text = api.call("GET", "/v1/openapi.json").body.decode()
    document = json.loads(text)
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in document["components"]["schemas"]


def test_answers_have_the_fields_of_the_document_and_no_others(api: Api):
    """A client may be made from the document."""
    body = {"disks": [{"disk": "disk0", "image": api.image()}], "pivot": False}
    held = api.call("POST", "/v1/domains/web1/copy", body).json
    names = {"domain": "web1", "pivot": held["id"]}
    for route in ROUTES:
        if route.path.startswith("/v1/fleet/"):  # tests/fleet/test_api.py has a fleet
            continue
        if route.method == "GET" and route.answer is not None:
            query = f"?image={api.image()}" if route.path == "/v1/images" else ""
            answer = api.call("GET", route.path.format_map(names) + query)
            assert answer.status == 200, answer.body
            shaped = msgspec.json.decode(answer.body, type=route.answer)
            assert json.loads(msgspec.json.encode(shaped)) == answer.json, route.path
    assert api.call("POST", f"/v1/pivots/{held['id']}/cancel").json.keys() == held.keys()
    api.call("GET", f"/v1/pivots/{held['id']}/wait?timeout_s=50")


@pytest.mark.parametrize(
    ("words", "enum"),
    [
        (answers.Kind, request.Kind), (answers.Phase, pivot.Phase), (answers.Outcome, pivot.Outcome),
        (answers.Presence, verdicts.Presence), (answers.Standing, standing.Standing),
        (requests.Sync, request.Sync), (requests.CopyMode, request.CopyMode), (requests.Discard, request.Discard),
    ],
)  # fmt: skip
def test_the_words_of_requests_and_answers_are_those_of_the_core(words: Any, enum: type[StrEnum]):
    """The client library lists them without importing the core."""
    assert list(get_args(words)) == [word.value for word in enum]


def test_every_answer_is_in_the_document():
    """But for the metrics, and the document itself."""
    others = ["/metrics", "/v1/openapi.json"]
    assert [route.path for route in ROUTES if route.answer is None and route.status != 204] == others


def test_health_says_what_is_there(api: Api):
    """For a monitoring system."""
    health = api.call("GET", "/v1/health").json
    assert (health["status"], health["domains"]["connected"]) == ("ok", 1)


def test_the_verdict_has_the_documented_shape(api: Api):
    """The public contract, field by field."""
    pivot = api.copied()
    (verdict,) = api.call("GET", "/v1/verdicts?domain=web1&disk=disk0").json
    assert list(verdict) == [
        "domain", "disk", "image", "format", "outcome", "certain", "pivot", "since", "reason", "evidence",
        "pending", "file",
    ]  # fmt: skip
    assert (verdict["image"], verdict["outcome"], verdict["certain"]) == (
        pivot["disks"][0]["destination"], "switched", True,
    )  # fmt: skip
