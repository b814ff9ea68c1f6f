"""A real libvirtd with one guest, played call by call beside the model: what it answers, and everything it shows.

It is called by the very code of pivotd (pivotd.libvirt.calls), so that the classes of its answers are held too.
"""

from __future__ import annotations

import shutil
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pivotd.core.observation import JobBelief, Root
from pivotd.core.pivot import Identity, Image, Phase, Pivot, PivotDisk
from pivotd.core.request import CopyOptions, Manager, Requester
from pivotd.libvirt import calls, domain_xml, library
from pivotd.libvirt.domain_xml import DiskDefined
from pivotd.libvirt.next_boot import NewImage, with_images
from tests.libvirt.domain import Domain
from tests.libvirt.libvirtd import Libvirtd, Point
from tests.model.qemu import Version
from tests.support.moves import Move
from tests.support.qemu import create_image

PATIENCE_S = 60.0
"""A difference counts when it has not gone away by then; a loaded machine makes libvirtd slow."""
LOOK_S = 0.005
STATUS, CONFIG = "/run/libvirt/qemu/web1.xml", "/etc/libvirt/qemu/web1.xml"
TELLS = {
    ("pivot", Move.COPY): '"job-complete"',
    ("pivot", Move.COMMIT): '"job-complete"',
    ("abort", Move.COPY): '"block-job-cancel"',
    ("abort", Move.COMMIT): '"block-job-cancel"',
    ("snapshot", Move.SNAPSHOT): '"blockdev-snapshot"',
    ("start", Move.COPY): '"blockdev-mirror"',
    ("start", Move.COMMIT): '"block-commit"',
}
"""The command of QEMU that a call is about."""
DISMISS = '"job-dismiss"'
TELLING = {
    "libvirtd is about to tell QEMU": ("before", "command", "kill"),
    "QEMU has been told": ("after", "command", "stop"),
}
ENDING = {
    "libvirtd has dismissed the job": ("after", "command", DISMISS, "-", "stop"),
    "libvirtd has saved that the job has ended": ("after", "rename", STATUS, DISMISS, "kill"),
    "libvirtd has saved the status": ("before", "rename", CONFIG, DISMISS, "kill"),
    "libvirtd has saved the definition": ("after", "rename", CONFIG, DISMISS, "kill"),
}
"""Places in libvirtd's work, as the model names them, and what the real one does there.

Where it has just told QEMU something it is stopped first, and killed when QEMU has done that, however slow it is.
"""


def places(call: str, move: Move) -> dict[str, Point]:
    """Return where libvirtd may die in a call, by the names of the model."""
    tell = TELLS.get((call, move), "")
    telling = {name: Point(when, what, tell, action=action) for name, (when, what, action) in TELLING.items()}
    ending = {
        name: Point(when, what, pattern, since=since, action=action)
        for name, (when, what, pattern, since, action) in ENDING.items()
    }
    match call:
        case "start":
            return telling | {"libvirtd has saved the job": Point("after", "rename", STATUS, since=tell)}
        case "snapshot":
            return telling | {
                "libvirtd has saved the status": Point("after", "rename", STATUS, since=tell),
                "libvirtd has saved the definition": Point("after", "rename", CONFIG, since=tell),
            }
        case "pivot" | "abort":
            return telling | {"libvirtd has saved that it asked": Point("after", "rename", STATUS, since=tell)} | ending
        case "start libvirtd":
            return ending
    return {}


NOTHING = (None, None, None, None)


class Known(NamedTuple):
    """One disk in the definition of the running guest, or in the status file: its image, the mark of its job."""

    image: Root
    job: JobBelief


class Shown(NamedTuple):
    """What is compared after each step; None: it is not there, or nobody can say."""

    alive: bool
    """libvirtd runs."""
    running: bool | None
    """libvirt takes the guest for running, or paused."""
    paused: bool | None
    live: Known | None
    next: Root | None
    status: Known | None
    """The status file."""
    listed: bool | None
    """The status file lists a job of the disk, whatever the disk's mirror says."""
    file: Root | None
    """The file of the next boot."""
    run_state: str | None
    """QEMU's; None: it has ended."""
    root: Root | None
    job: str | None
    """The status of libvirt's job in QEMU."""


