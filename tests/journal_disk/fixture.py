"""A domain, a guest that the test plays, and a real pivotd whose journal lies on a forgetful disk."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pivotd.journal.reader import Reader
from tests.chaos.plan import Setup
from tests.chaos.process import call
from tests.chaos.world import World
from tests.journal_disk.disk import Disk, put
from tests.journal_disk.store import Contents, Store
from tests.support import qemu as support
from tests.support.daemon import Daemon
from tests.support.history import verdicts
from tests.support.proxy import Direction, Message, When
from tests.support.waiting import until

COMPLETE = "every destination is complete"
RESUMES = "the guest is about to run on"
WAIT_S = 60.0
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Ground:
    """Use it as a context manager; then start ``daemon``. The guest writes right before ``stop`` and right after ``cont``.

    Both moments are marked in the disk's log: COMPLETE before the answer to the last ``job-finalize`` reaches pivotd,
    RESUMES before ``cont`` reaches QEMU. ``transcript`` has every message, also as a file in the directory at the end.
    """

    def __init__(self, directory: Path, disk: Disk, *, disks: int = 1) -> None:
        self.directory, self.disk, self.number = directory, disk, disks
        self.transcript: list[str] = []
        self.images = [support.create_image(directory / f"old{index}.qcow2") for index in range(disks)]
        self.targets = list(self.images)
        self._copies = itertools.count(1)
        self.hook: Callable[[Message], None] = lambda _: None
        """Sees every message before it is forwarded."""
        self._verdicts: dict[int, list[str]] = {}
        self._stack = ExitStack()
        proxy = support.Qemu.proxy_for(directory, on_message=self._on_message)
        self.qemu = support.Qemu(directory, [support.Disk(image) for image in self.images], proxy=proxy)
        self.world = World(Setup(disks=disks), self.qemu)
        self.daemon = Daemon(directory, {"web1": self.qemu.qmp})

    def __enter__(self) -> Self:
        self._stack.enter_context(self.qemu)
        self._stack.callback(self.daemon.kill)
        self.world.write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A daemon that waits for a hanging disk cannot die before that answers.
        with contextlib.suppress(EOFError):
            self.disk.fail()
        try:
            self._stack.close()
        finally:
            (self.directory / "transcript.txt").write_text("\n".join(self.transcript))

    # -- asking

    def copy(self) -> Any:
        """Ask for a copy of every disk to new images; return the answer, a failure too, or None if none came."""
        number = next(self._copies)
        targets = [self.directory / f"new{number}-{index}.qcow2" for index in range(self.number)]
        body = {"disks": [{"disk": f"disk{index}", "image": str(path)} for index, path in enumerate(targets)]}
        try:
            answer = call(self.daemon, "POST", "/v1/domains/web1/copy", body)
        except (OSError, http.client.HTTPException, ValueError):
            return None
        if "id" in answer:
            self.targets = targets
        return answer

    def copy_in_background(self) -> threading.Thread:
        """Ask like copy(), and do not wait for the answer."""
        thread = threading.Thread(target=self.copy, daemon=True)
        thread.start()
        return thread

    def rest(self, pivot: str) -> Any:
        """Wait until a pivot rests and return it."""
        return call(self.daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s={WAIT_S}", timeout_s=2 * WAIT_S)

    def closed(self) -> bool:
        """Return whether there are pivots and all of them are closed."""
        found = call(self.daemon, "GET", "/v1/pivots")
        return bool(found) and all(pivot["phase"] == "closed" for pivot in found)

    def run_state(self) -> str:
        """Ask QEMU."""
        return str(self.world.spy("query-status")["status"])

    def roots(self) -> list[str]:
        """Return the image of every disk that QEMU uses."""
        with self.world.lock:
            return [self.qemu.root(f"disk{index}").filename for index in range(self.number)]

    def await_running(self, timeout_s: float) -> bool:
        """Wait until the guest runs; return whether it does."""
        return until(lambda: self.run_state() == "running", timeout_s)

    # -- judging

    def verdicts(self, contents: Contents) -> list[str]:
        """Return the image that a journal, left like this, names for every disk."""
        key = hash(tuple(sorted(contents.items())))
        if key not in self._verdicts:
            self._verdicts[key] = self._verdict(contents)
        return self._verdicts[key]

    def _verdict(self, contents: Contents) -> list[str]:
        place = Path(tempfile.mkdtemp(prefix="pivotd-", dir=MEMORY)) / "left"
        put(contents, place)
        named = {f"disk{index}": str(image) for index, image in enumerate(self.images)}
        if "journal.db" in contents:
            reader = Reader.offline(place)
            problems = reader.check()
            named |= {verdict.disk: verdict.image for verdict in verdicts(reader.pivots())}
            reader.close()
            assert problems == [], place
        shutil.rmtree(place.parent)
        return [named[disk] for disk in sorted(named)]

    def verdicts_now(self, chance: random.Random) -> list[tuple[str, list[str]]]:
        """Return what the journal would name after a kill, and after power cuts, at this moment."""
        store = Store()
        for change in self.disk.log():
            store.apply(change)
        return [(name, self.verdicts(left)) for name, left in variants(store, chance)]

    def missing(self) -> dict[str, list[int]]:
        """End QEMU and return the acknowledged blocks that the images it used last do not hold."""
        roots = self.roots()
        self.qemu.kill()
        lost = {root: self.world.missing(f"disk{index}", root) for index, root in enumerate(roots)}
        return {root: blocks for root, blocks in lost.items() if blocks}

    def _on_message(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if when is When.BEFORE:
            self.transcript.append(f"{time.monotonic():.6f} {direction} {message.raw.decode(errors='replace').strip()}")
            self.hook(message)
        if (message.label, when) == ("command:stop", When.BEFORE):
            self.world.write()
        elif (message.label, when) == ("return:job-finalize", When.BEFORE):
            self.disk.mark(COMPLETE)
        elif (message.label, when) == ("command:cont", When.BEFORE):
            self.disk.mark(RESUMES)
        elif (message.label, when) == ("return:cont", When.AFTER):
            self.world.write()


def variants(store: Store, chance: random.Random) -> Iterator[tuple[str, Contents]]:
    """Yield what a kill of every process leaves, and what power cuts leave."""
    own = chance.randrange(1 << 32)
    yield "killed", store.everything()
    yield "power cut", store.after_cut()
    yield f"power cut, seed {own}", store.after_cut(random.Random(own))
