"""A hook for libvirt: repairs what a libvirtd that died in a block job's last step would believe of its disks.

One file that needs nothing but Python's standard library; docs/libvirt-hook.md is about it. libvirt runs it

- as ``daemon - start``, before it looks at its running domains. A copy or an active commit may have moved a disk while
  libvirtd died. QEMU is asked which image the disk has; where libvirt would come to another answer from its status
  file and QEMU's jobs, both get what libvirt expects to find, and libvirt ends the job itself;
- as ``qemu NAME prepare begin``, before a domain starts: pivotd's journal may know that one of its images is stale.

It never asks libvirt, which waits for it. If anything is not as it knows it, it changes nothing and says so.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import struct
import sys
import threading
import time
import xml.etree.ElementTree as ET
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.parsers import expat

if TYPE_CHECKING:
    import sqlite3
    import tempfile

STATUS_DIR = Path("/run/libvirt/qemu")
CONFIG_DIR = Path("/etc/libvirt/qemu")
SNAPSHOT_DIR = Path("/var/lib/libvirt/qemu/snapshot")
STATE_DIR = Path("/run/pivotd-libvirt-hook")
"""Which domains are being restored or come from another host."""
JOURNAL = Path("/var/lib/pivotd/journal.db")
QEMU_DAEMONS = ("libvirtd", "virtqemud")
"""The daemons with the QEMU driver: others run the same hooks and must not touch its files."""
KNOWN_RELEASES = ((9, 0, 0), (12, 8, 99))
"""The first and the last release of libvirt whose status files are understood, both included."""

START_BOUND_S = 10.0
"""libvirtd waits for so long at most, however many QEMUs do not answer."""
DOMAIN_BOUND_S = 9.0
"""An answer of QEMU takes seconds on a host that has far too much to do, which may be why libvirtd has died."""
SETTLE_BOUND_S = 2.0
"""How long a job that may be ending is waited for."""
IDLE_LOOKS = 3
LOOK_S = 0.01
VERSION_BOUND_S = 5.0
PASS_BOUND_S = 60.0
"""libvirt prepares a domain this soon after it has announced the restore or migration."""
BUSY_BOUND_S = 2.0
REFUSED = 10
"""The exit status of ``qemu … prepare`` that stops the start. Every other one, as a broken Python's, allows it."""

SIZE_BYTES = 1 << 20
ENDED = ("concluded", "null")
UNREADY = ("created", "running", "paused")
"""States of a job in which QEMU refuses to let it pivot."""
STATES = ("completed", "failed", "cancelled", "ready", "new", "running", "concluded", "aborting", "pending", "pivoting")
KINDS = ("copy", "active-commit")
LOST = -1
LOST_FILE = "lost"
"""In the journal, the number of a file to which its name did not lead."""
STATX_BTIME = 0x800
"""Source: statx(2); stx_btime is 80 bytes after the beginning."""
USAGE = """usage: pivotd-libvirt-hook.py --dry-run    say what the next start of libvirtd would repair
       pivotd-libvirt-hook.py daemon|qemu …   as libvirt runs its hooks"""
_TAG = re.compile(rb"<[\w:.-]+(?:\s+[\w:.-]+\s*=\s*(?:'[^']*'|\"[^\"]*\"))*\s*/?>")


class NotUnderstoodError(Exception):
    """Something is not as this hook knows it; nothing was changed for it. The message says what."""


class MonitorError(Exception):
    """QEMU does not answer, is gone, or refuses a command."""


# --- what is said


def say(text: str, *, warn: bool = True) -> None:
    """Tell the system's log and stderr one line."""
    import syslog  # noqa: PLC0415 - most starts say nothing

    line = " ".join(text.split())
    syslog.openlog("pivotd-libvirt-hook", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING if warn else syslog.LOG_INFO, line)
    print(f"pivotd-libvirt-hook: {line}", file=sys.stderr, flush=True)  # noqa: T201 - a program


# --- the status file


class Job(NamedTuple):
    """A copy or an active commit in a status file. ``number`` and ``mirror``: which element of its name it is.

    ``device`` is the disk's path in QEMU, ``source`` the node that the disk had when the job began, ``target`` the node
    that it has after a pivot. ``ready`` None: the mirror does not say. ``known``: the mirror names its job, which
    libvirt 9.0 has lost once it has begun to end the job, and cannot read any more. ``number`` LOST: only the mirror is
    there; a libvirtd that was started without this hook did not find the job in QEMU, and has dropped it.
    ``below``: the node below the target of a copy, "" if there is none; ``inherits``: it is the one below the source.
    """

    name: str
    kind: str
    state: str
    number: int
    mirror: int
    ready: str | None
    known: bool
    disk: str
    device: str
    source: str
    target: str
    below: str
    inherits: bool


class Status(NamedTuple):
    """A status file: its text, the domain, QEMU's process id and libvirt's monitor, and the jobs in it."""

    text: bytes
    domain: str
    pid: int
    monitor: str
    jobs: tuple[Job, ...]


