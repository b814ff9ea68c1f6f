"""The API answers what `pivotctl fleet` answers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pivotd.api.routes import ROUTES
from pivotd.client import Client, ClientError, RefusedError, TakeDisk, TakeRequest
from pivotd.client.transport import Transport
from tests.fleet.test_commands import Site, site  # noqa: F401 - a fixture
from tests.fleet.views import AWAY, DESTINATION, announced, claimed, published
from tests.support.daemon import Daemon


@pytest.fixture
def daemon(site: Site, tmp_path: Path) -> Iterator[Daemon]:  # noqa: F811
    """Return a pivotd of the host h2, without guests."""
    with started(tmp_path, site.cluster.urls, site.prefix) as running:
        yield running


def started(tmp_path: Path, endpoints: Any, prefix: str, timeout_ms: int = 20_000) -> Daemon:
    """Return a pivotd of the host h2 that waits for etcd, also on a busy machine."""
    lines = f'[fleet]\nendpoints = {json.dumps(list(endpoints))}\nprefix = {json.dumps(prefix)}\nhost = "h2"\n'
    return Daemon(tmp_path, {}, configuration=f"{lines}timeout_ms = {timeout_ms}\n")


def built(answer: Any) -> Any:
    return json.loads(msgspec.json.encode(answer))


def test_the_answers_are_those_of_the_commands(site: Site, daemon: Daemon) -> None:  # noqa: F811
    """Verdicts of all, of one, and of none; domains; the state of etcd."""
    site.domain("web1", claimed, announced, published)
    site.domain("web2", claimed, announced)
    client = Client(str(daemon.socket))
    assert built(client.fleet_verdicts()) == site.run("verdict", json=True).json
    assert built(client.fleet_verdicts("web1", "disk0")) == [site.run("verdict", "web1", "disk0", json=True).json]
    assert built(client.fleet_verdicts("web2")) == site.run("verdict", "web2", json=True).json
    assert client.fleet_verdicts("web9") == []
    assert built(client.fleet_domains()) == site.run("ls", json=True).json
    found = client.fleet_status()
    assert (found.quorum, found.domains, len(found.nodes), found.error) == (True, 2, 3, None)
    assert [one.pivot for one in found.undecided] == ["01A"]
    assert found.hosts == () or [one.host for one in found.hosts] == ["h2"]
    transport = Transport(str(daemon.socket))
    for route in ROUTES:
        if route.path.startswith("/v1/fleet/") and route.method == "GET":
            document = transport.request("GET", route.path)
            assert built(msgspec.convert(document, route.answer)) == document, route.path


def test_a_guest_is_taken_for_the_host_of_the_daemon(site: Site, daemon: Daemon) -> None:  # noqa: F811
    """Only from a host that was fenced, and with a person's word where it is needed; the journal has who asked."""
    site.domain("web1", claimed, announced)
    client = Client(str(daemon.socket))
    for request, status in ((TakeRequest(fenced=False), 4), (TakeRequest(fenced=True), 6)):
        with pytest.raises(RefusedError) as refused:
            client.take("web1", request)
        assert refused.value.exit_status == status
    with pytest.raises(RefusedError) as refused:
        client.take("web9", TakeRequest(fenced=True))
    assert (refused.value.kind, refused.value.exit_status) == ("never-moved", 7)
    taken = client.take("web1", TakeRequest(fenced=True, disks=[TakeDisk("disk0", DESTINATION.filename)]))
    assert (taken.host, taken.disks[0].image, taken.disks[0].outcome) == ("h2", DESTINATION.filename, "accepted")
    assert site.run("verdict", "web1", "disk0", json=True).json["host"] == "h2"
    (record,) = [one for one in client.events() if one.event == "guest-taken"]
    assert (record.domain, record.facts["images"]) == ("web1", {"disk0": DESTINATION.filename})
    assert record.facts["uid"] == os.getuid()
    client.forget("web1")
    assert client.fleet_domains() == []
    asked, done = [one for one in client.events() if "forg" in one.event]
    assert (asked.event, done.event) == ("forget-requested", "guest-forgotten")
    assert {(one.domain, one.facts["uid"]) for one in (asked, done)} == {("web1", os.getuid())}


def test_an_etcd_without_a_majority_is_an_error_and_no_answer(tmp_path: Path) -> None:
    """Status 3; the state of its nodes is told all the same."""
    with started(tmp_path, [AWAY, f"{AWAY}1"], "/p/", timeout_ms=2000) as daemon:
        client = Client(str(daemon.socket))
        for ask in (client.fleet_verdicts, client.fleet_domains, lambda: client.fleet_verdicts("web1")):
            with pytest.raises(ClientError) as failed:
                ask()  # type: ignore[operator]
            assert (failed.value.kind, failed.value.exit_status) == ("fleet-silent", 3)
        found = client.fleet_status()
        assert (found.quorum, found.domains, len(found.nodes)) == (False, None, 2)
        assert all(one.error for one in found.nodes)
        assert found.error


def test_a_daemon_without_a_fleet_says_so(tmp_path: Path) -> None:
    """Status 4, and what to configure."""
    with Daemon(tmp_path, {}) as daemon:
        for ask in (Client(str(daemon.socket)).fleet_status, Client(str(daemon.socket)).fleet_verdicts):
            with pytest.raises(RefusedError, match="belongs to no fleet") as refused:
                ask()
            assert refused.value.exit_status == 4
