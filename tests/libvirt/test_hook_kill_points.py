"""libvirtd killed at every point of a pivot and of an abort, and started again: with the hook, and without it.

The table says what libvirt believes afterwards. With the hook that is what QEMU has, at every point but K6.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.libvirt.domain import ABORT_POINTS, PIVOT_POINTS, Domain
from tests.libvirt.libvirtd import Libvirtd
from tests.libvirt.tiny_domain import TinyDomain
from tests.support.waiting import until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

AGREES = "live and next boot are QEMU's image, no job is left"
WAITS = "the job waits, nothing has moved"
NEXT_STALE = "live is QEMU's image, the next boot is not"
LIVE_WRONG = "the image that QEMU has left, no job"
WEDGED = "the image that QEMU has left or the right one, a job that QEMU does not have"
FORGOTTEN = "the running domain is taken for shut off"
DELETED = "the image that QEMU has is deleted"


@dataclass(frozen=True, slots=True)
class Case:
    """One way to end a job, and the point where libvirtd dies in it; ``plain`` None: it depends on who is quicker."""

    operation: str
    point: str
    hook: tuple[str, ...]
    plain: str | None

    def __str__(self) -> str:
        return f"{self.operation} {self.point}"


RIGHT = (AGREES,)
RACE = (AGREES, WAITS)
CASES = [
    Case("copy pivot", "K0", (WAITS,), WAITS),
    Case("copy pivot", "K1", RACE, None),
    Case("copy pivot", "K2", RIGHT, LIVE_WRONG),
    Case("copy pivot", "K3", RIGHT, AGREES),
    Case("copy pivot", "K4", RIGHT, WEDGED),
    Case("copy pivot", "K5", RIGHT, FORGOTTEN),
    Case("copy pivot", "K5b", RIGHT, FORGOTTEN),
    Case("copy pivot", "K5c", RIGHT, FORGOTTEN),
    Case("copy pivot", "K6", (NEXT_STALE,), NEXT_STALE),
    Case("copy pivot", "K7", RIGHT, AGREES),
    Case("copy abort", "K0", (WAITS,), WAITS),
    Case("copy abort", "K1", RACE, None),
    Case("copy abort", "K2", RIGHT, AGREES),
    Case("copy abort", "K3", RIGHT, AGREES),
    Case("copy abort", "K4", RIGHT, WEDGED),
    Case("copy abort", "K5", RIGHT, FORGOTTEN),
    Case("copy abort", "K5b", RIGHT, FORGOTTEN),
    Case("copy abort", "K6", RIGHT, AGREES),
    Case("commit pivot", "K0", (WAITS,), WAITS),
    Case("commit pivot", "K1", RACE, None),
    Case("commit pivot", "K2", RIGHT, AGREES),
    Case("commit pivot", "K3", RIGHT, AGREES),
    Case("commit pivot", "K4", RIGHT, WEDGED),
    Case("commit pivot", "K5", RIGHT, FORGOTTEN),
    Case("commit pivot", "K6", (NEXT_STALE,), NEXT_STALE),
    Case("commit abort", "K1", RACE, None),
    Case("commit abort", "K2", RIGHT, DELETED),
    Case("commit abort", "K3", RIGHT, AGREES),
    Case("commit abort", "K4", RIGHT, WEDGED),
    Case("commit abort", "K5", RIGHT, FORGOTTEN),
]
QUICK = [case for case in CASES if str(case) in {"copy pivot K5"}]
"""The point at which plain libvirt is most wrong: it has forgotten the domain, and the job is gone from QEMU."""


def begin(domain: Domain, operation: str) -> None:
    """Bring a domain to the point where the job waits for its end; the commit was told to delete the overlay."""
    if operation.startswith("copy"):
        domain.copy()
    else:
        domain.snapshot()
        domain.commit("vda", "--delete")


def die(domain: Domain, case: Case) -> None:
    if case.operation.endswith("pivot"):
        domain.die_in_pivot(PIVOT_POINTS[case.point])
    else:
        domain.die_in(("blockjob", domain.name, "vda", "--abort"), ABORT_POINTS[case.point])


def outcome(domain: Domain) -> str:
    """Return what libvirt believes, beside what QEMU has."""
    believed, root = domain.believe(), domain.root()
    if not (domain.image().parent / root).exists():
        return DELETED
    if believed.state == "shut off":
        return FORGOTTEN
    if believed.mirror is not None:
        spy = domain.spy()
        jobs = [job["status"] for job in spy.execute("query-jobs")]
        spy.close()
        return WAITS if (believed.mirror, jobs, believed.live) == ("yes", ["ready"], root) else WEDGED
    if believed.live != root:
        return LIVE_WRONG
    return AGREES if believed.next_boot == root else NEXT_STALE


def killed_and_started(libvirtd: Libvirtd, case: Case, *, guest: bool) -> Domain:
    libvirtd.start()
    domain = (TinyDomain(libvirtd) if guest else Domain(libvirtd, guest=False)).define().boot()
    begin(domain, case.operation)
    die(domain, case)
    assert domain.writes_go_on()
    libvirtd.start()
    return domain


def with_hook(libvirtd: Libvirtd, case: Case, *, guest: bool) -> None:
    libvirtd.install_hook()
    domain = killed_and_started(libvirtd, case, guest=guest)
    # libvirt answers for other things while it still reconnects.
    assert until(lambda: outcome(domain) in case.hook), outcome(domain)
    if outcome(domain) == AGREES:
        assert domain.is_healthy()


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_quick(libvirtd: Libvirtd, case: Case) -> None:
    """The hook brings libvirt to what QEMU has, and everything can be asked of the domain afterwards."""
    with_hook(libvirtd, case, guest=False)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_with_the_hook(libvirtd: Libvirtd, case: Case) -> None:
    """The same at every point, under a guest that writes; it loses nothing."""
    with_hook(libvirtd, case, guest=True)


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in CASES if case.plain is not None], ids=str)
def test_without_the_hook(libvirtd: Libvirtd, case: Case) -> None:
    """What libvirt 9.0 does by itself: the table that the hook is for."""
    if not libvirtd.version().startswith("9.0."):
        pytest.skip("the table is that of libvirt 9.0")
    domain = killed_and_started(libvirtd, case, guest=False)
    assert until(lambda: outcome(domain) == case.plain, 10.0), outcome(domain)


@pytest.mark.long
@pytest.mark.parametrize("both", [False, True], ids=["one disk was pivoted", "both were pivoted"])
def test_two_disks(libvirtd: Libvirtd, both: bool) -> None:
    """Each disk is looked at for itself: the second one dies with its libvirtd, the first waits or has moved."""
    libvirtd.install_hook()
    libvirtd.start()
    domain = Domain(libvirtd, disks=2, guest=False).define().boot()
    domain.copy("vda")
    domain.copy("vdb")
    if both:
        libvirtd.ask("blockjob", "web1", "vda", "--pivot")
    domain.die_in_pivot(PIVOT_POINTS["K4"], "vdb")
    libvirtd.start()
    assert until(lambda: domain.agrees("vdb"))
    assert domain.root("vdb") == "web1-vdb-1.qcow2"
    if not both:
        assert domain.believe("vda").mirror == "yes"
        libvirtd.ask("blockjob", "web1", "vda", "--pivot")
    assert domain.agrees("vda")
    assert domain.root("vda") == "web1-vda-1.qcow2"


@pytest.mark.long
def test_a_restart_in_order_changes_nothing(libvirtd: Libvirtd) -> None:
    """A copy that waits goes on waiting over a stop and a start, and can be pivoted then."""
    libvirtd.install_hook()
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    domain.copy()
    libvirtd.stop()
    assert libvirtd.dry_run() == ""
    libvirtd.start()
    assert until(lambda: domain.believe().mirror == "yes")
    libvirtd.ask("blockjob", "web1", "vda", "--pivot")
    assert domain.agrees()
    assert Path(domain.root()).name == "web1-vda-1.qcow2"


@pytest.mark.long
def test_libvirtd_killed_again_while_the_hook_works(libvirtd: Libvirtd) -> None:
    """The hook dies with libvirtd, or a moment later, at any point: the next start comes to the right end."""
    libvirtd.install_hook()
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    domain.copy()
    domain.die_in_pivot(PIVOT_POINTS["K5"])
    for wait_ms in (20, 60, 100, 140, 180, 220, 260):
        libvirtd.start(wait=False)
        until(lambda: False, wait_ms / 1000)
        libvirtd.kill()
    libvirtd.start()
    assert until(domain.agrees)
    assert domain.root() == "web1-vda-1.qcow2"
    assert domain.is_healthy()
