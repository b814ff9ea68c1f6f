"""Requests for pivots that come at once with others: nothing is lost between the plan, the record and the driver."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.app.start import Starter
from pivotd.core.request import Kind, PivotRequest, Target
from pivotd.errors import ConflictError
from tests.app.conftest import WHO, Host, NoHistory, at_once
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.qemu import Disk, create_image
from tests.support.waiting import until

pytestmark = pytest.mark.qemu
ROUNDS = 25
QUERY_TIMEOUT_S = 60.0
HEALTHY_MAX_S = QUERY_TIMEOUT_S / 2
"""Far more than a request needs on a busy machine, and less than QEMU is waited for there."""


def test_a_copy_and_the_removal_of_its_domain_at_once(host: Host):
    """One of them is refused; no pivot stays open without somebody who drives it."""
    qemu = host.qemu("web1")
    host.start()
    for number in range(ROUNDS):
        added = host.add("web1", qemu.qmp)
        assert added.status == 201, added.body
        image = host.image()

        def remove(delay_s: float = number * 0.0005):
            time.sleep(delay_s)  # sweeps over the steps of the other request
            return host.call("DELETE", "/v1/domains/web1")

        started, removed = at_once([partial(host.copy, "web1", image), remove])
        assert started.status in {202, 404, 409, 502, 503}, started.body
        assert removed.status in {204, 409}, removed.body
        if started.status == 202:
            assert host.closed(started.json["id"])["outcome"] == "switched"
        assert host.call("GET", "/v1/pivots?open=true").json == []
        if "web1" in host.domains():
            assert host.call("DELETE", "/v1/domains/web1").status == 204
        assert host.health()["status"] == "ok"


def test_a_hung_qemu_holds_up_no_request_for_another(host: Host):
    """Also while several requests wait for it."""
    hung = host.qemu("hung")
    host.start({"hung": hung.qmp, "well": host.qemu("well").qmp}, QUERY_TIMEOUT_S=QUERY_TIMEOUT_S)
    assert until(lambda: {row["connection"] for row in host.domains().values()} == {"connected"})
    hung.kill(signal.SIGSTOP)
    waiting = [
        threading.Thread(target=host.copy, args=("hung", host.image()), kwargs={"key": f"id-{number}"})
        for number in range(4)
    ]
    for thread in waiting:
        thread.start()
    started_s = time.monotonic()
    answer = host.copy("well", host.image())
    took_s = time.monotonic() - started_s
    assert answer.status == 202, answer.body
    assert took_s < HEALTHY_MAX_S, took_s
    hung.kill(signal.SIGCONT)
    for thread in waiting:
        thread.join()


def test_a_retry_for_a_hung_qemu_does_not_pile_up(host: Host):
    """All that carry one request id end together, and as if there had been one."""
    hung = host.qemu("hung")
    host.start({"hung": hung.qmp})
    assert until(lambda: host.domains()["hung"]["connection"] == "connected")
    hung.kill(signal.SIGSTOP)
    image = host.image()
    started_s = time.monotonic()
    answers = at_once([lambda: host.copy("hung", image, key="again")] * 6)
    took_s = time.monotonic() - started_s
    assert {answer.status for answer in answers} <= {502, 503}, [answer.body for answer in answers]
    assert took_s < 2 * limits.QUERY_TIMEOUT_S, took_s
    hung.kill(signal.SIGCONT)
    assert host.copy("hung", image, key="again").status == 202


def test_one_request_id_many_times_at_once_is_one_pivot(host: Host):
    """A retry that overtakes what it repeats finds it all the same; another request under the id is refused."""
    host.start({"web1": host.qemu("web1").qmp})
    image, other = host.image(), host.image()
    answers = at_once([partial(host.copy, "web1", wanted, key="once") for wanted in [image] * 6 + [other] * 2])
    pivots = {answer.json["id"] for answer in answers if answer.status == 202}
    assert len(pivots) == 1, [answer.body for answer in answers]
    assert sorted(answer.status for answer in answers) in ([202] * 6 + [409] * 2, [202] * 2 + [409] * 6)


async def test_a_domain_removed_and_added_while_a_request_is_planned(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """The request was planned for another QEMU than the name leads to now: nothing is recorded."""
    one, two = (qemu_factory([Disk(create_image(tmp_path / f"{name}.qcow2"))], name=name) for name in ("one", "two"))
    await engine.connect(one, "web")
    starter = Starter(engine.host, engine.journal, NoHistory())
    request = PivotRequest("web", Kind.COPY, (Target("disk0", str(tmp_path / "new.qcow2")),))
    lock = engine.host.lock("web")
    async with lock:
        started = asyncio.ensure_future(starter.start(request, WHO))
        while not lock._waiters:  # it is planned, and waits to be recorded
            await asyncio.sleep(0)
        engine.host.remove("web")
        await engine.connect(two, "web")
    with pytest.raises(ConflictError, match="was removed meanwhile"):
        await started
    assert engine.journal.open_pivots() == []


async def test_a_request_whose_caller_has_gone_is_recorded_and_driven(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path
):
    """Between the record and the driver nothing comes, whoever is cancelled."""
    supervisor = await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]), "web")
    starter = Starter(engine.host, engine.journal, NoHistory())
    request = PivotRequest("web", Kind.COPY, (Target("disk0", str(tmp_path / "new.qcow2")),))
    lock = engine.host.lock("web")
    async with lock:
        started = asyncio.ensure_future(starter.start(request, WHO))
        while not lock._waiters:
            await asyncio.sleep(0)
        started.cancel()
        with pytest.raises(asyncio.CancelledError):
            await started
    while not supervisor.drivers:
        await asyncio.sleep(0)
    (driver,) = supervisor.drivers.values()
    assert (await engine.closed(driver)).outcome == "switched"


def by_one_name(image: Path) -> list[Path]:
    return [image] * 4


def by_links_to_the_directory(image: Path) -> list[Path]:
    link = image.parent / "link"
    if not link.exists():
        link.symlink_to(image.parent)
    return [image, link / image.name, image.parent / "." / image.name, link / ".." / image.parent.name / image.name]


def by_a_link_to_what_does_not_exist_yet(image: Path) -> list[Path]:
    link = image.with_suffix(".link")
    link.symlink_to(image)
    return [image, link] * 2


@pytest.mark.parametrize("names", [by_one_name, by_links_to_the_directory, by_a_link_to_what_does_not_exist_yet])
def test_one_new_destination_for_many_at_once(host: Host, names):
    """Disks of two domains want the same new image, by whatever names: one gets it."""
    host.start({name: host.qemu(name, disks=2).qmp for name in ("web1", "web2")})
    for _ in range(3):
        image = host.image()
        wanted = zip([(d, k) for d in ("web1", "web2") for k in ("disk0", "disk1")], names(image), strict=True)
        answers = at_once([partial(host.copy, domain, name, disk) for (domain, disk), name in wanted])
        accepted = [answer.json["id"] for answer in answers if answer.status == 202]
        assert len(accepted) == 1, [answer.body for answer in answers]
        assert host.closed(accepted[0])["outcome"] == "switched"


def test_one_image_that_exists_for_many_at_once(host: Host):
    """By its name, a symbolic and two hard links, with --reuse."""
    host.start({name: host.qemu(name, disks=2).qmp for name in ("web1", "web2")})
    for number in range(3):
        image = host.image()
        image.write_bytes(b"")
        os.truncate(image, 64 << 20)
        others = [image.with_suffix(f".{kind}") for kind in ("hard1", "hard2", "soft")]
        os.link(image, others[0])
        os.link(image, others[1])
        others[2].symlink_to(image)
        wanted = zip([(d, k) for d in ("web1", "web2") for k in ("disk0", "disk1")], [image, *others], strict=True)
        copy = partial(host.copy, format="raw", reuse=True)
        answers = at_once([partial(copy, domain, name, disk) for (domain, disk), name in wanted])
        accepted = [answer.json["id"] for answer in answers if answer.status == 202]
        assert len(accepted) == 1, (number, [answer.body for answer in answers])
        found = host.closed(accepted[0])
        assert found["outcome"] == "switched"
        # The next round needs disks that are on images of their own again.
        back = host.copy(found["domain"], host.image(), found["disks"][0]["disk"], format="qcow2")
        assert back.status == 202, back.body
        assert host.closed(back.json["id"])["outcome"] == "switched"


def test_two_disks_of_one_request_and_one_image(host: Host):
    """By two names of its directory: nothing is recorded."""
    host.start({"web1": host.qemu("web1", disks=2).qmp})
    first, second, *_ = by_links_to_the_directory(host.image())
    disks = [{"disk": "disk0", "image": str(first)}, {"disk": "disk1", "image": str(second)}]
    answer = host.call("POST", "/v1/domains/web1/copy", {"disks": disks})
    assert answer.status == 400, answer.body
    assert "are one image" in answer.json["detail"]
    assert host.call("GET", "/v1/pivots").json == []
