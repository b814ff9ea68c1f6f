"""A model of the part of QEMU that pivotd uses: run state, block jobs, roots, nodes, and where guest writes land.

Deterministic, copyable, comparable. One command is atomic; nothing moves by itself but by ``progress``. Every claim
about QEMU in here is held against real QEMU by test_conformance.py. More kinds of job are added by a row in
FINALIZERS, more commands by one in HANDLERS (commands.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.model.storage import COMPLETE, Image, Storage

Version = tuple[int, int]
EXECUTING = frozenset({"running", "suspended"})
CAN_STOP = frozenset({"running"})
"""`stop` is silently ignored in any other state (a suspended guest is stopped from version 9 on)."""
MOVING = frozenset({"mirror", "active"})
"""Jobs that move a root in the end: they wait at `ready` until they are told to, and hold the disk while `pending`."""
NEEDS_RESET = frozenset({"shutdown", "internal-error"})
ENDED = frozenset({"aborting", "concluded", "null"})
CANCELED = "Operation canceled"
NOT_PERMITTED = "Operation not permitted"
IO_ERROR = "Input/output error"

VERBS: dict[str, frozenset[str]] = {
    "cancel": frozenset({"created", "running", "paused", "ready", "standby", "waiting", "pending"}),
    "pause": frozenset({"created", "running", "paused", "ready", "standby"}),
    "resume": frozenset({"created", "running", "paused", "ready", "standby"}),
    "complete": frozenset({"ready", "standby"}),
    "finalize": frozenset({"pending"}),
    "dismiss": frozenset({"concluded"}),
    "change": frozenset({"created", "running", "paused", "ready", "standby"}),
}
"""In which states a job takes which command. Source: QEMU job.c, JobVerbTable."""


class RefusedError(Exception):
    """QEMU answers with an error; nothing has changed."""


@dataclass(frozen=True, slots=True)
class Node:
    """One block node; ``below`` is its file, ``filename`` the image at the bottom, ``backing`` the layer below it.

    QEMU deletes an ``owned`` one itself.
    """

    driver: str
    filename: str
    below: str | None = None
    owned: bool = False
    no_flush: bool = False
    size: int = 1
    """Any number; a mirror between two sizes fails."""
    backing: str | None = None
    written: bool = False
    """A mirror has written through it."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One guest disk. ``root`` None: unplugged. ``queued``: a guest write waits because a pending job holds the disk."""

    root: str | None
    device: str = ""
    queued: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One job. ``doomed``: the error in which it is about to end.

    ``kind``: a mirror, the commit of an active layer (``active``), a ``merge`` of layers below the active one, which
    makes ``above`` be backed by ``base``, or ``create``.
    """

    kind: str
    source: str = ""
    target: str = ""
    disk: str = ""
    sync: str = "full"
    began_with: Image = COMPLETE
    """The target at the start: with sync=none it lacks the same in the end, and every later write is copied."""
    status: str = "running"
    error: str | None = None
    auto_finalize: bool = True
    auto_dismiss: bool = True
    paused: bool = False
    completing: bool = False
    soft: bool = False
    """Cancelled when ready: it ends like a completed one, but without moving the root."""
    doomed: str | None = None
    finalize_fails: bool = False
    above: str = ""
    base: str | None = None
    reverted: bool = False
    """The image that it fills has gone back to an earlier state meanwhile: it lacks what was copied before."""


Handler = Callable[["Qemu", dict[str, Any]], Any]
HANDLERS: dict[str, Handler] = {}
"""QMP command -> what it does."""


class Qemu:
    """One QEMU process."""

    __slots__ = (
        "bitmaps", "disks", "events", "jobs", "nodes", "objects", "run_state", "snapshots", "storage", "version"
    )  # fmt: skip

    def __init__(self, storage: Storage, version: Version = (7, 2), run_state: str = "running") -> None:
        self.version = version
        self.run_state = run_state
        self.storage = storage
        self.disks: dict[str, Disk] = {}
        self.nodes: dict[str, Node] = {}
        self.jobs: dict[str, Job] = {}
        self.objects: frozenset[str] = frozenset()
        self.bitmaps: frozenset[tuple[str, str]] = frozenset()
        """Node and name of each dirty bitmap."""
        self.snapshots: frozenset[str] = frozenset()
        """The nodes whose image has got an internal snapshot."""
        self.events: list[tuple[str, str, str]] = []
        """(event, job, status) since somebody last took them away."""

    def copy(self, storage: Storage) -> Qemu:
        """Return an independent copy on a copy of the storage."""
        other = Qemu(storage, self.version, self.run_state)
        other.disks, other.nodes, other.jobs = dict(self.disks), dict(self.nodes), dict(self.jobs)
        other.objects, other.events = self.objects, list(self.events)
        other.bitmaps, other.snapshots = self.bitmaps, self.snapshots
        return other

    def key(self) -> object:
        """Return what tells two processes apart."""
        parts = (self.disks, self.nodes, self.jobs)
        names = (self.objects, self.bitmaps, self.snapshots)
        return (self.run_state, *names, *(frozenset(part.items()) for part in parts), tuple(self.events))

    def attach(self, disk: str, node: str, filename: str, image_format: str = "qcow2", *, legacy: bool = False) -> None:
        """Give the guest a disk whose image holds all that was ever written."""
        storage = self.storage
        if not storage.exists(filename):
            storage.create(filename)
        image = storage.images[filename]
        storage.images[filename] = replace(image, disk=disk, missing=image.missing if image.disk == disk else 0)
        file = f"{node}-file"
        self.nodes[file] = Node("file", filename, owned=True)
        self.nodes[node] = Node(image_format, filename, file, owned=legacy)
        self.disks[disk] = Disk(node, device=disk.replace("disk", "drive") if legacy else "")
        self.guest_runs()

    def back(self, node: str, layers: Sequence[tuple[str, str]], disk: str) -> None:
        """Put layers (node, filename) below a node, each below the one before; QEMU has opened them by itself.

        Each by itself lacks what was written above it.
        """
        for below, filename in layers:
            self.storage.create(filename)
            self.storage.assign(filename, disk)
            self.nodes[f"{below}-file"] = Node("file", filename, owned=True)
            self.nodes[below] = Node("qcow2", filename, f"{below}-file", owned=True)
            self.nodes[node] = replace(self.nodes[node], backing=below)
            node = below

    # -- commands and time --------------------------------------------------------------------------------------

    def execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run one command. Raises: RefusedError."""
        handler = HANDLERS.get(name)
        if handler is None:
            raise RefusedError(f"The command {name} has not been found")
        value = handler(self, arguments or {})
        if not name.startswith("query"):
            self.guest_runs()
        return value

    def guest_runs(self) -> None:
        """Let an executing guest write to every disk: the write is acknowledged, or waits where a job holds the disk."""
        if self.run_state not in EXECUTING:
            return
        for name, disk in self.disks.items():
            if disk.root is None:
                continue
            if self.is_held(name):
                if not disk.queued:
                    self.disks[name] = replace(disk, queued=True)
            else:
                self.storage.write(self.nodes[disk.root].filename, name)

    def is_held(self, disk: str) -> bool:
        """Return whether a pending job drains the disk."""
        return any(job.disk == disk and job.status == "pending" and job.kind in MOVING for job in self.jobs.values())

    def set_run_state(self, state: str) -> None:
        """Change the run state as QEMU itself or the guest does."""
        if state == "running" and self.run_state != "running":
            self.events.append(("RESUME", "", ""))
        self.run_state = state
        self.guest_runs()

    def moving(self) -> list[str]:
        """Return the jobs that would go on if time passed."""
        return [name for name, job in self.jobs.items() if _next_of(job) is not None]

    def progress(self, name: str) -> None:
        """Let time pass for one job: one step of its life."""
        job = self.jobs[name]
        after = _next_of(job)
        match after:
            case None:
                return
            case "pending":
                self._converge(job)
                self.set_job(name, status="pending")
                if job.auto_finalize:
                    self.finalize(name)
            case "concluded":
                self.conclude(name, job.doomed)
            case _:
                self.set_job(name, status=after)
        self.guest_runs()

    def settle(self) -> None:
        """Let time pass until every job stands still."""
        while moving := self.moving():
            self.progress(moving[0])

    def _converge(self, job: Job) -> None:
        if job.kind == "merge":
            self.storage.merged(self.nodes[job.source].filename)
            return
        target = self.nodes[job.target]
        holds = job.began_with if job.sync == "none" else self.storage.images[self.nodes[job.source].filename]
        holds = replace(holds, missing=1) if job.reverted else holds
        self.storage.mirrored(target.filename, holds, flush=not target.no_flush)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def set_job(self, name: str, **changes: Any) -> None:
        """Change a job; a changed status is an event."""
        before = self.jobs[name]
        self.jobs[name] = replace(before, **changes)
        if self.jobs[name].status != before.status:
            self.events.append(("JOB_STATUS_CHANGE", name, self.jobs[name].status))

    def start(self, name: str, job: Job) -> None:
        """Start a job."""
        if name in self.jobs:
            raise RefusedError(f"Job ID '{name}' already in use")
        self.jobs[name] = job
        self.events += [("JOB_STATUS_CHANGE", name, status) for status in ("created", "running")]

    def verb(self, arguments: dict[str, Any], verb: str) -> tuple[str, Job]:
        """Return the job that a command names. Raises: RefusedError, also where its state does not take the command."""
        name = arguments.get("id", arguments.get("device"))
        job = self.jobs.get(str(name))
        if job is None:
            raise RefusedError("Job not found")
        if job.status not in VERBS[verb]:
            raise RefusedError(f"Job '{name}' in state '{job.status}' cannot accept command verb '{verb}'")
        return str(name), job

    def finalize(self, name: str) -> None:
        """Do what a pending job was for; synchronous, and done whatever the answer says."""
        job = self.jobs[name]
        error = NOT_PERMITTED if job.finalize_fails else None
        if error is None and not job.soft:
            FINALIZERS[job.kind](self, job)
        self.conclude(name, error)

    def conclude(self, name: str, error: str | None) -> None:
        """End a job; what it held back goes to the root that is there now."""
        job = self.jobs[name]
        if error is not None and job.status != "aborting":
            self.set_job(name, status="aborting")
        self.set_job(name, status="concluded", error=error, doomed=None)
        disk = self.disks.get(job.disk)
        if disk is not None and disk.queued and not self.is_held(job.disk):
            self.disks[job.disk] = replace(disk, queued=False)
            if disk.root is not None:
                told = self.run_state in EXECUTING
                self.storage.write(self.nodes[disk.root].filename, job.disk, told=told)
        if job.auto_dismiss:
            self.dismiss(name)

    def dismiss(self, name: str) -> None:
        """Forget a concluded job."""
        self.set_job(name, status="null")
        del self.jobs[name]

    def in_use(self, node: str) -> bool:
        """Return whether a disk, another node or a job that has not ended uses the node."""
        return (
            any(disk.root == node for disk in self.disks.values())
            or any(node in {other.below, other.backing} for other in self.nodes.values())
            or any(node in {job.source, job.target} and job.status not in ENDED for job in self.jobs.values())
        )

    def unused(self) -> list[str]:
        """Return the nodes that no disk needs and QEMU does not delete by itself."""
        used, queue = set(), [disk.root for disk in self.disks.values()]
        while queue:
            name = queue.pop()
            if name is not None and name not in used:
                used.add(name)
                queue += [self.nodes[name].below, self.nodes[name].backing]
        return sorted(name for name, node in self.nodes.items() if name not in used and not node.owned)

    def drop(self, node: str) -> None:
        """Close a node with the nodes under it that QEMU opened together with it."""
        closed = self.nodes.pop(node)
        self.bitmaps = frozenset(one for one in self.bitmaps if one[0] != node)
        self.snapshots -= {node}
        for below in (closed.below, closed.backing):
            if below is not None and below in self.nodes and self.nodes[below].owned and not self.in_use(below):
                self.drop(below)


