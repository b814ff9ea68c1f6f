"""`pivotctl fleet`: what an operator is told on a machine that only reaches etcd."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd.config import Fleet
from pivotd.core.fleet import FleetView
from pivotd.fleet.presence import Presence
from pivotd.fleet.store import EtcdFleet
from tests.cli.ctl import Answer, ctl, interrupt, start
from tests.conftest import LONG
from tests.fleet.etcd import Cluster
from tests.fleet.test_messages import LONG_S
from tests.fleet.views import AT, AWAY, DESTINATION, SOURCE, announced, claimed, published

NUMBERS = itertools.count()
Step = Callable[[FleetView], FleetView]


class Site:
    """A prefix of its own in a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.prefix = f"/{next(NUMBERS)}/"
        self.options = ("--endpoints", ",".join(cluster.urls), "--prefix", self.prefix)

    def run(self, *arguments: str, host: str = "h2", json: bool = False) -> Answer:
        return ctl(*(["--json"] if json else []), "fleet", *self.options, "--host", host, *arguments)

    def domain(self, name: str, *steps: Step) -> FleetView:
        """Write a domain, step by step."""

        async def write() -> FleetView:
            fleet = EtcdFleet(Fleet(self.cluster.urls, prefix=self.prefix))
            view = FleetView(name)
            for step in steps:
                view = await fleet.write(view, step(view), LONG_S)
            fleet.close()
            return view

        return asyncio.run(write())


@pytest.fixture
def site(cluster: Cluster) -> Site:
    return Site(cluster)


def test_verdict_of_a_result_is_certain(site: Site) -> None:
    """Status 0 and the image, for people and for programs."""
    site.domain("web1", claimed, announced, published)
    said = site.run("verdict", "web1", "disk0")
    assert (said.status, said.stdout.splitlines()[0]) == (0, f"web1 disk0  {DESTINATION.filename}")
    found = site.run("verdict", "web1", "disk0", json=True).json
    assert (found["image"], found["format"], found["outcome"]) == (DESTINATION.filename, "qcow2", "switched")
    assert (found["certain"], found["host"], found["pivot"], found["since"]) == (True, "h1", "01A", AT)


def test_verdict_of_an_undecided_pivot_names_both_images(site: Site) -> None:
    """Status 6, both images, and the host whose journal decides."""
    site.domain("web1", claimed, announced)
    said = site.run("verdict", "web1", json=True)
    (found,) = said.json
    assert (said.status, found["image"], found["certain"], found["decides"]) == (6, None, False, "h1")
    assert [one["image"] for one in found["candidates"]] == [SOURCE.filename, DESTINATION.filename]
    assert site.run("verdict").status == 6


def test_never_moved_is_status_7(site: Site) -> None:
    """A domain that nobody knows, and a disk of one that is known."""
    site.domain("web1", claimed, announced, published)
    for words in (["web2"], ["web1", "disk7"]):
        said = site.run("verdict", *words)
        assert (said.status, said.stdout) == (7, "")
        assert said.stderr == f"pivotctl: pivotd has never moved {' '.join(words)} in this fleet\n"


def test_take_answers_with_the_images(site: Site) -> None:
    """The guest belongs to this host under the next epoch; to take it again changes nothing."""
    site.domain("web1", claimed, announced, published)
    said = site.run("take", "web1", "--fenced", json=True)
    (found,) = said.json
    assert (said.status, found["image"], found["host"], found["epoch"]) == (0, DESTINATION.filename, "h2", 2)
    before = site.cluster.stored()
    assert site.run("take", "web1", "--fenced", json=True).json == [found]
    assert site.cluster.stored() == before


def test_take_needs_the_word_that_the_host_is_fenced(site: Site) -> None:
    """Status 2, and nothing has changed."""
    site.domain("web1", claimed, announced, published)
    before = site.cluster.stored()
    said = site.run("take", "web1")
    assert (said.status, "then say so with --fenced" in said.stderr) == (2, True)
    assert site.cluster.stored() == before


def test_take_of_an_undecided_pivot_needs_a_choice(site: Site) -> None:
    """Status 6 without one; another image than the two is refused; the word of a person is recorded as that."""
    site.domain("web1", claimed, announced)
    said = site.run("take", "web1", "--fenced")
    assert (said.status, "choose with --image disk0=" in said.stderr) == (6, True)
    said = site.run("take", "web1", "--fenced", "--image", "disk0=/else.qcow2")
    assert (said.status, "is no image that disk0 can be on" in said.stderr) == (4, True)
    said = site.run("take", "web1", "--fenced", "--image", f"disk0={SOURCE.filename}", json=True)
    (found,) = said.json
    assert (found["image"], found["format"], found["outcome"]) == (SOURCE.filename, "qcow2", "accepted")
    assert site.run("verdict", "web1").status == 0


def test_own_undecided_pivot_is_not_taken(site: Site) -> None:
    """The journal of this host knows more than etcd."""
    site.domain("web1", claimed, announced)
    said = site.run("take", "web1", "--fenced", host="h1")
    assert (said.status, "whose own journal knows more: `pivotctl verdict web1`" in said.stderr) == (4, True)


