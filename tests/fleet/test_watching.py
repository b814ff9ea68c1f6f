"""Following a fleet: each change is told, also across lost nodes and history that etcd has forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pivotd import limits
from pivotd.core.fleet import FleetView
from pivotd.core.rules.fleet_changes import forgotten
from pivotd.fleet.store import EtcdFleet
from pivotd.fleet.watching import Watching
from tests.fleet.conftest import Settings
from tests.fleet.etcd import Cluster
from tests.fleet.proxy import Proxy
from tests.fleet.test_messages import LONG_S
from tests.fleet.views import announced, claimed, published

Changes = asyncio.Queue[tuple[str, FleetView | None]]


@asynccontextmanager
async def following(fleet: EtcdFleet) -> AsyncIterator[tuple[Changes, asyncio.Queue[object]]]:
    """Follow, and yield the changes and what is told."""
    changes: Changes = asyncio.Queue()
    told: asyncio.Queue[object] = asyncio.Queue()
    watching = Watching(fleet, lambda domain, view: changes.put_nowait((domain, view)), told.put_nowait)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(watching.run())
        yield changes, told
        task.cancel()


async def test_changes_are_told(cluster: Cluster, fleet_of: Settings) -> None:
    """What is there at first, then each change, then that a domain was forgotten."""
    fleet, writer = fleet_of(*cluster.urls, prefix="/w1/"), fleet_of(*cluster.urls, prefix="/w1/")
    first = await writer.write(FleetView("web1"), claimed(FleetView("web1")), LONG_S)
    async with asyncio.timeout(LONG_S), following(fleet) as (changes, told):
        assert await changes.get() == ("web1", first)
        second = await writer.write(first, announced(first), LONG_S)
        assert await changes.get() == ("web1", second)
        other = await writer.write(FleetView("web2"), claimed(FleetView("web2")), LONG_S)
        assert await changes.get() == ("web2", other)
        await writer.write(second, forgotten(second), LONG_S)
        assert await changes.get() == ("web1", None)
        assert told.empty()


async def test_compacted_history_is_read_again(cluster: Cluster, fleet_of: Settings) -> None:
    """Etcd has forgotten what came between the listing and the watch: nothing is lost, no error is shown."""
    async with Proxy(cluster.urls[0]) as proxy:
        fleet, writer = fleet_of(proxy.url, prefix="/w2/"), fleet_of(*cluster.urls, prefix="/w2/")
        first = await writer.write(FleetView("web1"), claimed(FleetView("web1")), LONG_S)
        proxy.hold("/v3/watch")
        async with asyncio.timeout(LONG_S), following(fleet) as (changes, told):
            assert await changes.get() == ("web1", first)
            await proxy.held.wait()
            second = await writer.write(first, announced(first), LONG_S)
            third = await writer.write(second, published(second), LONG_S)
            await asyncio.to_thread(cluster.ctl, "compact", str(third.revision))
            proxy.release()
            assert await changes.get() == ("web1", third)
            assert told.empty()


async def test_another_node_is_watched_instead_of_a_frozen_one(
    fragile: Cluster, fleet_of: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch of a node that sleeps is silent for ever; that is noticed, and the next change comes by another node."""
    monkeypatch.setattr(limits, "FLEET_WATCH_LOOK_S", 0.2)
    fleet, writer = fleet_of(*fragile.urls), fleet_of(*fragile.urls)
    view = await writer.write(FleetView("web1"), claimed(FleetView("web1")), LONG_S)
    frozen = (await asyncio.to_thread(fragile.followers))[0]
    fleet.gateway.endpoints.sort(key=lambda endpoint: endpoint.url != frozen.url)
    writer.gateway.endpoints.sort(key=lambda endpoint: endpoint.url == frozen.url)
    async with asyncio.timeout(LONG_S), following(fleet) as (changes, _):
        assert await changes.get() == ("web1", view)
        frozen.freeze()
        after = await writer.write(view, announced(view), LONG_S)
        assert await changes.get() == ("web1", after)
    frozen.thaw()


async def test_lost_majority_is_told_and_its_return(fragile: Cluster, fleet_of: Settings) -> None:
    """Once each; what happened meanwhile is told then."""
    fleet = fleet_of(*fragile.urls, timeout_ms=1000)
    view = await fleet.write(FleetView("web1"), claimed(FleetView("web1")), LONG_S)
    gone = await asyncio.to_thread(fragile.followers)
    async with asyncio.timeout(2 * LONG_S), following(fleet) as (changes, told):
        assert await changes.get() == ("web1", view)
        for node in gone:
            node.kill()
        assert await told.get() is not None
        for node in gone:
            fragile.start(node)
        assert await told.get() is None
        after = await fleet.write(view, announced(view), LONG_S)
        assert await changes.get() == ("web1", after)


async def test_listing_survives_a_compaction(
    cluster: Cluster, fleet_of: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All domains are as of one moment, also if they change, and etcd forgets that moment, between two pages."""
    monkeypatch.setattr(limits, "FLEET_PAGE", 2)
    async with Proxy(cluster.urls[0], "/v3/kv/range") as proxy:
        fleet, writer = fleet_of(proxy.url, prefix="/w3/"), fleet_of(*cluster.urls, prefix="/w3/")
        views = [await writer.write(FleetView(name), claimed(FleetView(name)), LONG_S) for name in ("a", "b", "c")]
        proxy.hold("/v3/kv/range", after=1)
        async with asyncio.TaskGroup() as group:
            listing = group.create_task(fleet.domains(LONG_S))
            await proxy.held.wait()
            views[0] = await writer.write(views[0], announced(views[0]), LONG_S)
            await asyncio.to_thread(cluster.ctl, "compact", str(views[0].revision))
            proxy.release()
        assert listing.result()[0] == views
        assert await fleet.domains(LONG_S) == (views, views[0].revision)
