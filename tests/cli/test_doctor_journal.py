"""What `pivotctl doctor` says of a journal, its room and the clock: real files, a real full disk, records of a wrong clock."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pivotd import limits
from pivotd.cli import doctor_journal
from pivotd.client import checks
from pivotd.core.pivot import FleetStage, Outcome, Phase, Pivot
from pivotd.journal import changes
from pivotd.journal.journal import Journal
from tests.cli.ctl import ctl
from tests.journal.old_pivots import archive, back_and_forth
from tests.journal.samples import make_pivot
from tests.support.hung_storage import HungStorage

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever room this machine has."""
    monkeypatch.setattr(limits, "DOCTOR_STATE_BYTES_MIN", 1)


def states(place: Path, *, verdicts: bool = False) -> dict[str, str]:
    """Return the state of each check that the journal alone decides, and that is not sound; verdicts if asked for."""
    looked = doctor_journal.look(place, verdicts=verdicts)
    areas = [doctor_journal.area(looked, place, "test"), *doctor_journal.of_pivots(looked, "test")]
    seen = checks.states(areas if verdicts else [area for area in areas if area.area != "verdicts"])
    return {check: state for check, state in seen.items() if state not in {"ok", "none"}}


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: Sequence[datetime] = ()) -> Path:
    """Return a state directory whose records were written at these times."""
    place = tmp_path / "state"
    place.mkdir(mode=0o750)

    async def fill() -> None:
        journal = Journal.open(place)
        for at in times:
            text = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
            monkeypatch.setattr(changes, "utc_now", lambda text=text: text)
            await journal.note("reloaded", {})
        await journal.close()

    asyncio.run(fill())
    return place


def with_pivot(place: Path, images: Path, change: Callable[[Pivot], Pivot], outcome: Outcome | None = None) -> None:
    async def fill() -> None:
        journal = Journal.open(place)
        sample = make_pivot(1, images=str(images))
        for disk in sample.disks:
            Path(disk.source.filename).touch()
            Path(disk.destination.filename).touch()
        pivot, _ = await journal.accept(sample, {})
        wanted = change(pivot)
        new = {
            name: getattr(wanted, name) for name in ("phase", "owes_resume", "pausing_since", "fleet", "fleet_epoch")
        }
        for phase in (Phase.COPYING, Phase.READY, Phase.PAUSING):
            pivot = await journal.advance(pivot, phase.value, {}, phase=phase)
        if outcome is not None:
            disks = tuple(replace(disk, outcome=outcome) for disk in pivot.disks)
            at = NOW.isoformat().replace("+00:00", "Z")
            new |= {"phase": Phase.DECIDED, "disks": disks, "decided_at": at}
        await journal.advance(pivot, str(new["phase"]), {}, **new)
        await journal.close()

    asyncio.run(fill())


def test_a_sound_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing is found, and the look leaves the directory as it was."""
    place = made(tmp_path, monkeypatch, [NOW - timedelta(seconds=2), NOW])
    before = sorted((path.name, path.stat().st_mtime_ns) for path in place.iterdir())
    assert states(place, verdicts=True) == {}
    assert sorted((path.name, path.stat().st_mtime_ns) for path in place.iterdir()) == before


def test_a_clock_behind_the_last_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A record of tomorrow: the clock is behind it, or was ahead of itself."""
    assert states(made(tmp_path, monkeypatch, [NOW, NOW + timedelta(days=1)])) == {"clock-behind": "found"}


def test_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between two records of the last week; by less than what a clock is slewed by, or long ago, it counts no more."""
    assert states(made(tmp_path, monkeypatch, [NOW, NOW - timedelta(hours=1)])) == {"clock-jumped": "found"}
    shutil.rmtree(tmp_path / "state")
    assert states(made(tmp_path, monkeypatch, [NOW, NOW - timedelta(seconds=1)])) == {}
    shutil.rmtree(tmp_path / "state")
    long_ago = NOW - timedelta(days=30)
    assert states(made(tmp_path, monkeypatch, [long_ago, long_ago - timedelta(hours=1), NOW])) == {}


def test_a_journal_that_is_not_there(tmp_path: Path):
    """Whatever else is not there, either."""
    found = {"journal-unusable": "found", "journal-damaged": "unseen", "journal-restored": "unseen"}
    seen = states(tmp_path, verdicts=True)
    assert seen.items() >= {**found, "clock-behind": "unseen", "verdict-unknown": "unseen"}.items()


def test_a_journal_of_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that is no journal is refused, and nothing in it is called sound."""
    place = made(tmp_path, monkeypatch)
    (place / "journal.db").write_bytes(b"something else" * 1000)
    seen = states(place)
    assert (seen["journal-unusable"], seen["journal-damaged"]) == ("found", "unseen")


def test_a_damaged_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A page of old records that is damaged is found, although nobody has asked for what is in it."""
    place = made(tmp_path, monkeypatch, [NOW])
    path = place / "journal.db"
    with closing(sqlite3.connect(path)) as connection:
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        row = "SELECT at, NULL, NULL, 'damaged-here', NULL, '{}' FROM record LIMIT 1"
        connection.execute(f"INSERT INTO record (at, domain, pivot, event, phase, facts) {row}")
        row = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT at, NULL, NULL, 'x'"
        )
        rows = f"{row}, NULL, '{{}}' FROM n, (SELECT at FROM record LIMIT 1)"
        connection.execute(f"INSERT INTO record (at, domain, pivot, event, phase, facts) {rows}")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert states(place) == {}
    page = path.read_bytes().index(b"damaged-here") // page_bytes
    with path.open("r+b") as file:
        file.seek(page * page_bytes)
        file.write(b"\xff" * 64)
    assert states(place) == {"journal-damaged": "found"}


def test_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another file than the last daemon has left may lack the latest moves."""
    place = made(tmp_path, monkeypatch)
    shutil.copy(place / "journal.db", tmp_path / "journal.db")
    (place / "journal.db").unlink()
    shutil.copy(tmp_path / "journal.db", place / "journal.db")
    assert states(place) == {"journal-restored": "found"}