def may_have_jobs(text: bytes) -> bool:
    """Tell by a quick look whether a status file has an active copy or commit of a whole disk."""
    found = (f"{name}={quote}{kind}{quote}" for name in ("type", "job") for kind in KINDS for quote in "'\"")
    return any(one.encode() in text for one in found)


def read_status(text: bytes) -> Status:
    """Return what a status file says of copies and active commits.

    Raises: NotUnderstoodError.
    """
    try:
        root = ET.fromstring(text)  # noqa: S314 - libvirt's own file, which only root can write
    except ET.ParseError as error:
        raise NotUnderstoodError(f"it is no XML ({error})") from None
    monitor, name = root.find("monitor"), root.find("domain/name")
    pid = root.get("pid", "")
    if root.tag != "domstatus" or monitor is None or name is None or not name.text or not pid.isdigit():
        raise NotUnderstoodError("it is no status file of a running domain")
    if monitor.get("type") != "unix" or not monitor.get("path"):
        raise NotUnderstoodError("its monitor is no Unix socket")
    disks = root.findall("domain/devices/disk")
    of_jobs = root.findall("blockjobs/blockjob")
    jobs = [
        job
        for number, element in enumerate(of_jobs)
        if element.get("type") in KINDS and (job := _job(element, number, disks)) is not None
    ]
    has_job = {disk.get("dst", "") for element in of_jobs for disk in element.findall("disk")}
    jobs += _lost_jobs(disks, has_job)
    return Status(text, name.text, int(pid), monitor.get("path", ""), tuple(jobs))


def _lost_jobs(disks: list[ET.Element], has_job: set[str]) -> list[Job]:
    """Return a job for each mirror without one; libvirt starts no other job on such a disk, and cannot end this one."""
    found = []
    for disk in disks:
        target, mirror = disk.find("target"), disk.find("mirror")
        dev = target.get("dev", "") if target is not None else ""
        if mirror is None or mirror.get("job") not in KINDS or dev in has_job:
            continue
        kind = mirror.get("job", "")
        word = "commit" if kind == "active-commit" else kind
        ends = f"<base node='{_node(mirror.find('source'))}'/><top node='{_node(disk.find('source'))}'/>"
        of = f"<disk dst='{dev}' mirror='yes'/>{ends if word == 'commit' else ''}"
        name = f"{word}-{dev}-{_node(disk.find('source'))}"
        element = ET.fromstring(f"<blockjob name='{name}' type='{kind}' state='ready'>{of}</blockjob>")  # noqa: S314
        job = _job(element, LOST, disks)
        found += [] if job is None else [job]
    return found


def _job(element: ET.Element, number: int, disks: list[ET.Element]) -> Job | None:
    """Return None for a job that is not of a disk's own: a migration, a disk that was unplugged."""
    name, kind, state = element.get("name", ""), element.get("type", ""), element.get("state", "")
    of = element.find("disk")
    if of is None:
        return None
    if not name or state not in STATES:
        raise NotUnderstoodError(f"its block job {name or 'without a name'} is in the unknown state {state!r}")
    with_mirror = [disk for disk in disks if disk.find("mirror") is not None]
    for disk in with_mirror:
        target, mirror = disk.find("target"), disk.find("mirror")
        assert mirror is not None
        if target is None or target.get("dev") != of.get("dst"):
            continue
        qom = disk.find("privateData/qom")
        device = qom.get("name", "") if qom is not None else ""
        source, destination = _node(disk.find("source")), _node(mirror.find("source"))
        if kind == "active-commit":
            # libvirt 9 names the format nodes of the two, libvirt 12 those of their storage.
            for one, image in (("top", disk.find("source")), ("base", mirror.find("source"))):
                if _named(element.find(one)) not in _nodes(image).values():
                    raise NotUnderstoodError(f"its job {name} is not between the images of {of.get('dst')}")
        if not (device and source and destination and source != destination):
            raise NotUnderstoodError(f"it does not name the nodes of {of.get('dst')}")
        known = mirror.get("job") == kind
        if not known and mirror.get("job"):
            raise NotUnderstoodError(f"the mirror of {of.get('dst')} belongs to the job {mirror.get('job')!r}")
        # libvirt leaves out what is below the new image of a copy that it is to find below the old one.
        inherits = kind == "copy" and mirror.find("backingStore") is None
        below = _node((disk if inherits else mirror).find("backingStore/source"))
        return Job(
            name, kind, state, number, with_mirror.index(disk), mirror.get("ready"), known,
            of.get("dst", ""), device, source, destination, below, inherits,
        )  # fmt: skip
    return None


def _node(source: ET.Element | None) -> str:
    """Return the name of the uppermost node of an image; raw images may have only that of their storage."""
    names = _nodes(source)
    return next((names[kind] for kind in ("format", "slice-storage", "storage") if names.get(kind)), "")


