"""Rung 2: the model does not lie. Every job verb in every job state gives the same on the model and on real QEMU.

One QEMU of each version serves all cases; each case has a disk of its own, plugged in and out.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import LONG
from tests.model.qemu import Disk, Node, Qemu, RefusedError
from tests.model.storage import Storage
from tests.support.qemu import Qemu as RealQemu
from tests.support.qemus import number, qemus
from tests.support.qmp_spy import SpyError
from tests.support.seeds import rng
from tests.support.waiting import until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

SIZE_BYTES = 1 << 20
LOOKS_STABLE = 10
"""So many looks must show what the model says before it counts as the end of a step."""
PATIENCE_S = 60.0
"""A difference counts when it has not gone away by then; a loaded machine makes QEMU slow."""
LOOK_S = 0.0005

COMPLETE, CANCEL, PAUSE = ("job-complete", {"id": "job"}), ("job-cancel", {"id": "job"}), ("job-pause", {"id": "job"})
RESUME, FINALIZE, DISMISS = (("job-" + verb, {"id": "job"}) for verb in ("resume", "finalize", "dismiss"))
SOFT = ("block-job-cancel", {"device": "job"})
STATES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "running": [],
    "paused": [PAUSE],
    "ready": [],
    "standby": [PAUSE],
    "standby, completing": [PAUSE, COMPLETE],
    "pending": [COMPLETE],
    "pending after a soft cancel": [SOFT],
    "concluded, switched": [COMPLETE, FINALIZE],
    "concluded, softly cancelled": [SOFT, FINALIZE],
    "concluded, cancelled": [CANCEL],
    "concluded, cancelled when pending": [COMPLETE, CANCEL],
    "concluded, failed": [],
    "null": [CANCEL, DISMISS],
}
"""How a mirror comes into each state; with auto-finalize or auto-dismiss it goes further, on both sides alike."""
SLOW = frozenset({"running", "paused"})
CHANGE = ("block-job-change", {"id": "job", "type": "mirror", "copy-mode": "write-blocking"})
VERBS: list[tuple[str, dict[str, Any]]] = [
    COMPLETE, FINALIZE, CANCEL, SOFT, ("block-job-cancel", {"device": "job", "force": True}), DISMISS, PAUSE, RESUME,
    ("blockdev-del", {"node-name": "dst"}), ("blockdev-del", {"node-name": "src"}), ("stop", {}), ("cont", {}),
    ("blockdev-mirror", {"job-id": "second", "device": "src", "target": "spare", "sync": "full"}), CHANGE,
]  # fmt: skip


class Shown(NamedTuple):
    """What a case compares."""

    status: str
    failed: bool
    root: str
    run_state: str


class Real:
    """One QEMU process and the disk of the present case."""

    def __init__(self, directory: Path, version: str) -> None:
        self.directory = directory
        extra = ["-device", "virtio-scsi-pci", "-boot", "reboot-timeout=-1"]  # nothing to boot is no reason for a reset
        self.qemu = RealQemu(directory, binary=qemus()[version], paused=True, extra=extra)
        for name in ("src", "dst", "spare"):
            (directory / name).write_bytes(rng(name).randbytes(SIZE_BYTES))
        (directory / "small").write_bytes(bytes(SIZE_BYTES // 2))

    def plug(self, target: str) -> None:
        for node in ("src", "dst", "spare"):
            name = target if node == "dst" else node
            file = {"driver": "file", "filename": str(self.directory / name), "node-name": f"{node}-file"}
            self.run("blockdev-add", file)
            self.run("blockdev-add", {"driver": "raw", "node-name": node, "file": f"{node}-file"})
        self.run("device_add", {"driver": "scsi-hd", "id": "disk0", "drive": "src"})

    def unplug(self) -> None:
        """Leave nothing of a case behind."""
        self.qemu.spy_events()
        with suppress(SpyError):
            self.run("job-resume", {"id": "job"})
        for job in self.run("query-jobs", {}):
            with suppress(SpyError):
                self.run("job-cancel", {"id": job["id"]})
        assert until(self.dismissed, PATIENCE_S, 0), self.run("query-jobs", {})
        self.run("device_del", {"id": "disk0"})
        left, until_s = {"unknown"}, time.monotonic() + 2 * PATIENCE_S
        while left and time.monotonic() < until_s:
            time.sleep(LOOK_S)  # QEMU lets go of an unplugged device's node a moment later
            left = {node["name"] for node in self.run("x-debug-query-block-graph", {})["nodes"]}
            for name in [node + suffix for node in ("src", "dst", "spare") for suffix in ("", "-file")]:
                with suppress(SpyError):
                    self.run("blockdev-del", {"node-name": name})
        assert not left, f"nodes are left: {left}"

    def dismissed(self) -> bool:
        """Dismiss what has ended; return whether no job is left."""
        for job in self.run("query-jobs", {}):
            with suppress(SpyError):
                self.run("job-dismiss", {"id": job["id"]})
        return not self.run("query-jobs", {})

    def run(self, name: str, arguments: dict[str, Any]) -> Any:
        return self.qemu.spy(name, arguments)

    def look(self) -> Shown:
        jobs = {job["id"]: job for job in self.run("query-jobs", {})}
        job = jobs.get("job", {"status": "null"})
        root = self.qemu.root("disk0").node
        return Shown(job["status"], "error" in job, root, self.qemu.run_state())

    def status(self, job: str) -> str:
        return next((row["status"] for row in self.run("query-jobs", {}) if row["id"] == job), "null")

    def settled(self, wanted: Shown, looks: int) -> Shown:
        """Look until what is wanted has been seen long enough, or until it is clear that it does not come."""
        stable, until_s = 0, time.monotonic() + PATIENCE_S
        while True:
            shown = self.look()
            stable = stable + 1 if shown == wanted else 0
            if stable == looks or time.monotonic() > until_s:
                return shown


class Modelled:
    """The same on the model."""

    def __init__(self, version: tuple[int, ...], run_state: str, *, slow: bool) -> None:
        self.qemu = Qemu(Storage(), (version[0], version[1]), run_state)
        self.slow = slow

    def plug(self, target: str) -> None:
        qemu = self.qemu
        for node in ("src", "dst", "spare"):
            qemu.storage.create(node)
            qemu.nodes[f"{node}-file"] = Node("file", node)
            qemu.nodes[node] = Node("raw", node, f"{node}-file", size=0 if (node, target) == ("dst", "small") else 1)
        qemu.disks["disk0"] = Disk("src")

    def run(self, name: str, arguments: dict[str, Any]) -> Any:
        return self.qemu.execute(name, arguments)

    def settled(self) -> Shown:
        """Let time pass; a slow mirror stays running."""
        qemu = self.qemu
        for _ in range(20):
            for name in qemu.moving():
                job = qemu.jobs[name]
                if not (self.slow and name == "job" and job.status == "running" and not job.paused and not job.doomed):
                    qemu.progress(name)
        job = qemu.jobs.get("job")
        status, failed = ("null", False) if job is None else (job.status, job.error is not None)
        return Shown(status, failed, qemu.disks["disk0"].root or "", qemu.run_state)


@pytest.fixture(scope="module", params=list(qemus()))
def real(request: pytest.FixtureRequest) -> Iterator[tuple[str, Real]]:
    with tempfile.TemporaryDirectory(prefix="pv") as directory:
        real = Real(Path(directory), request.param)
        with real.qemu:
            yield request.param, real


def both(real: Real, model: Modelled, name: str, arguments: dict[str, Any]) -> tuple[bool, bool, str]:
    """Run a command on both; return whether each refused it, and QEMU's words."""
    words = ""
    try:
        real.run(name, arguments)
    except SpyError as error:
        words = str(error)
    try:
        model.run(name, arguments)
    except RefusedError:
        return bool(words), True, words
    return bool(words), False, words