def test_forget_removes_a_domain(site: Site) -> None:
    """Not while a pivot is undecided, and not one that nobody knows."""
    site.domain("web1", claimed, announced, published)
    site.domain("web2", claimed, announced)
    assert site.run("forget", "web1").status == 0
    assert site.run("forget", "web1").status == 7
    said = site.run("verdict", "web1")
    assert (said.status, "since this fleet was made to forget web1" in said.stderr) == (7, True)
    said = site.run("forget", "web2")
    assert (said.status, "is undecided, and h1 will tell its outcome" in said.stderr) == (4, True)
    assert [row.split()[0] for row in site.run("ls").stdout.splitlines()[1:]] == ["web2"]
    kept = {key: value for key, value in site.cluster.stored().items() if key.startswith(f"{site.prefix}domains/web1/")}
    assert [json.loads(value)["epoch"] for value in kept.values()] == [2], "a journal can tell that it is older"


def test_ls_and_status_show_domains_hosts_and_nodes(site: Site) -> None:
    """One row for each disk; who was seen; the undecided pivot; all nodes."""
    site.domain("web1", claimed, announced, published)
    site.domain("web2", claimed, announced)
    site.domain("web3", claimed)

    async def show() -> None:
        fleet = EtcdFleet(Fleet(site.cluster.urls, host="h1", prefix=site.prefix))
        await Presence(fleet, "9.9", AT, lambda _: None).renew()
        fleet.close()

    asyncio.run(show())
    rows = [line.split() for line in site.run("ls").stdout.splitlines()[1:]]
    assert rows == [
        ["web1", "h1", "yes", "disk0", DESTINATION.filename, "switched", "-"],
        ["web2", "h1", "yes", "disk0", "-", "unknown", "01A"],
        ["web3", "h1", "yes", "-", "-", "-", "-"],
    ]
    assert [one["domain"] for one in site.run("ls", json=True).json] == ["web1", "web2", "web3"]
    found = site.run("status", json=True).json
    assert (found["quorum"], found["domains"]) == (True, 3)
    assert found["hosts"] == [{"host": "h1", "version": "9.9", "since": AT}]
    assert found["undecided"] == [{"domain": "web2", "pivot": "01A", "host": "h1", "on_silence": "resume"}]
    assert [node["endpoint"] for node in found["nodes"]] == list(site.cluster.urls)
    assert [node["leader"] for node in found["nodes"]].count(True) == 1
    assert "3 domains, 1 hosts seen, 1 undecided pivots" in site.run("status").stdout


def test_ls_follows_changes_until_interrupted(site: Site) -> None:
    """Each change is a line; Ctrl-C ends it with status 130."""
    site.domain("web1", claimed)
    with start("--json", "fleet", *site.options, "ls", "--follow") as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["domain"] == "web1"
        site.domain("web2", claimed, announced)
        while json.loads(line := following.stdout.readline())["pivot"] is None:
            assert line
        assert json.loads(line)["domain"] == "web2"
        interrupt(following)
        assert following.returncode == 130


def test_without_a_majority_the_status_is_3(tmp_path: Path) -> None:
    """Neither an answer nor "never moved": nothing is known."""
    with Cluster(tmp_path) as cluster:
        site = Site(cluster)
        site.domain("web1", claimed, announced, published)
        for node in cluster.followers():
            node.freeze()
        more = [["verdict"], ["ls"], ["forget", "web1"]] if LONG else []
        for words in (["verdict", "web1"], ["take", "web1", "--fenced"], *more):
            said = site.run(*words)
            assert (said.status, said.stdout, said.stderr.count("\n")) == (3, "", 1), words
        said = site.run("status", json=True)
        assert (said.status, said.json["quorum"], said.json["domains"]) == (3, False, None)


def test_configuration_says_where_etcd_is(site: Site, tmp_path: Path) -> None:
    """[fleet] of a file; without it, or with a bad option, one line and status 2."""
    site.domain("web1", claimed, announced, published)
    file = tmp_path / "pivotd.toml"
    file.write_text(f'[fleet]\nhost = "h2"\nprefix = "{site.prefix}"\nendpoints = {list(site.cluster.urls)}\n')
    assert ctl("fleet", "--config", file, "verdict", "web1").status == 0
    assert json.loads(ctl("--json", "fleet", "--config", file, "take", "web1", "--fenced").stdout)[0]["host"] == "h2"
    file.write_text("")
    said = ctl("fleet", "--config", file, "verdict")
    assert (said.status, said.stderr) == (
        2,
        f"pivotctl: {file} has no [fleet]: give --endpoints, or configure it (docs/fleet.md)\n",
    )
    said = ctl("fleet", "--config", tmp_path / "none", "verdict")
    assert (said.status, "there is no" in said.stderr, "give --endpoints" in said.stderr) == (2, True, True)
    said = ctl("fleet", "--config", file, "--prefix", "/x/", "verdict")
    assert (said.status, "--prefix goes with --endpoints" in said.stderr) == (2, True)
    said = ctl("fleet", "--endpoints", "etcd1:2379", "verdict")
    assert (said.status, "expected a list of https://HOST:PORT URLs" in said.stderr) == (2, True)
    said = ctl("fleet", "--endpoints", AWAY, "verdict", env={**os.environ})
    assert (said.status, f"{AWAY}: Connection refused" in said.stderr) == (3, True)
