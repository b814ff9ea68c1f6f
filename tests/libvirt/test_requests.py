"""What a request for a domain of libvirt hands on to libvirt, and what is refused before anything happens."""

from __future__ import annotations

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
    assert "granularity  1 MiB" in guarded.ended().detail
