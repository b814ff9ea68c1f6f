"""A monitor that QEMU has for pivotd beside libvirt's, over the model of QEMU; pivotd.libvirt.own_monitor is the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pivotd.core.observation import OUR_PAUSE, JobSeen, Observation, Qemu, Root
from pivotd.core.pivot import Pivot
from pivotd.errors import QmpRefusedError, QmpUnknownError
from tests.model.libvirtd import job_id

if TYPE_CHECKING:
    from tests.model.libvirt_world import LibvirtWorld


class ModelOwnMonitor:
    """One connection, for a moment; anybody may die, meddle or go on between its commands."""

    version_text = "7.2.0"
    pid = 100

    def __init__(self, world: LibvirtWorld) -> None:
        self.world = world
        self.connected = True
        self.resumes = 0
        self.job_status: dict[str, str] = {}

    def subscribe(self, _callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    async def look(self, _pivot: Pivot) -> Observation:
        world = self.world
        self._between()
        qemu = world.qemu
        assert qemu is not None
        found = {job_id(disk): qemu.jobs.get(job_id(disk)) for disk in world.durable.disks}
        jobs = {name: JobSeen(job.status, job.error) for name, job in found.items() if job is not None}
        roots = {disk.disk: root for disk in world.durable.disks if (root := world.root(disk)) is not Root.ABSENT}
        return Observation(Qemu.SAME, run_state=qemu.run_state, jobs=jobs, roots=roots, by_monitor=True)

    async def resume(self) -> None:
        world = self.world
        self._between()
        assert world.qemu is not None
        if (state := world.qemu.run_state) not in OUR_PAUSE:
            raise QmpRefusedError(f"the guest is {state}", command="cont", text=state)
        world.may_resume_alone()
        world.execute("cont", {})

    async def cancel(self, jobs: Sequence[str], *, resume: bool) -> None:
        assert not resume
        for name in jobs:
            self._between()
            self.world.run("job-cancel", {"id": name})

    async def place_thresholds(self, _pivot: Pivot) -> None:
        self._between()

    async def close(self) -> None:
        self.connected = False

    def _between(self) -> None:
        """What may happen before a command. Raises: QmpUnknownError, Died."""
        world = self.world
        world.point([*world.crash_alternatives(), *world.looked_between()])
        if world.qemu is None or not world.original:
            self.connected = False
            raise QmpUnknownError("QEMU has ended")
