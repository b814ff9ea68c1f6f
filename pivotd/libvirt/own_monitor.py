"""A monitor that a guest of libvirt's has for pivotd: used for a moment, and only while libvirt does not answer.

The definition names it in its ``qemu:commandline``: a chardev of QEMU's with the id ``pivotd``. libvirt takes what is
done there for what QEMU does by itself: it sees the guest run, and its job end.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Self

from pivotd import limits
from pivotd.core.observation import Observation, Qemu
from pivotd.core.pivot import Identity, Pivot
from pivotd.core.request import Manager
from pivotd.errors import DomainUnreachableError, QmpRefusedError, UnsupportedQemuError
from pivotd.host import process
from pivotd.host.threads import in_thread
from pivotd.libvirt import pivot_look
from pivotd.libvirt.domain_xml import monitor_of
from pivotd.qmp.monitor import Monitor
from pivotd.qmp.session import Session


async def connect(identity: Identity, path: str | None) -> OwnMonitor | None:
    """Return a connection to this very QEMU process, None if there is none.

    ``path``: by the definition; None: only the process can tell.
    """
    try:
        # In threads: neither a QEMU that hangs in the kernel, nor a name whose storage hangs, may stop the event loop.
        if path is None:
            path = await in_thread(limits.FILE_TIMEOUT_S, _of_process, identity.pid, paths=[])
        if path is None or process.boot_id() != identity.boot_id:
            return None
        await in_thread(limits.CONNECT_TIMEOUT_S, os.path.realpath, path, paths=[path])
        session = await OwnMonitor.connect(path)
    except (DomainUnreachableError, UnsupportedQemuError, OSError):
        return None
    if (session.pid, process.start_ticks(session.pid)) == (identity.pid, identity.start_ticks):
        return session
    await session.close()
    return None


def _of_process(pid: int) -> str | None:
    """Return the monitor that a process was started with; /proc may hide that."""
    try:
        return monitor_of(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0"))
    except OSError:
        return None


class OwnMonitor(Session):
    """QEMU without libvirt: the guest runs on, or a job ends; nothing else is done this way."""

    manager = Manager.LIBVIRT

    @classmethod
    async def connect(cls, path: str) -> Self:
        """Connect. Raises: DomainUnreachableError, MonitorBusyError, UnsupportedQemuError."""
        return cls(await Monitor.connect(path), path)

    async def look(self, pivot: Pivot) -> Observation:
        """Look at QEMU; what libvirt believes, nobody knows."""
        questions = pivot_look.IN_A_PAUSE
        found = await self._monitor.burst([question.command for question in questions], limits.QUERY_TIMEOUT_S)
        answers = dict(zip(questions, found, strict=True))
        refused = next((answer for answer in found if isinstance(answer, QmpRefusedError)), None)
        if refused is not None:
            return Observation(Qemu.SILENT, detail=refused.message)
        seen = pivot_look.observed(pivot, pivot_look.Shown(answers, {}, None))
        return replace(seen, beliefs={}, by_monitor=True)

    async def place_thresholds(self, pivot: Pivot) -> None:
        """Nothing: libvirt keeps write thresholds."""
