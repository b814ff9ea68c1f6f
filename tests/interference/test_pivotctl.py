"""The person's side: pivotctl adopts somebody's mirror and changes the bandwidth of a pivot."""

from __future__ import annotations

import re
import time

import pytest

from tests.cli.ctl import complaint, ctl
from tests.ported_cases.test_tp_libvirt import Bench, bench, stack, still
from tests.support.qemu import create_image

__all__ = ["bench", "stack", "still"]

pytestmark = pytest.mark.qemu


def test_pivot_adopt(bench: Bench):
    """Refused without --sync; with it switched, and the verdict is certain before and after all is dead."""
    file = {"driver": "file", "filename": str(create_image(bench.new()))}
    bench.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "n", "file": file})
    flags = {"auto-finalize": False, "auto-dismiss": False}
    bench.qemu.spy("blockdev-mirror", {"job-id": "theirs", "device": "src0", "target": "n", "sync": "full", **flags})
    assert bench.daemon.ctl("disk", "ls", "web1").json[0]["job"] == "theirs"
    command = ("pivot", "adopt", "web1", f"disk0={bench.new()}")
    assert bench.daemon.ctl(*command).status == 2
    answer = bench.daemon.ctl(*command, "--sync", "full")
    assert answer.status == 0, answer
    bench.assert_right(bench.new())


def test_domain_show_lists_the_jobs_of_others(bench: Bench):
    """Which can be adopted, and why not; pivotd's own are none of them, and an adopted one is its own."""
    flags = {"auto-finalize": False, "auto-dismiss": False}
    for name in ("theirs", "loose", "loose-from"):
        file = {"driver": "file", "filename": str(create_image(bench.new(f"{name}.qcow2")))}
        bench.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file})
    for job, source in (("loose", "loose-from"), ("theirs", "src0")):
        bench.qemu.spy("blockdev-mirror", {"job-id": job, "device": source, "target": job, "sync": "full", **flags})
    bench.qemu.await_event("BLOCK_JOB_READY", device="theirs")
    loose, theirs = bench.daemon.ctl("domain", "show", "web1").json["jobs"]
    assert theirs == {
        "id": "theirs", "type": "mirror", "status": "ready", "disk": "disk0", "adoptable": True, "reason": None,
    }  # fmt: skip
    why = "it does not work on the image of a disk"
    assert (loose["id"], loose["disk"], loose["adoptable"], loose["reason"]) == ("loose", None, False, why)
    said = ctl("--socket", bench.daemon.socket, "domain", "show", "web1").stdout
    assert "theirs: mirror of disk0, ready; can be adopted" in said
    assert f"cannot be adopted: {why}" in said
    assert bench.daemon.ctl("domain", "ls").json[0]["jobs"] is None
    adopt = ("pivot", "adopt", "web1", "--job", f"theirs={bench.new('theirs.qcow2')}", "--sync", "full", "--id", "a")
    first = bench.daemon.ctl(*adopt, "--no-pivot")
    assert first.status == 0, first
    assert [job["id"] for job in bench.daemon.ctl("domain", "show", "web1").json["jobs"]] == ["loose"]
    assert bench.daemon.ctl("pivot", "complete", "a").status == 0
    assert bench.daemon.ctl(*adopt).json["id"] == first.json["id"]
    bench.assert_right(bench.new("theirs.qcow2"))


def test_what_domain_show_says_of_a_job_is_what_adopt_does(still: Bench):
    """Both look at the same: here at the snapshots inside the image that the disk would leave."""
    still.qemu.spy("blockdev-snapshot-internal-sync", device="src0", name="before")
    file = {"driver": "file", "filename": str(create_image(still.new()))}
    still.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "n", "file": file})
    flags = {"auto-finalize": False, "auto-dismiss": False}
    still.qemu.spy("blockdev-mirror", {"job-id": "theirs", "device": "src0", "target": "n", "sync": "full", **flags})
    still.qemu.await_event("BLOCK_JOB_READY", device="theirs")
    adopt = ("pivot", "adopt", "web1", "--job", f"theirs={still.new()}", "--sync", "full", "--no-pivot")
    (job,) = still.daemon.ctl("domain", "show", "web1").json["jobs"]
    refused = ctl("--socket", still.daemon.socket, *adopt)
    assert (refused.status, job["adoptable"]) == (4, False)
    assert job["reason"] in complaint(refused)


def test_a_job_that_cannot_be_adopted_is_refused_in_one_line(still: Bench):
    """A job that finalizes itself, an unknown one, and nothing named at all."""
    file = {"driver": "file", "filename": str(create_image(still.new()))}
    still.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "n", "file": file})
    still.qemu.spy("blockdev-mirror", {"job-id": "theirs", "device": "src0", "target": "n", "sync": "full"})
    adopt = ("--socket", still.daemon.socket, "pivot", "adopt", "web1")
    (job,) = still.daemon.ctl("domain", "show", "web1").json["jobs"]
    refused = ctl(*adopt, "--job", f"theirs={still.new()}", "--sync", "full")
    assert (refused.status, job["reason"] in complaint(refused)) == (4, True)
    unknown = ctl(*adopt, "--job", f"mine={still.new()}", "--sync", "full")
    assert (unknown.status, complaint(unknown)) == (4, "web1 has no block job mine; its block jobs are: theirs")
    assert ctl(*adopt).status == 2


def test_pivot_show_tells_the_rates_while_it_copies(bench: Bench):
    """What the guest writes and what the destination takes; of a closed pivot nothing is measured."""
    show = ("--socket", bench.daemon.socket, "pivot", "show", bench.slow(bandwidth="1M"))
    deadline = time.monotonic() + 90
    while "the destination takes" not in (said := ctl(*show).stdout):
        assert time.monotonic() < deadline, said
    assert re.search(r"^  copied +\d.* of .* %\)$", said, re.MULTILINE), said
    assert re.search(
        r"^  rates +the guest writes [\d.]+ \w+/s\n +the destination takes [\d.]+ \w+/s$", said, re.MULTILINE
    )
    bench.hurry()
    assert bench.wait("slow").status == 0
    assert "rates" not in ctl(*show).stdout


def test_pivot_set(bench: Bench):
    """The new bandwidth is journalled, and QEMU keeps to it; of a closed pivot there is nothing to change."""
    pivot = bench.slow()
    answer = bench.daemon.ctl("pivot", "set", pivot, "--bandwidth", "0")
    assert answer.status == 0, answer
    assert answer.json["options"]["bandwidth_bytes_per_s"] == 0
    assert bench.daemon.ctl("pivot", "wait", pivot).status == 0
    assert bench.daemon.ctl("pivot", "set", pivot, "--bandwidth", "1M").status == 4
    bench.assert_right(bench.new())
