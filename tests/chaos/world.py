"""The test as the guest: blocks through the disk's own device at the moments that tell the images apart.

There is no guest kernel here. Blocks go through the disk's device by the test's own monitor: right before ``stop`` is
forwarded (only the source has them, the mirror has not copied them yet), before the answer to ``cont`` is forwarded
(only the new root has them), and right before a job is cancelled while the guest runs. Every block counts as acknowledged once a flush has returned. A verdict
that names the wrong image at any instant then lacks blocks.
"""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pivotd.core import nbd
from tests.chaos.plan import Setup
from tests.support.moves import Move
from tests.support.proxy import Direction, Hook, Message, When
from tests.support.qemu import Qemu, create_image
from tests.support.throttle import LIMITS, limits_of

BLOCK = 4096
BLOCKS_PER_BURST = 4
STRIDE = 65536
PLACES = 900
BITMAP = "backup"


FIRST_BELOW = 800
"""Numbers from here on were written to the layers below before QEMU was started."""
LAST_MOMENT = {
    Move.COPY: "command:job-complete",
    Move.COMMIT: "command:job-complete",
    Move.SNAPSHOT: "command:transaction",
}
"""The last message before the switch of a guest that was paused before."""


def lay_chain(image: Path) -> dict[int, int]:
    """Create an image on two layers with blocks of their own; return these, place -> pattern."""
    layers = layers_of(image)
    create_image(layers[0])
    for below, above in itertools.pairwise(layers):
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", below.name, "-F", "qcow2", str(above)]
        subprocess.run(command, check=True, cwd=image.parent)
    written = {}
    for layer, first in ((layers[0], FIRST_BELOW), (layers[1], FIRST_BELOW + BLOCKS_PER_BURST)):
        blocks = {(n * 37) % PLACES: 1 + n % 250 for n in range(first, first + BLOCKS_PER_BURST)}
        writes = [("-c", f"write -q -P {pattern} {place * STRIDE} {BLOCK}") for place, pattern in blocks.items()]
        command = ["qemu-io", "-f", "qcow2", *itertools.chain.from_iterable(writes), str(layer)]
        subprocess.run(command, check=True, capture_output=True)
        written |= blocks
    return written


def layers_of(image: Path) -> list[Path]:
    """Return the files of a chain that lay_chain() makes, lowest first."""
    return [image.with_name(f"{name}-{image.name}") for name in ("base", "mid")] + [image]


