"""Rung 2 for backing chains: commits, pulls and snapshots do the same on the model and on real QEMU."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pivotd.qmp import blocks
from tests.model.qemu import Disk, Node, Qemu, RefusedError
from tests.model.storage import Storage
from tests.support.qemu import Qemu as RealQemu
from tests.support.qemu import create_image
from tests.support.qemus import number, qemus
from tests.support.qmp_spy import SpyError

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

PATIENCE_S = 60.0
STABLE = 5
"""So many looks must show what the model says."""
MANUAL = {"auto-finalize": False, "auto-dismiss": False}
LAYERS = {"base": None, "mid": "base", "top": "mid", "new": None}
"""Node -> what it is backed by."""

Command = tuple[str, dict[str, Any]]
STARTS: dict[str, Command] = {
    "commit": ("block-commit", {"job-id": "job", "device": "top", "base-node": "base"} | MANUAL),
    "inner commit": (
        "block-commit",
        {"job-id": "job", "device": "top", "top-node": "mid", "base-node": "base"} | MANUAL,
    ),
    "pull": ("block-stream", {"job-id": "job", "device": "top"} | MANUAL),
    "pull to the base": ("block-stream", {"job-id": "job", "device": "top", "base-node": "base"} | MANUAL),
}
SNAPSHOT: Command = (
    "transaction", {"actions": [{"type": "blockdev-snapshot", "data": {"node": "top", "overlay": "new"}}]},
)  # fmt: skip
SNAPSHOT_BELOW: Command = (
    "transaction", {"actions": [{"type": "blockdev-snapshot", "data": {"node": "mid", "overlay": "new"}}]},
)  # fmt: skip
COMPLETE, FINALIZE, CANCEL, DISMISS = (
    ("job-" + verb, {"id": "job"}) for verb in ("complete", "finalize", "cancel", "dismiss")
)
SOFT: Command = ("block-job-cancel", {"device": "job"})
WAYS: dict[str, list[Command]] = {
    "completed": [COMPLETE, FINALIZE, DISMISS],
    "finalized": [FINALIZE, COMPLETE, DISMISS],
    "cancelled": [CANCEL, FINALIZE, DISMISS],
    "cancelled late": [COMPLETE, CANCEL, DISMISS],
    "softly cancelled": [SOFT, FINALIZE, DISMISS],
    "a snapshot below": [CANCEL, DISMISS, SNAPSHOT_BELOW],
    "a snapshot between": [SNAPSHOT, CANCEL, DISMISS, SNAPSHOT, SNAPSHOT],
}


class Shown(NamedTuple):
    """What a case compares."""

    status: str
    failed: bool
    chain: tuple[str, ...]


def shown(jobs: list[dict[str, Any]], root: str, graph: Any) -> Shown:
    job = next((job for job in jobs if job["id"] == "job"), {"status": "null"})
    # While a job runs QEMU has filters of its own in the chain, which no name is given to.
    chain = (name for name in blocks.graph(graph).chain(root) if not name.startswith("#"))
    return Shown(job["status"], "error" in job, tuple(chain))


def real_look(qemu: RealQemu) -> Shown:
    graph = qemu.spy("x-debug-query-block-graph")
    return shown(qemu.spy("query-jobs"), qemu.root("disk0").node, graph)


def model_look(qemu: Qemu) -> Shown:
    qemu.settle()
    graph = qemu.execute("x-debug-query-block-graph")
    return shown(qemu.execute("query-jobs"), qemu.disks["disk0"].root or "", graph)


def plug(qemu: RealQemu, directory: Path) -> None:
    for name, backing in LAYERS.items():
        image = create_image(directory / name, size="1M")
        file = {"driver": "file", "filename": str(image)}
        qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file, "backing": backing})
    qemu.spy("device_add", {"driver": "scsi-hd", "id": "disk0", "drive": "top"})


def modelled(version: str) -> Qemu:
    qemu = Qemu(Storage(), number(version)[:2], "prelaunch")  # type: ignore[arg-type]
    for name, backing in LAYERS.items():
        qemu.storage.create(name)
        qemu.nodes[f"{name}-file"] = Node("file", name)
        qemu.nodes[name] = Node("qcow2", name, f"{name}-file", backing=backing)
    qemu.disks["disk0"] = Disk("top")
    return qemu


@pytest.mark.parametrize("version", list(qemus()))
@pytest.mark.parametrize("start", STARTS)
def test_chains_change_alike_in_model_and_qemu(version: str, start: str):
    """Same refusals, same status, same error or none, same chain after every command."""
    differs = []
    for way, commands in WAYS.items():
        with tempfile.TemporaryDirectory(prefix="pv") as name:
            qemu = RealQemu(Path(name), binary=qemus()[version], paused=True, extra=["-device", "virtio-scsi-pci"])
            with qemu:
                plug(qemu, Path(name))
                model = modelled(version)
                for command in [STARTS[start], *commands]:
                    if said := compare(qemu, model, *command):
                        differs.append(f"{version}: {start}, {way}: {said}")
                        break
    assert not differs, "\n".join(differs)


def compare(qemu: RealQemu, model: Qemu, name: str, arguments: dict[str, Any]) -> str:
    """Run a command on both; return how they differ."""
    refused = [False, False]
    for side, run in enumerate((qemu.spy, model.execute)):
        try:
            run(name, arguments)
        except (SpyError, RefusedError) as error:
            refused[side] = True
            words = str(error)
    wanted = model_look(model)
    until_s, stable = time.monotonic() + PATIENCE_S, 0
    for _ in itertools.count():
        found = real_look(qemu)
        stable = stable + 1 if found == wanted else 0
        if stable == STABLE:
            break
        if time.monotonic() > until_s:
            return f"{name}: QEMU {found}, model {wanted}"
    return "" if refused[0] == refused[1] else f"{name}: only one of QEMU and model refused it: {refused} {words}"
