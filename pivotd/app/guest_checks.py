"""Looks of `pivotctl doctor` at one domain: its monitor, its QEMU, whose pause it is in, what pivotd has left there."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pivotd import limits
from pivotd.app import image_checks
from pivotd.app.image_checks import Room
from pivotd.app.leftovers import candidates
from pivotd.client import checks
from pivotd.client.answers import DoctorFinding
from pivotd.core import names, qemu_faults
from pivotd.core.request import Manager
from pivotd.engine.supervisor import Supervisor
from pivotd.errors import DomainUnreachableError, MonitorBusyError, QmpError, UnsupportedQemuError
from pivotd.host import view
from pivotd.qmp.blocks import Blocks
from pivotd.qmp.session import Session

_JOB = re.compile(rf"j[0-9A-Z]{{{names.JOB_ID_CHARACTERS}}}-\d+[a-z]?")
_PAUSED = frozenset({"paused", "prelaunch"})
_BROKEN = {
    "io-error": "an I/O error of one of its images has stopped it",
    "internal-error": "QEMU has stopped it after an internal error",
    "guest-panicked": "its kernel has panicked",
}
_ENDED = {
    "shutdown": "it has shut down, and its QEMU waits (-no-shutdown)",
    "postmigrate": "it has left by a migration, and this QEMU still has its images",
    "watchdog": "its watchdog has stopped it",
}
OF_QEMU = ("qemu-version", "guest-paused", "guest-stopped", "job-left", "node-left")
LOCKED = "look at its pivot with `pivotctl domain show` and `pivot show`; docs/tasks.md says what holds a pause up"


@dataclass(slots=True)
class Looked:
    """What one domain showed. ``off``: its guest does not run, which is no fault. ``rooms`` is by device."""

    findings: list[DoctorFinding] = field(default_factory=list)
    version: str | None = None
    disks: int = 0
    off: bool = False
    rooms: dict[int, Room] = field(default_factory=dict)


async def look(supervisor: Supervisor, turns: asyncio.Semaphore) -> Looked:
    """Look at one domain; each step is bounded. ``turns`` bounds how many look at files at once."""
    looked = Looked()
    await supervisor.settled(limits.GREETING_TIMEOUT_S + limits.CONNECT_TIMEOUT_S)
    session = supervisor.session
    if session is None:
        _of_monitor(looked, supervisor)
        return looked
    if not await _no_pause(supervisor):
        what = f"pivotd has held it in a pause for more than {limits.OTHERS_PAUSE_S:.0f} s"
        also = (*OF_QEMU, *checks.OF_DISK)
        looked.findings.append(checks.found("guest-owed", supervisor.name, what, LOCKED, also=also))
        return looked
    try:
        state = await session.run_state()
        blocks = await session.blocks()
        writers = await session.writers(blocks)
    except UnsupportedQemuError as error:
        looked.findings.append(_skipped(supervisor, error.message))
        return looked
    except QmpError as error:
        also = (*OF_QEMU, *checks.OF_DISK)
        remedy = (
            "QEMU's main loop is blocked, mostly by storage that hangs: mend that; pivotd decides nothing until then"
        )
        looked.findings.append(checks.found("monitor-busy", supervisor.name, error.message, remedy, also=also))
        return looked
    looked.version, looked.disks = session.version_text or None, len(blocks.disks)
    looked.findings += [*_of_version(supervisor, session), *_of_run_state(supervisor, state)]
    if supervisor.manager is Manager.PIVOTD:
        looked.findings += _of_leftovers(supervisor, blocks)
    await _of_disks(looked, supervisor, session.pid, blocks, turns)
    for disk, named in sorted(writers.items()):
        remedy = "remove it or make it read-only: a disk that something else writes to is not switched without --force"
        for writer in named:
            what = f"{writer} may write to it, and no pause of the guest stops that"
            looked.findings.append(checks.found("second-writer", f"{supervisor.name} {disk}", what, remedy))
    return looked


async def _no_pause(supervisor: Supervisor) -> bool:
    """Wait until pivotd has no pause open here: no look may lengthen one. Return whether that came to pass."""
    try:
        async with asyncio.timeout(limits.OTHERS_PAUSE_S):
            while supervisor.window.locked():
                async with supervisor.window:
                    pass
    except TimeoutError:
        return False
    return True


def _of_monitor(looked: Looked, supervisor: Supervisor) -> None:
    """Say why there is no connection, or that the guest is off."""
    name, path, failure, detail = supervisor.name, supervisor.path, supervisor.failure, supervisor.detail
    also = (*OF_QEMU, *checks.OF_DISK)
    if supervisor.manager is Manager.LIBVIRT:
        remedy = "see that libvirtd answers: `virsh list`; pivotd connects again by itself"
        looked.findings.append(checks.found("libvirt-unreachable", name, detail, remedy, also=also))
        return
    if isinstance(failure, UnsupportedQemuError):
        if (version := failure.fields.get("version")) is None:
            looked.findings.append(_skipped(supervisor, detail))
        else:
            remedy = "start the guest with a newer QEMU"
            looked.version = str(version)
            looked.findings.append(checks.found("qemu-version", name, detail, remedy, also=checks.OF_DISK))
        return
    hidden = view.hidden(path)
    number = failure.fields.get("errno") if isinstance(failure, DomainUnreachableError) else None
    if hidden is not None:
        looked.findings.append(checks.found("monitor-closed", name, f"{path}: {hidden}", "as it says", also=also))
    elif number in {errno.EACCES, errno.EPERM}:
        remedy = "make the group of its directory pivotd and start QEMU with umask 007: docs/install.md, part 5"
        looked.findings.append(checks.found("monitor-closed", name, detail, remedy, also=also))
    elif number == errno.ENOENT:
        looked.off = True
    elif number == errno.ECONNREFUSED:
        looked.off = True
        remedy = f"start the guest from the image that `pivotctl verdict {name}` names, or remove the socket"
        looked.findings.append(checks.found("monitor-stale", name, detail, remedy))
    elif isinstance(failure, MonitorBusyError):
        remedy = "give pivotd a QMP socket of its own: docs/install.md, part 5"
        looked.findings.append(checks.found("monitor-busy", name, detail, remedy, also=also))
    elif isinstance(failure, TimeoutError):
        remedy = "mend the storage: pivotd connects again by itself"
        looked.findings.append(checks.found("storage-hangs", name, detail, remedy, also=(*OF_QEMU, *checks.OF_DISK)))
    else:
        remedy = "see what listens there: `ss -xlp`; pivotd tries again by itself"
        looked.findings.append(checks.found("monitor-busy", name, detail, remedy, also=also))


def _skipped(supervisor: Supervisor, why: str) -> DoctorFinding:
    also = (*OF_QEMU, *checks.OF_DISK)
    remedy = "take it out of the configuration, or `pivotctl domain rm` it, unless it is to be moved"
    return checks.found("monitor-skipped", supervisor.name, why, remedy, also=also)


def _of_version(supervisor: Supervisor, session: Session) -> list[DoctorFinding]:
    text = session.version_text
    if not text:
        return []  # libvirt's guest, that was asked nothing
    version = tuple(int(part) for part in text.split("."))
    if not qemu_faults.untested(version):
        return []
    faults = "; it ".join(qemu_faults.faults(version))
    what = f"QEMU {text} is older than every release that pivotd's tests run; it {faults}"
    remedy = "start the guest with QEMU 7.2 or newer at the next occasion"
    return [checks.found("qemu-version", supervisor.name, what, remedy, severity=checks.WARNING)]


def _of_run_state(supervisor: Supervisor, state: str) -> list[DoctorFinding]:
    """Say whose pause it is: pivotd resumes its own and no other."""
    name = supervisor.name
    owed = [driver.pivot for driver in supervisor.drivers.values() if driver.pivot.owes_resume]
    if state in _PAUSED and owed:
        what = f"it is {state}, and pivotd owes it a resume by pivot {owed[0].id} since {owed[0].pausing_since}"
        return [checks.found("guest-owed", name, what, f"see `pivotctl pivot show {owed[0].id}`")]
    resume = "`virsh resume`" if supervisor.manager is Manager.LIBVIRT else "`cont` in a monitor of its QEMU"
    if state in _PAUSED:
        why = "`stop` in another monitor, a backup, or a start with -S"
        what = f"it is {state}, and not by pivotd, which owes it no resume: {why}"
        if state == "prelaunch":
            what = f"it is {state}: started with -S, or reset while it was paused; pivotd owes it no resume"
        remedy = f"pivotd leaves it so; if nobody wants the pause, {resume}"
        return [checks.found("guest-paused", name, what, remedy)]
    if state in _BROKEN:
        return [checks.found("guest-stopped", name, f"{state}: {_BROKEN[state]}", f"mend the cause, then {resume}")]
    if state in _ENDED:
        remedy = "end its QEMU if nobody needs it; never resume a guest that has left by a migration"
        return [checks.found("guest-stopped", name, f"{state}: {_ENDED[state]}", remedy, severity=checks.WARNING)]
    return []


def _of_leftovers(supervisor: Supervisor, blocks: Blocks) -> list[DoctorFinding]:
    """Return jobs and nodes with pivotd's names that no open pivot of this journal needs."""
    name = supervisor.name
    family = [one for driver in supervisor.drivers.values() for one in driver.pivot.family]
    found = []
    for job in sorted(job for job in blocks.jobs if _JOB.fullmatch(job) and not names.belongs_to(job, *family)):
        shown = blocks.jobs[job]
        what = f"job {job} ({shown.kind}, {shown.status}) has a name of pivotd's, and belongs to no open pivot here"
        remedy = (
            f'`job-cancel` and `job-dismiss` with {{"id": "{job}"}} in a monitor, once its disk\'s verdict is known'
        )
        found.append(checks.found("job-left", name, what, remedy))
    for node in blocks.graph.unused(candidates(supervisor, blocks.graph.nodes)):
        pivot = names.pivot_of_node(node)
        what = f"node {node} of pivot {pivot} keeps its image open and locked, and nothing uses it"
        remedy = (
            "pivotd removes nodes of its own closed pivots within 30 s, and never those of another journal: "
            f'`blockdev-del` with {{"node-name": "{node}"}} in a monitor'
        )
        found.append(checks.found("node-left", name, what, remedy))
    return found


