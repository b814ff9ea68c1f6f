"""Every check of `pivotctl doctor`: its stable id, its area, and how serious it is. docs/doctor.md has the table.

A check that could not be made is a finding of its own (``seen`` false): it has not passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pivotd.client.answers import DoctorArea, DoctorFinding, Verdict

Severity = Literal["error", "warning"]
ERROR: Severity = "error"
WARNING: Severity = "warning"


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``severity`` is the highest that its findings have; ``title`` is what it looks for."""

    id: str
    area: str
    severity: Severity
    title: str


_TABLE: tuple[tuple[str, str, Severity, str], ...] = (
    ("config-wrong", "configuration", ERROR, "configuration or drop-in that pivotd cannot read or refuses"),
    ("config-ignored", "configuration", WARNING, "file among the drop-ins that is not read"),
    ("config-writable", "configuration", ERROR, "configuration that others than root can change"),
    ("secret-open", "configuration", ERROR, "key or password file that others can read"),
    ("config-not-loaded", "configuration", WARNING, "configuration that the running daemon does not have yet"),
    ("unit-inactive", "units", ERROR, "unit that is not active"),
    ("unit-disabled", "units", WARNING, "unit that does not start at the next boot"),
    ("unit-reload-needed", "units", WARNING, "unit or drop-in that systemd has not read"),
    ("unit-restart-needed", "units", WARNING, "unit or drop-in that is newer than the running daemon"),
    ("unit-restarts", "units", WARNING, "daemon that systemd had to restart within the last hour"),
    ("unit-promise", "units", ERROR, "drop-in that leaves paused guests waiting, or ends QEMUs with pivotd"),
    ("unit-watchdog", "units", WARNING, "unit without a watchdog"),
    ("unit-sandbox", "units", WARNING, "sandbox that is weaker than it needs to be"),
    ("unit-blind", "units", ERROR, "sandbox that hides from pivotd what it must know"),
    ("unit-network", "units", ERROR, "fleet without a network"),
    ("daemon-down", "daemon", ERROR, "daemon that does not run, or cannot start"),
    ("daemon-hangs", "daemon", ERROR, "daemon that takes a request and does not answer"),
    ("daemon-version", "daemon", WARNING, "daemon of another version than pivotctl"),
    ("socket-stale", "daemon", ERROR, "socket of pivotd at which nobody listens"),
    ("two-daemons", "daemon", ERROR, "second daemon for the same journal or configuration"),
    ("journal-unusable", "journal", ERROR, "journal that is missing, of another version, or no journal"),
    ("journal-damaged", "journal", ERROR, "journal with damaged pages or rows"),
    (
        "journal-archive",
        "journal",
        ERROR,
        "archive that is missing, damaged or of a newer version, or that takes no old pivots",
    ),
    ("journal-failing", "journal", ERROR, "journal to which the last record could not be written"),
    ("journal-restored", "journal", WARNING, "journal that is a copy, and may lack the latest moves"),
    ("journal-large", "journal", WARNING, "journal or WAL that has grown large"),
    ("journal-open", "journal", ERROR, "journal that others than pivotd can change, or anybody can read"),
    ("state-dir-room", "journal", ERROR, "state directory without room, or read-only"),
    ("clock-behind", "journal", ERROR, "clock that is behind the last record"),
    ("clock-jumped", "journal", WARNING, "clock that was set back between two records"),
    ("pivot-fails", "pivots", ERROR, "open pivot that fails again and again, or that nobody drives"),
    ("pivot-waits", "pivots", WARNING, "pivot that has waited at ready for more than a day"),
    ("qemu-silent", "pivots", ERROR, "open pivot whose QEMU does not answer"),
    ("guest-owed", "pivots", ERROR, "guest that pivotd has paused and still has to resume"),
    ("verdict-unknown", "verdicts", ERROR, "disk of which nobody knows the right image"),
    ("verdict-uncertain", "verdicts", WARNING, "disk whose right image is not certain"),
    ("image-lost", "verdicts", ERROR, "right image that is not there, or was replaced"),
    ("monitor-closed", "guests", ERROR, "monitor that pivotd may not open, or that its sandbox hides"),
    ("monitor-busy", "guests", ERROR, "monitor that another client holds, or that does not answer"),
    ("monitor-stale", "guests", WARNING, "monitor at which nobody listens: its QEMU was killed"),
    ("monitor-skipped", "guests", WARNING, "monitor that was configured or found and is not supervised"),
    ("qemu-version", "guests", ERROR, "QEMU that is refused, or has a known fault"),
    ("guest-paused", "guests", WARNING, "guest that somebody else has paused"),
    ("guest-stopped", "guests", ERROR, "guest that an error has stopped, or that has left by a migration"),
    ("job-left", "guests", WARNING, "block job of pivotd's that belongs to no open pivot"),
    ("node-left", "guests", WARNING, "node of pivotd's that nothing uses"),
    ("stale-image", "disks", ERROR, "guest on an image that does not hold its data"),
    ("cache-unsafe", "disks", ERROR, "disk with cache=unsafe"),
    ("second-writer", "disks", WARNING, "disk to which something else than its guest may write"),
    ("image-astray", "disks", ERROR, "image whose name does not lead to the file that QEMU has open"),
    ("image-hidden", "disks", WARNING, "image that pivotd's sandbox hides from it"),
    ("image-unreadable", "disks", WARNING, "image that pivotd may not read"),
    ("storage-hangs", "disks", ERROR, "storage that does not answer"),
    ("storage-room", "disks", ERROR, "storage of images without room"),
    ("libvirt-unreachable", "libvirt", ERROR, "libvirt that does not answer, or domain that pivotd cannot guard"),
    ("libvirt-disagrees", "libvirt", ERROR, "definition of libvirt's that names another image than QEMU has"),
    ("libvirt-hook", "libvirt", WARNING, "hook for libvirt that is missing, of another version, or not executable"),
    ("fleet-silent", "fleet", ERROR, "etcd without a majority"),
    ("fleet-node", "fleet", WARNING, "node of etcd that cannot be used"),
    ("fleet-undecided", "fleet", ERROR, "pivot whose outcome the fleet does not know"),
)