def case(real: Real, version: str, state: str, verb: tuple[str, dict[str, Any]], auto: tuple[bool, bool]) -> list[str]:
    """Bring a mirror into a state on both sides, send the verb, and return what differs."""
    differs = []
    target = "small" if state == "concluded, failed" else "dst"
    model = Modelled(number(version), real.qemu.run_state(), slow=state in SLOW)
    real.plug(target)
    model.plug(target)
    speed = {"speed": 1, "buf-size": 65536, "granularity": 65536} if state in SLOW else {}
    mirror = {"job-id": "job", "device": "src", "target": "dst", "sync": "full"} | speed
    start = ("blockdev-mirror", mirror | {"auto-finalize": auto[0], "auto-dismiss": auto[1]})
    for name, arguments in [start, *STATES[state], verb]:
        real_refused, model_refused, words = both(real, model, name, arguments)
        wanted = model.settled()
        shown = real.settled(wanted, LOOKS_STABLE if (name, arguments) == verb else 1)
        if (real_refused, shown) != (model_refused, wanted):
            differs.append(
                f"{version}: {state}, auto-finalize, auto-dismiss {auto}: {name} {arguments}: QEMU {shown} {words!r}, "
                f"model {wanted}{' refused' * model_refused}"
            )
            break
    real.unplug()
    return differs


