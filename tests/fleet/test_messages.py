"""Reading and writing a domain, whatever becomes of the messages: lost, answered in vain, late, twice."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import pytest_asyncio

from pivotd.core.fleet import FleetView
from pivotd.errors import FleetConflictError, FleetSilentError
from pivotd.fleet import race
from pivotd.fleet.endpoint import Endpoint
from pivotd.fleet.store import EtcdFleet
from tests.fleet.conftest import Settings
from tests.fleet.etcd import Cluster
from tests.fleet.proxy import TXN, Fate, Proxy
from tests.fleet.views import announced, claimed, published, withdrawn

LONG_S = 30.0
SHORT_S = 0.4
"""The time of a call that gets no answer."""

NUMBERS = itertools.count()

Step = Callable[[FleetView], FleetView]


Way = tuple[Proxy, EtcdFleet]


@pytest_asyncio.fixture
async def way(cluster: Cluster, fleet_of: Settings) -> AsyncIterator[Way]:
    """Return a fleet of one endpoint, and the proxy before that."""
    async with Proxy(cluster.urls[0]) as proxy:
        yield proxy, fleet_of(proxy.url)


async def ready(fleet: EtcdFleet, *steps: Step) -> FleetView:
    """Return a domain of its own for this test, after some steps."""
    view = await fleet.read(f"d{next(NUMBERS)}", LONG_S)
    for step in steps:
        view = await fleet.write(view, step(view), LONG_S)
    return view


METHODS: dict[str, tuple[list[Step], Step]] = {
    "claim": ([], claimed),
    "intend": ([claimed], announced),
    "publish": ([claimed, announced], published),
    "withdraw": ([claimed, announced], withdrawn),
}
methods = pytest.mark.parametrize(("before", "step"), METHODS.values(), ids=METHODS)


async def test_unknown_domain_is_an_empty_view(cluster: Cluster, fleet_of: Settings) -> None:
    """What nobody has written is not there, and that is an answer."""
    assert await fleet_of(*cluster.urls).read("nobody", LONG_S) == FleetView("nobody")


async def test_connection_is_used_again(cluster: Cluster, fleet_of: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one takes as long as half a write, and with TLS longer: in a pause, a guest would wait for it."""
    connect, made = Endpoint._connect, []

    async def counted(endpoint: Endpoint) -> object:
        made.append(endpoint.url)
        return await connect(endpoint)

    monkeypatch.setattr(Endpoint, "_connect", counted)
    monkeypatch.setattr(race, "_Lane", partial(race._Lane, resend_s=LONG_S))  # an etcd that is slow gets no second copy
    await ready(fleet_of(cluster.urls[0]), claimed, announced, published)
    assert made == [cluster.urls[0]]


@methods
async def test_what_was_written_is_read(before: list[Step], step: Step, cluster: Cluster, fleet_of: Settings) -> None:
    """A view survives the way through etcd, each field of it, and has the revision that write() has told."""
    fleet = fleet_of(*cluster.urls)
    view = await ready(fleet, *before)
    after = await fleet.write(view, step(view), LONG_S)
    assert after.revision > view.revision
    assert await fleet.read(view.domain, LONG_S) == after


@methods
async def test_changed_domain_is_a_conflict(
    before: list[Step], step: Step, cluster: Cluster, fleet_of: Settings
) -> None:
    """Somebody has written since it was read: nothing is written."""
    fleet = fleet_of(*cluster.urls)
    view = await ready(fleet, *before)
    other = await fleet.write(view, claimed(view, "h2"), LONG_S)
    with pytest.raises(FleetConflictError):
        await fleet.write(view, step(view), LONG_S)
    assert await fleet.read(view.domain, LONG_S) == other


@methods
@pytest.mark.parametrize("fate", [Fate.LOST, Fate.ANSWER_LOST, Fate.LATE])
async def test_lost_message_is_told_as_silence(before: list[Step], step: Step, fate: Fate, way: Way) -> None:
    """Nobody can know whether it was written; a look says which, and if it was not, the same write still works."""
    proxy, fleet = way
    view = await ready(fleet, *before)
    proxy.next(fate)
    with pytest.raises(FleetSilentError):
        await fleet.write(view, step(view), SHORT_S)
    if fate is Fate.ANSWER_LOST:
        async with asyncio.timeout(LONG_S):
            await proxy.carried_out.wait()
    found = await fleet.read(view.domain, LONG_S)
    assert (found.revision != view.revision) == (fate is Fate.ANSWER_LOST)
    after = await fleet.write(view, step(view), LONG_S)
    assert await fleet.read(view.domain, LONG_S) == after


@methods
async def test_late_message_changes_nothing(before: list[Step], step: Step, way: Way) -> None:
    """A write that arrives after another one has none of its effects."""
    proxy, fleet = way
    view = await ready(fleet, *before)
    proxy.next(Fate.LATE)
    with pytest.raises(FleetSilentError):
        await fleet.write(view, step(view), SHORT_S)
    taken = await fleet.write(view, claimed(view, "h2"), LONG_S)
    assert await proxy.deliver()
    assert await fleet.read(view.domain, LONG_S) == taken


