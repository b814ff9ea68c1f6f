"""What pivotd must never send to QEMU, shown on the QEMU under test."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest

from pivotd.errors import QmpUnknownError, QmpUnsentError
from pivotd.qmp.looking import LOOK
from pivotd.qmp.monitor import Monitor, command
from tests.conftest import QemuFactory

pytestmark = pytest.mark.qemu

ROUNDS = 30
TRIES = 40
"""Busy cores can make it miss the moment."""
FIXED_IN = (10, 0)


async def create_and_ask(qemu_factory: QemuFactory, tmp_path: Path, question: dict[str, object]) -> bool:
    """Ask again and again while qcow2 images are being created; return whether QEMU survived."""
    tmp_path.mkdir()
    qemu = qemu_factory([], paused=True)
    monitor = await Monitor.connect(str(qemu.qmp))
    with contextlib.suppress(QmpUnsentError, QmpUnknownError):  # QEMU has gone
        for number in range(ROUNDS):
            path = str(tmp_path / f"image{number}")
            Path(path).touch()
            await monitor.execute(command("blockdev-add", driver="file", filename=path, node_name=f"n{number}"))
            create = command(
                "blockdev-create",
                job_id=f"c{number}",
                options={"driver": "qcow2", "file": f"n{number}", "size": 64 << 20},
            )
            await monitor.burst([create, *[question] * 6], 10)
    alive = monitor.connected and qemu.returncode is None
    await monitor.close()
    return alive


async def test_asking_for_named_nodes_kills_an_older_qemu_that_creates_an_image(
    qemu_factory: QemuFactory, tmp_path: Path
):
    """The reason why pivotd reads the graph in another way: 7.2 aborts, and the guest with it."""
    qemu = qemu_factory([], name="version")
    monitor = await Monitor.connect(str(qemu.qmp))
    version = monitor.version
    await monitor.close()
    if version[:2] >= FIXED_IN:
        pytest.skip(f"QEMU {version} does not have this fault")
    question = command("query-named-block-nodes", flat=True)
    for number in range(TRIES):
        if not await create_and_ask(qemu_factory, tmp_path / str(number), question):
            return
    pytest.fail("it has survived each time")


async def test_a_look_is_harmless_while_an_image_is_created(qemu_factory: QemuFactory, tmp_path: Path):
    """Every query of a look, on every QEMU."""
    for number, question in enumerate(LOOK):
        assert await create_and_ask(qemu_factory, tmp_path / str(number), question), question


def test_nothing_of_pivotd_asks_for_named_nodes():
    """Neither a look nor libvirt's hook: the name of that command is no text of the package."""
    trees = [ast.parse(path.read_text()) for path in (Path(__file__).parents[2] / "pivotd").rglob("*.py")]
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert "x-debug-query-block-graph" in texts
    assert "query-named-block-nodes" not in texts
