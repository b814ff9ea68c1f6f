"""What the cases of other projects have in common: a domain, whose guest writes all the time, under an engine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.core.request import Kind, Requester, Target
from pivotd.engine.driver import Driver
from pivotd.engine.inbox import Cancel
from pivotd.host import files
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.support.moves import Move
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.qmp_spy import SpyError
from tests.support.tiny_guest import PAUSE_MS_DEFAULT, TinyGuest, TinyJudge

WHO = Requester(0, 0, 1)
FILLED_FROM = "32M"
"""The guest writes below; from here on images can be given something to copy."""


class Bed:
    """An engine, one domain ``web1``, and the judge of its guest. Every wait in here is bounded."""

    def __init__(self, engine: Engine, factory: QemuFactory, directory: Path) -> None:
        self.engine, self.directory = engine, directory
        self.qemu: Qemu
        self.judge: TinyJudge
        self._factory = factory

    async def waits_for_room(self, driver: Driver) -> None:
        """Wait until the copy says that its destination is full."""
        async with asyncio.timeout(60):
            while "is full" not in driver.waits_for:
                await asyncio.sleep(0.02)

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

    async def guest(
        self,
        *disks: Disk | Path,
        pause_ms: int = PAUSE_MS_DEFAULT,
        acks: int = 0,
        stopped: bool = False,
        **options: Any,
    ) -> Qemu:
        """Start a domain whose guest writes to all its disks, connect, and wait for the first acknowledged write.

        ``stopped``: it then writes no more until somebody lets it go on.
        """
        guest = TinyGuest(disks=len(disks), pause_ms=pause_ms)
        given = [disk if isinstance(disk, Disk) else _disk(disk, bus="ide") for disk in disks]
        self.qemu = self._factory(given, guest=guest, **options)
        self.judge = guest.judge(self.qemu)
        await self.acks(acks)
        if stopped:
            self.qemu.spy("stop")
        await self.engine.connect(self.qemu)
        return self.qemu

    async def acks(self, more: int = 20) -> int:
        """Wait until the guest was told of so many more writes, while the engine works on."""
        before = self.judge.last_ack()
        return await asyncio.to_thread(self.judge.await_acks, more_than=before + more)

    def chain(self, *names: str, fill: str = "2M", guest: bool = True, relative: bool = False) -> list[Path]:
        """Create a chain in the test's directory."""
        paths = [self.directory / name for name in names]
        return lay_chain(*paths, fill=fill, offset_mib=32 if guest else 0, relative=relative)

    # -- pivots

    async def copy(self, *targets: Path, **options: Any) -> Driver:
        """Copy disk0, disk1… to these images; the name of each says its format."""
        image_format = options.pop("image_format", path_format(targets[0].name))
        named = {f"disk{index}": target for index, target in enumerate(targets)}
        return await self.engine.copy("web1", named, image_format, **options)

    async def move(self, move: Move, *chains: list[Path], **options: Any) -> Driver:
        """Commit, pull or snapshot disk0, disk1… with these chains, the lowest image first.

        An inner commit takes the layers below the active one down to the lowest; overlays are new0.qcow2, new1.qcow2…
        """
        targets = []
        for index, chain in enumerate(chains):
            layers = {"top": str(chain[-2]), "base": str(chain[0])} if move is Move.INNER_COMMIT else {}
            image = str(self.target(f"new{index}.qcow2")) if move is Move.SNAPSHOT else ""
            targets.append(Target(f"disk{index}", image, **layers))
        return await self.engine.start(move.kind, "web1", *targets, **options)

    async def commit(self, *, top: Path | None = None, base: Path | None = None, **options: Any) -> Driver:
        """Commit layers of disk0."""
        target = Target("disk0", top=top and str(top), base=base and str(base))
        return await self.engine.start(Kind.COMMIT, "web1", target, **options)

    async def pull(self, *, base: Path | None = None, **options: Any) -> Driver:
        """Pull layers into the image of disk0."""
        return await self.engine.start(Kind.PULL, "web1", Target("disk0", base=base and str(base)), **options)

    async def snapshot(self, *overlays: Path, **options: Any) -> Driver:
        """Put overlays on disk0, disk1 and so on."""
        targets = (Target(f"disk{index}", str(path)) for index, path in enumerate(overlays))
        return await self.engine.start(Kind.SNAPSHOT, "web1", *targets, **options)

    async def to_moving(self, move: Move, *chains: list[Path], **options: Any) -> Driver:
        """Do it so slowly that the pivot stays at it."""
        return await self._at_work(await self.move(move, *chains, bandwidth_bytes_per_s=1, **options))

    def hurry(self, driver: Driver) -> None:
        """Lift the limit of the pivot's jobs; one that has come to its end meanwhile needs no hurry."""
        for disk in driver.pivot.disks:
            with contextlib.suppress(SpyError):
                self.qemu.spy("block-job-set-speed", device=disk.job, speed=0)

    async def to_ready(self, *targets: Path, **options: Any) -> Driver:
        """Copy, and return the driver once the pivot waits at ready."""
        driver = await self.copy(*targets, pivot=False, **options)
        pivot = await self.engine.resting(driver)
        assert pivot.phase is Phase.READY, pivot.error
        return driver

    async def to_copying(self, *targets: Path, **options: Any) -> Driver:
        """Copy so slowly that the pivot stays in the phase; the source must have data, more than 16 MiB if no guest writes."""
        options = {"bandwidth_bytes_per_s": 1} | options
        return await self._at_work(await self.copy(*targets, **options))

    async def _at_work(self, driver: Driver) -> Driver:
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
        driver.state.inbox.post(Cancel(WHO))
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

    def assert_merged(self, pivot: Pivot, *, run_state: str = "running") -> None:
        """The outcome is merged, QEMU uses the sources, nothing is left of the pivot."""
        assert pivot.outcome == Outcome.MERGED, (pivot.outcome, pivot.error)
        self._assert_shown({disk.disk: disk.source.filename for disk in pivot.disks}, run_state)

    def assert_chain(self, *images: Path, disk: str = "disk0", disks: int = 1) -> None:
        """QEMU shows this chain, the lowest image first, the images themselves name it too, and no other is open."""
        wanted = [str(image) for image in reversed(images)]
        assert self.shown_chain(disk) == wanted
        assert written_chain(images[-1]) == wanted
        if disks == 1:
            assert len(self.qemu.nodes()) == 2 * len(images), sorted(self.qemu.nodes())

    def shown_chain(self, disk: str = "disk0") -> list[str]:
        """Return the images from a disk's root down, as QEMU shows them."""
        image = next(entry for entry in self.qemu.spy("query-block") if disk in entry["qdev"])["inserted"]["image"]
        names = []
        while image:
            names.append(files.resolve(image["filename"], None).path or image["filename"])
            image = image.get("backing-image")
        return names

    def _assert_shown(self, images: dict[str, str], run_state: str) -> None:
        # A complete name also says what is below, where the image's own header does not.
        assert {name: self.shown_chain(name)[0] for name in images} == {
            name: files.resolve(image, None).path for name, image in images.items()
        }
        assert self.qemu.run_state() == run_state
        assert self.qemu.jobs() == {}
        objects = [entry["name"] for entry in self.qemu.spy("qom-list", path="/objects")]
        assert [name for name in objects if name.startswith("pivotd")] == []

    def assert_holds_all(self, pivot: Pivot) -> None:
        """Kill QEMU: the images that the outcome names hold every write the guest was told of, and are sound."""
        self.qemu.kill()
        for disk in pivot.disks:
            switched = disk.outcome is Outcome.SWITCHED
            path = Path((disk.destination if switched else disk.source).filename)
            if not path.is_absolute():  # QEMU's name of a source behind a filter is no path
                path = self.qemu.disks[int(disk.disk[-1])].image
            missing = self.judge.missing(path, path_format(path.name))
            assert missing == [], f"{path} lacks {missing} of {self.judge.last_ack()}"
            assert_sound(path)


