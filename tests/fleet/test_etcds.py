"""Each test of this folder runs with the etcd that its name says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.fleet.etcd import Cluster
from tests.fleet.etcds import command


def test_the_release_is_the_one_of_the_test(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """Of etcd and etcdctl; another Debian release has another version."""
    said = subprocess.run([*command("etcd"), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"^etcd Version: (\S+)$", said, re.MULTILINE)
    assert version
    assert cluster.leader().ask("/v3/maintenance/status", {})["version"] == version[1]
    assert f"etcdctl version: {version[1]}" in cluster.ctl("version")
    installed = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout
    assert (said == installed) == ("installed" in request.node.name)


def test_data_is_removed_unless_a_test_has_failed(tmp_path: Path) -> None:
    """Logs stay; data stays where a test fails inside the block, or the fixture knows of one that did."""

    def left() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    with Cluster(tmp_path, 1):
        assert left() == ["n0", "n0.log"]
    assert left() == ["n0.log"]
    with Cluster(tmp_path, 1) as cluster:
        cluster.keeps_data = True
    assert left() == ["n0", "n0.log"]
    with pytest.raises(ZeroDivisionError), Cluster(tmp_path, 1, token="again"):
        raise ZeroDivisionError
    assert left() == ["n0", "n0.log"]
