"""What is asked of pivotd in a round, and what has to be there for it: NBD servers, somebody's jobs, a guest that outruns."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pivotd.core.pivot import Pivot
from tests.chaos.plan import Cancel, Setup
from tests.chaos.world import World
from tests.engine.storage import NbdServer
from tests.support.moves import Move
from tests.support.qemu import create_image
from tests.support.throttle import slow_down

PAUSE_MS_MAX = 20_000
"""A machine that is busy must not end the pause before the point is reached."""
HANG_PAUSE_MS_MAX = 300
SLOW_BYTES_PER_S = 1
SLOW_DATA_BYTES = 4 << 20
OUTRUN_BYTES_PER_S = 3 << 19
OUTRUN_BYTES = 7 << 20
POLL_S = 0.01
OUTRUN_AT_BYTES = 57 << 20
"""Behind the blocks of the rounds."""


class Asking:
    """The request of one round for the disks with these images; ``targets`` are the images that they move to."""

    def __init__(self, setup: Setup, directory: Path, images: list[Path]) -> None:
        self._setup, self._images = setup, images
        name = "base-old" if setup.move is Move.COMMIT else "new" if setup.move.switches else "old"
        ending = "raw" if setup.nbd or setup.outrun else "qcow2"
        self.targets = [directory / f"{name}{index}.{ending}" for index in range(setup.disks)]
        self.servers: list[NbdServer] = []
        self._outran = False

    @property
    def path(self) -> str:
        """The route of the request."""
        return f"/v1/domains/web1/{'adopt' if self._setup.adopted else self._setup.move.kind}"

    @property
    def body(self) -> dict[str, Any]:
        """The request."""
        setup = self._setup
        body: dict[str, Any] = {
            "disks": [self._disk(index) for index in range(setup.disks)],
            "max_pause_ms": HANG_PAUSE_MS_MAX if setup.hangs else PAUSE_MS_MAX,
        }
        if setup.move in {Move.COPY, Move.COMMIT}:
            body["pivot"] = setup.cancel is not Cancel.READY and not setup.outrun
        if setup.move is Move.COPY and setup.adopted:
            body["sync"] = "full"
        elif setup.move is Move.COPY:
            body |= {"keep_synced": setup.undo, "reuse": setup.nbd}
        if setup.cancel is Cancel.COPYING and not setup.adopted:
            body["bandwidth_bytes_per_s"] = SLOW_BYTES_PER_S
        return body

    def _disk(self, index: int) -> dict[str, str]:
        image, disk = self._images[index], {"disk": f"disk{index}"}
        match self._setup.move:
            case Move.COPY if self._setup.nbd:
                return disk | {"image": self.servers[index].uri, "format": "raw"}
            case Move.COPY if self._setup.outrun:
                return disk | {"image": str(self.targets[index]), "format": "raw"}
            case Move.COPY | Move.SNAPSHOT:
                return disk | {"image": str(self.targets[index])}
            case Move.INNER_COMMIT:
                return disk | {"top": str(image.with_name(f"mid-{image.name}"))}
        return disk

    def start_servers(self, stack: ExitStack) -> None:
        """Start one server for each destination."""
        for target in self.targets:
            create_image(target, image_format="raw")
            self.servers.append(stack.enter_context(NbdServer(target)))

    def start_jobs(self, world: World) -> None:
        """Start the jobs as another tool would, with the flags that let them be adopted."""
        for index, target in enumerate(self.targets):
            job = {"job-id": f"theirs{index}", "device": world.qemu.root(f"disk{index}").node}
            job |= {"auto-finalize": False, "auto-dismiss": False}
            job |= {"speed": SLOW_BYTES_PER_S} if self._setup.cancel is Cancel.COPYING else {}
            if self._setup.move is Move.COMMIT:
                world.spy("block-commit", job)
                continue
            file = {"driver": "file", "filename": str(create_image(target))}
            world.spy("blockdev-add", {"driver": "qcow2", "node-name": f"theirs{index}", "file": file})
            world.spy("blockdev-mirror", job | {"target": f"theirs{index}", "sync": "full"})

    def outrun(self, world: World, pivot: Pivot) -> None:
        """Have the guest write for some seconds more than the destination takes, once."""
        if not self._outran:
            self._outran = True
            with world.lock:
                slow_down(world.qemu, pivot.disks[0].destination.node, OUTRUN_BYTES_PER_S)
            world.device_io(0, f"write -q -P 251 {OUTRUN_AT_BYTES} {OUTRUN_BYTES}")
            while not any(job["len"] - job["offset"] > OUTRUN_BYTES // 2 for job in world.spy("query-block-jobs")):
                time.sleep(POLL_S)  # a mirror that rests counts a write only when it wakes up
