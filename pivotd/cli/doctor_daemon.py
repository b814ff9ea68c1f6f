"""`pivotctl doctor`: the daemon, its socket, and whether there is only one of it."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pivotd import __version__, limits
from pivotd.cli.doctor_journal import GROUP, Looked
from pivotd.cli.doctor_units import SERVICE, Units
from pivotd.client import Client, DoctorArea, DoctorFinding, DoctorReport, Health, checks
from pivotd.client.checks import found, unseen
from pivotd.config import DEFAULT_PATH
from pivotd.errors import ClientError, RefusedError

MADE = ("daemon-down", "daemon-hangs", "daemon-version", "socket-stale")
STATUS = "`systemctl status pivotd` says more; `pivotctl --offline STATE_DIR verdict` answers without the daemon"
MARGIN_S = 15.0
"""Beyond the look for others that may come first, and that for this caller: an answer also waits for a pause."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the daemon has said; None of both: nothing, and ``area`` says why."""

    health: Health | None
    report: DoctorReport | None
    area: DoctorArea
    why: str = ""
    """Why the checks that only the daemon can make were not made."""


def ask(path: str, by: str) -> Asked:
    """Ask the daemon at a socket; every wait is bounded."""
    failure = _knock(path)
    if failure is not None:
        return _no_answer(path, by, _of_errno(path, failure))
    client = Client(path)
    try:
        health = client.health(limits.DOCTOR_HEALTH_S)
    except ClientError as error:
        return _no_answer(path, by, [_of_error(path, error)])
    versions = [] if health.version == __version__ else [_other_version(path, health.version)]
    about = f"{path}, pivotd {health.version}"
    try:
        report = client.doctor(2 * limits.DOCTOR_S + MARGIN_S)
    except ClientError as error:
        why = f"the daemon does not tell what it sees: {error.message}"
        unasked = unseen(("daemon-hangs",), path, why, STATUS)
        return Asked(health, None, DoctorArea("daemon", by, about, MADE, (*versions, unasked)), why)
    return Asked(health, report, DoctorArea("daemon", by, about, MADE, tuple(versions)))


def _no_answer(path: str, by: str, findings: list[DoctorFinding]) -> Asked:
    return Asked(None, None, DoctorArea("daemon", by, path, MADE, tuple(findings)), findings[0].what)


def _knock(path: str) -> int | None:
    """Return why nobody can connect, as an error number, None if somebody takes the connection."""
    with socket.socket(socket.AF_UNIX) as client:
        seconds = int(limits.CONNECT_TIMEOUT_S)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))
        try:
            client.connect(path)
        except OSError as error:
            return error.errno or errno.EIO
    return None


def _of_errno(path: str, number: int) -> list[DoctorFinding]:
    also = ("daemon-hangs", "daemon-version")
    if number in {errno.EACCES, errno.EPERM}:
        why = f"you may not open {path}, so nobody has asked the daemon"
        return [unseen((*MADE[:1], *also, "socket-stale"), path, why, "run it as root, or as a reader of [access]")]
    if number == errno.EAGAIN:
        return [found("daemon-hangs", path, "it takes no more connections", STATUS, also=("daemon-version",))]
    if number == errno.ECONNREFUSED:
        what = "there is a socket, and nobody listens: a daemon was killed"
        remedy = "start the daemon, which replaces the socket: `systemctl start pivotd.socket pivotd`"
        down = found("daemon-down", path, "no daemon listens", STATUS, also=also)
        return [down, found("socket-stale", path, what, remedy)]
    what = f"there is no daemon: {os.strerror(number)}"
    return [found("daemon-down", path, what, f"`systemctl start pivotd.socket pivotd`; {STATUS}", also=also)]


def _of_error(path: str, error: ClientError) -> DoctorFinding:
    others = ("daemon-hangs", "daemon-version")
    if isinstance(error, RefusedError) and error.kind == "not-allowed":
        return unseen(others, path, error.message, "run it as root, or as a reader of [access]")
    if isinstance(error.__context__, TimeoutError):
        what = f"it took a request and has not answered within {limits.DOCTOR_HEALTH_S:.0f} s"
        remedy = f"{STATUS}; systemd's watchdog restarts a daemon that hangs, and `systemctl restart pivotd` is safe"
        return found("daemon-hangs", path, what, remedy, also=("daemon-version",))
    return found("daemon-down", path, error.message, STATUS, also=others)


def _other_version(path: str, version: str) -> DoctorFinding:
    what = f"the daemon is pivotd {version}, and this pivotctl {__version__}"
    return found("daemon-version", path, what, "`systemctl restart pivotd` after an upgrade: no guest notices")


def only_one(looked: Looked, units: Units, config: Path | None, by: str) -> DoctorArea:
    """Return whether a second daemon is there: for this journal, or with this configuration."""
    remedy = "see which one is meant to be there, and stop the other: the second one can do nothing"
    findings = []
    owner, main = looked.owner_pid, units.main_pid
    if not looked.owner_seen:
        why = "you may not see which process has the journal"
        findings.append(unseen(("two-daemons",), None, why, GROUP))
    if looked.awaited:
        what = f"a daemon waits for the journal, which process {owner or '?'} has"
        findings.append(found("two-daemons", looked.told["place"]["path"], what, remedy))
    if owner and main and owner != main:
        what = f"the journal belongs to process {owner}, and the daemon of {SERVICE} is process {main}"
        findings.append(found("two-daemons", SERVICE, what, remedy))
    elif owner and SERVICE in units.shown and not main:
        what = f"the journal belongs to process {owner}, which {SERVICE} has not started, so that the unit cannot start"
        findings.append(found("two-daemons", SERVICE, what, remedy))
    running = sorted(_daemons(config or DEFAULT_PATH))
    if len(running) > 1 and not findings:
        what = f"processes {', '.join(map(str, running))} are daemons with this configuration"
        findings.append(found("two-daemons", str(config or DEFAULT_PATH), what, remedy))
    return DoctorArea("daemon", by, "", ("two-daemons",), tuple(findings))


def _daemons(config: Path) -> Iterator[int]:
    """Yield the processes of this pid namespace that were started as a daemon with a configuration."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue  # it has ended, or /proc hides it
        # The program, its interpreter and -m come first.
        program = next((number for number, word in enumerate(words[:4]) if _is_daemon(word)), None)
        options = [] if program is None else words[program + 1 :]
        if program is None or {"--check", "--reload", "--version"}.intersection(options):
            continue
        given = options[options.index("--config") + 1 :] if "--config" in options else [str(DEFAULT_PATH)]
        if given and Path(given[0]) == config:
            yield int(entry.name)


def _is_daemon(word: str) -> bool:
    return word == "pivotd.daemon" or word.rpartition("/")[2] == "pivotd"


def unasked(asked: Asked, by: str) -> list[DoctorArea]:
    """Return that nobody has made the checks that only the daemon can make."""
    why = f"only the daemon can look, and it has told nothing: {asked.why}"
    remedy = "start the daemon, or run this as a user whom it answers"
    others = tuple(one for one in checks.of_area("pivots") if one != "guest-owed")
    made = (*checks.of_area("guests"), *checks.OF_DISK, *others, "config-not-loaded", "journal-failing")
    empty = [DoctorArea(area, by, "", ()) for area in ("pivots", "disks")]
    return [DoctorArea("guests", by, "", (), (unseen(made, None, why, remedy),)), *empty]