AFTER_RUNNING = {"mirror": "ready", "active": "ready", "merge": "pending", "create": "concluded"}


def _next_of(job: Job) -> str | None:
    """Return the status that a job will take if time passes, None if it stands still."""
    if job.status == "aborting":
        return "concluded"
    if job.status in {"pending", "concluded", "null"}:
        return None
    if job.doomed is not None and not job.paused:
        return "aborting"
    if job.paused:
        still = {"running": "paused", "ready": "standby"}
        return still.get(job.status)
    match job.status:
        case "paused":
            return "running"
        case "standby":
            return "ready"
        case "running":
            return AFTER_RUNNING[job.kind]
        case "ready" if job.completing or job.soft:
            return "pending"
    return None


def _finalize_mirror(qemu: Qemu, job: Job) -> None:
    for name, disk in qemu.disks.items():
        if disk.root == job.source:
            qemu.disks[name] = replace(disk, root=job.target)
            if qemu.nodes[job.source].owned:
                # A legacy -drive: nobody but the device held its node.
                qemu.drop(job.source)


def _finalize_merge(qemu: Qemu, job: Job) -> None:
    if job.reverted:
        qemu.storage.lack(qemu.nodes[job.source].filename)
    if qemu.disks[job.disk].root == job.source:
        qemu.storage.detach(qemu.nodes[job.source].filename)
    gone = qemu.nodes[job.above].backing
    qemu.nodes[job.above] = replace(qemu.nodes[job.above], backing=job.base)
    if gone is not None and qemu.nodes[gone].owned and not qemu.in_use(gone):
        qemu.drop(gone)


FINALIZERS: dict[str, Callable[[Qemu, Job], None]] = {
    "mirror": _finalize_mirror,
    "active": _finalize_mirror,
    "merge": _finalize_merge,
    "create": lambda _qemu, _job: None,
}
"""Kind of job -> what finalizing it does to the graph."""