@dataclass
class World:
    """The QEMU of a round and what its guest was told is on disk."""

    setup: Setup
    qemu: Qemu
    lock: threading.Lock = field(default_factory=threading.Lock)
    blocks: dict[str, dict[int, int]] = field(default_factory=dict)
    """disk -> place -> pattern, acknowledged."""
    limits_before: list[dict[str, Any]] = field(default_factory=list)
    unmarked: dict[str, int] = field(default_factory=dict)
    """disk -> how many of these were written before its bitmap was made."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def add_bitmaps(self) -> None:
        """Give each disk a persistent dirty bitmap."""
        with self.lock:
            for index in range(self.setup.disks):
                node = self.qemu.root(f"disk{index}").node
                self.qemu.spy("block-dirty-bitmap-add", node=node, name=BITMAP, granularity=STRIDE, persistent=True)
        self.unmarked = {disk: len(blocks) for disk, blocks in self.blocks.items()}

    def limit(self) -> None:
        """Give each disk limits of its own, and remember how QEMU shows them."""
        for index in range(self.setup.disks):
            self.spy("block_set_io_throttle", {"id": f"/machine/peripheral/disk{index}/virtio-backend", **LIMITS})
        self.limits_before = self.limits()

    def limits(self) -> list[dict[str, Any]]:
        """Return the limits of each disk."""
        with self.lock:
            return [limits_of(self.qemu, index) for index in range(self.setup.disks)]

    def write(self) -> None:
        """Write blocks through every disk's device and flush; after that they are acknowledged."""
        for disk in range(self.setup.disks):
            written = {}
            for _ in range(BLOCKS_PER_BURST):
                number = next(self._numbers)
                # Scattered over the disk, so that a block is not copied along with its neighbour's cluster.
                place = (number * 37) % PLACES
                written[place] = 1 + number % 250
                self.device_io(disk, f"write -q -P {written[place]} {place * STRIDE} {BLOCK}")
            self.device_io(disk, "flush")
            self.blocks.setdefault(f"disk{disk}", {}).update(written)

    def device_io(self, disk: int, command: str) -> str:
        """Run a qemu-io command on the device of a disk."""
        if self.setup.legacy:
            line = f'qemu-io drive{disk} "{command}"'
        else:
            line = f'qemu-io -d /machine/peripheral/disk{disk}/virtio-backend "{command}"'
        with self.lock:
            return str(self.qemu.spy("human-monitor-command", {"command-line": line}))

    def spy(self, command: str, arguments: dict[str, Any] | None = None, /, **more: Any) -> Any:
        """Ask QEMU on the test's own monitor."""
        with self.lock:
            return self.qemu.spy(command, arguments, **more)

    def missing(self, disk: str, image: str) -> list[int]:
        """Return the places of acknowledged blocks that an image does not hold. No QEMU may write to it."""
        wanted = self.blocks.get(disk, {})
        reads = [("-c", f"read -q -P {pattern} {place * STRIDE} {BLOCK}") for place, pattern in wanted.items()]
        checks = list(itertools.chain.from_iterable(reads))
        # -U: an heir may have the image open, and it is paused.
        image_format = "raw" if nbd.is_uri(image) or image.endswith(".raw") else "qcow2"
        done = subprocess.run(
            ["qemu-io", "-U", "-r", "-f", image_format, *checks, image], capture_output=True, text=True, check=False
        )
        if done.returncode and "Pattern" not in done.stdout:
            raise AssertionError(f"{image}: {done.stdout} {done.stderr}")
        offsets = {int(line.split()[5].rstrip(",")) for line in done.stdout.splitlines() if "Pattern" in line}
        return sorted(offset // STRIDE for offset in offsets)


class GuestHook:
    """Plays the guest at the proxy, then passes each message on to the next hook.

    ``on_cancel`` is called once, when the message passes at which the pivot is to be cancelled.
    """

    def __init__(self, setup: Setup) -> None:
        self.world: World | None = None
        self.next: Hook | None = None
        self.seen: list[tuple[Direction, str, int]] = []
        self.on_cancel: Callable[[], None] | None = None
        self.on_stop: Callable[[], None] = lambda: None
        """Called once, right before the first ``stop`` is forwarded, after the guest's last writes."""
        self.cancelled_after: int | None = None
        """How many messages had been seen when the cancel was asked."""
        self.silent = False
        self._setup = setup
        self._last_moment = LAST_MOMENT.get(setup.move, "command:stop") if setup.paused else "command:stop"
        self._done: set[str] = set()
        self.going_back = False
        """The undo has been asked: its pause is another one, with its own last moment."""

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if when is When.BEFORE:
            self.seen.append((direction, message.label, message.nth))
            if message.label == self._setup.cancel_label and self._once("cancel"):
                self.cancel()
        running = message.label == "return:cont" and when is When.BEFORE
        if running and self.world is not None and not self.silent and self._once("resumed"):
            # QEMU has executed `cont`, and pivotd does not know yet: the guest is as quick as it can be.
            self.world.write()
        if running and self.world is not None and not self.silent and self.going_back and self._once("back"):
            self.world.write()
        if self.next is not None and when is When.BEFORE:
            self.next(direction, index, message, when)
        if self.world is not None and not self.silent:
            self._play(message, when, self.world)
        if self.next is not None and when is When.AFTER:
            self.next(direction, index, message, when)

    def cancel(self) -> None:
        """Ask for the cancel."""
        self.cancelled_after = len(self.seen)
        if self.on_cancel is not None:
            self.on_cancel()

    def _play(self, message: Message, when: When, world: World) -> None:
        if message.label == self._last_moment and when is When.BEFORE and self._once("last moment"):
            world.write()
        if message.label == "command:stop" and when is When.BEFORE and self._once("stop"):
            self.on_stop()
        back = self.going_back and message.label == "command:stop" and when is When.BEFORE
        if back and world.spy("query-status")["status"] == "running" and self._once("last moment back"):
            world.write()
        never_paused = "last moment" not in self._done and not self._setup.paused
        if message.label == "command:job-cancel" and when is When.BEFORE and never_paused and self._once("cancelling"):
            world.write()

    def _once(self, what: str) -> bool:
        if what in self._done:
            return False
        self._done.add(what)
        return True