class Real:
    """One guest of a libvirtd that has nothing else. ``move``: what is done with its disk."""

    def __init__(self, libvirtd: Libvirtd, move: Move) -> None:
        """Start libvirtd and a guest with nothing in it."""
        libvirtd.clear()
        libvirtd.start()
        domain = Domain(libvirtd, guest=False).define().boot()
        first, second, other = domain.image(), domain.image("vda", 1), domain.image("vda", 8)
        create_image(other)
        if move is Move.COPY:
            create_image(second)
        if move is Move.COMMIT:
            first, second = domain.snapshot(), first
        source, destination = Image(str(first), "qcow2", ""), Image(str(second), "qcow2", "")
        chain = {"top": source, "base": destination} if move is Move.COMMIT else {}
        disk = PivotDisk("vda", 0, "", 64 << 20, source, destination, "", **chain)
        pivot = Pivot(
            id="p", request_id="p", domain="web1", qmp=libvirtd.uri, kind=move.kind, phase=Phase.PREPARING,
            requested_by=Requester(0, 0, 1), options=CopyOptions(reuse=True), disks=(disk,), created_at="",
            identity=Identity("", 0, 0, ""), manager=Manager.LIBVIRT,
        )  # fmt: skip
        self.libvirtd, self.domain, self.pivot, self.move = libvirtd, domain, pivot, move
        self.images = {Root.SOURCE: first, Root.DESTINATION: second, Root.OTHER: other}
        self.said = ""
        """libvirt's last error."""

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(self, name: str, image: Root | None, dies_at: str | None, wanted: Shown) -> str:
        """Ask libvirtd; return ok, refused (it has certainly done nothing) or failed.

        ``dies_at``: a place in its work at which it dies, if it gets there; ``wanted``: what is to be seen in the end.
        """
        answers: list[str] = []
        self._arm(name, dies_at)
        asking = threading.Thread(target=lambda: answers.append(self._call(name, image)), daemon=True)
        asking.start()
        self._await(lambda: not asking.is_alive(), wanted)
        asking.join(PATIENCE_S)
        return answers[0] if answers else "no answer"

    def start_libvirtd(self, *, hook: bool, dies_at: str | None, wanted: Shown) -> None:
        """Start it, with the hook or without."""
        shutil.rmtree(self.libvirtd.directory / "etc/hooks/daemon.d", ignore_errors=True)
        if hook:
            self.libvirtd.install_hook()
        self._arm("start libvirtd", dies_at)
        self.libvirtd.start(wait=wanted.alive)
        self._await(lambda: wanted.alive, wanted)

    def _arm(self, call: str, dies_at: str | None) -> None:
        if dies_at is not None:
            self.libvirtd.kill_at(places(call, self.move)[dies_at])

    def _await(self, done: Callable[[], bool], wanted: Shown) -> None:
        """Wait until something is done, or libvirtd has ended; one that has stopped is killed once QEMU has obeyed."""
        pid, until_s = self.libvirtd.pid, time.monotonic() + PATIENCE_S
        while not done() and (state := _state_of(pid)) and time.monotonic() < until_s:
            if state == "T" and self._qemu() == (wanted.run_state, wanted.root, wanted.job):
                self.libvirtd.kill()
                break
            time.sleep(LOOK_S)
        if not wanted.alive and self.libvirtd.pid is not None and not _state_of(pid):
            self.libvirtd.await_death()
        self.libvirtd.never_kill()

    def kill_qemu(self) -> None:
        """SIGKILL."""
        self.domain.kill_qemu()

    def _call(self, name: str, image: Root | None) -> str:
        api = library.load().api
        try:
            connection = api.open(self.libvirtd.uri)
        except api.libvirtError as error:
            self.said = str(error)
            return "failed"
        try:
            self._ask(connection.lookupByName("web1"), name, image)
        except api.libvirtError as error:
            self.said = str(error)
            return "refused" if calls.has_had_no_effect(error.get_error_code(), str(error)) else "failed"
        finally:
            connection.close()
        return "ok"

    def _ask(self, domain: Any, name: str, image: Root | None) -> None:
        disk = self.pivot.disks[0]
        match name:
            case "start":
                calls.start_job(domain, self.pivot, disk)
            case "pivot" | "abort":
                calls.end_jobs(domain, ["vda"], switch=name == "pivot")
            case "snapshot":
                calls.snapshot(domain, self.pivot)
            case "update":
                assert image is not None
                sides = {str(path) for path in self.images.values()}
                calls.define(domain, {"vda": Image(str(self.images[image]), "qcow2", "")}, {"vda": sides})
            case "define":
                self._define(domain, image)
            case "suspend" | "resume" | "destroy" | "undefine" | "reset":
                getattr(domain, name)()
            case "create":
                domain.create()

    def _define(self, domain: Any, image: Root | None) -> None:
        """Define it as `virsh edit` does."""
        assert image is not None
        text = domain.XMLDesc(library.load().api.VIR_DOMAIN_XML_INACTIVE)
        domain.connect().defineXML(with_images(text, {"vda": NewImage(str(self.images[image]), "qcow2")}))

    # -- what it shows ------------------------------------------------------------------------------------------------

    def shown(self) -> Shown:
        """Return everything that is compared."""
        alive = bool(_state_of(self.libvirtd.pid))
        active, paused, live, next_ = self._believed() if alive else NOTHING
        run_state, root, job = self._qemu()
        return Shown(
            alive, active, paused, live, next_, *self._in_status(),
            self._side(_disk_in(self._parsed(self.domain.config_file()))), run_state, root, job,
        )  # fmt: skip

    def _believed(self) -> tuple[bool | None, bool | None, Known | None, Root | None]:
        """Ask libvirtd; NOTHING of one that is about to end."""
        api = library.load().api
        try:
            connection = api.open(self.libvirtd.uri)
        except api.libvirtError as error:
            self.said = str(error)
            return NOTHING
        try:
            domain = connection.lookupByName("web1")
            active = bool(domain.isActive())
            paused = domain.state()[0] == api.VIR_DOMAIN_PAUSED if active else None
            live = self._known(domain_xml.parse(domain.XMLDesc(0)).disks["vda"]) if active else None
            flag = api.VIR_DOMAIN_XML_INACTIVE
            next_ = self._side(domain_xml.parse(domain.XMLDesc(flag)).disks["vda"]) if domain.isPersistent() else None
        except api.libvirtError as error:
            self.said = str(error)
            return (False, None, None, None) if error.get_error_code() == api.VIR_ERR_NO_DOMAIN else NOTHING
        finally:
            connection.close()
        return active, paused, live, next_

    def _in_status(self) -> tuple[Known | None, bool | None]:
        status = self._parsed(self.domain.status_file())
        if status is None:
            return None, None
        return self._known(_disk_in(status)), status.find("blockjobs/blockjob") is not None

    @staticmethod
    def _parsed(path: Path) -> ET.Element | None:
        try:
            return ET.parse(path).getroot()
        except FileNotFoundError:
            return None

    def _known(self, disk: DiskDefined | None) -> Known | None:
        side = self._side(disk)
        return None if disk is None or side is None else Known(side, disk.job)

    def _side(self, disk: DiskDefined | None) -> Root | None:
        if disk is None:
            return None
        return next((side for side, path in self.images.items() if str(path) == disk.image), Root.ABSENT)

    def qemu_version(self) -> Version:
        """Return the version of the guest's QEMU."""
        spy = self.domain.spy()
        version = spy.execute("query-version")["qemu"]
        spy.close()
        return version["major"], version["minor"]

    def _qemu(self) -> tuple[str | None, Root | None, str | None]:
        try:
            spy = self.domain.spy()
        except OSError:
            return None, None, None
        try:
            jobs = [job["status"] for job in spy.execute("query-jobs") if job["id"].startswith(("copy-", "commit-"))]
            root = self.domain.root(monitor=spy)
            side = next((side for side, path in self.images.items() if path.name == root), Root.ABSENT)
            return spy.execute("query-status")["status"], side, jobs[0] if jobs else None
        finally:
            spy.close()


def _disk_in(file: ET.Element | None) -> DiskDefined | None:
    if file is None:
        return None
    domain = file if file.tag == "domain" else file.find("domain")
    assert domain is not None
    return domain_xml.parse(ET.tostring(domain, encoding="unicode")).disks["vda"]


def _state_of(pid: int | None) -> str:
    """Return the letter of a process's state, "" if it has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state == "Z" else state
