"""Who may do what at a point: die, meddle, fail, start the guest again."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from pivotd.core.attempt import Attempt
from pivotd.core.pivot import JsonObject, Phase
from pivotd.core.request import Manager
from pivotd.engine.inbox import STAYED
from pivotd.errors import PivotdError
from tests.model import invariants
from tests.model.messages import NAMES, asked
from tests.model.points import GUEST, OTHER, SOMEBODY, Alternative, Died
from tests.model.qemu import ENDED, EXECUTING, IO_ERROR, Qemu


class Mischief:
    """The part of a World that offers alternatives."""

    def crash_alternatives(self) -> list[Alternative]:
        """Return who may die here."""
        if not self.crashes:
            return []
        found = []
        if self.qemu is not None:
            found = [
                Alternative("QEMU dies", self.kill_qemu, (), 1, 0),
                Alternative("power cut", self.cut_power, (), 1, 0),
            ]
        if not self.down:
            found.append(Alternative("pivotd dies", self._die, (), 1, 0))
            if self.qemu is not None:
                found.append(Alternative("pivotd and QEMU die", self._both_die, (), 1, 0))
        return found

    def _both_die(self) -> None:
        self.kill_qemu()
        self._die()

    def kill_qemu(self) -> None:
        """End the QEMU process."""
        self.qemu = None
        self.storage.forget_untold()
        self.storage.lose_tables()
        self.late = ()
        if self.monitor is not None:
            self.monitor.lose()
        self.monitor = self.session = None
        invariants.at_every_instant(self)

    def cut_power(self) -> None:
        """End everything and lose what was not flushed."""
        self.storage.cut_power()
        self.kill_qemu()
        if not self.down:
            self._die()

    def _die(self) -> None:
        raise Died

    def meddling(self) -> list[Alternative]:
        """Return what others, the guest, the storage and the user may do now."""
        found = self.asked_in_time()
        if not self.faults:
            return found
        found += [Alternative("the user asks:", self.ask, (name,)) for name in self._askable()]
        if self.qemu is None:
            return found
        return found + self._others(self.qemu) + self._guest(self.qemu)

    def _askable(self) -> list[str]:
        """Return what a person may ask now; what the driver refuses at once changes nothing, and is not tried."""
        if self.down or self.driver is None or (self.stepping and self.asked is None):
            return []
        messages, attempt, ending = self._waiting()
        phase = self.durable.phase
        found = []
        if "cancel" not in messages and attempt.cancelled_by is None and phase not in STAYED:
            found.append("cancel")
        if "set-bandwidth" not in messages and phase in {Phase.READY, Phase.PAUSING} and self.bandwidth:
            found.append("set-bandwidth")
        if not ending:
            found.append("end")
        return found

    def _waiting(self) -> tuple[tuple[str, ...], Attempt, bool]:
        """Return the messages that the driver has not answered, its attempt, and whether it was told to end."""
        if self.asked is None:
            assert self.driver is not None
            return self.driver.messages, self.driver.attempt, self.driver.ending
        inbox = self.asked.state.inbox
        return tuple(NAMES[type(one)] for one in inbox), self.asked.state.attempt, inbox.ending

    def asked_in_time(self) -> list[Alternative]:
        """Return what a person is expected to ask: the switch of a pivot that waits, the end of an undo window."""
        if self.down or self.driver is None or (self.stepping and self.asked is None):
            return []
        pivot, messages = self.durable, self._waiting()[0]
        if pivot.phase is Phase.READY and (nodes := self.losing()):
            return [Alternative(SOMEBODY, self.other, ("snapshot-delete", node), 0, 0) for node in nodes]
        names: tuple[str, ...] = ()
        if pivot.phase is Phase.READY and pivot.hold and "complete" not in messages:
            names = ("complete",)
        elif pivot.window_open and not pivot.owes_resume and not {"undo", "release"} & set(messages):
            names = ("undo", "release")
        return [Alternative("the user asks:", self.ask, (name,), 0, 0) for name in names]

    def ask(self, name: str) -> None:
        """Send a message to the driver, wherever it is in its work."""
        if self.asked is not None:
            if name == "end":
                self.asked.end()
                return
            request, driver = asked(self.asked, name), self.asked
            self.asked = None  # one request at a time
            try:
                with contextlib.suppress(StopIteration, PivotdError):
                    request.send(None)
                    self.requests.append(request)
            finally:
                self.asked = driver
            return
        assert self.driver is not None
        if name == "end":
            self.driver = replace(self.driver, ending=True)
        else:
            self.driver = replace(self.driver, messages=(*self.driver.messages, name))

    def _others(self, qemu: Qemu) -> list[Alternative]:
        state = qemu.run_state
        found = [Alternative(SOMEBODY, self.other, ("stop",))] if state == "running" else []
        if state not in EXECUTING and state != "shutdown":
            found.append(Alternative(SOMEBODY, self.other, ("cont",)))
        if state == "paused":
            found.append(Alternative(SOMEBODY, self.other, ("system_reset",)))
        for name, job in qemu.jobs.items():
            if job.kind != "create" and job.status not in ENDED:
                found.append(Alternative(SOMEBODY, self.other, ("job-cancel", name)))
                if job.status == "ready":
                    found.append(Alternative(SOMEBODY, self.other, ("job-complete", name)))
                    found.append(Alternative(SOMEBODY, self.other, ("block-job-cancel", name)))
                elif job.status == "pending":
                    found.append(Alternative(SOMEBODY, self.other, ("job-finalize", name)))
        for name, disk in qemu.disks.items():
            if disk.root is not None:
                found.append(Alternative(SOMEBODY, self.other, ("device_del", name)))
        return found + self._snapshots(qemu)

    def _snapshots(self, qemu: Qemu) -> list[Alternative]:
        """Somebody takes an internal snapshot, or loads one into an image that a job of pivotd's fills."""
        if self.durable.manager is Manager.LIBVIRT:
            return []  # libvirt takes and loads none while its job is there
        taking = self.durable.phase in {Phase.COPYING, Phase.READY}
        roots = {disk.root for disk in qemu.disks.values() if disk.root is not None} if taking else set()
        found = [Alternative(SOMEBODY, self.other, ("snapshot-save", root)) for root in sorted(roots - qemu.snapshots)]
        if self.durable.options.adopted:
            return found  # who has made the jobs has to guard what they fill
        filled = {job.target for job in qemu.jobs.values() if job.kind != "create" and job.status not in ENDED}
        return found + [Alternative(SOMEBODY, self.other, ("snapshot-load", node)) for node in sorted(filled)]

    def other(self, name: str, job: str = "") -> None:
        """Have somebody else run a command."""
        self.run(name, {"id": job} if job else {}, OTHER)

    def _guest(self, qemu: Qemu) -> list[Alternative]:
        found = []
        if qemu.run_state == "running":
            states = ("shutdown", "guest-panicked", "io-error")
            found = [Alternative("the guest goes into", self.guest_stops, (state,)) for state in states]
        for name, job in qemu.jobs.items():
            if job.status not in {"pending", "concluded"} and job.doomed is None:
                found.append(Alternative("it fails:", self._doom, (name, IO_ERROR)))
        return found

    def guest_stops(self, state: str) -> None:
        """The guest itself ends its running."""
        assert self.qemu is not None
        self.qemu.run_state = state
        self.ghost.pause_of = GUEST

    def replacements(self) -> list[Alternative]:
        """Return who may start a new QEMU after the first one died: with the right image, or with the wrong one."""
        if self.qemu is not None or not self.original:
            return []
        names = {invariants.image_by_rule(self.durable, disk).filename for disk in self.durable.disks}
        found = [Alternative("the guest is started again on the image by the rule", self._start)]
        if any(disk.destination.filename not in names for disk in self.durable.disks):
            found.append(Alternative("the guest is started on the destination", self._start, (True,)))
        return found

    def _start(self, wrong: bool = False) -> None:
        self.read_journal()  # whoever asks for the verdict reads it, and settles what it says
        qemu = Qemu(self.storage)
        self.qemu, self.original = qemu, False
        self.ghost.pause_of = None
        self.ghost.replaced_wrongly = self.ghost.replaced_wrongly or wrong
        for disk in self.durable.disks:
            image = disk.destination if wrong else invariants.image_by_rule(self.durable, disk)
            if not self.storage.exists(image.filename):
                self.storage.create(image.filename)
            self.storage.assign(image.filename, disk.disk)
            missing = self.storage.images[image.filename]
            qemu.attach(disk.disk, f"new{disk.index}", image.filename)
            self.storage.images[image.filename] = missing
        qemu.guest_runs()

    def _doom(self, name: str, how: str) -> None:
        assert self.qemu is not None
        changes: JsonObject = {"finalize_fails": True} if how == "finalize_fails" else {"doomed": how}
        self.qemu.jobs[name] = replace(self.qemu.jobs[name], **changes)
