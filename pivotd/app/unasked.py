"""QEMUs that run, or may run, and that pivotd cannot ask: no verdict on the disks of their guests is certain."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pivotd import limits
from pivotd.app.lanes import Lane
from pivotd.app.live_verdicts import Key, LiveVerdicts
from pivotd.app.registry import Host
from pivotd.core.request import Manager
from pivotd.core.verdict import Verdict, unasked
from pivotd.engine.supervisor import Supervisor
from pivotd.host import process, view
from pivotd.host.threads import of_each
from pivotd.journal.reader import Reader
from pivotd.libvirt import qemu_process


@dataclass(frozen=True, slots=True)
class Tried:
    """What tries to reach QEMUs at their monitors have come to."""

    nobody: frozenset[Supervisor]
    """Those at whose monitor nobody listened."""
    silent: Mapping[str, str]
    """Domains of which nothing is known after that, and why."""


class Unasked:
    """Finds the QEMUs that could not be asked for a look at verdicts."""

    def __init__(self, host: Host, lane: Lane) -> None:
        """``lane``: whose thread reads what the kernel knows of sockets."""
        self._host = host
        self._lane = lane

    async def connect(self, domain: str | None) -> Tried:
        """Try at once to reach QEMUs that may just have started: the next try by itself may be seconds away.

        ``domain``: of this domain alone.
        """
        known = self._host.supervisors
        wanted = list(known.values()) if domain is None else [one for one in (known.get(domain),) if one is not None]
        away = [one for one in wanted if one.may_have_started]
        there, hidden = await of_each(limits.CONNECT_TIMEOUT_S, _may_be_there, {one.path: one.path for one in away})
        silent = {one.name: hidden[one.path] for one in away if one.path in hidden}
        tried = [one for one in away if there.get(one.path)]
        ended = await asyncio.gather(*(one.tried() for one in tried))
        silent |= {
            one.name: "it has not answered yet" for one, has_ended in zip(tried, ended, strict=True) if not has_ended
        }
        absent = {one for one in away if there.get(one.path) is False}
        return Tried(frozenset(absent | {one for one in tried if one.session is None and one.found_nobody}), silent)

    def has_missed(self, live: LiveVerdicts, tried: Tried, domain: str | None) -> bool:
        """Return whether a QEMU came, or went, between the tries and the look: look again."""
        return any(
            one.manager is Manager.PIVOTD
            and domain in {None, name}
            and not live.is_asked(name)
            and one not in tried.nobody
            and name not in tried.silent
            and (one.failure is None or one.found_nobody)
            and (one.session is None or name not in live.unchecked)
            for name, one in self._host.supervisors.items()
        )

    async def monitors(self, live: LiveVerdicts, keys: Iterable[Key]) -> dict[str, str]:
        """Return, of domains that were not asked, the monitors at which somebody listens.

        Of a domain that pivotd does not have, that of its last pivot: a guest may have started that is not discovered
        yet, or whose domain was removed. One that has another name by now is asked by that.
        """
        supervisors = self._host.supervisors
        asked = {one.path for name, one in supervisors.items() if live.is_asked(name)}
        monitors: dict[str, str] = {}
        for domain, disk in keys:
            supervisor, moved = supervisors.get(domain), live.moved((domain, disk))
            if supervisor is not None and supervisor.manager is Manager.PIVOTD:
                monitors[domain] = supervisor.path
            elif supervisor is None and moved is not None and moved[0].manager is Manager.PIVOTD:
                monitors[domain] = moved[0].qmp
        monitors = {
            domain: path for domain, path in monitors.items() if not live.is_asked(domain) and path not in asked
        }
        if not monitors:
            return {}
        found = await self._lane.read(_listening)
        return {domain: path for domain, path in monitors.items() if path in found}

    def judge(self, live: LiveVerdicts, found: Verdict, monitors: Mapping[str, str], tried: Tried) -> Verdict:
        """Return a verdict that is not certain while a QEMU runs that could not be asked, or may run.

        ``monitors``: what ``monitors`` has found.
        """
        if live.is_asked(found.domain):
            return found
        key, supervisor = (found.domain, found.disk), self._host.supervisors.get(found.domain)
        if (what := self._runs(live, key, monitors, tried)) is None:
            return found
        why, moved = live.unchecked.get(found.domain), live.moved(key)
        if why is None and supervisor is not None and not supervisor.is_silent and supervisor.failure is not None:
            why = supervisor.detail
        is_libvirts = moved is not None and moved[0].manager is Manager.LIBVIRT
        if supervisor is None and moved is not None and is_libvirts:
            why = self._host.libvirts_left_out.get(moved[0].qmp)
        return unasked(found, what, is_known=supervisor is not None or is_libvirts, why=why)

    def _runs(self, live: LiveVerdicts, key: Key, monitors: Mapping[str, str], tried: Tried) -> str | None:
        """Return in words that a QEMU runs, or may run, that has this disk and was not asked; None: there is none."""
        domain, moved, supervisor = key[0], live.moved(key), self._host.supervisors.get(key[0])
        pid = live.runs_on(key)
        if pid is None and moved is not None and moved[0].manager is Manager.LIBVIRT:
            pid = qemu_process.of_pivot(moved[0])
        if pid is not None:
            return f"its QEMU runs (process {pid})"
        if domain in monitors:
            return f"a QEMU listens at {monitors[domain]}"
        if supervisor is None or supervisor.manager is not Manager.PIVOTD or supervisor in tried.nobody:
            return None
        if supervisor.is_silent:
            return f"a QEMU listens at {supervisor.path}"
        return f"a QEMU may listen at {supervisor.path}"


def _listening(_reader: Reader) -> frozenset[str]:
    return process.listening()


def _may_be_there(path: str) -> bool:
    """Return whether there may be a file of this name, also where nobody may look."""
    try:
        os.stat(path)  # noqa: PTH116 - as connect() takes it
    except (FileNotFoundError, NotADirectoryError):
        return view.hidden(path) is not None
    except (OSError, ValueError):
        return True
    return True
