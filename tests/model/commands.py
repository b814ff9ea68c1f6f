"""The QMP commands of the model: one function each, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.model.qemu import CANCELED, ENDED, HANDLERS, MOVING, NEEDS_RESET, Handler, Job, Node, Qemu, RefusedError

SIZE_BYTES = 64 << 20
SNAPSHOT = {"id": "1", "name": "s1"}
DIFFERENT_SIZES = "Source and target image have different sizes"


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Enter a function into the table."""

    def enter(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return enter


# -- the guest ----------------------------------------------------------------------------------------------------


@handles("stop")
def stop(qemu: Qemu, _arguments: dict[str, Any]) -> dict[str, Any]:
    """Pause a running guest; anything else is left as it is, without an error. Images are flushed in any case."""
    qemu.storage.flush_tables()
    if qemu.run_state == "running" or (qemu.run_state == "suspended" and qemu.version >= (9, 0)):
        qemu.run_state = "paused"
        qemu.events.append(("STOP", "", ""))
    return {}


@handles("cont")
def cont(qemu: Qemu, _arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the guest, whatever had stopped it."""
    if qemu.run_state in NEEDS_RESET:
        raise RefusedError("Resetting the Virtual Machine is required")
    if qemu.run_state not in {"running", "suspended", "inmigrate"}:
        qemu.set_run_state("running")
    return {}


@handles("system_reset")
def system_reset(qemu: Qemu, _arguments: dict[str, Any]) -> dict[str, Any]:
    """Reset: a guest that does not run looks as if it had never run."""
    if qemu.run_state != "running":
        qemu.run_state = "prelaunch"
    return {}


@handles("device_del")
def device_del(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Unplug a disk; at once here, while a real guest takes its time."""
    disk = qemu.disks.get(arguments["id"])
    if disk is None or disk.root is None:
        raise RefusedError(f"Device '{arguments['id']}' not found")
    qemu.disks[arguments["id"]] = replace(disk, root=None, queued=False)
    return {}


# -- jobs ---------------------------------------------------------------------------------------------------------


@handles("job-complete", "block-job-complete")
def job_complete(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Ask a ready job to go to pending; in standby it is remembered."""
    name, job = qemu.verb(arguments, "complete")
    if job.soft or job.doomed:
        raise RefusedError(f"The active block job '{name}' cannot be completed")
    qemu.set_job(name, completing=True)
    return {}


@handles("job-finalize")
def job_finalize(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Finalize: done when it answers, and the answer is the same when it has failed."""
    qemu.finalize(qemu.verb(arguments, "finalize")[0])
    return {}


@handles("job-cancel")
def job_cancel(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Cancel with force: at once where pending, soon otherwise."""
    name, job = qemu.verb(arguments, "cancel")
    if job.status == "pending":
        qemu.conclude(name, CANCELED)
    else:
        qemu.set_job(name, doomed=job.doomed or CANCELED, paused=False)
    return {}


@handles("block-job-cancel")
def block_job_cancel(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Cancel a ready mirror so that it ends as if completed, but with the root where it is; else like job-cancel."""
    name, job = qemu.verb(arguments, "cancel")
    if job.paused and not arguments.get("force"):
        raise RefusedError(f"The block job for device '{name}' is currently paused")
    if arguments.get("force") or job.status not in {"ready", "standby"} or job.doomed:
        return dict(job_cancel(qemu, arguments))
    qemu.set_job(name, soft=True)
    return {}


@handles("job-dismiss")
def job_dismiss(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Forget a concluded job."""
    qemu.dismiss(qemu.verb(arguments, "dismiss")[0])
    return {}


@handles("job-pause")
def job_pause(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Pause a job."""
    name, job = qemu.verb(arguments, "pause")
    if job.paused:
        raise RefusedError("Job is already paused")
    qemu.set_job(name, paused=True)
    return {}


@handles("job-resume")
def job_resume(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """End the pause of a job."""
    name, job = qemu.verb(arguments, "resume")
    if not job.paused:
        raise RefusedError("Can't resume a job that was not paused")
    qemu.set_job(name, paused=False)
    return {}


@handles("block-job-change")
def block_job_change(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Change the copy mode of a mirror, where there is such a command."""
    if qemu.version < (8, 2):
        raise RefusedError("The command block-job-change has not been found")
    qemu.verb(arguments, "change")
    return {}


@handles("blockdev-mirror")
def blockdev_mirror(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Start a mirror of a node that no other one is built upon; it may be no disk's."""
    source, target = arguments["device"], arguments["target"]
    if source not in qemu.nodes or target not in qemu.nodes:
        raise RefusedError(f"Cannot find device='' nor node-name='{source}'")
    parents = any(source in {node.below, node.backing} for node in qemu.nodes.values())
    if parents or any(job.source == source and job.status not in ENDED for job in qemu.jobs.values()):
        raise RefusedError("Need a root block node")
    disk = next((name for name, disk in qemu.disks.items() if disk.root == source), "")
    if qemu.in_use(target):
        raise RefusedError(f"Node '{target}' is busy")
    if "target-is-zero" in arguments and qemu.version < (10, 1):
        raise RefusedError("Parameter 'target-is-zero' is unexpected")
    filename = qemu.nodes[target].filename
    if disk:
        qemu.storage.assign(filename, disk)
    # Nothing is written where the source has nothing: older data would stay there.
    stale = qemu.nodes[target].written and (arguments["sync"] == "top" or arguments.get("target-is-zero", False))
    qemu.nodes[target] = replace(qemu.nodes[target], written=True)
    qemu.start(
        arguments["job-id"],
        Job(
            "mirror",
            source,
            target,
            disk,
            "none" if stale else arguments["sync"],
            replace(qemu.storage.images[filename], missing=1) if stale else qemu.storage.images[filename],
            auto_finalize=arguments.get("auto-finalize", True),
            auto_dismiss=arguments.get("auto-dismiss", True),
            doomed=None if qemu.nodes[source].size == qemu.nodes[target].size else DIFFERENT_SIZES,
        ),
    )
    return {}


# -- nodes and objects --------------------------------------------------------------------------------------------


@handles("blockdev-add")
def blockdev_add(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Open a file, or a format on a file node or on a file described in place."""
    name, driver = arguments["node-name"], arguments["driver"]
    if name in qemu.nodes:
        raise RefusedError(f"Duplicate nodes with node-name='{name}'")
    no_flush = bool(arguments.get("cache", {}).get("no-flush"))
    if driver == "file":
        if not qemu.storage.exists(arguments["filename"]):
            raise RefusedError(f"Could not open '{arguments['filename']}': No such file or directory")
        qemu.nodes[name] = Node("file", arguments["filename"], no_flush=no_flush)
        return {}
    below = arguments["file"]
    if isinstance(below, dict):
        inner = f"#{name}"
        blockdev_add(qemu, below | {"node-name": inner})
        qemu.nodes[inner] = replace(qemu.nodes[inner], owned=True)
        below = inner
    qemu.nodes[name] = Node(driver, qemu.nodes[below].filename, below, no_flush=no_flush)
    return {}


@handles("blockdev-del")
def blockdev_del(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Close a node that nobody uses."""
    name = arguments["node-name"]
    if name not in qemu.nodes:
        raise RefusedError(f"Failed to find node with node-name='{name}'")
    if qemu.nodes[name].owned:
        raise RefusedError(f"Node {name} is not owned by the monitor")
    if qemu.in_use(name):
        raise RefusedError(f"Node {name} is in use")
    qemu.drop(name)
    return {}


@handles("blockdev-create")
def blockdev_create(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Start a job that creates an image; it finalizes by itself and stays until it is dismissed."""
    options = arguments["options"]
    qemu.start(arguments["job-id"], Job("create", auto_dismiss=False))
    if options["driver"] == "file":
        qemu.storage.create(options["filename"])
    elif options.get("backing-file") is not None:
        filename = qemu.nodes[options["file"]].filename
        qemu.storage.images[filename] = replace(qemu.storage.images[filename], own=0)
    return {}


@handles("block-dirty-bitmap-add")
def bitmap_add(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Add a dirty bitmap."""
    node, name = arguments["node"], arguments["name"]
    if node not in qemu.nodes:
        raise RefusedError(f"Cannot find device='' nor node-name='{node}'")
    if (node, name) in qemu.bitmaps:
        raise RefusedError(f"Bitmap already exists: {name}")
    qemu.bitmaps |= {(node, name)}
    return {}


@handles("block-dirty-bitmap-remove")
def bitmap_remove(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove a dirty bitmap."""
    one = arguments["node"], arguments["name"]
    if one not in qemu.bitmaps:
        raise RefusedError(f"Dirty bitmap '{one[1]}' not found")
    qemu.bitmaps -= {one}
    return {}


@handles("snapshot-save")
def snapshot_save(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Take a snapshot inside the image of a node, at once here."""
    qemu.snapshots |= {arguments["id"]}
    return {}


@handles("snapshot-delete")
def snapshot_delete(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Delete it."""
    qemu.snapshots -= {arguments["id"]}
    return {}


@handles("snapshot-load")
def snapshot_load(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Bring the image of a node back to what a snapshot holds; a job copies nothing again that it has copied."""
    node = arguments["id"]
    copied = any(job.source == node and job.status not in ENDED for job in qemu.jobs.values() if job.kind in MOVING)
    if copied or any(one == node for one, _ in qemu.bitmaps):
        raise RefusedError("Device has active dirty bitmaps")
    for name, job in qemu.jobs.items():
        if job.target == node and job.status not in ENDED:
            qemu.jobs[name] = replace(job, reverted=True)
            if job.kind in MOVING:
                qemu.storage.lack(qemu.nodes[node].filename)
    return {}


@handles("object-add")
def object_add(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Add an object."""
    if arguments["id"] in qemu.objects:
        raise RefusedError(f"attempt to add duplicate property '{arguments['id']}' to object (type 'container')")
    qemu.objects |= {arguments["id"]}
    return {}


@handles("object-del")
def object_del(qemu: Qemu, arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove an object."""
    if arguments["id"] not in qemu.objects:
        raise RefusedError(f"object '{arguments['id']}' not found")
    qemu.objects -= {arguments["id"]}
    return {}


# -- queries ------------------------------------------------------------------------------------------------------


@handles("query-status")
def query_status(qemu: Qemu, _arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the run state."""
    return {"status": qemu.run_state, "running": qemu.run_state in {"running", "suspended"}}


@handles("query-jobs")
def query_jobs(qemu: Qemu, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every job."""
    return [
        {"id": name, "status": job.status, "type": job.kind} | ({"error": job.error} if job.error else {})
        for name, job in qemu.jobs.items()
    ]


@handles("query-block-jobs")
def query_block_jobs(qemu: Qemu, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the mirrors; one that is not ready has all before it."""
    flags = {"auto-finalize": False, "auto-dismiss": False}
    return [
        {"device": name, "type": job.kind, "status": job.status, "len": SIZE_BYTES, **flags}
        | {"offset": 0 if job.status == "running" else SIZE_BYTES}
        for name, job in qemu.jobs.items()
        if job.kind != "create"
    ]


@handles("query-blockstats")
def query_blockstats(qemu: Qemu, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Return where the highest write through each node has ended."""
    return [
        {"node-name": name, "stats": {"wr_highest_offset": SIZE_BYTES if node.written else 0}}
        for name, node in qemu.nodes.items()
    ]


@handles("query-block")
def query_block(qemu: Qemu, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is under each device."""
    found = []
    for name, disk in qemu.disks.items():
        if disk.root is None:
            continue
        node = qemu.nodes[disk.root]
        inserted = {
            "node-name": disk.root,
            "drv": node.driver,
            "ro": False,
            "cache": {"direct": True, "no-flush": node.no_flush},
            "image": _image(qemu, node) | ({"snapshots": [SNAPSHOT]} if disk.root in qemu.snapshots else {}),
        }
        qdev = f"/machine/peripheral/{name}/virtio-backend"
        found.append({"device": disk.device, "qdev": qdev, "inserted": inserted})
    return found


def _image(qemu: Qemu, node: Node) -> dict[str, Any]:
    shown = {"filename": node.filename, "format": node.driver, "virtual-size": SIZE_BYTES}
    below = qemu.nodes.get(node.backing or "")
    return shown if below is None else {**shown, "backing-image": _image(qemu, below)}


@handles("x-debug-query-block-graph")
def query_graph(qemu: Qemu, _arguments: dict[str, Any]) -> dict[str, Any]:
    """Return all nodes and which is under which, and the node that each job writes."""
    number = {name: index for index, name in enumerate(qemu.nodes)}
    nodes = [{"id": index, "name": name, "type": "block-driver"} for name, index in number.items()]
    edges = [
        {"parent": number[name], "child": number[below], "name": kind}
        for name, node in qemu.nodes.items()
        for kind, below in (("file", node.below), ("backing", node.backing))
        if below is not None and below in number
    ]
    writing = [name for name, job in qemu.jobs.items() if job.target in number and job.status not in ENDED]
    nodes += [{"id": len(number) + at, "name": name, "type": "block-job"} for at, name in enumerate(writing)]
    edges += [
        {"parent": len(number) + at, "child": number[qemu.jobs[name].target], "name": "target"}
        for at, name in enumerate(writing)
    ]
    return {"nodes": nodes, "edges": edges}


@handles("qom-list")
def qom_list(qemu: Qemu, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the user-created objects."""
    return [{"name": name, "type": "child<secret>"} for name in qemu.objects]


@handles("query-migrate")
def query_migrate(_qemu: Qemu, _arguments: dict[str, Any]) -> dict[str, Any]:
    """No migration was ever begun."""
    return {}


@handles("query-chardev")
def query_chardev(_qemu: Qemu, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the two monitors: pivotd's and another one."""
    return [{"label": label, "frontend-open": True} for label in ("mon0", "mon1")]
