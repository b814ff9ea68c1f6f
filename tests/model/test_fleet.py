"""A host of a fleet may be lost at any moment: what the fleet says of its guest's images is right, or says it is unknown.

Two hosts with the rules alone: python -m tests.model.fleet_hosts. The real driver: python -m tests.model.fleet_explore.
"""

from __future__ import annotations

import pytest

from pivotd.core.fleet import OnSilence
from pivotd.core.pivot import Phase
from pivotd.core.request import Manager
from tests.model import fleet_explore, fleet_hosts
from tests.model.explore import search
from tests.model.fleet_explore import DriverBounds
from tests.model.fleet_hosts import FleetBounds
from tests.support.moves import Move

pytestmark = pytest.mark.timeout(2700)

HOSTS = [
    *(FleetBounds(on_silence=mode) for mode in OnSilence),
    *(FleetBounds(on_silence=mode, disks=2, losses=0) for mode in OnSilence),
    *(FleetBounds(on_silence=mode, targets="DS", takes=0) for mode in OnSilence),
    FleetBounds(migrations=1, takes=0),
    *(FleetBounds(on_silence=mode, restarts=0, unfenced=True) for mode in OnSilence),
    *(FleetBounds(on_silence=mode, manager=Manager.LIBVIRT) for mode in OnSilence),
    FleetBounds(disks=2, losses=0, split=True),
    FleetBounds(forgets=1),
    FleetBounds(losses=0, restarts=0, strays=1),
    FleetBounds(takes=0, restarts=0, strays=2),
    FleetBounds(takes=2, losses=0, restarts=0, strays=1),
    FleetBounds(migrations=1, takes=0, losses=0, restarts=0, strays=1),
    FleetBounds(targets="DE", takes=0, losses=0, alone=1, words=1),
]
HOSTS_LONG = [
    FleetBounds(on_silence=OnSilence.WAIT, migrations=1, takes=0),
    FleetBounds(targets="DEF", takes=0, losses=0, alone=1),
    *(FleetBounds(on_silence=mode, restarts=0, strays=2) for mode in OnSilence),
    FleetBounds(manager=Manager.LIBVIRT, restarts=0, strays=2),
    FleetBounds(migrations=1, losses=0, restarts=0, strays=2),
    FleetBounds(migrations=1, takes=0, restarts=0, strays=1),
    FleetBounds(targets="DE", takes=0, losses=0, restarts=0, strays=2),
    FleetBounds(targets="DE", takes=2, losses=0, restarts=0, strays=1),
    FleetBounds(takes=0, restarts=0, words=1, forgets=1, strays=1),
    *(FleetBounds(on_silence=mode, targets="DE", disks=2, takes=0, losses=0, split=True) for mode in OnSilence),
    FleetBounds(targets="DE", disks=2, takes=0, losses=0, alone=1, split=True),
    FleetBounds(targets="DE", disks=2, losses=0, restarts=0, split=True),
    FleetBounds(on_silence=OnSilence.WAIT, forgets=1),
    FleetBounds(migrations=1, takes=0, forgets=2),
    FleetBounds(disks=2, losses=0, forgets=1),
    FleetBounds(restarts=0, unfenced=True, forgets=1),
    FleetBounds(targets="DE", migrations=1, takes=0, losses=0, words=1, forgets=1),
    FleetBounds(targets="DE", migrations=1, takes=0, losses=0, words=1),
    *(FleetBounds(on_silence=mode, targets="DE") for mode in OnSilence),
    *(FleetBounds(on_silence=mode, migrations=1, losses=2) for mode in OnSilence),
    *(FleetBounds(on_silence=mode, targets="DE", migrations=2, takes=0, losses=0) for mode in OnSilence),
    *(FleetBounds(on_silence=mode, targets="DE", migrations=1, restarts=0, losses=0) for mode in OnSilence),
]
DRIVER = [
    *(DriverBounds(mode, crashes=2) for mode in OnSilence),
    *(DriverBounds(mode, crashes=0, faults=1) for mode in OnSilence),
    DriverBounds(disks=2, crashes=2, owned=False),
    DriverBounds(crashes=1, keep_synced=True),
    DriverBounds(OnSilence.WAIT, crashes=1, move=Move.SNAPSHOT, from_phase=Phase.PREPARING),
]
DRIVER_LONG = [
    *(DriverBounds(mode, crashes=1, faults=1) for mode in OnSilence),
    *(DriverBounds(mode, crashes=0, faults=2) for mode in OnSilence),
    *(DriverBounds(mode, crashes=1, faults=1, move=Move.SNAPSHOT) for mode in OnSilence),
    DriverBounds(OnSilence.WAIT, crashes=1, faults=1, move=Move.COMMIT),
    DriverBounds(disks=2, crashes=1, faults=1),
    DriverBounds(crashes=1, faults=1, attempts=2),
    DriverBounds(crashes=1, faults=1, keep_synced=True),
]


@pytest.mark.parametrize(
    "bounds", [*HOSTS, *(pytest.param(bounds, marks=pytest.mark.long) for bounds in HOSTS_LONG)], ids=str
)
def test_no_host_and_no_fleet_is_certain_of_a_wrong_image(bounds: FleetBounds, capsys: pytest.CaptureFixture[str]):
    """Whoever dies, forgets, comes back, migrates or takes the guest, and whatever becomes of the messages."""
    found = fleet_hosts.search(bounds)
    with capsys.disabled():
        print(f"\n{found}", end="", flush=True)  # noqa: T201 - the size of the proof
    assert found.story is None
    assert {end.split()[0][0] for end in found.ends} == {"s", "k"}, "what is never visited would be proven for nothing"


@pytest.mark.parametrize("mode", OnSilence)
def test_a_fleet_that_takes_late_and_double_writes_is_no_fleet(mode: OnSilence):
    """The one promise that the rules need of whatever keeps the fleet: no write unless nothing has changed."""
    assert fleet_hosts.search(FleetBounds(on_silence=mode, conditional=False)).story is not None


@pytest.mark.parametrize(
    "bounds", [*DRIVER, *(pytest.param(bounds, marks=pytest.mark.long) for bounds in DRIVER_LONG)], ids=str
)
def test_the_driver_keeps_every_promise_on_a_host_of_a_fleet(bounds: DriverBounds, capsys: pytest.CaptureFixture[str]):
    """The host may be lost at every instant; those of a host without a fleet hold, too."""
    found = search(bounds, fleet_explore.first_world)
    with capsys.disabled():
        print(f"\n{found}", end="", flush=True)  # noqa: T201 - the size of the proof
    assert found.resting
    assert found.outcomes >= {"switched", "kept"}