async def _of_disks(looked: Looked, supervisor: Supervisor, pid: int, blocks: Blocks, turns: asyncio.Semaphore) -> None:
    for disk, seen in sorted(blocks.disks.items()):
        subject = f"{supervisor.name} {disk}"
        if seen.cache_no_flush:
            what = "cache=unsafe: QEMU drops the guest's flushes, so after a crash of the host no image is certain"
            remedy = "start the guest with cache=none or cache=writeback; pivotd refuses to move the disk until then"
            looked.findings.append(checks.found("cache-unsafe", subject, what, remedy))
        async with turns:
            shown = await image_checks.look(subject, seen, pid)
        looked.findings += shown.findings
        looked.rooms |= shown.rooms
    looked.findings += [
        checks.found("stale-image", f"{supervisor.name} {disk}", why, _to_settle(supervisor.name, disk))
        for disk, why in sorted(supervisor.alarms.items())
    ]


def _to_settle(domain: str, disk: str) -> str:
    return (
        f"stop the guest and start it on the right image, or compare both and `pivotctl verdict accept {domain} {disk}`"
    )


def versions(looked: Iterable[Looked]) -> list[str]:
    """Return one note for each release of QEMU that runs, with what is known of it."""
    found = sorted({one.version for one in looked if one.version})
    notes = []
    for text in found:
        faults = qemu_faults.faults(tuple(int(part) for part in text.split(".")))
        if faults:
            notes.append(f"QEMU {text} {'; it '.join(faults)}")
    return notes
