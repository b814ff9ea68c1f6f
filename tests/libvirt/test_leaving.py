"""A guest that leaves by a migration of libvirt's: its host is certain of nothing by its journal alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.process import journal
from tests.libvirt.domain import Domain
from tests.libvirt.guarding import Guarded, guard, until
from tests.libvirt.libvirtd import Libvirtd

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300), pytest.mark.long]


@pytest.fixture
def other_host() -> Iterator[Libvirtd]:
    with Libvirtd() as libvirtd:
        yield libvirtd


@pytest.mark.parametrize("libvirt_place", [None], indirect=True, ids=["libvirt"])
@pytest.mark.parametrize("keep", ["--persistent", "--undefinesource"])
def test_a_guest_that_has_migrated_is_not_certain(
    libvirtd: Libvirtd, other_host: Libvirtd, tmp_path: Path, keep: str
) -> None:
    """The other host may have moved the disk since; pivotd has to see that before libvirt ends QEMU."""
    libvirtd.start()
    other_host.start()
    domain = Domain(libvirtd, guest=False, second_monitor=False).define().boot()
    daemon = guard(tmp_path, libvirtd)
    with daemon, Guarded(domain, daemon) as guarded:
        guarded.await_domain()
        guarded.begin("copy", "web1", f"vda={domain.image('vda', 1)}")
        until(lambda: (found := journal(daemon.state_dir)) and found[0].phase == "closed", "the end")
        libvirtd.ask(
            "migrate", "web1", other_host.uri, "--live", "--p2p", "--unsafe", keep,
            "--migrateuri", f"unix://{libvirtd.directory}/migrate.sock",
        )  # fmt: skip
        until(lambda: daemon.ctl("verdict", "web1", "vda").status != 0, "the doubt")
        answer = daemon.ctl("verdict", "web1", "vda")
        assert (answer.status, "left by a migration" in answer.stdout) == (6, True), answer