@pytest.mark.parametrize("state", STATES)
@pytest.mark.thinned(2)
def test_every_verb_does_the_same_in_model_and_qemu(real: tuple[str, Real], state: str):
    """Same status, same error or none, same root, same run state; with and without auto-finalize and auto-dismiss.

    Each verb with neither, as pivotd starts its jobs, and with one other choice; PIVOTD_LONG=1 takes them all.
    """
    version, qemu = real
    differs, chance = [], rng("conformance", state)
    others = list(itertools.product([False, True], repeat=2))[1:]
    for verb in VERBS:
        for auto in [(False, False), *(others if LONG else chance.sample(others, 1))]:
            differs += case(qemu, version, state, verb, auto)
    assert not differs, "\n".join(differs)


def test_run_states_follow_the_same_commands(real: tuple[str, Real]):
    """Every sequence of four of stop, cont and system_reset."""
    version, qemu = real
    for sequence in itertools.product(["stop", "cont", "system_reset"], repeat=4):
        model = Modelled(number(version), qemu.qemu.run_state(), slow=False)
        for name in sequence:
            qemu.qemu.spy_events()
            both(qemu, model, name, {})
            if name == "system_reset":
                # It is done some time after the answer, and the firmware may reset a guest that finds nothing to boot.
                qemu.qemu.await_event("RESET", reason="host-qmp-system-reset")
            wanted = model.qemu.run_state
            if not until(lambda wanted=wanted: qemu.qemu.run_state() == wanted, PATIENCE_S, 0):
                pytest.fail(f"{version}: {sequence}: {name}: QEMU {qemu.qemu.run_state()}, model {wanted}")


@pytest.mark.parametrize("version", list(qemus()))
def test_a_reverse_mirror_takes_the_disk_back_with_nobody_looking_on(version: str):
    """Once it was told to complete it needs nobody: so none may live when an outcome is recorded."""
    with tempfile.TemporaryDirectory(prefix="pv") as directory:
        qemu = Real(Path(directory), version)
        with qemu.qemu:
            take_back(version, qemu)


def take_back(version: str, qemu: Real) -> None:
    """Move the disk and back again, on a QEMU of its own: QEMU 7.2 now and then keeps the unplugged device afterwards."""
    model = Modelled(number(version), qemu.qemu.run_state(), slow=False)
    qemu.plug("dst")
    model.plug("dst")
    manual = {"auto-finalize": False, "auto-dismiss": False}
    there = ("blockdev-mirror", {"job-id": "job", "device": "src", "target": "dst", "sync": "full"} | manual)
    back = (
        "blockdev-mirror",
        {"job-id": "back", "device": "dst", "target": "src", "sync": "none", "auto-dismiss": False},
    )
    for name, arguments in [there, COMPLETE, FINALIZE, back, ("job-complete", {"id": "back"})]:
        until_s = time.monotonic() + PATIENCE_S
        while arguments == {"id": "back"} and qemu.status("back") != "ready" and time.monotonic() < until_s:
            pass
        real_refused, model_refused, words = both(qemu, model, name, arguments)
        assert real_refused == model_refused, f"{version}: {name}: {words}"
        wanted = model.settled()
        shown = qemu.settled(wanted, LOOKS_STABLE)
        assert shown == wanted, f"{version}: {name}"
    assert wanted.root == "src"