CHECKS: dict[str, Check] = {row[0]: Check(*row) for row in _TABLE}
AREAS: tuple[str, ...] = tuple(dict.fromkeys(check.area for check in CHECKS.values()))
OF_DISK = tuple(check.id for check in CHECKS.values() if check.area == "disks")
DAY_S = 86_400


def of_area(area: str) -> tuple[str, ...]:
    """Return the ids of the checks of one area."""
    return tuple(check.id for check in CHECKS.values() if check.area == area)


def found(  # noqa: PLR0913 - the fields of a finding
    check: str,
    subject: str | None,
    what: str,
    remedy: str,
    *,
    severity: Severity | None = None,
    also: tuple[str, ...] = (),
) -> DoctorFinding:
    """Return what a check has found; ``severity``: where it is not that of the check."""
    return DoctorFinding(check, severity or CHECKS[check].severity, subject, what, remedy, also=also)


def unseen(
    checks: Iterable[str], subject: str | None, why: str, remedy: str, severity: Severity = WARNING
) -> DoctorFinding:
    """Return that these checks could not be made."""
    first, *others = checks
    assert CHECKS.keys() >= {first, *others}
    return DoctorFinding(first, severity, subject, why, remedy, seen=False, also=tuple(others))


def states(areas: Iterable[DoctorArea], ignored: Iterable[str] = ()) -> dict[str, str]:
    """Return, by check, ``found``, ``unseen``, ``ignored``, ``ok``, or ``none``: there was nothing to look at.

    A check that found something and could not look elsewhere has found something.
    """
    result = dict.fromkeys(CHECKS, "none")
    ranks = {"none": 0, "ok": 1, "unseen": 2, "found": 3}
    for area in areas:
        for check in area.checks:
            result[check] = max(result[check], "ok", key=ranks.__getitem__)
        for finding in area.findings:
            of_finding = dict.fromkeys(finding.also, "unseen") | {finding.check: "found" if finding.seen else "unseen"}
            for check, state in of_finding.items():
                result[check] = max(result[check], state, key=ranks.__getitem__)
    return {
        check: "ignored" if check in set(ignored) and state in {"found", "unseen"} else state
        for check, state in result.items()
    }


def of_verdict(verdict: Verdict) -> DoctorFinding | None:
    """Return what is wrong with a verdict, None if one may act on it, or in a moment."""
    subject = f"{verdict.domain} {verdict.disk}"
    if verdict.pending or verdict.certain:
        return None
    if verdict.file in {"gone", "replaced"}:
        return found("image-lost", subject, verdict.reason, "find the file, or restore it, before the guest starts")
    accept = f"compare the images, then `pivotctl verdict accept {verdict.domain} {verdict.disk} IMAGE --reason TEXT`"
    if verdict.outcome == "unknown":
        return found("verdict-unknown", subject, verdict.reason, accept)
    remedy = f"start the guest on the right image where pivotd runs, or {accept}"
    return found("verdict-uncertain", subject, verdict.reason, remedy)


VERDICT_CHECKS = of_area("verdicts")
