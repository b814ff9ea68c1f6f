"""`pivotctl doctor`: the journal, its room, and what it says of the clock; storage that hangs costs a bounded time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pivotd import limits
from pivotd.cli.journal_look import EXIT_AWAITED
from pivotd.client import DoctorArea, DoctorFinding, Verdict, checks
from pivotd.client.checks import found, unseen

Facts = dict[str, Any]
NOT_ALLOWED = "journal-not-allowed"
MADE = tuple(one for one in checks.of_area("journal") if one != "journal-failing")
OF_FACTS = ("journal-archive", "journal-restored", "clock-behind", "clock-jumped")
OF_FILE = ("journal-open", "journal-large")
START = "`systemctl start pivotd`: it resumes the guest, or says why not"
GROUP = "run it as root, or as a member of the group of the journal (docs/install.md, part 2)"
END_S = 2.0


@dataclass(frozen=True, slots=True)
class Looked:
    """What the look has told before it ended. ``why``: why it has told no more."""

    told: Facts
    why: str | None = None

    @property
    def owner_pid(self) -> int | None:
        """The process that has the journal, None if there is none or this user may not see it."""
        pid: int | None = self.told.get("place", {}).get("owner_pid")
        return pid

    @property
    def owner_seen(self) -> bool:
        """Whether this user may see which process has the journal."""
        return bool(self.told.get("place", {}).get("owner_seen"))

    @property
    def awaited(self) -> bool:
        """Whether another daemon waits for the journal."""
        return bool(self.told.get("place", {}).get("awaited"))


def look(place: Path, *, verdicts: bool) -> Looked:
    """Look at a journal, in limits.DOCTOR_JOURNAL_S. ``verdicts``: also at what it says of each disk."""
    command = [sys.executable, "-P", "-m", "pivotd.cli.journal_look", str(place), *(["--verdicts"] if verdicts else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: S603 - ourselves
    why = None
    try:
        said, complaint = process.communicate(timeout=limits.DOCTOR_JOURNAL_S)
    except subprocess.TimeoutExpired:
        process.kill()
        why = f"no answer within {limits.DOCTOR_JOURNAL_S:.0f} s: its storage hangs, or it is very large"
        try:
            said, complaint = process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired as error:
            said, complaint = error.stdout or b"", b""
    if process.returncode == EXIT_AWAITED:
        why = "a daemon waited for the journal, and goes first: ask again"
    elif process.returncode and why is None:
        why = " ".join((complaint.decode(errors="replace").splitlines() or ["the look ended without an answer"])[-1:])
    told: Facts = {}
    for line in said.splitlines():
        try:
            told |= json.loads(line)
        except ValueError:
            break  # it was ended in the middle of it
    return Looked(told, why)


def area(looked: Looked, place: Path, by: str) -> DoctorArea:
    """Return what is wrong with the journal and the clock."""
    told = looked.told
    shown = told.get("place", {"path": str(place)})
    return DoctorArea("journal", by, _described(shown, told), MADE, tuple(_findings(looked, shown)))


def of_pivots(looked: Looked, by: str) -> list[DoctorArea]:
    """Return what the journal says of guests and disks, where no daemon says it: pivots, verdicts and the fleet."""
    facts, subject = looked.told.get("facts", {}), "by the journal alone"
    areas = []
    pivots: list[DoctorFinding] = []
    if facts and not facts["live"]:
        for domain, pivot, since in facts["owed"]:
            what = f"pivotd may have paused it at {since} (pivot {pivot}), owes it a resume, and does not run"
            pivots.append(found("guest-owed", domain, what, START))
        untold = [
            found("fleet-undecided", domain, f"the fleet does not know the outcome of pivot {pivot}", START)
            for domain, pivot in facts["untold"]
        ]
        if untold:
            areas.append(DoctorArea("fleet", by, subject, (), tuple(untold)))
    areas.append(DoctorArea("pivots", by, subject, ("guest-owed",) if facts else (), tuple(pivots)))
    if "verdicts" in looked.told:
        verdicts = msgspec.convert(looked.told["verdicts"], list[Verdict])
        wrong = tuple(one for one in map(checks.of_verdict, verdicts) if one is not None)
        areas.append(DoctorArea("verdicts", by, subject, checks.VERDICT_CHECKS, wrong))
    else:
        areas.append(DoctorArea("verdicts", by, "", (), (unseen(checks.VERDICT_CHECKS, None, _why(looked), GROUP),)))
    return areas


def _why(looked: Looked) -> str:
    return str(looked.told.get("error", {}).get("message") or looked.why or "the journal was not read")


def _described(shown: Facts, told: Facts) -> str:
    size = f", {shown['size_bytes'] / (1 << 20):.1f} MiB" if "size_bytes" in shown else ""
    records = f", {told['facts']['last_seq']:,} records" if "facts" in told else ""
    return f"{shown['path']}{size}{records}"


def _findings(looked: Looked, shown: Facts) -> Iterator[DoctorFinding]:
    told, path = looked.told, shown["path"]
    if "place" not in told:
        why = looked.why or "the look ended without an answer"
        yield found("journal-unusable", path, why, "mend the storage of the state directory", also=MADE[1:])
        return
    yield from _of_place(shown)
    error = told.get("error")
    if error is not None and error["kind"] == NOT_ALLOWED:
        also = OF_FILE if "mode" not in shown else ()
        yield unseen(("journal-unusable", "journal-damaged", *OF_FACTS, *also), path, error["message"], GROUP)
        return
    if error is not None:
        remedy = "docs/journal.md; restore a copy, and let `pivotctl verdict` tell what is not certain then"
        check = "journal-damaged" if "facts" in told else "journal-unusable"
        also = () if "facts" in told else ("journal-damaged", *OF_FACTS, *(OF_FILE if "mode" not in shown else ()))
        yield found(check, path, error["message"], remedy, also=also)
        return
    if "facts" in told:
        yield from _of_facts(path, told["facts"])
    elif looked.why:
        yield unseen(("journal-unusable", "journal-damaged", *OF_FACTS), path, looked.why, "ask again")
        return
    if "faults" not in told:
        yield unseen(("journal-damaged",), path, str(looked.why), "ask again, when there is less to do")
    archives = {fault for _, fault in told["facts"]["archives"]} if "facts" in told else set()
    for fault in (one for one in told.get("faults", ()) if one not in archives):
        remedy = "keep the file; restore a copy from before the damage, and accept what is not certain then"
        yield found("journal-damaged", path, fault, remedy)


def _of_place(shown: Facts) -> Iterator[DoctorFinding]:
    path = shown["path"]
    directory = str(Path(path).parent)
    if "free_bytes" not in shown:
        yield unseen(("state-dir-room", *OF_FILE), directory, shown.get("error", "it could not be looked at"), GROUP)
        return
    if shown["read_only"]:
        remedy = "mount it for writing; after an error of its storage, mend that first"
        yield found("state-dir-room", directory, "its file system is read-only: no pivot can be recorded", remedy)
    elif shown["free_bytes"] < limits.DOCTOR_STATE_BYTES_MIN or shown["free_files"] == 0:
        severity = checks.ERROR if _is_full(shown) else checks.WARNING
        what = f"{shown['free_bytes'] >> 20} MiB are free" + (", and no inode" if shown["free_files"] == 0 else "")
        remedy = "make room: nothing new starts while no record can be written"
        yield found("state-dir-room", directory, what, remedy, severity=severity)
    if "mode" not in shown:
        return  # there is none, or what follows says why nobody may see it
    for subject, mode, most in ((directory, shown["directory_mode"], 0o755), (path, shown["mode"], 0o640)):
        if mode & ~most & 0o777:
            remedy = f"`chmod {most & 0o750:o} {subject}`"
            severity = checks.ERROR if mode & 0o022 else checks.WARNING
            who = "others than pivotd can write to it" if mode & 0o022 else "everybody can read it"
            yield found("journal-open", subject, f"mode {mode:04o}: {who}", remedy, severity=severity)
    if shown["size_bytes"] > limits.DOCTOR_JOURNAL_BYTES_MAX:
        what = f"it has {shown['size_bytes'] >> 20} MiB"
        yield found(
            "journal-large",
            path,
            what,
            "`[journal] keep` in the configuration, or `pivotctl journal archive --keep 400d`: docs/journal.md",
        )
    if shown["wal_bytes"] > limits.DOCTOR_WAL_BYTES_MAX:
        what = f"its WAL has {shown['wal_bytes'] >> 20} MiB: a reader holds an old state of it"
        yield found("journal-large", f"{path}-wal", what, f"end that reader: `lsof {path}-wal`")


def _is_full(shown: Facts) -> bool:
    return bool(shown["free_bytes"] < limits.DOCTOR_STATE_BYTES_ERROR or shown["free_files"] == 0)


def _of_facts(path: str, facts: Facts) -> Iterable[DoctorFinding]:
    for name, fault in facts["archives"]:
        if fault is not None:
            remedy = "restore it from a backup; what it holds cannot be shown until then, and all else works"
            yield found("journal-archive", name, fault, remedy)
    if facts["unread"] is not None:
        why = "the last records are in that archive"
        yield unseen(("clock-behind", "clock-jumped"), path, why, "restore the archive from a backup")
    if facts["is_copy"]:
        what = "this is another file than the one that the last daemon has left: it may lack the latest moves"
        remedy = "start pivotd where the guests run: it ends the doubt disk by disk, or `pivotctl verdict accept`"
        yield found("journal-restored", path, what, remedy)
    if facts["ahead_s"] > limits.DOCTOR_CLOCK_S:
        what = f"the last record is of {facts['last_at']}, {facts['ahead_s']:.0f} s from now"
        remedy = "set the clock right (`timedatectl`); the order of records does not rest on it, undo windows do"
        yield found("clock-behind", path, what, remedy)
    if facts["set_back"] is not None:
        before, after = facts["set_back"]
        what = f"a record of {after} follows one of {before}: the clock was set back, or was ahead until then"
        yield found("clock-jumped", path, what, "keep the clock by NTP; times of records around it are not true")
