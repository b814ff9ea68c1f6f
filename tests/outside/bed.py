"""What the cases of other projects have in common: a domain, whose guest writes all the time, under an engine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.words import Outcome, Phase, Pivot
from pivotd.engine.driver import Driver
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.tiny_guest import PAUSE_MS_DEFAULT, TinyGuest, TinyJudge

FILLED_FROM = "32M"
"""The guest writes below; from here on images can be given something to copy."""


class Bed:
    """An engine, one domain ``web1``, and the judge of its guest. Every wait in here is bounded."""

    def __init__(self, engine: Engine, factory: QemuFactory, directory: Path) -> None:
        self.engine, self.directory = engine, directory
        self.qemu: Qemu
        self.judge: TinyJudge
        self._factory = factory

    # -- images and domains

    def image(self, name: str = "old.qcow2", *, fill: str = "", **options: Any) -> Path:
        """Create an image, with ``fill`` bytes of data outside the guest's region."""
        path = create_image(self.directory / name, image_format=path_format(name), **options)
        if fill:
            fill_image(path, fill)
        return path

    def target(self, name: str = "new.qcow2") -> Path:
        """Return a path where no image is."""
        return self.directory / name

    async def domain(self, *disks: Disk | Path, **options: Any) -> Qemu:
        """Start a domain without a guest, and connect to it."""
        self.qemu = self._factory([disk if isinstance(disk, Disk) else _disk(disk) for disk in disks], **options)
        await self.engine.connect(self.qemu)
        return self.qemu

    async def guest(self, *disks: Disk | Path, pause_ms: int = PAUSE_MS_DEFAULT, acks: int = 0, **options: Any) -> Qemu:
        """Start a domain whose guest writes to all its disks, connect, and wait for the first acknowledged write."""
        guest = TinyGuest(disks=len(disks), pause_ms=pause_ms)
        given = [disk if isinstance(disk, Disk) else _disk(disk, bus="ide") for disk in disks]
        self.qemu = self._factory(given, guest=guest, **options)
        self.judge = guest.judge(self.qemu)
        await self.acks(acks)
        await self.engine.connect(self.qemu)
        return self.qemu

    async def acks(self, more: int = 20) -> int:
        """Wait until the guest was told of so many more writes, while the engine works on."""
        before = self.judge.last_ack()
        return await asyncio.to_thread(self.judge.await_acks, more_than=before + more)

    # -- pivots

    async def copy(self, *targets: Path, **options: Any) -> Driver:
        """Copy disk0, disk1… to these images; the name of each says its format."""
        image_format = options.pop("image_format", path_format(targets[0].name))
        named = {f"disk{index}": target for index, target in enumerate(targets)}
        return await self.engine.copy("web1", named, image_format, **options)

    async def to_ready(self, *targets: Path, **options: Any) -> Driver:
        """Copy, and return the driver once the pivot waits at ready."""
        driver = await self.copy(*targets, pivot=False, **options)
        pivot = await self.engine.resting(driver)
        assert pivot.phase is Phase.READY, pivot.error
        return driver

    async def to_copying(self, *targets: Path, **options: Any) -> Driver:
        """Copy so slowly that the pivot stays in the phase; the source must have data to copy."""
        options = {"bandwidth_bytes_per_s": 1 << 20} | options
        driver = await self.copy(*targets, **options)
        await self.until(driver, lambda pivot: pivot.phase is not Phase.PREPARING)
        assert driver.pivot.phase is Phase.COPYING, driver.pivot.error
        return driver

    async def until(self, driver: Driver, done: Callable[[Pivot], bool]) -> Pivot:
        """Wait until the pivot is as wanted."""
        return await self.engine.until(driver, done)

    async def complete(self, driver: Driver) -> Pivot:
        """Complete a pivot that waits, and return it closed."""
        await driver.complete(driver.pivot.requested_by)
        return await self.engine.closed(driver)

    async def cancel(self, driver: Driver) -> Pivot:
        """Cancel a pivot, and return it closed."""
        driver.cancel()
        return await self.engine.closed(driver)

    async def refused(self, error: type[Exception], *targets: Path, **options: Any) -> str:
        """Assert that a copy is refused and nothing recorded; return what is said."""
        before = self.engine.journal.last_seq
        with pytest.raises(error) as caught:
            await self.copy(*targets, **options)
        assert self.engine.journal.last_seq == before, "a refused request was recorded"
        return str(caught.value)

    # -- judgement

    def assert_kept(self, pivot: Pivot, *, run_state: str = "running") -> None:
        """The outcome is kept, QEMU uses the sources, nothing is left of the pivot."""
        assert pivot.outcome == Outcome.KEPT, (pivot.outcome, pivot.error)
        self._assert_shown({disk.disk: disk.source.filename for disk in pivot.disks}, run_state)

    def assert_switched(self, pivot: Pivot, *, run_state: str = "running") -> None:
        """The outcome is switched, QEMU uses the destinations, nothing is left of the pivot."""
        assert pivot.outcome == Outcome.SWITCHED, (pivot.outcome, pivot.error)
        self._assert_shown({disk.disk: disk.destination.filename for disk in pivot.disks}, run_state)

    def _assert_shown(self, images: dict[str, str], run_state: str) -> None:
        assert {name: self.qemu.root(name).filename for name in images} == images
        assert self.qemu.run_state() == run_state
        assert self.qemu.jobs() == {}
        objects = [entry["name"] for entry in self.qemu.spy("qom-list", path="/objects")]
        assert [name for name in objects if name.startswith("pivotd")] == []

    def assert_holds_all(self, pivot: Pivot) -> None:
        """Kill QEMU: the images that the outcome names hold every write the guest was told of, and are sound."""
        self.qemu.kill()
        for disk in pivot.disks:
            switched = disk.outcome is Outcome.SWITCHED
            # QEMU's name of a source behind a filter is no path.
            path = Path(disk.destination.filename) if switched else self.qemu.disks[int(disk.disk[-1])].image
            missing = self.judge.missing(path, path_format(path.name))
            assert missing == [], f"{path} lacks {missing} of {self.judge.last_ack()}"
            assert_sound(path)