async def test_late_intent_does_not_return_after_its_end(way: Way) -> None:
    """The intent came by another copy and was withdrawn: all keys are as before, and the late copy still has no effect."""
    proxy, fleet = way
    view = await ready(fleet, claimed)
    proxy.next(Fate.LATE)
    with pytest.raises(FleetSilentError):
        await fleet.write(view, announced(view), SHORT_S)
    intent = await fleet.write(view, announced(view), LONG_S)
    end = await fleet.write(intent, withdrawn(intent), LONG_S)
    assert await proxy.deliver()
    assert await fleet.read(view.domain, LONG_S) == end


@methods
async def test_message_that_arrives_twice_counts_once(before: list[Step], step: Step, way: Way) -> None:
    """The second copy changes nothing, neither at once nor after the next write."""
    proxy, fleet = way
    view = await ready(fleet, *before)
    proxy.next(Fate.TWICE)
    after = await fleet.write(view, step(view), LONG_S)
    assert await proxy.deliver()
    assert await fleet.read(view.domain, LONG_S) == after


@pytest.mark.parametrize("fate", [Fate.LOST, Fate.ANSWER_LOST, Fate.CLOSED, Fate.REFUSED])
@methods
async def test_second_endpoint_answers_for_the_first(
    before: list[Step], step: Step, fate: Fate, cluster: Cluster, fleet_of: Settings
) -> None:
    """With another endpoint a lost message or answer is no silence: the write succeeds, once."""
    async with Proxy(cluster.urls[0]) as proxy:
        fleet = fleet_of(proxy.url, cluster.urls[1])
        view = await ready(fleet, *before)
        fleet.gateway.endpoints.sort(key=lambda endpoint: endpoint.url != proxy.url)
        proxy.next(fate)
        after = await fleet.write(view, step(view), LONG_S)
        assert await fleet.read(view.domain, LONG_S) == after


async def test_doubt_stays_doubt_if_somebody_else_wrote(cluster: Cluster, fleet_of: Settings) -> None:
    """One copy has no answer and the other meets a domain that was taken: "nothing was written" would be a guess."""
    async with Proxy(cluster.urls[0]) as first, Proxy(cluster.urls[1]) as second:
        fleet, other = fleet_of(first.url, second.url), fleet_of(cluster.urls[2])
        view = await ready(other, claimed)
        assert (await fleet.read(view.domain, LONG_S)) == view
        fleet.gateway.endpoints.sort(key=lambda endpoint: endpoint.url != first.url)
        first.next(Fate.ANSWER_LOST)
        second.hold(TXN)
        async with asyncio.TaskGroup() as group:
            write = group.create_task(_error(fleet.write(view, announced(view), LONG_S)))
            await first.carried_out.wait()
            now = await other.read(view.domain, LONG_S)
            await other.write(now, claimed(now, "h2"), LONG_S)
            second.release()
        assert isinstance(write.result(), FleetSilentError)


async def test_slow_etcd_is_waited_for(cluster: Cluster, fleet_of: Settings) -> None:
    """Half a second for each request, on every endpoint: answers, one time each."""
    async with Proxy(cluster.urls[0]) as first, Proxy(cluster.urls[1]) as second:
        first.delay_s = second.delay_s = 0.5
        fleet = fleet_of(first.url, second.url)
        view = await ready(fleet, claimed, announced, published)
        assert await fleet.read(view.domain, LONG_S) == view


async def test_lost_request_is_sent_again(way: Way) -> None:
    """A node whose leader dies forgets requests: with one endpoint and enough time another copy is sent."""
    proxy, fleet = way
    view = await ready(fleet, claimed)
    proxy.next(Fate.LOST)
    after = await fleet.write(view, announced(view), LONG_S)
    assert await fleet.read(view.domain, LONG_S) == after


async def test_silence_takes_the_time_that_was_given(cluster: Cluster, fleet_of: Settings) -> None:
    """An endpoint that never answers costs the budget and no more."""
    async with Proxy(cluster.urls[0], "/v3/kv/range") as proxy:
        fleet = fleet_of(proxy.url)
        proxy.next(Fate.LOST)
        began = time.monotonic()
        with pytest.raises(FleetSilentError, match=r"no answer in 0.4 s.*a majority of its nodes must be up"):
            await fleet.read("web1", SHORT_S)
        assert SHORT_S <= time.monotonic() - began < LONG_S, "it would be tried for ever"


async def test_cancelled_call_leaves_nothing_behind(way: Way) -> None:
    """A caller that gives up ends its requests, and the next call works."""
    proxy, fleet = way
    view = await ready(fleet, claimed)
    proxy.next(Fate.LOST)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await fleet.write(view, announced(view), LONG_S)
    assert {task for task in asyncio.all_tasks() if "_attempt" in repr(task)} == set()
    assert await fleet.read(view.domain, LONG_S) == view


async def _error(work: Awaitable[object]) -> Exception | None:
    try:
        await work
    except (FleetSilentError, FleetConflictError) as error:
        return error
    return None
