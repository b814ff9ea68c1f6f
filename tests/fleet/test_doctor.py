"""`pivotctl doctor` on a host of a fleet: a node that has died, a pivot whose host is lost, no majority."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivotd.client import Client, DoctorFinding
from tests.fleet.etcd import Cluster
from tests.fleet.test_api import started
from tests.fleet.test_commands import Site
from tests.fleet.views import announced, claimed
from tests.support.waiting import until

pytestmark = pytest.mark.long


def found(client: Client) -> dict[str, DoctorFinding]:
    """Return what is wrong with the fleet, by check."""
    (area,) = [area for area in client.doctor().areas if area.area == "fleet"]
    return {one.check: one for one in area.findings if one.seen}


def test_what_is_wrong_with_a_fleet(fragile: Cluster, tmp_path: Path) -> None:
    """Nothing; then a pivot without an outcome; then a node that is dead, by its address; then no majority."""
    site = Site(fragile)
    with started(tmp_path, fragile.urls, site.prefix, timeout_ms=2000) as daemon:
        client = Client(str(daemon.socket))
        assert found(client) == {}
        site.domain("web2", claimed, announced)
        assert found(client).keys() == {"fleet-undecided"}
        assert found(client)["fleet-undecided"].subject == "web2"
        first, second = fragile.followers()[:2]
        first.kill()
        assert until(lambda: found(client).keys() == {"fleet-undecided", "fleet-node"})
        assert found(client)["fleet-node"].subject == first.url
        second.kill()
        assert until(lambda: "fleet-silent" in found(client))