def _disk(image: Path, **options: Any) -> Disk:
    return Disk(image, format=path_format(image.name), **options)


def path_format(name: str) -> str:
    """Return the format that the ending of a name says."""
    return "raw" if name.endswith(".raw") else "qcow2"


def fill_image(path: Path, size: str, *, offset: str = FILLED_FROM, pattern: int = 90) -> None:
    """Write a pattern into an image that nobody uses."""
    command = ["qemu-io", "-f", path_format(path.name), "-c", f"write -q -P {pattern} {offset} {size}", str(path)]
    subprocess.run(command, check=True, capture_output=True)


def content(path: Path) -> str:
    """Return a digest of what a guest would read from an image."""
    with tempfile.NamedTemporaryFile() as raw:
        command = ["qemu-img", "convert", "-U", "-f", path_format(path.name), "-O", "raw", str(path), raw.name]
        subprocess.run(command, check=True, capture_output=True)
        return hashlib.sha256(Path(raw.name).read_bytes()).hexdigest()


def assert_sound(path: Path) -> None:
    """No damage in an image; clusters that nobody uses (status 3) are none."""
    if path_format(path.name) == "qcow2":
        done = subprocess.run(["qemu-img", "check", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode in {0, 3}, done.stdout + done.stderr


@contextlib.contextmanager
def small_file_system(directory: Path, size: str) -> Iterator[Path]:
    """Mount a file system of this size; needs root."""
    place = directory / f"small-{size}"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("needs root to mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.asynccontextmanager
async def meanwhile(step: Callable[[], object]) -> AsyncIterator[list[int]]:
    """Do a step again and again in a thread of its own; gives a list with how often it was done."""
    ended = asyncio.Event()
    count = [0]

    async def go() -> None:
        while not ended.is_set():
            await asyncio.to_thread(step)
            count[0] += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(go())
        try:
            yield count
        finally:
            ended.set()