@pytest.mark.parametrize(("mode", "severity"), [(0o660, "error"), (0o644, "warning")])
def test_a_journal_that_others_can_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, severity: str):
    """Who can write it could change the answer of every verdict."""
    place = made(tmp_path, monkeypatch)
    (place / "journal.db").chmod(mode)
    looked = doctor_journal.look(place, verdicts=False)
    findings = doctor_journal.area(looked, place, "test").findings
    assert [(one.check, one.severity) for one in findings] == [("journal-open", severity)]


def test_an_archive_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is told by its name, once; the journal itself is not called damaged."""
    place = made(tmp_path, monkeypatch)

    async def fill() -> None:
        journal = Journal.open(place)
        await back_and_forth(journal, 6)
        await archive(journal)
        await journal.close()

    asyncio.run(fill())
    assert states(place) == {}
    (archived,) = place.glob("archive-*.db")
    archived.rename(tmp_path / "away")
    looked = doctor_journal.look(place, verdicts=False)
    findings = doctor_journal.area(looked, place, "test").findings
    assert [(one.check, one.subject) for one in findings if one.seen] == [("journal-archive", archived.name)]


def test_a_large_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Above the bound it is told, and it is still sound."""
    place = made(tmp_path, monkeypatch, [NOW])
    monkeypatch.setattr(limits, "DOCTOR_JOURNAL_BYTES_MAX", 10_000)
    assert states(place) == {"journal-large": "found"}


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A state directory without room is an error, before the first record has failed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mount: needs root")
    try:
        state = made(place, monkeypatch)
        monkeypatch.setattr(limits, "DOCTOR_STATE_BYTES_MIN", limits.DOCTOR_STATE_BYTES_ERROR)
        filler = ["dd", "if=/dev/zero", f"of={place / 'filler'}", "bs=64k"]
        assert subprocess.run(filler, check=False, capture_output=True).returncode == 1
        looked = doctor_journal.look(state, verdicts=False)
        findings = doctor_journal.area(looked, state, "test").findings
        assert [(one.check, one.severity, one.what) for one in findings] == [
            ("state-dir-room", "error", "0 MiB are free")
        ]
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_storage_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The look is given up in bounded time, and nothing of the journal is called sound."""
    monkeypatch.setattr(limits, "DOCTOR_JOURNAL_S", 1.0)
    place = made(tmp_path, monkeypatch)
    with HungStorage(place):
        began_s = time.monotonic()
        seen = states(place)
        assert time.monotonic() - began_s < 20
    assert seen["journal-unusable"] == "found"
    assert {seen[check] for check in doctor_journal.MADE if check != "journal-unusable"} == {"unseen"}


def test_a_guest_that_is_still_owed_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The daemon has died in the pause: the journal says that a guest may stand still, and what to do."""
    place = made(tmp_path, monkeypatch)
    with_pivot(place, tmp_path, lambda one: replace(one, phase=Phase.PAUSING, owes_resume=True, pausing_since="then"))
    assert states(place) == {"guest-owed": "found"}


def test_an_outcome_that_the_fleet_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is decided here, and another host would call it unknown."""
    place = made(tmp_path, monkeypatch)
    announced = {"fleet": FleetStage.ANNOUNCED, "fleet_epoch": 1}
    with_pivot(place, tmp_path, lambda one: replace(one, **announced), Outcome.KEPT)
    assert states(place)["fleet-undecided"] == "found"


def test_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`unknown` is an error for a person; a right image that is not there is one as well."""
    place = made(tmp_path, monkeypatch)
    with_pivot(place, tmp_path, lambda one: one, Outcome.UNKNOWN)
    assert states(place, verdicts=True) == {"verdict-unknown": "found"}
    shutil.rmtree(place)
    place = made(tmp_path, monkeypatch)
    with_pivot(place, tmp_path, lambda one: one, Outcome.SWITCHED)
    (tmp_path / "destination1.qcow2").unlink()
    assert states(place, verdicts=True) == {"image-lost": "found"}
    (tmp_path / "destination1.qcow2").touch()
    shutil.copy(place / "journal.db", tmp_path / "copy.db")
    assert states(tmp_path / "copy.db", verdicts=True) == {"journal-restored": "found", "verdict-uncertain": "found"}


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command with --offline asks no daemon: 0 for a sound journal, 8 for one with an unknown verdict."""
    place = made(tmp_path, monkeypatch)
    ignored = ("--ignore", "state-dir-room")
    sound = ctl("--offline", place, "doctor", *ignored)
    assert (sound.status, sound.stdout.splitlines()[-1]) == (0, "Nothing is wrong; not counted: state-dir-room.")
    with_pivot(place, tmp_path, lambda one: one, Outcome.UNKNOWN)
    answer = ctl("--offline", place, "doctor", *ignored)
    assert answer.status == 8
    assert "error  verdict-unknown\n    web1 disk1: " in answer.stdout
    assert "pivotctl verdict accept web1 disk1 IMAGE" in answer.stdout
