"""What a request for a domain of libvirt hands on to libvirt, and what is refused before anything happens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.domain import Domain
from tests.libvirt.guarding import Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]


@pytest.fixture
def guarded(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Guarded]:
    """A running domain with one disk and no guest system, and pivotd beside it."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as found:
        found.await_domain()
        yield found


def define_next_boot(guarded: Guarded, old: str, new: str) -> None:
    libvirtd = guarded.libvirtd
    definition = libvirtd.directory / "next.xml"
    text = libvirtd.ask("dumpxml", "--inactive", "web1")
    definition.write_text(re.sub(old, new, text, flags=re.DOTALL))
    libvirtd.ask("define", str(definition))


def test_a_next_boot_from_another_image_is_refused(guarded: Guarded):
    """For each kind, before anything is recorded, with both images; not where the job leads there, or is to be aborted."""
    domain, daemon = guarded.domain, guarded.daemon
    overlay = domain.snapshot()
    requests = (
        ("copy", "web1", f"vda={domain.image('vda', 2)}"),
        ("snapshot", "web1", f"vda={domain.image('vda', 2)}"),
        ("commit", "web1", "vda"),
        ("libvirt", "pivot", "web1", "vda"),
    )
    define_next_boot(guarded, "vda-1", "vda-8")
    for request in requests:
        if request[0] == "libvirt":
            domain.copy("vda", 3)
        answer = daemon.ctl(*request)
        assert (answer.status, answer.json["error"]["kind"]) == (4, "conflict"), answer
        said = answer.json["error"]["message"]
        assert f"the next boot of web1 starts with {domain.image('vda', 8)} as vda" in said
        assert f"the running guest uses {overlay}" in said
        assert "virsh edit web1" in said
    assert daemon.ctl("pivot", "ls").json == []
    assert daemon.ctl("libvirt", "abort", "web1", "vda").status == 0
    domain.copy("vda", 4)
    define_next_boot(guarded, "vda-8", "vda-4")
    assert daemon.ctl("libvirt", "pivot", "web1", "vda").status == 0
    assert guarded.ended().images == ("web1-vda-4.qcow2",) * 3


def test_a_next_boot_without_the_disk_is_refused_and_told(guarded: Guarded):
    """With --force the disk moves, and the pivot says that the next boot has none such."""
    define_next_boot(guarded, "<disk .*</disk>", "")
    request = ("copy", "web1", f"vda={guarded.domain.image('vda', 1)}")
    assert "the next boot of web1 has no disk vda" in guarded.daemon.ctl(*request).json["error"]["message"]
    assert guarded.daemon.ctl(*request, "--force").status == 0
    assert "and the definition of the next boot has no disk vda" in guarded.pivot()["error"]


def test_a_disk_that_somebody_switches_while_the_pivot_waits(guarded: Guarded):
    """The pivot and the verdict say who it was: the guest was in no pause of pivotd's."""
    domain, daemon = guarded.domain, guarded.daemon
    assert daemon.ctl("copy", "web1", f"vda={domain.image('vda', 1)}", "--no-pivot").status == 0
    guarded.libvirtd.ask("blockjob", "web1", "vda", "--pivot")
    guarded.await_end()
    assert "somebody else has switched vda, not in a pause of pivotd's" in guarded.pivot()["error"]
    verdict = daemon.ctl("verdict", "web1", "vda").json
    assert (Path(verdict["image"]).name, verdict["certain"]) == ("web1-vda-1.qcow2", True)
    assert "before the guest could run" not in verdict["reason"]
    assert guarded.pivot()["error"] in verdict["evidence"]


def test_the_granularity_reaches_qemu_through_libvirt(guarded: Guarded):
    """A write of 4 KiB has QEMU copy as much again; `pivot show` tells it."""
    domain, daemon = guarded.domain, guarded.daemon
    new = f"vda={domain.image('vda', 1)}"
    assert daemon.ctl("copy", "web1", new, "--no-pivot", "--granularity", "1M").status == 0
    spy = domain.spy()
    before = spy.execute("query-block-jobs")[0]["len"]
    device = next(block["qdev"] for block in spy.execute("query-block") if "inserted" in block)
    spy.execute("human-monitor-command", {"command-line": f'qemu-io -d {device} "write -q -P 7 0 4k"'})
    until(lambda: spy.execute("query-block-jobs")[0]["len"] > before, "the copy of the write")
    assert spy.execute("query-block-jobs")[0]["len"] - before == 1 << 20
    spy.close()
    assert guarded.pivot()["options"]["granularity_bytes"] == 1 << 20
    assert "granularity 1 MiB" in guarded.ended().detail
