"""QEMUs that run, or may run, and that pivotd cannot ask: no verdict on the disks of their guests is certain."""

from __future__ import annotations

import asyncio
import os.path
from collections.abc import Iterable, Mapping

from pivotd import limits
from pivotd.app.lanes import Lane
from pivotd.app.live_verdicts import Key, LiveVerdicts
from pivotd.app.registry import Host
from pivotd.core.request import Manager
from pivotd.core.verdict import Verdict, unasked
from pivotd.host import process
from pivotd.host.threads import in_thread
from pivotd.journal.reader import Reader


class Unasked:
    """Finds the QEMUs that could not be asked for a look at verdicts."""

    def __init__(self, host: Host, lane: Lane) -> None:
        """``lane``: whose thread reads what the kernel knows of sockets."""
        self._host = host
        self._lane = lane

    async def monitors(self, live: LiveVerdicts, keys: Iterable[Key]) -> dict[str, str]:
        """Return, of domains that pivotd does not have, the monitors of last pivots at which somebody listens.

        A guest may have started that is not discovered yet, or whose domain was removed. One that has another name by
        now is asked by that.
        """
        known = {supervisor.path for supervisor in self._host.supervisors.values()}
        monitors = {
            pivot.domain: pivot.qmp
            for pivot, _ in filter(None, map(live.moved, keys))
            if pivot.domain not in self._host.supervisors and pivot.manager is Manager.PIVOTD and pivot.qmp not in known
        }
        if not monitors:
            return {}
        found = await self._lane.read(_listening)
        return {domain: path for domain, path in monitors.items() if path in found}

    def judge(self, live: LiveVerdicts, found: Verdict, away: Mapping[str, str]) -> Verdict:
        """Return a verdict that is not certain while a QEMU runs that could not be asked: its monitor may be taken."""
        if live.is_asked(found.domain):
            return found
        supervisor = self._host.supervisors.get(found.domain)
        if (pid := live.runs_on((found.domain, found.disk))) is not None:
            return unasked(found, f"its QEMU runs (process {pid})", is_known=supervisor is not None)
        if (path := away.get(found.domain)) is not None:
            return unasked(found, f"a QEMU listens at {path}", is_known=supervisor is not None)
        if supervisor is not None and (supervisor.is_silent or found.domain in live.unchecked):
            return unasked(found, f"a QEMU listens at {supervisor.path}", is_known=True)
        return found

    async def connect(self, domain: str | None) -> set[str]:
        """Try at once to reach QEMUs that may just have started: the next try by itself may be seconds away.

        ``domain``: of this domain alone. Returns the domains that nothing is known of after that.
        """
        known = self._host.supervisors
        names = list(known) if domain is None else [name for name in (domain,) if name in known]
        paths = {name: known[name].path for name in names if known[name].may_have_started}
        try:
            there = await in_thread(limits.CONNECT_TIMEOUT_S, _there, paths, paths=list(paths.values()))
        except TimeoutError:
            return set()  # nobody reaches a monitor whose directory hangs
        away = [(name, one) for name in there if (one := known.get(name)) is not None and one.session is None]
        ended = await asyncio.gather(*(one.tried() for _, one in away))
        return {name for (name, _), has_ended in zip(away, ended, strict=True) if not has_ended}


def _listening(_reader: Reader) -> frozenset[str]:
    return process.listening()


def _there(paths: Mapping[str, str]) -> list[str]:
    """Return the domains whose monitor has a socket."""
    return [name for name, path in paths.items() if os.path.exists(path)]  # noqa: PTH110 - one system call each
