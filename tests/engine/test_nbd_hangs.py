"""An NBD server that dies or hangs: while copying, while ready, in the pause, while it is opened or given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.core.pivot import Outcome, Phase
from pivotd.core.request import Kind, Requester, Target
from pivotd.engine.driver import Driver
from pivotd.engine.inbox import Cancel
from tests.conftest import QemuFactory
from tests.support.proxy import Direction, Message, When
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.qemus import qemus

from .conftest import Engine
from .storage import NbdServer
from .test_copy import assert_clean, content, write

WHO = Requester(0, 0, 1)
pytestmark = pytest.mark.qemu

MAX_PAUSE_MS = 300
BACKLOG_BLOCKS = 40
HELD_MS_MAX = 30_000.0
"""What a test tolerates on a loaded machine: not cut off, it would be held for ever. Figures: docs/reliability.md."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdServer]:
    with NbdServer(create_image(tmp_path / "export.img", image_format="raw")) as server:
        yield server


class On:
    """Calls a function once, right before a command reaches QEMU."""

    def __init__(self, command: str, act: Callable[[], None]) -> None:
        self._label, self._act, self.done = f"command:{command}", act, False

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        if message.label == self._label and when is When.BEFORE and not self.done:
            self.done = True
            self._act()


async def copy_to(engine: Engine, server: NbdServer, **options: object) -> Driver:
    return await engine.start(Kind.COPY, "web1", Target("disk0", server.uri, "raw"), reuse=True, **options)


async def kept(engine: Engine, driver: Driver, qemu: Qemu) -> None:
    """The source is right, the guest runs on it, nothing is left in QEMU."""
    pivot = await engine.closed(driver)
    assert pivot.outcome == Outcome.KEPT, pivot.error
    assert qemu.run_state() == "running"
    assert qemu.root().node == "src0"
    write(qemu, "disk0", 9, count=1)
    assert_clean(qemu)


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.READY])
async def test_a_server_that_dies(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, server: NbdServer, phase: Phase
):
    """While copying and while ready: kept, and the guest never notices."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    write(qemu, "disk0", 7, count=100)
    slow = {"bandwidth_bytes_per_s": 1 << 20} if phase is Phase.COPYING else {}
    driver = await copy_to(engine, server, pivot=False, **slow)
    await engine.until(driver, lambda pivot: pivot.phase is phase)
    server.kill()
    write(qemu, "disk0", 8)
    await kept(engine, driver, qemu)


@pytest.mark.parametrize("command", ["stop", "job-complete", "job-finalize"])
async def test_a_server_that_dies_in_the_pause(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, server: NbdServer, command: str
):
    """Right before stop, complete, finalize. After the last byte it may switch all the same: both are right."""
    dies = On(command, server.kill)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=Qemu.proxy_for(tmp_path, on_message=dies))
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    driver = await copy_to(engine, server)
    pivot = await engine.closed(driver)
    assert dies.done
    if pivot.outcome == Outcome.SWITCHED:
        assert command == "job-finalize"
        qemu.kill()
        assert content(tmp_path / "old.qcow2", "qcow2") == content(server.image, "raw")
    else:
        await kept(engine, driver, qemu)


def _binaries() -> list[list[str]]:
    return [list(binary) for binary in qemus().values()]


@pytest.mark.parametrize("binary", _binaries(), ids=list(qemus()))
async def test_a_server_that_hangs_in_the_pause_is_cut_off_at_the_deadline(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, server: NbdServer, binary: list[str]
):
    """`stop` waits for it and QEMU's main loop with it: the connection is cut, the guest goes on with the source.

    More is left to copy than the socket takes: a request that waits for room in it is not freed by a yank.
    """
    hangs = On("stop", lambda: (server.hang(), write(qemu, "disk0", 8, count=BACKLOG_BLOCKS)))
    proxy = Qemu.proxy_for(tmp_path, on_message=hangs)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=proxy, binary=binary)
    await engine.connect(qemu)
    write(qemu, "disk0", 7)
    driver = await copy_to(engine, server, max_pause_ms=MAX_PAUSE_MS)
    await kept(engine, driver, qemu)
    assert hangs.done
    (pause,) = driver.pivot.pauses
    print("held for", pause.pause_ms, "ms with max_pause", MAX_PAUSE_MS)  # noqa: T201 - a figure for people
    assert pause.pause_ms < MAX_PAUSE_MS + HELD_MS_MAX
    assert "destination-hangs" in engine.events(driver.pivot)


async def test_a_server_that_hangs_after_stop_is_cut_off(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, server: NbdServer
):
    """The mirror's last flush never ends: given up at the deadline, the guest goes on, the job goes away."""
    hangs = On("job-complete", server.hang)
    proxy = Qemu.proxy_for(tmp_path, on_message=hangs)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=proxy)
    await engine.connect(qemu)
    # A busy machine may need more than one try to come as far as that.
    driver = await copy_to(engine, server, max_pause_ms=MAX_PAUSE_MS, attempts=100)
    await kept(engine, driver, qemu)
    assert hangs.done
    assert driver.pivot.pauses[-1].pause_ms < MAX_PAUSE_MS + HELD_MS_MAX


async def test_a_cancel_of_a_copy_to_a_server_that_hangs(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, server: NbdServer
):
    """The guest runs on; the pivot ends at once, or, where QEMU 7.2 does not let go of the mirror, with the server."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    driver = await copy_to(engine, server, pivot=False)
    await engine.resting(driver)
    server.hang()
    write(qemu, "disk0", 7)
    driver.state.inbox.post(Cancel(WHO))
    try:
        async with asyncio.timeout(5):
            await engine.closed(driver)
    except TimeoutError:
        assert qemu.run_state() == "running"
        write(qemu, "disk0", 8)
        server.kill()
    await kept(engine, driver, qemu)


async def test_a_server_that_hangs_from_the_start_is_cut_off(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, server: NbdServer
):
    """Opening it blocks QEMU's main loop, for a bounded time."""
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    await engine.connect(qemu)
    server.hang()
    started = time.monotonic()
    driver = await copy_to(engine, server)
    await kept(engine, driver, qemu)
    print("opened and given up in", time.monotonic() - started, "s")  # noqa: T201 - a figure for people


async def test_other_commands_do_not_fill_the_queue_before_a_stop_that_hangs(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, server: NbdServer, monkeypatch: pytest.MonkeyPatch
):
    """QEMU reads no further once eight commands wait: those of others are held back, and the yank gets through."""
    monkeypatch.setattr(limits, "QUERY_TIMEOUT_S", HELD_MS_MAX / 1000)  # those of others have an answer in the end
    hangs = On("stop", server.hang)
    proxy = Qemu.proxy_for(tmp_path, on_message=hangs)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))], proxy=proxy)
    supervisor = await engine.connect(qemu)
    session = supervisor.session
    assert session is not None
    driver = await copy_to(engine, server, max_pause_ms=MAX_PAUSE_MS)

    async def ask() -> None:
        while not hangs.done:
            await asyncio.sleep(0.001)
        await asyncio.gather(*(session.run_state() for _ in range(40)))

    asking = asyncio.create_task(ask())
    await kept(engine, driver, qemu)
    await asking
    assert driver.pivot.pauses[0].pause_ms < MAX_PAUSE_MS + HELD_MS_MAX
