"""What people and guests do to a domain in every phase of every kind of pivot: the right outcome, and nothing hangs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.observation import EXECUTING
from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Kind, Target
from pivotd.engine.driver import Driver
from tests.interference.conftest import Moment
from tests.ported_cases.fixture import Bed, fill_image
from tests.support.qemu import Disk, Qemu, create_image

pytestmark = pytest.mark.qemu

PAUSED = ("stopped", "pending", "switched")
KINDS = ("copy", "commit", "inner", "pull", "snapshot")
POINTS = ("copying", "ready", "intent", *PAUSED)
PANIC = "o /1 0x505 1"
"""What a guest's panic handler writes to the pvpanic device."""


def _reset(qemu: Qemu) -> None:
    qemu.spy("system_reset")


def _stop(qemu: Qemu) -> None:
    qemu.spy("stop")


def _cont(qemu: Qemu) -> None:
    qemu.spy("cont")


def _stop_and_cont(qemu: Qemu) -> None:
    qemu.spy("stop")
    qemu.spy("cont")


def _panic(qemu: Qemu) -> None:
    qemu.spy("human-monitor-command", {"command-line": PANIC})


EVENTS: dict[str, tuple[Callable[[Qemu], None], str, list[str]]] = {
    "stop": (_stop, "paused", []),
    "cont": (_cont, "running", []),
    "stop-cont": (_stop_and_cont, "running", []),
    "reset": (_reset, "running", []),
    "shutdown": (_reset, "shutdown", ["-no-reboot", "-no-shutdown"]),
    "panic": (_panic, "guest-panicked", ["-device", "pvpanic", "-action", "panic=pause"]),
}
"""Each with the run state that it leads to by itself, and the arguments of QEMU that it needs.

A reset of a machine that may not reboot is a power-off: the firmware guest knows no power button.
"""


def chain(bed: Bed, kind: str) -> Path:
    """Create the images of disk0 and return the active one; every layer has 10 MiB of its own."""
    if kind in {"copy", "snapshot"}:
        return bed.image("old.qcow2", fill="16M")
    base = bed.image("base.qcow2")
    mid = create_image(bed.directory / "mid.qcow2", options=f"backing_file={base},backing_fmt=qcow2")
    top = create_image(bed.directory / "top.qcow2", options=f"backing_file={mid},backing_fmt=qcow2")
    for image, offset in ((base, "32M"), (mid, "42M"), (top, "52M")):
        fill_image(image, "10M", offset=offset)
    return top


async def start(bed: Bed, kind: str, *, slow: bool, hold: bool) -> Driver:
    """Start a pivot of this kind of disk0; ``slow``: it stays in COPYING until its speed is set."""
    directory = bed.directory
    targets = {
        "copy": (Kind.COPY, Target("disk0", str(directory / "new.qcow2"), "qcow2")),
        "commit": (Kind.COMMIT, Target("disk0", base=str(directory / "base.qcow2"))),
        "inner": (Kind.COMMIT, Target("disk0", top=str(directory / "mid.qcow2"), base=str(directory / "base.qcow2"))),
        "pull": (Kind.PULL, Target("disk0")),
        "snapshot": (Kind.SNAPSHOT, Target("disk0", str(directory / "new.qcow2"))),
    }
    which, target = targets[kind]
    return await bed.engine.start(which, "web1", target, pivot=not hold, bandwidth_bytes_per_s=int(slow), attempts=2)


async def drive(bed: Bed, kind: str, point: str, event: Callable[[Qemu], None], moment: Moment) -> Pivot:
    """Start a pivot, do the event at the point, let everything go on, and return the pivot closed."""
    moment.what = lambda: event(bed.qemu)
    driver = await start(bed, kind, slow=point == "copying", hold=point == "ready")
    if point == "copying":
        await bed.until(driver, lambda pivot: pivot.phase is not Phase.PREPARING)
        assert driver.pivot.phase is Phase.COPYING, driver.pivot.error
        await asyncio.to_thread(event, bed.qemu)
        if driver.pivot.disks[0].job in bed.qemu.jobs():
            bed.qemu.spy("block-job-set-speed", device=driver.pivot.disks[0].job, speed=0)
    elif point == "ready":
        await bed.engine.resting(driver)
        await asyncio.to_thread(event, bed.qemu)
        await driver.complete(driver.pivot.requested_by)
    pivot = await to_the_end(bed, driver)
    assert moment.done or point in {"copying", "ready"}, "the event was to come in a pause"
    return pivot


async def to_the_end(bed: Bed, driver: Driver) -> Pivot:
    """Return the pivot closed; one that gave up all its attempts and waits for a person is cancelled by one."""
    pivot = await bed.engine.resting(driver)
    return pivot if pivot.phase is Phase.CLOSED else await bed.cancel(driver)


def root_name(pivot: Pivot) -> str:
    """Return the file that the outcome names."""
    disk = pivot.disks[0]
    return disk.destination.filename if disk.outcome is Outcome.SWITCHED else disk.source.filename


def assert_right(bed: Bed, pivot: Pivot, run_state: str) -> None:
    """Outcome, graph and run state agree, nothing is left, and the image named holds every acknowledged write."""
    assert pivot.outcome in {"kept", "switched", "merged"}, (pivot.outcome, pivot.error)
    assert bed.qemu.root().filename == root_name(pivot)
    assert bed.qemu.run_state() == run_state, pivot.error
    assert bed.qemu.jobs() == {}
    objects = [entry["name"] for entry in bed.qemu.spy("qom-list", path="/objects")]
    assert [name for name in objects if name.startswith("pivotd")] == []
    bed.qemu.kill()
    assert bed.judge.missing(Path(root_name(pivot)), "qcow2") == []


def combinations() -> Iterator[Any]:
    """Yield every kind, point and event; a sixth of them in every run."""
    for (k, kind), (p, point), (e, event) in itertools.product(*map(enumerate, (KINDS, POINTS, EVENTS))):
        marks = [] if (k + 2 * p + e) % 6 == 0 else [pytest.mark.long]
        yield pytest.param(kind, point, event, marks=marks, id=f"{kind}-{point}-{event}")


@pytest.mark.parametrize(("kind", "point", "event"), list(combinations()))
async def test_an_event_at_a_point(bed: Bed, moment: Callable[[str], Moment], kind: str, point: str, event: str):
    """Whatever happens when: closed, outcome as the graph shows, the run state is theirs, no write lost."""
    if kind == "snapshot" and point == "copying":
        pytest.skip("a snapshot copies nothing")
    do, run_state, arguments = EVENTS[event]
    await bed.guest(Disk(chain(bed, kind), bus="ide"), extra=arguments)
    pivot = await drive(bed, kind, point, do, moment(point))
    run_state = expected(run_state, event, point)
    if run_state in EXECUTING:
        await bed.acks()
    assert_right(bed, pivot, run_state)


def expected(run_state: str, event: str, point: str) -> str:
    """QEMU lets none of these touch a guest that is paused already, so it goes on when pivotd's pause ends."""
    return "running" if event in {"stop", "shutdown", "panic"} and point in PAUSED else run_state
