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
from pivotd.host.threads import of_each
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

    def judge(self, live: LiveVerdicts, found: Verdict, monitors: Mapping[str, str]) -> Verdict:
        """Return a verdict that is not certain while a QEMU runs that could not be asked: its monitor may be taken.

        ``monitors``: what ``monitors`` has found.
        """
        if live.is_asked(found.domain):
            return found
        supervisor = self._host.supervisors.get(found.domain)
        why = live.unchecked.get(found.domain)
        if (pid := live.runs_on((found.domain, found.disk))) is not None:
            what = f"its QEMU runs (process {pid})"
        elif found.domain in monitors:
            what = f"a QEMU listens at {monitors[found.domain]}"
        elif supervisor is not None and supervisor.is_silent:
            what = f"a QEMU listens at {supervisor.path}"
        elif supervisor is not None and why is not None:
            what = f"a QEMU may listen at {supervisor.path}"
        else:
            return found
        return unasked(found, what, is_known=supervisor is not None, why=why)

    async def connect(self, domain: str | None) -> dict[str, str]:
        """Try at once to reach QEMUs that may just have started: the next try by itself may be seconds away.

        ``domain``: of this domain alone. Returns, of the domains that nothing is known of after that, why.
        """
        known = self._host.supervisors
        names = list(known) if domain is None else [name for name in (domain,) if name in known]
        paths = {name: known[name].path for name in names if known[name].may_have_started}
        there, hidden = await of_each(limits.CONNECT_TIMEOUT_S, os.path.exists, {path: path for path in paths.values()})
        silent = {name: hidden[path] for name, path in paths.items() if path in hidden}
        away = {
            name: one
            for name, path in paths.items()
            if there.get(path) and (one := known.get(name)) is not None and one.session is None
        }
        ended = await asyncio.gather(*(one.tried() for one in away.values()))
        tried = zip(away, ended, strict=True)
        return silent | {name: "it has not answered yet" for name, has_ended in tried if not has_ended}


def _listening(_reader: Reader) -> frozenset[str]:
    return process.listening()
