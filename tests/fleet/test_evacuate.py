"""`pivotctl evacuate` on one host of a fleet: the guests of other hosts stay theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fleet.test_commands import Site, site  # noqa: F401 - a fixture
from tests.fleet.test_owners import LONG_PAUSE
from tests.fleet.views import claimed
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu


def test_a_guest_of_another_host_is_told_with_its_host(site: Site, tmp_path: Path) -> None:  # noqa: F811
    """Its QEMU is here, as after a migration that nobody has told of; own guests move all the same."""
    site.domain("web1", claimed)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    disks = {name: Disk(create_image(old / f"{name}.qcow2")) for name in ("web1", "web2")}
    endpoints, prefix = json.dumps(list(site.cluster.urls)), json.dumps(site.prefix)
    fleet = f'{LONG_PAUSE}\n[fleet]\nendpoints = {endpoints}\nprefix = {prefix}\nhost = "h2"\n'
    domains = {name: tmp_path / f"{name}.qmp" for name in disks}
    with (
        Qemu(tmp_path, [disks["web1"]], name="web1"),
        Qemu(tmp_path, [disks["web2"]], name="web2"),
        Daemon(tmp_path, domains, configuration=fleet) as daemon,
    ):
        answer = daemon.ctl("evacuate", "--from", str(old), "--to", str(new))
        (ours,), (theirs,) = answer.json["moves"], answer.json["left"]
        assert (answer.status, theirs["domain"]) == (6, "web1")
        assert "belongs to host h1" in theirs["reason"]
        assert (ours["domain"], ours["outcome"]) == ("web2", "switched")
