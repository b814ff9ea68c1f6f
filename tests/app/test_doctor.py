"""What the daemon finds wrong with guests: each trouble is made for real, each in a guest of its own beside a sound one."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.app import guest_checks
from pivotd.app.doctor import of_status
from pivotd.app.reads import Reads
from pivotd.app.service import DaemonService
from pivotd.client import checks
from pivotd.client.answers import FleetNode, FleetStatus, FleetUndecided
from pivotd.config import Config
from pivotd.config import Journal as JournalConfig
from pivotd.engine.supervisor import Supervisor
from pivotd.errors import JournalError
from tests.app.conftest import Host
from tests.app.test_alarms import reads
from tests.conftest import QemuFactory
from tests.engine.conftest import Engine
from tests.journal.old_pivots import back_and_forth
from tests.support.hung_storage import HungStorage
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.tiny_guest import TinyGuest
from tests.support.waiting import until

__all__ = ["reads"]
pytestmark = pytest.mark.qemu
ULID = "01K9ABCDEFGHJKMNPQRSTV0000"
"""Of a pivot that no journal here knows."""
Findings = dict[str, list[tuple[str | None, str]]]


def found(report: Any, domain: str) -> Findings:
    """Return, by check, subject and words of what was found about one domain; not what could not be seen."""
    result: Findings = {}
    for area in report["areas"]:
        for one in area["findings"]:
            if one["seen"] and (one["subject"] or "").split(" ")[0].rstrip(",") == domain:
                result.setdefault(one["check"], []).append((one["subject"], one["what"]))
    return result


def unseen(report: Any) -> set[str]:
    return {
        check
        for area in report["areas"]
        for one in area["findings"]
        for check in ((*one["also"],) if one["seen"] else (one["check"], *one["also"]))
    }


def doctor(host: Host) -> Any:
    answer = host.call("GET", "/v1/doctor")
    assert answer.status == 200, answer.body
    return answer.json


class Ward:
    """A daemon and its guests; each trouble has a guest of its own."""

    def __init__(self, host: Host, stack: ExitStack) -> None:
        self.host, self._stack = host, stack
        self.domains: dict[str, Path] = {}

    def qemu(self, name: str, *disks: Disk, **options: Any) -> Qemu:
        given = disks or (Disk(create_image(self.host.directory / f"{name}.qcow2")),)
        qemu = self._stack.enter_context(Qemu(self.host.directory, given, name=name, **options))
        self.domains[name] = qemu.qmp
        return qemu


@pytest.fixture(scope="module")
def ward() -> Iterator[tuple[Any, Ward]]:
    """The report on a host on which much is wrong; the troubles are made before the daemon starts."""
    with tempfile.TemporaryDirectory(prefix="pd") as name, ExitStack() as stack:
        host = Host(Path(name), stack)
        made = Ward(host, stack)
        made.qemu("sound")
        made.qemu("unsafe", Disk(create_image(host.directory / "unsafe.qcow2"), cache="unsafe"))
        made.qemu("stopped").spy("stop")
        made.qemu("begun", paused=True)
        _leave(made.qemu("left"), host.directory)
        shared = Disk(create_image(host.directory / "exported.qcow2"), device="share-rw=on")
        _export(made.qemu("exported", shared), host.directory)
        made.qemu("lost")
        (host.directory / "lost.qcow2").unlink()
        made.qemu("killed").kill()
        gone = made.qemu("gone")
        gone.spy("migrate", {"uri": "exec:cat >/dev/null"})
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy = made.qemu("busy")
        other.connect(str(busy.qmp))
        assert other.recv(1) == b"{"
        stack.enter_context(ancient(host.directory / "ancient.qmp"))
        made.domains["ancient"] = host.directory / "ancient.qmp"
        made.domains["off"] = host.directory / "off.qmp"
        _full(made, stack)
        broken = _broken(made, stack)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(host.directory / "no name!.found"))
        host.start(made.domains, f'discover = ["{host.directory}/*.found"]')
        assert until(lambda: (broken.run_state(), gone.run_state()) == ("io-error", "postmigrate"))
        yield doctor(host), made


@contextmanager
def ancient(path: Path) -> Iterator[None]:
    """Be a QEMU that is too old, as far as anybody asks it."""
    version = {"qemu": {"major": 5, "minor": 2, "micro": 0}, "package": ""}
    greeting = json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\r\n"
    with socket.create_server(str(path), family=socket.AF_UNIX) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, suppress(OSError):
                        client.sendall(greeting)
                        client.recv(4096)
                        client.sendall(b'{"return": {}}\r\n')
                        client.recv(4096)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def _leave(qemu: Qemu, directory: Path) -> None:
    """Leave a node and a finished job, as a pivotd with another journal would."""
    image = create_image(directory / "leftover.qcow2")
    for number, path in enumerate((image, create_image(directory / "target.qcow2"))):
        file = {"driver": "file", "filename": str(path)}
        qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": f"p{ULID}-{number}", "file": file})
    job = {"job-id": f"j{ULID[-10:]}-1m", "device": "src0", "target": f"p{ULID}-1", "sync": "none"}
    qemu.spy("blockdev-mirror", {**job, "auto-dismiss": False})


def _export(qemu: Qemu, directory: Path) -> None:
    qemu.spy("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(directory / "nbd.sock")}}})
    qemu.spy("block-export-add", {"type": "nbd", "id": "e0", "node-name": "src0", "writable": True})


def _full(ward: Ward, stack: ExitStack) -> None:
    """Give a guest an image on a file system with little room."""
    place = ward.host.directory / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode == 0:
        stack.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
        ward.qemu("small", Disk(create_image(place / "small.qcow2"), cache="writeback"))


def _broken(ward: Ward, stack: ExitStack) -> Qemu:
    """Start a guest that writes to an image of which every write fails, and that stops at the first one."""
    directory = ward.host.directory
    image = create_image(directory / "broken.raw", image_format="raw", size="8M")
    file = {"driver": "file", "filename": str(image)}
    node = {"file": {"driver": "blkdebug", "image": file, "inject-error": [{"event": "pwritev", "errno": 5}]}}
    disk = Disk(image, format="raw", bus="ide", device="werror=stop", node=node)
    qemu = stack.enter_context(TinyGuest().qemu(directory, [disk], name="broken"))
    ward.domains["broken"] = qemu.qmp
    return qemu


CASES: list[tuple[str, dict[str, str]]] = [
    ("sound", {}),
    ("off", {}),
    ("unsafe", {"cache-unsafe": "cache=unsafe"}),
    ("stopped", {"guest-paused": "it is paused, and not by pivotd"}),
    ("begun", {"guest-paused": "it is prelaunch: started with -S"}),
    ("left", {"node-left": f"node p{ULID}-0 of pivot {ULID}", "job-left": f"job j{ULID[-10:]}-1m (mirror, "}),
    ("exported", {"second-writer": "nbd export e0 may write to it"}),
    ("lost", {"image-astray": "there is nothing at this name any more"}),
    ("killed", {"monitor-stale": "no process listens on this socket"}),
    ("broken", {"guest-stopped": "io-error: an I/O error of one of its images has stopped it"}),
    ("gone", {"guest-stopped": "postmigrate: it has left by a migration"}),
    ("ancient", {"qemu-version": "QEMU 5.2.0 is too old"}),
    ("busy", {"monitor-busy": "another client holds this monitor"}),
]


@pytest.mark.parametrize(("domain", "wanted"), CASES, ids=[name for name, _ in CASES])
def test_a_guest_with_one_trouble(ward: tuple[Any, Ward], domain: str, wanted: dict[str, str]):
    """It is found, in words that name it, and nothing else is found about this guest."""
    seen = found(ward[0], domain)
    assert seen.keys() == wanted.keys()
    for check, words in wanted.items():
        assert len(seen[check]) == 1
        assert words in seen[check][0][1]


def test_little_room_under_an_image(ward: tuple[Any, Ward]):
    """The file system is named once, with what is free."""
    report, made = ward
    if "small" not in made.domains:
        pytest.skip("mount: needs root")
    place = str(made.host.directory / "small")
    rooms = [one for area in report["areas"] for one in area["findings"] if one["subject"] == place]
    assert [(one["check"], one["severity"]) for one in rooms] == [("storage-room", "error")]


def test_a_socket_that_is_not_adopted(ward: tuple[Any, Ward]):
    """It is told by its path, with what is wrong with its name."""
    report, made = ward
    skipped = [one for area in report["areas"] for one in area["findings"] if one["check"] == "monitor-skipped"]
    assert [one["subject"] for one in skipped] == [str(made.host.directory / "no name!.found")]
    assert "no domain name" in skipped[0]["what"]


def test_a_guest_that_is_off_counts_as_that(ward: tuple[Any, Ward]):
    """It is no trouble, and it is said how many there are; what a dead guest hides is not called sound."""
    report, made = ward
    (guests,) = [one for one in report["areas"] if one["area"] == "guests"]
    assert guests["looked_at"] == f"{len(made.domains)} domains, 2 off"
    assert {"guest-paused", "cache-unsafe"} <= unseen(report), "the one whose monitor is busy was not looked at"


def test_each_finding_says_what_to_do(ward: tuple[Any, Ward]):
    """And each line is one line."""
    for area in ward[0]["areas"]:
        for one in area["findings"]:
            assert one["remedy"], one
            assert "\n" not in one["what"] + one["remedy"]


def test_what_goes_away_is_not_found_any_more(host: Host):
    """A guest that runs again, and a node that was removed, are no longer told."""
    qemu = host.qemu("web1")
    host.start({"web1": qemu.qmp})
    qemu.spy("stop")
    assert found(doctor(host), "web1").keys() == {"guest-paused"}
    qemu.spy("cont")
    assert found(doctor(host), "web1") == {}


def test_a_journal_that_takes_no_record(host: Host):
    """A full state directory is told once a record could not be written, and no more once one could."""
    state = host.directory / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(state)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mount: needs root")
    try:
        daemon = host.start()
        filler = state / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1k"], check=False, capture_output=True)
        assert failing(doctor(host)) == set()
        while host.add(f"d{len(host.domains())}", host.directory / f"{len(host.domains())}.qmp").status == 201:
            pass
        assert failing(doctor(host)) == {"journal-failing"}
        filler.unlink()
        assert host.add("more", host.directory / "more.qmp").status == 201
        assert failing(doctor(host)) == set()
        daemon.kill()
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def test_a_pivot_whose_records_cannot_be_written(host: Host):
    """It fails again and again, which is told with the reason, and goes on by itself once there is room."""
    state = host.directory / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(state)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mount: needs root")
    try:
        qemu = host.qemu("web1")
        daemon = host.start({"web1": qemu.qmp})
        assert until(lambda: host.domains()["web1"]["connection"] == "connected")
        pivot = host.copy("web1", host.image(), pivot=False).json["id"]
        ready = host.call("GET", f"/v1/pivots/{pivot}/wait?timeout_s=60").json
        assert ready["phase"] == "ready"
        filler = state / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1k"], check=False, capture_output=True)
        while host.add(f"d{len(host.domains())}", host.directory / f"{len(host.domains())}.qmp").status == 201:
            pass
        qemu.spy("job-cancel", {"id": ready["disks"][0]["job"]})
        assert until(lambda: "pivot-fails" in found(doctor(host), "web1"))
        ((subject, why),) = found(doctor(host), "web1")["pivot-fails"]
        assert (subject, "full" in why or "room" in why) == (f"web1, pivot {pivot}", True), why
        filler.unlink()
        assert until(lambda: host.call("GET", f"/v1/pivots/{pivot}").json["outcome"] == "kept")
        assert until(lambda: "pivot-fails" not in found(doctor(host), "web1"))
        daemon.kill()
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def failing(report: Any) -> set[str]:
    return {one["check"] for area in report["areas"] if area["area"] == "journal" for one in area["findings"]}


async def test_pivots_that_cannot_be_archived(engine: Engine, reads: Reads, monkeypatch: pytest.MonkeyPatch):
    """It is told until a later try succeeds; the log alone told it, every six hours."""
    monkeypatch.setattr(limits, "ARCHIVE_FIRST_S", 0.0)
    monkeypatch.setattr(limits, "ARCHIVE_EVERY_S", 0.0)
    await back_and_forth(engine.journal, 5)
    in_the_way = [engine.state_dir / f"archive-2021{more}.db" for more in ("", *(f"-{n}" for n in range(2, 10)))]
    for path in in_the_way:
        path.mkdir()
    service = DaemonService(Config(journal=JournalConfig(86_400)), engine.host, engine.journal, reads)

    async def told() -> list[tuple[str, str]]:
        areas = (await service.doctor()).areas
        return [(one.severity, one.what) for area in areas for one in area.findings if one.check == "journal-archive"]

    running = asyncio.ensure_future(service.retention.run())
    async with asyncio.timeout(60):
        while not (found := await told()):
            await asyncio.sleep(0.01)
    assert [severity for severity, _ in found] == ["warning"]
    assert "old pivots stay in the journal: " in found[0][1]
    assert "archive-2021" in found[0][1]
    for path in in_the_way:
        path.rmdir()
    async with asyncio.timeout(60):
        while await told():
            await asyncio.sleep(0.01)
    running.cancel()


async def test_a_pivot_that_has_waited_for_long(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """After a day at ready it is told, with its id; not before; and if its driver fails again and again, that as well."""
    await engine.connect(qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))]))
    driver = await engine.copy("web1", {"disk0": tmp_path / "new.qcow2"}, pivot=False)
    await engine.resting(driver)
    service = DaemonService(Config(), engine.host, engine.journal, reads)
    assert not [one for area in (await service.doctor()).areas for one in area.findings if one.check == "pivot-waits"]
    monkeypatch.setattr(checks, "DAY_S", 0)
    told = [one for area in (await service.doctor()).areas for one in area.findings if one.check == "pivot-waits"]
    assert [one.subject for one in told] == [f"web1, pivot {driver.pivot.id}"]

    async def fail() -> None:
        raise JournalError("the journal takes no record")

    monkeypatch.setattr(driver, "_step", fail)
    driver.wake()
    async with asyncio.timeout(60):
        while driver.failing is None:
            await asyncio.sleep(0.01)
    told = [one for area in (await service.doctor()).areas for one in area.findings if one.check == "pivot-fails"]
    assert [(one.subject, one.what) for one in told] == [
        (f"web1, pivot {driver.pivot.id}", "the journal takes no record")
    ]


def test_storage_that_hangs(host: Host):
    """It is found in bounded time, named, and neither called readable nor roomy; the guest beside it is looked at."""
    place = host.directory / "nfs"
    place.mkdir()
    disk = Disk(create_image(place / "old.qcow2"))
    with Qemu(host.directory, [disk], name="hung") as hung:
        host.start({"hung": hung.qmp, "well": host.qemu("well").qmp})
        with HungStorage(place):
            report = doctor(host)
        assert found(report, "hung").keys() == {"storage-hangs"}
        assert f"the storage of {place / 'old.qcow2'} does not answer" in found(report, "hung")["storage-hangs"][0][1]
        assert {"image-unreadable", "image-astray", "storage-room"} <= unseen(report)
        assert found(report, "well") == {}


def test_a_qemu_that_hangs(host: Host):
    """It is told as that, in bounded time, and its guest is not called running."""
    hung, well = host.qemu("hung"), host.qemu("well")
    host.start({"hung": hung.qmp, "well": well.qmp})
    assert until(lambda: {row["connection"] for row in host.domains().values()} == {"connected"})
    hung.kill(19)
    try:
        report = doctor(host)
    finally:
        hung.kill(18)
    assert found(report, "hung").keys() == {"monitor-busy"}
    assert {"guest-paused", "cache-unsafe"} <= unseen(report)
    assert found(report, "well") == {}


@pytest.mark.long
def test_a_qemu_that_hangs_in_a_pivot(host: Host):
    """After a restart of pivotd nothing can be decided: it is told beside the monitor, and no more once QEMU answers."""
    qemu = host.qemu("web1")
    host.start({"web1": qemu.qmp})
    assert until(lambda: host.domains()["web1"]["connection"] == "connected")
    pivot = host.copy("web1", host.image(), pivot=False).json["id"]
    assert host.call("GET", f"/v1/pivots/{pivot}/wait?timeout_s=60").json["phase"] == "ready"
    qemu.kill(19)
    try:
        host.daemon.kill()
        host.daemon.start()
        assert until(lambda: host.health()["domains"]["silent_with_open_pivots"] == ["web1"])
        seen = found(doctor(host), "web1")
    finally:
        qemu.kill(18)
    assert {"qemu-silent", "monitor-busy"} <= seen.keys()
    assert seen["qemu-silent"][0][1]
    assert until(lambda: found(doctor(host), "web1") == {})
    host.call("POST", f"/v1/pivots/{pivot}/cancel")
    assert until(lambda: host.call("GET", f"/v1/pivots/{pivot}").json["outcome"] == "kept")


def test_a_guest_on_a_stale_image(host: Host):
    """Of a disk that was moved, an alarm; of another guest, that it runs on what is out of date for the first one."""
    qemu = host.qemu("web1")
    old = host.directory / "web1-0.qcow2"
    host.start({"web1": qemu.qmp, "copy": host.directory / "copy.qmp"})
    assert until(lambda: host.domains()["web1"]["connection"] == "connected")
    moved = host.copy("web1", host.image())
    assert moved.status == 202, moved.body
    assert host.closed(moved.json["id"])["outcome"] == "switched"
    with Qemu(host.directory, [Disk(old)], name="copy"):
        assert until(lambda: host.domains()["copy"]["connection"] == "connected")
        seen = found(doctor(host), "copy")
        assert seen.keys() == {"stale-image"}
        assert f"it runs on {old}, which is stale for web1 disk0" in seen["stale-image"][0][1]
        assert found(doctor(host), "web1") == {}


def test_a_configuration_that_is_not_loaded(host: Host):
    """Changed values are named with the command that loads them; a broken file is an error before the next start."""
    host.start({"web1": host.qemu("web1").qmp})
    file = host.directory / "pivotd.toml"
    before = file.read_text()

    def configured() -> list[tuple[str, str, str]]:
        (area,) = [one for one in doctor(host)["areas"] if one["area"] == "configuration"]
        return [(one["severity"], one["what"], one["remedy"]) for one in area["findings"]]

    assert configured() == []
    file.write_text(f"{before}\n[pause]\nmax_ms = 300\n")
    ((severity, what, remedy),) = configured()
    assert (severity, remedy) == ("warning", "`systemctl reload pivotd`")
    assert what.endswith(": pause")
    file.write_text(f"{before}\n[pause]\nmax_ms = 0\n")
    ((severity, what, _),) = configured()
    assert severity == "error"
    assert "pause.max_ms" in what


def test_a_fleet_that_does_not_answer(host: Host):
    """An etcd without a majority is an error; that no outcome is undecided there has not been seen."""
    host.start(
        {"web1": host.qemu("web1").qmp}, '[fleet]\nendpoints = ["http://127.0.0.1:1"]\nhost = "h1"\ntimeout_ms = 200'
    )
    report = doctor(host)
    (fleet,) = [area for area in report["areas"] if area["area"] == "fleet"]
    assert [(one["check"], one["seen"]) for one in fleet["findings"]] == [("fleet-silent", True)]
    assert "fleet-undecided" in unseen(report)


def test_what_a_fleet_says():
    """A node that fails and a pivot without an outcome are warnings; a pivot that this host drives now is neither."""
    nodes = (
        FleetNode("http://a", None, True, "3.5", 1.0, 1),
        FleetNode("http://b", "it is down", None, None, None, None),
    )
    open_pivots = (FleetUndecided("web1", "P1", "h1", "resume"), FleetUndecided("web2", "P2", "h2", "resume"))
    status = FleetStatus(True, None, "c", nodes, 2, (), open_pivots)
    found = [(one.check, one.severity, one.subject) for one in of_status(status, {"P1"})]
    assert found == [("fleet-node", "warning", "http://b"), ("fleet-undecided", "warning", "web2")]


async def test_a_pause_of_pivotds_own_is_told_apart(
    engine: Engine, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A guest that pivotd holds for too long is told as that, not as somebody else's pause; no look lengthens it."""
    monkeypatch.setattr(limits, "OTHERS_PAUSE_S", 0.1)
    qemu = qemu_factory([Disk(create_image(tmp_path / "old.qcow2"))])
    supervisor = await engine.connect(qemu)
    async with supervisor.window:
        qemu.spy("stop")
        held = await guest_checks.look(supervisor, asyncio.Semaphore(1))
    assert [one.check for one in held.findings] == ["guest-owed"]
    assert "guest-paused" in held.findings[0].also
    let_go = await guest_checks.look(supervisor, asyncio.Semaphore(1))
    assert [one.check for one in let_go.findings] == ["guest-paused"]


async def test_sixty_who_ask_at_once_share_their_reports(
    engine: Engine, reads: Reads, qemu_factory: QemuFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One look is under way, and the others share the next one: none takes the turns of other readers, or its own."""
    names = [f"web{number}" for number in range(5)]
    for name in names:
        await engine.connect(qemu_factory([Disk(create_image(tmp_path / f"{name}.qcow2"))], name=name), name)
    looks: list[str] = []
    look = guest_checks.look

    async def counted(supervisor: Supervisor, turns: asyncio.Semaphore) -> guest_checks.Looked:
        looks.append(supervisor.name)
        return await look(supervisor, turns)

    monkeypatch.setattr(guest_checks, "look", counted)
    service = DaemonService(Config(), engine.host, engine.journal, reads)
    reports = await asyncio.gather(*(service.doctor() for _ in range(60)))
    assert {one.what for report in reports for area in report.areas for one in area.findings if not one.seen} == set()
    assert sorted(looks) == sorted(2 * names)
    qemu = qemu_factory([Disk(create_image(tmp_path / "late.qcow2"))], name="late")
    await engine.connect(qemu, "late")
    await service.doctor()
    assert looks.count("late") == 1
