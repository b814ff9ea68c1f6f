"""Nodes of etcd that die, freeze, come back, and a majority that is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from pivotd.errors import FleetConflictError, FleetSilentError
from pivotd.fleet.store import EtcdFleet
from tests.fleet.conftest import Settings
from tests.fleet.etcd import Cluster, Node
from tests.fleet.proxy import Fate, Proxy
from tests.fleet.test_messages import LONG_S, SHORT_S, ready
from tests.fleet.views import announced, claimed, published

SLACK_S = 20.0
"""For a busy machine; a call that waits for a node that is away takes LONG_S."""


def ask_first(fleet: EtcdFleet, node: Node) -> None:
    fleet.gateway.endpoints.sort(key=lambda endpoint: endpoint.url != node.url)


async def test_leader_that_dies_before_a_write(fragile: Cluster, fleet_of: Settings) -> None:
    """The others elect another one, and the write waits for it."""
    fleet = fleet_of(*fragile.urls)
    view = await ready(fleet, claimed, announced)
    leader = await asyncio.to_thread(fragile.leader)
    ask_first(fleet, leader)
    leader.kill()
    after = await fleet.write(view, published(view), LONG_S)
    assert await fleet.read(view.domain, LONG_S) == after


async def test_leader_that_dies_in_a_write(fragile: Cluster, fleet_of: Settings) -> None:
    """It has carried the write out and nobody was told: the write succeeds by another node, and is there once."""
    leader = await asyncio.to_thread(fragile.leader)
    async with Proxy(leader.url) as proxy:
        fleet = fleet_of(proxy.url, *(node.url for node in fragile.nodes if node is not leader))
        view = await ready(fleet, claimed, announced)
        fleet.gateway.endpoints.sort(key=lambda endpoint: endpoint.url != proxy.url)
        proxy.next(Fate.ANSWER_LOST)
        async with asyncio.TaskGroup() as group:
            write = group.create_task(fleet.write(view, published(view), LONG_S))
            await proxy.carried_out.wait()
            leader.kill()
        assert await fleet.read(view.domain, LONG_S) == write.result()


async def test_leader_that_dies_after_a_write(fragile: Cluster, fleet_of: Settings) -> None:
    """What was answered stays, and the next write goes on from it."""
    fleet = fleet_of(*fragile.urls)
    view = await ready(fleet, claimed, announced)
    leader = await asyncio.to_thread(fragile.leader)
    ask_first(fleet, leader)
    after = await fleet.write(view, published(view), LONG_S)
    leader.kill()
    assert await fleet.read(view.domain, LONG_S) == after
    again = await fleet.write(after, announced(after, "01B"), LONG_S)
    assert await fleet.read(view.domain, LONG_S) == again


async def test_frozen_node_costs_a_moment_once(fragile: Cluster, fleet_of: Settings) -> None:
    """Its connection is open and nothing comes: another one answers, and is asked first from then on."""
    fleet = fleet_of(*fragile.urls)
    view = await ready(fleet, claimed)
    frozen = (await asyncio.to_thread(fragile.followers))[0]
    ask_first(fleet, frozen)
    await fleet.read(view.domain, LONG_S)
    frozen.freeze()
    began = time.monotonic()
    view = await fleet.write(view, announced(view), LONG_S)
    assert time.monotonic() - began < SLACK_S
    assert fleet.gateway.endpoints[0].url != frozen.url
    frozen.thaw()
    assert await fleet.read(view.domain, LONG_S) == view


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_minority_never_answers(how: str, fragile: Cluster, fleet_of: Settings) -> None:
    """With two of three nodes gone neither a read nor a write gets an answer, in its time; with a majority both do."""
    fleet = fleet_of(*fragile.urls)
    view = await ready(fleet, claimed)
    gone = await asyncio.to_thread(fragile.followers)
    for node in gone:
        node.freeze() if how == "frozen" else node.kill()
    began = time.monotonic()
    with pytest.raises(FleetSilentError):
        await fleet.read(view.domain, SHORT_S)
    with pytest.raises(FleetSilentError):
        await fleet.write(view, announced(view), SHORT_S)
    assert time.monotonic() - began < 2 * SHORT_S + SLACK_S
    for node in gone:
        node.thaw() if how == "frozen" else fragile.start(node)
    after = None
    while after is None:
        found = await fleet.read(view.domain, LONG_S)
        assert found.intent in {None, announced(view).intent}
        # The write that got no answer may still come, once.
        with contextlib.suppress(FleetConflictError):
            after = await fleet.write(found, published(announced(found)), LONG_S)
    assert await fleet.read(view.domain, LONG_S) == after


async def test_minority_answers_nothing_old(fragile: Cluster, fleet_of: Settings) -> None:
    """A node that slept through a write does not tell what was before, when it wakes."""
    fleet = fleet_of(*fragile.urls)
    view = await ready(fleet, claimed, announced)
    sleeper = await asyncio.to_thread(fragile.leader)
    alone = fleet_of(sleeper.url)
    assert await alone.read(view.domain, LONG_S) == view
    sleeper.freeze()
    fleet.gateway.endpoints.sort(key=lambda endpoint: endpoint.url == sleeper.url)
    after = await fleet.write(view, published(view), LONG_S)
    sleeper.thaw()
    assert await alone.read(view.domain, LONG_S) == after
