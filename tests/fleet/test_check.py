"""`pivotd --check` tries the fleet: a line for each endpoint, or one line that says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pivotd.fleet.presence import Presence
from tests.fleet.conftest import Settings
from tests.fleet.etcd import Cluster
from tests.fleet.test_messages import LONG_S
from tests.fleet.test_refusals import user
from tests.fleet.views import AT, AWAY


def check(tmp_path: Path, *endpoints: str, **more: object) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr."""
    file = tmp_path / "pivotd.toml"
    keys = {"host": "h1", "timeout_ms": 20_000, **more}
    lines = [f"{name} = {value if isinstance(value, int) else repr(str(value))}" for name, value in keys.items()]
    file.write_text(f"[fleet]\nendpoints = {list(endpoints)}\n" + "\n".join(lines))
    command = [sys.executable, "-m", "pivotd.daemon", "--config", str(file), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.count("\n") <= 1
    return done.returncode, done.stdout, done.stderr


def test_endpoints_are_tried(cluster: Cluster, tmp_path: Path) -> None:
    """Each has its line; nothing is written."""
    before = cluster.stored()
    status, said, _ = check(tmp_path, *cluster.urls)
    *lines, last = said.splitlines()
    assert status == 0
    assert [line.split(": ok, etcd 3.")[0] for line in lines] == list(cluster.urls)
    assert last == f"{tmp_path}/pivotd.toml: ok"
    assert cluster.stored() == before


def test_one_endpoint_that_is_away_is_told_and_no_error(cluster: Cluster, tmp_path: Path) -> None:
    """The majority is there: pivotd would work."""
    status, said, _ = check(tmp_path, *cluster.urls[:2], AWAY)
    assert status == 0
    assert f"NOT USABLE NOW: {AWAY}: Connection refused" in said


def test_no_answer_is_status_3(tmp_path: Path) -> None:
    """Nobody is there."""
    assert check(tmp_path, AWAY) == (3, "", f"pivotd: etcd: {AWAY}: Connection refused\n")


def test_what_has_to_be_corrected_is_status_4(cluster: Cluster, tmp_path: Path) -> None:
    """A user where etcd has none; an endpoint of another cluster; a full disk and permissions go the same way."""
    status, _, said = check(tmp_path, *cluster.urls, **user(tmp_path, "pivotd"))
    assert (status, "knows no users" in said) == (4, True)
    with Cluster(tmp_path / "other", 1) as other:
        status, _, said = check(tmp_path, *cluster.urls, *other.urls)
    assert (status, "belongs to etcd cluster" in said) == (4, True)


async def test_name_of_another_machine_is_refused(cluster: Cluster, tmp_path: Path, fleet_of: Settings) -> None:
    """Two machines of one name would believe that they own each other's guests."""
    fleet = fleet_of(*cluster.urls, host="twin", prefix="/twin/")
    told: list[object] = []
    presence = Presence(fleet, "1", AT, told.append)
    await presence.renew()
    await presence.renew()
    mine = (await fleet.hosts(LONG_S))["twin"]
    assert check(tmp_path, *cluster.urls, host="twin", prefix="/twin/")[0] == 0
    presence._value.machine = "another"
    presence._lease = None
    await presence.renew()
    status, _, said = check(tmp_path, *cluster.urls, host="twin", prefix="/twin/")
    assert (status, "another machine is called twin, too" in said) == (4, True)
    await presence.end()
    assert await fleet.hosts(LONG_S) == {}
    assert (mine.version, mine.since) == ("1", AT)
    assert told == []