def _nodes(source: ET.Element | None) -> dict[str, str]:
    found = source.findall("privateData/nodenames/nodename") if source is not None else []
    return {one.get("type", ""): one.get("name", "") for one in found}


def _named(element: ET.Element | None) -> str:
    return element.get("node", "") if element is not None else ""


def with_job_ending(status: Status, job: Job, *, pivots: bool) -> bytes:
    """Return the text of a status file in which libvirt has asked for the end of a job: its pivot, or its abort.

    Nothing else of the text changes.
    """
    state, ready = ("pivoting", "pivot") if pivots else ("aborting", "abort")
    text = status.text
    mirror = _start_tag(text, ("domstatus", "domain", "devices", "disk", "mirror"), job.mirror)
    text = _with_attributes(text, mirror, {"job": job.kind, "ready": ready})
    if job.number == LOST:
        return _with_lost_job(text, job, state)
    # The job's element stands before the domain's: the mirror goes first, so that its place is still right.
    element = _start_tag(text, ("domstatus", "blockjobs", "blockjob"), job.number)
    return _with_attributes(text, element, {"state": state, "newstate": "ready"})


def _with_lost_job(text: bytes, job: Job, state: str) -> bytes:
    """Return the text with an element of the job, as libvirt writes it, among the others or alone."""
    flags = "jobflags='0x1'" if job.kind == "copy" and job.below else "jobflags='0x0'"
    new = " shallownew='yes'" if job.inherits and job.below else ""
    ends = f"<base node='{job.target}'/><top node='{job.source}'/>" if job.kind == "active-commit" else ""
    element = (
        f"<blockjob name='{job.name}' type='{job.kind}' state='{state}' newstate='ready' {flags}{new}>"
        f"<disk dst='{job.disk}' mirror='yes'/>{ends}</blockjob>"
    ).encode()
    try:
        at = _start_tag(text, ("domstatus", "blockjobs"), 0)
    except LookupError:
        raise NotUnderstoodError("it has no place for block jobs") from None
    text = _with_attributes(text, at, {"active": "yes"})
    tag = _TAG.match(text, at)
    assert tag is not None, "it was just changed"
    rest = text[tag.end() :]
    if tag[0].endswith(b"/>"):
        return text[:at] + tag[0][:-2] + b">" + element + b"</blockjobs>" + rest
    return text[: tag.end()] + element + rest


def _start_tag(text: bytes, path: tuple[str, ...], number: int) -> int:
    """Return where the start tag of the element begins that is the so-manieth of those with this path, from 0."""
    parser = expat.ParserCreate()
    open_now: list[str] = []
    found: list[int] = []

    def begin(tag: str, _attributes: dict[str, str]) -> None:
        open_now.append(tag)
        if tuple(open_now) == path:
            found.append(parser.CurrentByteIndex)

    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _tag: open_now.pop()
    parser.Parse(text, True)
    return found[number]


def _with_attributes(text: bytes, at: int, values: dict[str, str]) -> bytes:
    tag = _TAG.match(text, at)
    if tag is None:
        raise NotUnderstoodError("a tag in it is not written as libvirt writes tags")
    new = tag[0]
    for name, value in values.items():
        attribute = re.compile(rb"(\s" + name.encode() + rb"\s*=\s*)(?:'[^']*'|\"[^\"]*\")")
        whole = f"'{value}'".encode()
        if attribute.search(new):
            new = attribute.sub(lambda match, whole=whole: match[1] + whole, new)  # type: ignore[misc]
        else:
            end = -2 if new.endswith(b"/>") else -1
            new = new[:end] + f" {name}=".encode() + whole + new[end:]
    return text[:at] + new + text[tag.end() :]


