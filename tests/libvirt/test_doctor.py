"""What `pivotctl doctor` finds wrong with guests of libvirt's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libvirt.domain import Domain
from tests.libvirt.guarding import Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd
from tests.support.qemu import create_image

pytestmark = [pytest.mark.long, pytest.mark.qemu, pytest.mark.timeout(300)]


def found(guarded: Guarded) -> dict[str, str]:
    """Return, by check, what is told of the domain or of libvirt; not of files that a test's user may not read."""
    areas = guarded.client.doctor().areas
    told = [one for area in areas for one in area.findings if one.seen and one.check != "storage-room"]
    return {one.check: f"{one.subject}: {one.what} -> {one.remedy}" for one in told}


def test_a_guest_of_libvirts(libvirtd: Libvirtd, tmp_path: Path):
    """A sound one gives nothing; then a next boot from another image, somebody's pause, and a libvirtd that is gone."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    with guard(tmp_path, libvirtd) as daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        assert found(guarded) == {}
        definition = libvirtd.directory / "other.xml"
        other = create_image(domain.image("vda", 9), size="1M")
        right = libvirtd.ask("dumpxml", "web1", "--inactive")
        definition.write_text(right.replace(str(domain.image()), str(other)))
        libvirtd.ask("define", str(definition))
        (said,) = found(guarded).items()
        assert said[0] == "libvirt-disagrees"
        assert said[1].startswith(f"web1 vda: QEMU has {domain.image()}, ")
        assert f"its next boot {other}" in said[1]
        definition.write_text(right)
        libvirtd.ask("define", str(definition))
        libvirtd.ask("suspend", "web1")
        (said,) = found(guarded).items()
        assert said[0] == "guest-paused"
        assert "`virsh resume`" in said[1]
        libvirtd.ask("resume", "web1")
        assert found(guarded) == {}
        libvirtd.kill()
        until(lambda: "libvirt-unreachable" in found(guarded), "what is told of a dead libvirtd")