def mostly_long(values: Iterable[Any], *always: Any) -> list[Any]:
    """Return parameters of which all but ``always`` are left to `make test-long`."""
    return [value if value in always else pytest.param(value, marks=pytest.mark.long) for value in values]


def _disk(image: Path, **options: Any) -> Disk:
    return Disk(image, format=path_format(image.name), **options)


def path_format(name: str) -> str:
    """Return the format that the ending of a name says."""
    return "raw" if name.endswith(".raw") else "qcow2"


def fill_image(path: Path, size: str, *, offset: str = FILLED_FROM, pattern: int = 90) -> None:
    """Write a pattern into an image that nobody uses."""
    command = ["qemu-io", "-f", path_format(path.name), "-c", f"write -q -P {pattern} {offset} {size}", str(path)]
    subprocess.run(command, check=True, capture_output=True)


def lay_chain(*paths: Path, fill: str = "2M", offset_mib: int = 32, relative: bool = False) -> list[Path]:
    """Create a chain, the lowest image first, each with ``fill`` bytes of its own, which may hide some of those below."""
    create_image(paths[0], image_format=path_format(paths[0].name))
    for below, path in itertools.pairwise(paths):
        overlay(path, below, relative=relative)
    for number, path in enumerate(paths):
        fill_image(path, fill, offset=f"{offset_mib + number}M", pattern=number + 1)
    return list(paths)


def overlay(path: Path, base: Path, *, size: str = "", relative: bool = False) -> Path:
    """Create an image that is backed by another one."""
    below = os.path.relpath(base, path.parent) if relative else str(base)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", path_format(base.name), "-b", below, str(path)]
    subprocess.run([*command, *([size] if size else [])], check=True)
    return path


def written_chain(path: Path) -> list[str]:
    """Return the images from this one down, as each names the next one, by their real paths."""
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", "-f", path_format(path.name), str(path)]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    return [os.path.realpath(image["filename"]) for image in json.loads(shown)]


def content(path: Path, *, beyond_mib: int = 0) -> str:
    """Return a digest of what a guest would read from an image, from so many MiB on."""
    with tempfile.NamedTemporaryFile() as raw:
        command = ["qemu-img", "convert", "-U", "-f", path_format(path.name), "-O", "raw", str(path), raw.name]
        subprocess.run(command, check=True, capture_output=True)
        return hashlib.sha256(Path(raw.name).read_bytes()[beyond_mib << 20 :]).hexdigest()


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
