"""The QMP commands of the model that change backing chains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.model.commands import handles
from tests.model.qemu import ENDED, Job, Qemu, RefusedError


@handles("block-commit")
def block_commit(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Write layers down into a base: without ``top-node`` the active one too, and then the disk moves to the base."""
    source = arguments["device"]
    chain, disk = _chain_of_root(qemu, source)
    top, base = arguments.get("top-node", source), arguments.get("base-node", chain[-1])
    if top not in chain or base not in chain[chain.index(top) + 1 :]:
        raise RefusedError(f"'{base}' is not in this backing chain of '{top}'")
    if top == source:
        qemu.start(arguments["job-id"], _job(arguments, "active", source, base, disk))
    else:
        above = chain[chain.index(top) - 1]
        job = _job(arguments, "merge", source, base, disk)
        qemu.start(arguments["job-id"], replace(job, above=above, base=base))
    return {}


@handles("block-stream")
def block_stream(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Copy what lies below a disk's active layer, down to a base, into it."""
    source = arguments["device"]
    chain, disk = _chain_of_root(qemu, source)
    base = arguments.get("base-node")
    if base is not None and base not in chain[1:]:
        raise RefusedError(f"Node '{base}' is not a backing image of '{source}'")
    job = _job(arguments, "merge", source, source, disk)
    qemu.start(arguments["job-id"], replace(job, above=source, base=base))
    return {}


@handles("transaction")
def transaction(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Do all snapshots or none."""
    for action in arguments["actions"]:
        if action["type"] != "blockdev-snapshot":
            raise RefusedError("Parameter 'type' does not accept value")
        _check_snapshot(qemu, action["data"])
    for action in arguments["actions"]:
        blockdev_snapshot(qemu, action["data"])
    return {}


@handles("blockdev-snapshot")
def blockdev_snapshot(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Put an open image without a backing file on top of a node that backs no other."""
    _check_snapshot(qemu, arguments)
    node, overlay = arguments["node"], arguments["overlay"]
    qemu.nodes[overlay] = replace(qemu.nodes[overlay], backing=node)
    for name, disk in qemu.disks.items():
        if disk.root == node:
            qemu.disks[name] = replace(disk, root=overlay)
            qemu.storage.put_over(qemu.nodes[overlay].filename, qemu.nodes[node].filename, name)
    return {}


def _check_snapshot(qemu: Qemu, data: dict[str, Any]) -> None:
    node, overlay = data["node"], data["overlay"]
    for name in (node, overlay):
        if name not in qemu.nodes:
            raise RefusedError(f"Cannot find device='' nor node-name='{name}'")
    if qemu.nodes[overlay].backing is not None:
        raise RefusedError("The overlay already has a backing image")
    if qemu.in_use(overlay):
        raise RefusedError(f"Node '{overlay}' is in use")
    if _busy(qemu, node):
        raise RefusedError(f"Node '{node}' is busy: block device is in use by block job")
    if any(other.backing == node for other in qemu.nodes.values()):
        raise RefusedError(f"Node '{node}' is busy: node is used as backing hd of another")
    lower = node
    while (backing := qemu.nodes[lower].backing) is not None:
        lower = backing
        if lower == overlay:
            raise RefusedError(f"node '{overlay}' is used as backing hd of '{node}'")


def _chain_of_root(qemu: Qemu, source: str) -> tuple[list[str], str]:
    """Return a disk's chain, the active layer first, with the disk. Raises: RefusedError."""
    if source not in qemu.nodes:
        raise RefusedError(f"Cannot find device='' nor node-name='{source}'")
    chain = [source]
    while (backing := qemu.nodes[chain[-1]].backing) is not None:
        chain.append(backing)
    if any(_busy(qemu, node) for node in chain):
        raise RefusedError(f"Node '{source}' is busy: block device is in use by block job")
    disk = next((name for name, disk in qemu.disks.items() if disk.root == source), "")
    return chain, disk


def _busy(qemu: Qemu, node: str) -> bool:
    return any(
        node in {job.source, job.target, job.above} and job.status not in ENDED
        for job in qemu.jobs.values()
        if job.kind != "create"
    )


def _job(arguments: dict[str, Any], kind: str, source: str, target: str, disk: str) -> Job:
    return Job(
        kind,
        source,
        target,
        disk,
        auto_finalize=arguments.get("auto-finalize", True),
        auto_dismiss=arguments.get("auto-dismiss", True),
    )