def replace_file(path: Path, text: bytes) -> None:
    """Replace a file by another text, as a whole and durably; its owner and mode stay."""
    now = path.stat()
    new = path.with_name(f".{path.name}.pivotd-{os.getpid()}")
    try:
        with new.open("wb") as file:
            os.fchmod(file.fileno(), now.st_mode & 0o7777)
            os.fchown(file.fileno(), now.st_uid, now.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fsync(path, os.O_DIRECTORY)


def fsync(path: Path, flags: int = 0) -> None:
    """Make what is in a file durable."""
    handle = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- QEMU


class Monitor:
    """libvirt's own monitor of one QEMU, while no libvirtd is connected to it. Every call ends by ``deadline_s``."""

    def __init__(self, path: str, pid: int, deadline_s: float) -> None:
        """Raises: MonitorError."""
        self._deadline_s, self._buffer = deadline_s, b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(path)
            self._check_peer(pid)
            self._line()
            self.ask("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let libvirtd have the monitor."""
        self._socket.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return what QEMU returns. Raises: MonitorError."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._socket.settimeout(self._left_s())
            self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
        except OSError as error:
            raise MonitorError(f"QEMU does not take {command} ({error})") from None
        while True:
            said = self._line()
            if "error" in said:
                raise MonitorError(f"QEMU refuses {command}: {said['error'].get('desc')}")
            if "return" in said:
                return said["return"]

    def _connect(self, path: str) -> None:
        while True:
            self._socket.settimeout(self._left_s())
            try:
                self._socket.connect(path)
            except BlockingIOError:  # its queue is full
                time.sleep(LOOK_S)
            except OSError as error:
                raise MonitorError(f"its monitor cannot be reached ({error.strerror or error})") from None
            else:
                return

    def _check_peer(self, pid: int) -> None:
        peer = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        if peer != pid:
            raise MonitorError(f"its monitor belongs to process {peer}, not to {pid}")

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                self._socket.settimeout(self._left_s())
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise MonitorError(f"QEMU does not answer ({error})") from None
            if not data:
                raise MonitorError("QEMU has closed its monitor")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    def _left_s(self) -> float:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise MonitorError("QEMU does not answer in time")
        return left_s


class Seen(NamedTuple):
    """What QEMU shows of one job: the node that its disk has, and the job (None: QEMU has no such job)."""

    root: str | None
    job: dict[str, Any] | None

    @property
    def ended(self) -> bool:
        """Whether the job does not change the disk any more."""
        return self.job is None or self.job["status"] in ENDED

    @property
    def failed(self) -> bool:
        """Whether the job is there and has ended with an error."""
        return self.job is not None and "error" in self.job


def look(monitor: Monitor, job: Job) -> Seen:
    """Look at a job and its disk; the job first, so that the root of a job that has ended is its last one."""
    jobs = {one["id"]: one for one in monitor.ask("query-jobs")}
    roots = {one.get("qdev"): one.get("inserted", {}).get("node-name") for one in monitor.ask("query-block")}
    return Seen(roots.get(job.device), jobs.get(job.name))


def look_settled(monitor: Monitor, job: Job) -> Seen:
    """Look until the job has ended, or is certainly not ending; at most for SETTLE_BOUND_S.

    libvirtd may have died right after it asked for the end. QEMU shows such a job as it shows one that waits, until it
    is through; but a job that waits and has nothing left to copy is idle, and one that ends is busy.
    """
    deadline_s = time.monotonic() + SETTLE_BOUND_S
    idle = 0
    while True:
        seen = look(monitor, job)
        if seen.job is None or seen.job["status"] in {*ENDED, *UNREADY}:
            return seen
        now = {one["device"]: one for one in monitor.ask("query-block-jobs")}.get(job.name)
        waits = now is not None and not now["busy"] and now["offset"] == now["len"]
        idle = idle + 1 if waits else 0
        if idle >= IDLE_LOOKS:
            return seen
        if time.monotonic() >= deadline_s:
            say(f"{job.disk}: its job {job.name} is busy: left to libvirt, which loses its end if it was to pivot")
            return seen
        time.sleep(LOOK_S)


def end_again(monitor: Monitor, name: str) -> None:
    """Leave a job of this name that has ended without an error, and that never was of any disk.

    Raises: MonitorError; a half-made job of this hook is finished by its next run.
    """
    if name not in {one["id"] for one in monitor.ask("query-jobs")}:
        remove_nodes(monitor, name)
        for node in nodes_of(name):
            monitor.ask("blockdev-add", driver="null-co", node_name=node, size=SIZE_BYTES, read_zeroes=True)
        source, target = nodes_of(name)
        monitor.ask(
            "blockdev-mirror", job_id=name, device=source, target=target, sync="none",
            auto_finalize=True, auto_dismiss=False,
        )  # fmt: skip
    _await_status(monitor, name, "ready")
    monitor.ask("block-job-cancel", device=name)
    _await_status(monitor, name, "concluded")
    remove_nodes(monitor, name)


def nodes_of(job: str) -> tuple[str, str]:
    """Return the names of the two nodes of a job that this hook makes under libvirt's name for it."""
    number = zlib.crc32(job.encode())
    return f"pivotd-hook-{number:08x}-0", f"pivotd-hook-{number:08x}-1"


def is_ours(monitor: Monitor, job: str) -> bool:
    """Tell whether an earlier run of this hook was ended while it made this job: its nodes are in use.

    Not by query-named-block-nodes: before 10.0, QEMU aborts on it while it creates a qcow2 image, which libvirtd may
    have begun for another disk before it died.
    """
    remove_nodes(monitor, job)
    names = {one["name"] for one in monitor.ask("x-debug-query-block-graph")["nodes"]}
    return not names.isdisjoint(nodes_of(job))


def remove_nodes(monitor: Monitor, job: str) -> None:
    """Remove the nodes of a job that this hook makes, if they are there and not in use."""
    for node in nodes_of(job):
        try:
            monitor.ask("blockdev-del", node_name=node)
        except MonitorError as error:
            if "refuses" not in str(error):
                raise


def _await_status(monitor: Monitor, name: str, status: str) -> None:
    while True:  # ask() raises when the time is over
        now = {one["id"]: one["status"] for one in monitor.ask("query-jobs")}.get(name)
        if now == status:
            return
        if now is None or now == "concluded":
            raise MonitorError(f"the job {name} is {now or 'gone'}, not {status}")
        time.sleep(0.001)


# --- the repair


class Repair(NamedTuple):
    """What libvirt needs to find. ``rewrite``: another state in its file; ``job``: a job in QEMU that has ended."""

    pivots: bool
    rewrite: bool
    job: bool


def decide(job: Job, seen: Seen) -> Repair | None:
    """Return what is needed for libvirt to end a job as QEMU has ended it; None where it will do so by itself.

    Raises: NotUnderstoodError: the disk has neither of the job's nodes.
    """
    if not seen.ended:
        return None
    if seen.root not in {job.source, job.target}:
        raise NotUnderstoodError(f"{job.disk} is on the node {seen.root}, which its job {job.name} does not name")
    pivots = seen.root == job.target
    if seen.job is not None and job.known and libvirt_pivots(job, failed=seen.failed) == pivots:
        return None
    if seen.failed and pivots:
        raise NotUnderstoodError(f"{job.disk} has moved although its job {job.name} has failed")
    ending = ("pivoting", "pivot") if pivots else ("aborting", "abort")
    return Repair(pivots, not job.known or (job.state, job.ready) != ending, seen.job is None)


def libvirt_pivots(job: Job, *, failed: bool) -> bool:
    """Tell whether libvirt takes a job that it finds ended for a pivot."""
    if failed or job.state == "aborting":
        return False
    return job.kind == "active-commit" or job.state == "pivoting"


def repair_domain(path: Path, *, dry_run: bool, deadline_s: float) -> None:
    """Repair what a domain's status file and QEMU say of its jobs, each for itself, and tell what was done.

    Raises: NotUnderstoodError, MonitorError, OSError.
    """
    status = read_status(path.read_bytes())
    if not status.jobs:
        return
    if dry_run and stays_connected(status):
        say(f"{status.domain}: libvirtd is connected to QEMU; stop it to see what the next start would do", warn=False)
        return
    monitor = Monitor(status.monitor, status.pid, deadline_s)
    try:
        for job in status.jobs:
            try:
                _repair_job(path, status, job, monitor, dry_run=dry_run)
            except NotUnderstoodError as error:
                say(f"{path.stem}: left alone: {error}")
            status = read_status(path.read_bytes())
    finally:
        monitor.close()


def _repair_job(path: Path, status: Status, job: Job, monitor: Monitor, *, dry_run: bool) -> None:
    seen = look_settled(monitor, job)
    if not seen.ended and not dry_run and is_ours(monitor, job.name):
        seen = seen._replace(job=None)
    repair = decide(job, seen)
    if repair is None:
        return
    if job.number == LOST:
        _check_lost(job, monitor, pivots=repair.pivots)
    release = parent_release()
    if release is None or not KNOWN_RELEASES[0] <= release <= KNOWN_RELEASES[1]:
        known = ".".join(map(str, release)) if release else "of an unknown release"
        raise NotUnderstoodError(f"libvirt {known} is not known to this hook, and {job.disk} needs a repair")
    ends = "the pivot" if repair.pivots else "the abort"
    what = f"{status.domain} {job.disk}: QEMU has the node {seen.root}, so libvirt is to finish {ends} of {job.name}"
    if dry_run:
        say(f"{what}; nothing was changed (dry run)", warn=False)
        return
    if Caller.program not in {None, parent_program()}:
        # A next one runs this hook again, and may have read the file already.
        raise NotUnderstoodError("the libvirtd that has run this hook has ended")
    started_s = time.monotonic()
    # The file first: a job that has ended beside the old state would make libvirt take the wrong end.
    if repair.rewrite:
        replace_file(path, with_job_ending(status, job, pivots=repair.pivots))
    if repair.job:
        end_again(monitor, job.name)
    done = " and ".join(word for word, is_so in (("status file", repair.rewrite), ("job", repair.job)) if is_so)
    say(f"{what} (repaired: {done}; {(time.monotonic() - started_s) * 1000:.1f} ms)")


def _check_lost(job: Job, monitor: Monitor, *, pivots: bool) -> None:
    """Raises: NotUnderstoodError: libvirt's name for the job may have been another one, or libvirt has to know more."""
    if others := sorted({one["id"] for one in monitor.ask("query-jobs")} - {job.name}):
        raise NotUnderstoodError(f"libvirt has dropped the job of {job.disk}, and QEMU has the job {others[0]}")
    if not pivots or job.kind != "copy":
        return
    tops = {one.get("qdev"): one for one in monitor.ask("query-blockstats")}
    below = tops.get(job.device, {}).get("backing", {}).get("node-name", "")
    if below != job.below:
        raise NotUnderstoodError(
            f"libvirt has dropped the copy of {job.disk}, which has moved: below it is {below or 'nothing'} in QEMU, "
            f"and {job.below or 'nothing'} by its status file"
        )


def repair_all(directory: Path, *, dry_run: bool) -> None:
    """Repair every domain, each for itself, all within START_BOUND_S; what cannot be repaired is said."""
    deadline_s = time.monotonic() + START_BOUND_S
    workers = []
    for path in sorted(directory.glob("*.xml")):
        try:
            if not may_have_jobs(path.read_bytes()):
                continue
        except OSError as error:
            say(f"{path}: left alone: {error.strerror}")
            continue
        until_s = min(deadline_s, time.monotonic() + DOMAIN_BOUND_S)
        worker = threading.Thread(target=_worker, args=(path, dry_run, until_s), name=path.stem, daemon=True)
        worker.start()
        workers.append(worker)
    for worker in workers:
        worker.join(max(0.0, deadline_s - time.monotonic()))
        if worker.is_alive():
            say(f"{worker.name}: left alone: no answer within {START_BOUND_S:g} s")


def _worker(path: Path, dry_run: bool, deadline_s: float) -> None:
    try:
        repair_domain(path, dry_run=dry_run, deadline_s=deadline_s)
    except (NotUnderstoodError, MonitorError, OSError, ValueError, LookupError, AssertionError) as error:
        say(f"{path.stem}: left alone: {error}")


# --- who runs this


class Caller:
    """Who runs this hook: the process behind the shell that has started it. ``program`` None: it was not looked at."""

    pid = os.getppid()
    program: str | None = None


def parent_program() -> str:
    """Return the path of the caller's program, "" if it cannot be seen."""
    try:
        return str(Path(f"/proc/{Caller.pid}/exe").readlink()).removesuffix(" (deleted)")
    except OSError:
        return ""


def parent_release() -> tuple[int, ...] | None:
    """Return the release of the libvirt that runs this, or of the one that is installed; None if it is not told."""
    import subprocess  # noqa: PLC0415 - most starts repair nothing

    programs = [parent_program(), *(f"/usr/sbin/{name}" for name in QEMU_DAEMONS)]
    program = next((one for one in programs if Path(one).name in QEMU_DAEMONS and Path(one).exists()), None)
    if program is None:
        return None
    try:
        said = subprocess.run(  # noqa: S603 - libvirtd itself
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_BOUND_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    release = re.search(r"\(libvirt\) (\d+)\.(\d+)\.(\d+)", said)
    return tuple(int(part) for part in release.groups()) if release else None


def stays_connected(status: Status) -> bool:
    """Tell whether somebody is connected to libvirt's monitor; QEMU takes a moment to see that a client has gone."""
    connected = "03"
    held = set()
    for one in Path(f"/proc/{status.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            held.add(os.fspath(one.readlink()))
    deadline_s = time.monotonic() + SETTLE_BOUND_S
    while True:
        sockets = map(str.split, Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:])
        mine = [words for words in sockets if words[7:] == [status.monitor] and f"socket:[{words[6]}]" in held]
        if not any(words[5] == connected for words in mine):
            return False
        if time.monotonic() >= deadline_s:
            return True
        time.sleep(LOOK_S)


# --- before a domain starts


def journal_refuses(domain: str, images: dict[str, str]) -> str | None:
    """Return why pivotd's journal forbids a domain to start on these images (by target), None if it does not.

    Refuses a pivot that has asked for the switch and has no result, and an image that its disk has had and that is not
    the one with its data. Says nothing without a journal, of a disk that pivotd has not moved, of an image that it does
    not know, and where the journal itself is in doubt.
    """
    opened = _open_journal()
    if opened is None:
        return None
    connection, copy = opened
    try:
        connection.execute("BEGIN")  # all disks by one state
        (known,) = connection.execute("SELECT max(identity) FROM journal_file").fetchone()
        if str(known).partition(" ")[0] != str(JOURNAL.stat().st_ino):
            return None  # a restored copy may lack the last pivots
        for disk, image in images.items():
            if (why := _disk_refuses(connection, domain, disk, image)) is not None:
                return why
    finally:
        connection.close()
        if copy is not None:
            copy.cleanup()
    return None


def _disk_refuses(connection: sqlite3.Connection, domain: str, disk: str, image: str) -> str | None:
    of_disk = "l JOIN pivot p ON p.id = l.pivot JOIN pivot_disk d ON d.pivot = l.pivot AND d.disk = l.disk"
    last, head, moved = (
        _row(connection, f"SELECT {one}.* FROM disk_latest {of_disk} WHERE l.domain = ? AND l.disk = ?", domain, disk)  # noqa: S608 - our own words
        for one in "lpd"
    )
    if not last or last["doubtful"] or last["left_at"] is not None:
        return None
    pivot, outcome, accepted = head["id"], moved["outcome"], moved["accepted_filename"]
    # A pivotd that was updated and not restarted lacks the newer columns.
    ran_on = last.get("ran_on")
    side = "accepted" if accepted else "destination" if outcome == "switched" else "source"
    right = moved[f"{side}_filename"]
    asking = head["phase"] in {"pausing", "cancelling"} and (head["asking"] or head["manager"] == "pivotd")
    undecided = accepted is None and outcome is None and asking
    unknown = accepted is None and outcome == "unknown"
    if _same(image, right) and not undecided and not unknown and ran_on is None:
        if not _is_replaced(right, _known_file(right, side, last, head, moved)):
            return None
        return f"{right} leads to another file now than the one of {disk}: see `pivotctl verdict {domain} {disk}`"
    names = connection.execute("SELECT filename FROM image_latest WHERE domain = ? AND disk = ?", (domain, disk))
    if not any(_same(image, name) for (name,) in [*names, (ran_on or right,)]):
        return None  # somebody has given the disk another image
    if undecided:
        return f"pivot {pivot} of {disk} is being decided: start pivotd, then `pivotctl verdict {domain} {disk}`"
    if unknown:
        return f"nobody knows what pivot {pivot} of {disk} has done: see `pivotctl verdict {domain} {disk}`"
    if ran_on == right and last.get("ran_on_by_fleet", True):
        return (
            f"{disk} has run on {right} after another host had moved it on: see `pivotctl verdict {domain} {disk}` and "
            f"`pivotctl fleet verdict {domain}`"
        )
    if ran_on == right:
        used = f"it as {last['ran_on_format']}"
        if last["ran_on_format"] == moved[f"{side}_format"]:
            used = "another file of that name"
        return f"{right} is right, and {disk} has run on {used}: see `pivotctl verdict {domain} {disk}`"
    if ran_on is not None:
        return f"{disk} has run on {ran_on}, where {right} is right: see `pivotctl verdict {domain} {disk}`"
    return (
        f"{disk} must start from {right}, not from {image}, which is out of date: correct the definition"
        f" (`virsh edit {domain}`), or say that it is right (`pivotctl verdict accept {domain} {disk} {image}`)"
    )


def _row(connection: sqlite3.Connection, query: str, *values: str) -> dict[str, Any]:
    """Return the row that a query finds, by column; empty if there is none."""
    cursor = connection.execute(query, values)
    row = cursor.fetchone()
    return {} if row is None else dict(zip((column[0] for column in cursor.description), row, strict=True))


class KnownFile(NamedTuple):
    """What the journal knows of a file, None where it does not: its number, if that counts in this boot, and its birth.

    ``until``: it was there by then.
    """

    number: str | None
    born: str | None
    until: str | None


def _known_file(right: str, side: str, last: dict[str, Any], head: dict[str, Any], moved: dict[str, Any]) -> KnownFile:
    """Return what the journal knows of the file of the right image; ``last``, ``head``, ``moved``: rows of its disk."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    number, born = moved.get(f"{side}_file_id"), moved.get(f"{side}_born")
    if number != LOST_FILE and json.loads(head["identity"])["boot_id"] != boot:
        number = None
    if last.get("file_name") == right and number != LOST_FILE:
        number = last["file_id"] if last["file_boot_id"] == boot else number
        born = last["file_born"] or born
    return KnownFile(number, born, moved["accepted_at"] if side == "accepted" else head["decided_at"])


def _is_replaced(path: str, known: KnownFile) -> bool:
    """Tell whether the file at a path is certainly another one than the known one; QEMU tells of none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - as the journal has it
    except OSError:
        return False
    is_device = stat.S_ISBLK(found.st_mode)
    number = f"{found.st_dev}:{found.st_ino}"
    if is_device:
        number = f"block:{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    if known.number not in {None, number}:
        return True
    born = None if is_device else _born(path)
    if born is None or known.number == LOST_FILE:
        return False
    return born != known.born if known.born is not None else known.until is not None and born > known.until


def _born(path: str) -> str | None:
    """Return when the file at a path was made, as the journal writes times; None if the system does not tell."""
    import ctypes  # noqa: PLC0415 - most starts are of other domains
    from datetime import datetime, timezone  # noqa: PLC0415

    buffer = bytearray(256)
    try:
        statx = ctypes.CDLL(None).statx
    except (OSError, AttributeError):
        return None
    if statx(-100, os.fsencode(path), 0, STATX_BTIME, (ctypes.c_char * len(buffer)).from_buffer(buffer)):
        return None
    mask, seconds, nanoseconds = struct.unpack_from("=I76xqI", buffer)
    if not mask & STATX_BTIME or not 0 < seconds < 1 << 40:
        return None
    made = datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=nanoseconds // 1000)  # noqa: UP017 - older Pythons
    return made.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _open_journal() -> tuple[sqlite3.Connection, tempfile.TemporaryDirectory[str] | None] | None:
    """Open the journal without a trace beside it. A copy is made where SQLite would have to write."""
    import sqlite3  # noqa: PLC0415 - most hosts have no journal
    import tempfile  # noqa: PLC0415

    if not JOURNAL.exists():
        return None
    wal, index = (JOURNAL.with_name(JOURNAL.name + suffix) for suffix in ("-wal", "-shm"))
    copy = None
    try:
        fsync(wal)  # pivotd may have been killed between the write of a record and its fsync
        records_bytes = wal.stat().st_size
    except FileNotFoundError:
        records_bytes = 0
    if not records_bytes:
        uri = f"file:{JOURNAL}?mode=ro&immutable=1"
    elif index.exists():
        uri = f"file:{JOURNAL}?mode=ro&readonly_shm=1"
    else:
        copy = tempfile.TemporaryDirectory(prefix="pivotd-hook-")
        for one in (JOURNAL, wal):
            (Path(copy.name) / one.name).write_bytes(one.read_bytes())
        uri = f"file:{copy.name}/{JOURNAL.name}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_BOUND_S), copy


def _same(one: str, other: str | None) -> bool:
    if other is None:
        return False
    try:
        return os.path.normpath(one) == os.path.normpath(other) or os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False


def images_of(domain: ET.Element | None) -> dict[str, str]:
    """Return the images of a definition's disks, by target: files and block devices."""
    images = {}
    for disk in domain.iterfind("devices/disk") if domain is not None else ():
        target, source = disk.find("target"), disk.find("source")
        image = (source.get("file") or source.get("dev")) if source is not None else None
        if target is not None and image and disk.get("device", "disk") == "disk":
            images[target.get("dev", "")] = image
    return images


def chosen_otherwise(domain: str, images: dict[str, str]) -> set[str]:
    """Return the targets whose image somebody has chosen who does not start the domain's definition: a snapshot.

    libvirt tells a hook nothing of a revert. It starts the definition that is kept with the snapshot.
    """
    config = CONFIG_DIR / f"{domain}.xml"
    defined = images_of(_parsed(config)) if config.exists() else images
    kept = [
        images_of(found)
        for path in (SNAPSHOT_DIR / domain).glob("*.xml")
        if (tree := _parsed(path)) is not None
        for found in (tree.find("domain"), tree.find("inactiveDomain"))
    ]
    return {
        disk
        for disk, image in images.items()
        if defined.get(disk) != image or any(one.get(disk) == image for one in kept)
    }


def _parsed(path: Path) -> ET.Element | None:
    try:
        return ET.fromstring(path.read_bytes())  # noqa: S314 - libvirt's own file
    except (OSError, ET.ParseError):
        return None


def let_pass(domain: str) -> None:
    """Note that the domain is about to be restored or comes from another host: its images are no choice of ours."""
    STATE_DIR.mkdir(mode=0o700, exist_ok=True)
    (STATE_DIR / domain).write_text(f"{Caller.pid} {time.monotonic()}")


def passes(domain: str) -> bool:
    """Tell whether let_pass() was said of this start, and forget it."""
    mark = STATE_DIR / domain
    try:
        parent, at_s = mark.read_text().split()
        mark.unlink()
    except (OSError, ValueError):
        return False
    return int(parent) == Caller.pid and 0 <= time.monotonic() - float(at_s) < PASS_BOUND_S


def prepare(domain: str, definition: bytes) -> int:
    """Return the exit status of ``qemu DOMAIN prepare begin``: REFUSED, with the reason on stderr, or 0."""
    if passes(domain):
        return 0
    try:
        images = images_of(ET.fromstring(definition))  # noqa: S314 - libvirt's own words
        why = journal_refuses(domain, images) if images else None
        if why is None:
            return 0
        free = chosen_otherwise(domain, images)
        why = journal_refuses(domain, {disk: image for disk, image in images.items() if disk not in free})
        if why is None:
            say(f"{domain}: allowed, as a snapshot or another definition is started: {', '.join(sorted(free))}")
            return 0
    except Exception as error:  # noqa: BLE001 - a fault here must not keep guests from starting
        say(f"{domain}: allowed without a look into pivotd's journal: {error}")
        return 0
    say(f"{domain} is not started: {why}")
    return REFUSED


# --- as a program


def main(arguments: list[str] | None = None) -> int:
    """Do what libvirt, or a person, asks for, and return the exit status."""
    words = tuple(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ("--parent",) and len(words) > 1 and words[1].isdigit():
        Caller.pid, words = int(words[1]), words[2:]
    if words == ("--dry-run",):
        repair_all(STATUS_DIR, dry_run=True)
        return 0
    if words[:1] == ("daemon",) and words[2:3] == ("start",):
        # libvirtd of a user runs the hooks of the host too, and so do the other daemons of libvirt.
        Caller.program = parent_program()
        if os.geteuid() == 0 and Path(Caller.program).name in QEMU_DAEMONS:
            repair_all(STATUS_DIR, dry_run=False)
        return 0
    if words[:1] == ("qemu",) and len(words) > 3 and words[3] == "begin" and os.geteuid() == 0:
        if words[2] in {"migrate", "restore"}:
            let_pass(words[1])
        elif words[2] == "prepare":
            return prepare(words[1], sys.stdin.buffer.read())
        return 0
    if words[:1] not in {("daemon",), ("qemu",)}:
        print(USAGE, file=sys.stderr)  # noqa: T201 - a program
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
