"""`pivotctl evacuate` with a guest of libvirt: its disks by their target names, one pivot, both definitions follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libvirt.domain import Domain
from tests.libvirt.guarding import Guarded, guard
from tests.libvirt.libvirtd import Libvirtd

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]


def test_a_guest_of_libvirt_moves(libvirtd: Libvirtd, tmp_path: Path):
    """Both disks switch as one; what libvirt cannot do is refused in its words, and a guest that is shut down is told."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False, disks=2).define().boot()
    old, new = domain.image().parent, libvirtd.directory / "new"
    new.mkdir()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        places = ("evacuate", "--from", str(old), "--to", str(new))
        refused = daemon.ctl(*places, "--resumable")
        assert refused.status == 4
        assert "--resumable: libvirt ends a copy" in refused.json["moves"][0]["error"]
        moved = daemon.ctl(*places)
        assert moved.status == 0, moved
        (move,) = moved.json["moves"]
        assert [disk["disk"] for disk in move["disks"]] == ["vda", "vdb"]
        for target in ("vda", "vdb"):
            assert domain.agrees(target)
            believed = domain.believe(target)
            assert believed.next_boot == f"web1-{target}-0.qcow2", believed
        assert daemon.ctl(*places).json["moves"] == []
        back = ("evacuate", "--from", str(new), "--to", str(old))
        assert "exists already" in daemon.ctl(*back).json["moves"][0]["error"]
        libvirtd.ask("destroy", "web1")
        gone = daemon.ctl(*back)
        assert gone.status == 4
        assert {one["disk"] for one in gone.json["left"]} == {"vda", "vdb"}, gone.json
