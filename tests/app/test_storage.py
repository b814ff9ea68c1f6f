"""Storage that hangs takes a few threads and no more; who comes on top is told at once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pivotd import limits
from tests.app.conftest import Host, at_once
from tests.support.hung_storage import HungStorage
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu
READS = 40
RECOVERED_S = 60.0


def settled(host: Host, image: Path) -> None:
    """Wait until the one verdict is certain of an image, now that its guest has ended."""
    deadline_s = time.monotonic() + RECOVERED_S
    while not (verdict := host.call("GET", "/v1/verdicts").json[0])["certain"]:
        assert verdict["pending"], verdict
        assert time.monotonic() < deadline_s, verdict
        time.sleep(0.01)
    assert verdict["image"] == str(image)


def test_reads_of_disks_on_storage_that_hangs(host: Host):
    """80 of them make no more threads than the bound of one path; a domain beside it is not concerned."""
    place = host.directory / "nfs"
    place.mkdir()
    disk = Disk(create_image(place / "old.qcow2"))
    with Qemu(host.directory, [disk], name="hung") as hung:
        host.start({"hung": hung.qmp, "well": host.qemu("well").qmp})
        before = host.threads()
        with HungStorage(place) as storage:
            for _ in range(2):
                answers = at_once([lambda: host.call("GET", "/v1/domains/hung/disks")] * READS)
                assert {answer.status for answer in answers} == {200}
            assert host.threads() - before <= limits.PATH_THREADS_MAX + 12, "the API's own pool has a few, too"
            started_s = time.monotonic()
            (row,) = host.call("GET", "/v1/domains/hung/disks").json
            assert time.monotonic() - started_s < limits.FILE_TIMEOUT_S, "it has waited once more"
            assert row["image"] == str(place / "old.qcow2")
            refused = host.copy("hung", host.image())
            assert refused.status == 400
            assert f"the storage of {place / 'old.qcow2'}" in refused.json["detail"], refused.body
            assert host.copy("well", host.image()).status == 202
            storage.release()
        deadline_s = time.monotonic() + RECOVERED_S
        while (answer := host.copy("hung", host.image())).status != 202:  # as soon as the last thread has come back
            assert time.monotonic() < deadline_s, answer.body


@pytest.mark.long
def test_monitors_on_storage_that_hangs(host: Host):
    """Neither configuration nor discovery nor a request holds up the daemon; what is found later is adopted then."""
    place = host.directory / "nfs"
    place.mkdir()
    os.link(host.qemu("web1").qmp, place / "found.qmp")
    others = host.directory / "others"
    others.mkdir()
    patterns = json.dumps([str(place / "*.qmp"), str(others / "*.qmp")])
    with HungStorage(place) as storage:
        host.start({"hung": place / "hung.qmp", "well": host.qemu("well").qmp}, f"discover = {patterns}")
        os.link(host.qemu("web2").qmp, others / "well2.qmp")
        assert host.copy("well", host.image()).status == 202
        refused = host.add("more", place / "more.qmp")
        assert refused.status == 400, refused.body
        assert f"the storage of {place}" in refused.json["detail"]
        assert host.add("well3", host.qemu("web3").qmp).status == 201
        twice = host.add("well4", host.directory / "web3.qmp")
        assert (twice.status, "well3" in twice.json["detail"]) == (409, True), twice.body
        deadline_s = time.monotonic() + RECOVERED_S
        while "well2" not in host.domains():
            assert time.monotonic() < deadline_s, host.health()
        hung = host.domains()["hung"]
        assert hung["connection"] == "unreachable"
        assert f"the storage of {place}/hung.qmp does not answer" in hung["detail"]
        (skipped,) = host.health()["domains"]["skipped"]
        assert f"the storage of {place}" in skipped["reason"]
        storage.release()
    deadline_s = time.monotonic() + RECOVERED_S
    while "found" not in host.domains():
        assert time.monotonic() < deadline_s, host.health()
    assert host.health()["domains"]["skipped"] == []


def test_a_monitor_on_storage_that_hangs_beside_a_guest_that_starts(host: Host):
    """The other guest is reached all the same; with all monitors in one look, none was, and the journal counted."""
    place = host.directory / "nfs"
    place.mkdir()
    stale = create_image(host.directory / "stale.qcow2")
    with Qemu(host.directory, [Disk(stale)], name="well") as first, HungStorage(place):
        host.start({"hung": place / "hung.qmp", "well": first.qmp})
        host.closed(host.copy("well", new := host.image()).json["id"])
        first.kill()
        settled(host, new)
        time.sleep(limits.FILE_TIMEOUT_S)  # by now, what looks at the monitors counts as a call that hangs
        with Qemu(host.directory, [Disk(stale)], name="well"):
            (verdict,) = host.call("GET", "/v1/verdicts").json
            assert not verdict["certain"], verdict
            deadline_s = time.monotonic() + RECOVERED_S
            while host.domains()["well"]["connection"] != "connected":
                assert time.monotonic() < deadline_s, host.domains()
                time.sleep(0.1)


def test_the_verdict_on_a_guest_whose_monitor_is_on_storage_that_hangs(host: Host):
    """Another QEMU may have been started there, with any image."""
    place = host.directory / "nfs"
    place.mkdir()
    with Qemu(place, [Disk(create_image(host.directory / "old.qcow2"))], name="web1") as qemu:
        host.start({"web1": qemu.qmp})
        host.closed(host.copy("web1", new := host.image()).json["id"])
    settled(host, new)
    with HungStorage(place):
        (verdict,) = host.call("GET", "/v1/verdicts").json
        assert (verdict["image"], verdict["certain"], verdict["pending"]) == (str(new), False, True), verdict
        assert f"but a QEMU may listen at {qemu.qmp}, " in verdict["reason"], verdict
        assert f"uses now (the storage of {qemu.qmp} does not answer): ask again" in verdict["reason"], verdict


def test_the_verdict_on_a_guest_whose_image_is_on_storage_that_hangs(host: Host):
    """QEMU names an image, and nobody can see whether that is the file that it has open."""
    place = host.directory / "nfs"
    place.mkdir()
    host.start({"web1": host.qemu("web1").qmp})
    host.closed(host.copy("web1", new := place / "new.qcow2").json["id"])
    settled(host, new)
    with HungStorage(place):
        (verdict,) = host.call("GET", "/v1/verdicts").json
        assert (verdict["image"], verdict["certain"], verdict["pending"]) == (str(new), False, True), verdict
        assert "but its QEMU runs (process " in verdict["reason"], verdict
        assert f"uses now (the storage of {new} does not answer): ask again" in verdict["reason"], verdict
