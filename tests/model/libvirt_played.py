"""The model of libvirtd played call by call, beside a real one: nothing is injected but what the sequence says."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from pivotd.core.observation import JobBelief, Root
from pivotd.core.pivot import Identity, Phase, Pivot
from pivotd.core.request import CopyOptions, Manager, Requester
from tests.model.kinds import attach
from tests.model.libvirt_real import Known, Shown
from tests.model.libvirt_world import LibvirtWorld
from tests.model.libvirtd import CallFailedError, CallRefusedError, Libvirtd, LibvirtdDiedError, Release, job_id
from tests.model.libvirtd import Known as ModelKnown
from tests.model.points import PIVOTD
from tests.model.qemu import Qemu, RefusedError, Version
from tests.model.storage import Storage
from tests.support.moves import Move

OTHER_IMAGE = "/other/disk0"


class Stage(LibvirtWorld):
    """A host without pivotd and without judges, on which libvirtd dies at the place that was chosen."""

    dies_at: str | None = None

    def edge(self, label: str) -> None:
        if label == self.dies_at:
            self.dies_at = None
            self.libvirtd.die()
            raise LibvirtdDiedError

    def run(self, name: str, arguments: dict[str, Any], _who: str = PIVOTD) -> Any:
        assert self.qemu is not None
        try:
            return self.qemu.execute(name, arguments)
        except RefusedError as error:
            return error

    def let_job_end(self, name: str) -> None:
        while self.qemu is not None and name in self.qemu.moving():
            self.qemu.progress(name)

    def may_resume(self, _who: str) -> None:
        """There is no pivotd."""


class Played:
    """The same guest as Real, on the model."""

    def __init__(self, move: Move, libvirt: Release, qemu: Version) -> None:
        self.move, self.version = move, qemu
        process = Qemu(Storage(), qemu)
        self.disk = replace(attach(process, move, "p", 0, legacy=False), job="")
        pivot = Pivot(
            id="p", request_id="p", domain="web1", qmp="/model", kind=move.kind, phase=Phase.PREPARING,
            requested_by=Requester(0, 0, 1), options=CopyOptions(), disks=(self.disk,), created_at="",
            identity=Identity("", 0, 0, ""), manager=Manager.LIBVIRT,
        )  # fmt: skip
        self.stage = Stage(pivot, process, Libvirtd([self.disk], hook=False, release=libvirt))

    @property
    def libvirtd(self) -> Libvirtd:
        """The model's libvirtd."""
        return self.stage.libvirtd

    # -- what happens -------------------------------------------------------------------------------------------------

    def call(self, name: str, image: Root | None, dies_at: str | None) -> str:
        """Ask libvirtd; return ok, refused or failed. ``dies_at``: a place in its work, if it gets there."""
        self.stage.dies_at = dies_at
        try:
            self._ask(name, image)
        except CallRefusedError:
            return "refused"
        except (CallFailedError, LibvirtdDiedError):
            return "failed"
        finally:
            self._settle()
        return "ok"

    def _ask(self, name: str, image: Root | None) -> None:
        stage, libvirtd = self.stage, self.libvirtd
        match name:
            case "define" | "update":
                assert image is not None
                if name == "update" and libvirtd.transient:
                    raise CallRefusedError
                libvirtd.transient, libvirtd.written, libvirtd.remembered = False, True, True
                libvirtd.define(0, image)
                libvirtd.file = libvirtd.config
            case "undefine":
                if libvirtd.transient:
                    raise CallRefusedError
                libvirtd.transient, libvirtd.written = True, False
            case "create":
                if libvirtd.memory is not None:
                    raise CallRefusedError
                self._create(libvirtd.config[0])
            case "reset" | "destroy" if libvirtd.memory is None or stage.qemu is None:
                raise CallRefusedError
            case "reset":
                stage.execute("system_reset", {})
            case "destroy":
                self.kill_qemu()
            case _:
                libvirtd.perform(stage, name, ("disk0",))

    def _create(self, root: Root) -> None:
        """Start the guest from its next boot."""
        stage = self.stage
        left = {name: image for name, image in stage.storage.images.items() if name == self.disk.destination.filename}
        stage.storage = Storage(left if self.move is Move.SNAPSHOT else None)
        stage.qemu = process = Qemu(stage.storage, self.version)
        attach(process, self.move, "p", 0, legacy=False)
        if root is not Root.SOURCE:
            image = (
                self.disk.destination
                if root is Root.DESTINATION
                else replace(self.disk.source, node="o", filename=OTHER_IMAGE)
            )
            process.attach("disk0", image.node, image.filename)
        self.libvirtd.memory = self.libvirtd.status = (ModelKnown(root),)

    def kill_libvirtd(self) -> None:
        """SIGKILL."""
        self.libvirtd.die()

    def start_libvirtd(self, *, hook: bool, dies_at: str | None = None) -> None:
        """Start it, with the hook or without."""
        self.libvirtd.hook, self.stage.dies_at = hook, dies_at
        with contextlib.suppress(LibvirtdDiedError):
            self.libvirtd.start(self.stage)
        self._settle()

    def kill_qemu(self) -> None:
        """SIGKILL."""
        self.stage.qemu = None
        if self.libvirtd.running:
            self.libvirtd.qemu_has_ended()

    def _settle(self) -> None:
        """Let time pass until nothing moves."""
        if self.stage.qemu is not None:
            self.stage.qemu.settle()
            with contextlib.suppress(LibvirtdDiedError):
                self.libvirtd.process_events(self.stage)
        self.stage.dies_at = None

    # -- what it shows ------------------------------------------------------------------------------------------------

    def shown(self) -> Shown:
        """Return everything that is compared."""
        libvirtd, qemu = self.libvirtd, self.stage.qemu
        job = None if qemu is None else qemu.jobs.get(job_id(self.disk))
        active = libvirtd.memory is not None if libvirtd.running else None
        state = None if qemu is None else qemu.run_state
        return Shown(
            alive=libvirtd.running,
            running=active,
            paused=state != "running" if active else None,
            live=_known(libvirtd.memory),
            next=libvirtd.config[0] if libvirtd.running and not libvirtd.transient else None,
            status=_known(libvirtd.status),
            listed=None if libvirtd.status is None else libvirtd.status[0].listed,
            file=libvirtd.file[0] if libvirtd.written else None,
            run_state=state,
            root=None if qemu is None else self.stage.root(self.disk),
            job=None if job is None else job.status,
        )


def _known(disks: tuple[ModelKnown, ...] | None) -> Known | None:
    if disks is None:
        return None
    return Known(disks[0].live, disks[0].job if disks[0].named else JobBelief.COPYING)
