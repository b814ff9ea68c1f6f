"""pivotd: the composition root. Recovery first; the API is imported and served only after it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pivotd import __version__, limits, log, sd, utf8
from pivotd.app.registry import CONFIG, DISCOVERED, LIBVIRT, RUNTIME, Host
from pivotd.app.status import Status
from pivotd.config import DEFAULT_PATH, Config, Fleet, load
from pivotd.core.pivot import Pivot
from pivotd.core.request import Manager
from pivotd.engine.converge import Converger
from pivotd.engine.driver import Driver
from pivotd.engine.ports import Domain, Session
from pivotd.engine.supervisor import Supervisor
from pivotd.errors import EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE, ConfigError, JournalError, PivotdError
from pivotd.host.flush import Flusher
from pivotd.host.process import is_gone
from pivotd.host.threads import in_thread
from pivotd.journal.changes import utc_now
from pivotd.journal.journal import Journal

logger = log.get_logger()

DISCOVER_INTERVAL_S = 5.0
EXTEND_START_S = 30.0
GC_THRESHOLDS = gc.get_threshold()
"""The thresholds with which the interpreter starts."""
RETRY_START_S = 1.0
"""systemd restarts pivotd at once; an unusable journal must not turn that into a busy loop."""


class SystemClock:
    """The real time."""

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def utc_now(self) -> str:
        """Return the wall clock, RFC 3339 with microseconds."""
        return utc_now()


def main() -> NoReturn:
    """Run the daemon until SIGTERM; exit 2 on a bad configuration, 4 on an unusable journal."""
    utf8.require()
    options = parser().parse_args()
    if options.reload is not None:
        _reload(options.reload)
    # Until there is a loop to obey it: by itself it would end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        config = load(options.config)
    except ConfigError as error:
        if not options.check:
            why = f"{error.message}; correct it (`pivotd --check` reads it), then `systemctl restart pivotd`"
            _tell_clients(why, error.fields.get("file"))
        _fail(error.message, EXIT_USAGE)
    if options.check and config.libvirt.uri is not None:
        _check_libvirt(config.libvirt.uri)
    if options.check and config.fleet.endpoints:
        _check_fleet(config.fleet)
    if options.check:
        print(f"{options.config}: ok")  # noqa: T201 - the answer to --check
        sys.exit(0)
    _raise_limits()
    log.setup(config.log.level)
    sys.excepthook = lambda _kind, error, _trace: logger.error("daemon.died", error=repr(error))
    try:
        journal = Journal.open(config.state_dir)
    except JournalError as error:
        _tell_clients(error.message)
        if "NOTIFY_SOCKET" in os.environ:
            time.sleep(RETRY_START_S)
        _fail(error.message, EXIT_REFUSED)
    except OSError as error:
        why = f"{config.state_dir}: {error.strerror}; make the directory usable for pivotd's user"
        _tell_clients(why)
        _fail(why, EXIT_REFUSED)
    asyncio.run(Daemon(options.config, config, journal).run())
    sys.exit(0)


def parser() -> argparse.ArgumentParser:
    """Return what the command line may have."""
    made = argparse.ArgumentParser(prog="pivotd", description="Moves the disks of running QEMU guests.")
    config_help = f"the configuration, with the files in FILE.d; default {DEFAULT_PATH}"
    made.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help=config_help)
    made.add_argument("--check", action="store_true", help="check the configuration and exit")
    made.add_argument("--reload", type=int, metavar="PID", help="have a running pivotd read its configuration again")
    made.add_argument("-V", "--version", action="version", version=f"pivotd {__version__}")
    return made


def _raise_limits() -> None:
    """Raise the limit of open files for many domains, and delay the garbage collector until after recovery."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, limits.OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    gc.set_threshold(limits.ALLOCATIONS_BETWEEN_COLLECTIONS)


def _reload(pid: int) -> NoReturn:
    status, said = importlib.import_module("pivotd.app.reload").ask(pid)
    if status:
        _fail(said, status)
    print(said)  # noqa: T201 - the answer
    sys.exit(0)


def _tell_clients(why: str, file: str | None = None) -> None:
    """Answer the clients that systemd has queued: they would wait for a daemon that does not come."""
    importlib.import_module("pivotd.app.not_started").answer(why, file)


def _check_libvirt(uri: str) -> None:
    """Connect to libvirt; exit with one line if that fails or takes too long: a libvirtd that hangs says nothing."""
    check = importlib.import_module("pivotd.libvirt.connection").check
    line = importlib.import_module("pivotd.libvirt.line").Line("check")
    try:
        asyncio.run(line.call(f"a connection to {uri}", limits.COMMAND_TIMEOUT_S, check, uri))
    except PivotdError as error:
        _fail(error.message, EXIT_UNREACHABLE)


def _check_fleet(settings: Fleet) -> None:
    """Try every endpoint and print a line for each; exit with one line if the fleet cannot be used."""
    nodes: Any = importlib.import_module("pivotd.fleet.nodes")
    presence: Any = importlib.import_module("pivotd.fleet.presence")
    try:
        for line in asyncio.run(nodes.check(settings, presence.machine_id())):
            print(line)  # noqa: T201 - the answer to --check
    except PivotdError as error:
        _fail(error.message, error.exit_status)


def _fail(message: str, status: int) -> NoReturn:
    print(f"pivotd: {message}", file=sys.stderr)  # noqa: T201 - before the log is there
    sys.exit(status)


class Daemon:
    """All parts of one process, started and ended in order."""

    def __init__(self, path: Path, config: Config, journal: Journal) -> None:
        self._path = path
        self._config = config
        self._journal = journal
        self._clock = SystemClock()
        self._fleet: Any = None
        if config.fleet.endpoints:
            self._fleet = importlib.import_module("pivotd.fleet").connect(config.fleet)
        self._host = Host(self._make_driver)
        self._status = Status(self._host, journal)
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._configured: dict[str, tuple[str, str]] = {}
        """Path and origin of domains that are at other monitors as long as they have open pivots there."""
        self._freed: set[str] = set()
        """Domains that are about to be freed."""

    def _make_driver(self, pivot: Pivot, domain: Domain) -> Driver:
        converger = Converger(Flusher(), self._clock)
        return Driver(pivot, domain, self._journal, self._clock, converger, self._fleet)

    async def run(self) -> None:
        """Recover, serve, and end at SIGTERM or SIGINT."""
        self._say_started()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        log.wake_with(flusher(loop))
        async with asyncio.TaskGroup() as group:
            host = group.create_task(self._host.run(), name="host")
            watchdog = group.create_task(self._watchdog(), name="watchdog")
            await self._host.started()
            others = await self._add_open_domains()
            await self._recover()
            checking = group.create_task(self._check_journal(), name="journal check")
            await asyncio.wait([checking], timeout=limits.JOURNAL_CHECK_S)
            await self._host.add_all(others)
            await self._host.discover(self._config.discover)
            libvirt = await self._find_libvirts_domains(group)
            await self._serve()
            if libvirt is not None:
                libvirt.cancel()
            sd.notify("STOPPING=1", "STATUS=finishing pauses that are open")
            logger.info("daemon.stopping", open_pivots=len(self._host.drivers()))
            self._host.end()
            await host
            checking.cancel()
            watchdog.cancel()
        if self._fleet is not None:
            self._fleet.close()
        await self._journal.close()
        logger.info("daemon.stopped")

    def _end(self) -> None:
        """Begin to end; whatever waits for etcd, in whichever task, delays this no longer than a moment."""
        self._stop.set()
        if self._fleet is not None:
            self._fleet.end()

    def _say_started(self) -> None:
        config = self._config
        logger.info(
            "daemon.started",
            version=__version__,
            configuration=[str(file) for file in config.files],
            socket=str(config.socket),
            state_dir=str(config.state_dir),
            journal=str(self._journal.path),
            level=config.log.level,
        )
        if self._journal.before_upgrade is not None:
            logger.info("journal.upgraded", journal=str(self._journal.path), copy=str(self._journal.before_upgrade))

    async def _add_open_domains(self) -> dict[str, tuple[str, str]]:
        """Supervise the domains with open pivots, whose guests may be waiting; return path and origin of the others."""
        open_pivots: defaultdict[str, list[Pivot]] = defaultdict(list)
        for pivot in self._journal.open_pivots():
            open_pivots[pivot.domain].append(pivot)
        known = {name: (str(path), CONFIG) for name, path in self._config.domains.items()}
        known |= {row.name: (row.qmp_path, RUNTIME) for row in self._journal.domains() if row.name not in known}
        elsewhere: dict[str, tuple[str, str]] = {}
        for name, pivots in open_pivots.items():
            last = pivots[-1]
            if last.manager is Manager.LIBVIRT:
                if name in known:
                    self._leave_out(name, known.pop(name), "libvirt's has an open pivot")
                connector = importlib.import_module("pivotd.app.libvirt_domains").LibvirtConnector(last.qmp, name)
                self._host.add_by(name, connector, LIBVIRT, pivots)
                continue
            path, origin = known.pop(name, (last.qmp, DISCOVERED))
            runs = not is_gone(last.identity.pid, last.identity.start_ticks, last.identity.boot_id)
            if path != last.qmp and runs:
                elsewhere[name] = path, origin
            else:
                self._host.add(name, path, origin, pivots)
        if open_pivots:
            self._host.listeners.append(self._free_name)
        await asyncio.gather(*(self._add_elsewhere(n, *place, open_pivots[n]) for n, place in elsewhere.items()))
        return known

    async def _add_elsewhere(self, name: str, path: str, origin: str, pivots: list[Pivot]) -> None:
        """Supervise a domain at the monitor of its open pivots, unless that has gone, perhaps to ``path``."""
        had, there = pivots[-1].qmp, True
        with contextlib.suppress(TimeoutError):  # its storage does not answer
            there = await in_thread(limits.FILE_TIMEOUT_S, os.path.exists, had, paths=[had])
        if there:
            self._leave_out(name, (path, origin), f"it has an open pivot at {had}, where its QEMU runs")
        self._host.add(name, had if there else path, origin, pivots)

    def _leave_out(self, name: str, configured: tuple[str, str], why: str) -> None:
        """Have a domain elsewhere until its pivots have ended. ``configured``: the path and origin that it then has."""
        self._configured[name] = configured
        self._host.leave_out(name, *configured, f"domain {name} is left out at this monitor: {why}")

    def _free_name(self, name: str) -> None:
        """Forget a domain that is there for its open pivots alone, once they have ended; have it where it should be."""
        known = self._host.supervisors.get(name)
        if known is None or known.drivers or name in self._freed:
            return
        foreign = known.manager is Manager.LIBVIRT and known.path != self._config.libvirt.uri
        if foreign or (known.manager is Manager.PIVOTD and name in self._configured):
            self._freed.add(name)
            self._host.begin(self._free(known), f"domain {name} moves")

    async def _free(self, known: Supervisor) -> None:
        """Do so once no request holds the domain: one may begin a pivot, and a pivot that has ended an undo of it."""
        name = known.name
        async with self._host.lock(name):
            self._freed.discard(name)
            if self._host.supervisors.get(name) is not known or known.drivers:
                return
            configured, left_out = self._configured.pop(name, None), self._host.left_out.get(name)
            if configured is not None and left_out is not None and left_out.path == configured[0]:
                await self._host.move(name, *configured)  # no reload has changed that since
            elif known.manager is Manager.LIBVIRT:
                self._host.remove(name)

    async def _find_libvirts_domains(self, group: asyncio.TaskGroup) -> asyncio.Task[None] | None:
        """Look for libvirt's domains from now on, once before this returns; None: no libvirt is configured."""
        uri = self._config.libvirt.uri
        if uri is None:
            return None
        module: Any = await asyncio.to_thread(importlib.import_module, "pivotd.app.libvirt_domains")
        domains = module.LibvirtDomains(self._host, uri)
        await domains.look()
        return group.create_task(domains.run(), name="libvirt")

    async def _check_journal(self) -> None:
        """Doubt a journal that is another file than the last daemon left; until that is known, doubt every verdict.

        A disk that is full or hangs keeps pivotd from nothing else.
        """
        told = False
        while not self._journal.file_checked:
            try:
                if await self._journal.check_file():
                    logger.warning("journal.moved", journal=str(self._journal.path))
            except JournalError as error:
                if not told:
                    logger.warning("journal.not-checked", error=error.message)
                told = True
                await asyncio.sleep(limits.JOURNAL_CHECK_AGAIN_S)

    async def _recover(self) -> None:
        """Wait until every open pivot was looked at; tell systemd that this may take long."""
        async with asyncio.TaskGroup() as group:
            looked = group.create_task(self._host.all_looked())
            while not looked.done() and not self._stop.is_set():
                sd.extend_timeout(EXTEND_START_S)
                await asyncio.wait([looked], timeout=EXTEND_START_S / 3)
            looked.cancel()
        logger.info("daemon.recovered", domains=len(self._host.supervisors))

    async def _serve(self) -> None:
        """Import the API in a thread, serve it until told to stop."""
        reload: Any = importlib.import_module("pivotd.app.reload")
        reload_listener = reload.listen()
        self._status.tell("READY=1")
        await asyncio.to_thread(log.load)
        server: Any = await asyncio.to_thread(importlib.import_module, "pivotd.api.server")
        access_module: Any = importlib.import_module("pivotd.api.access")
        service: Any = await asyncio.to_thread(importlib.import_module, "pivotd.app.service")
        alarms_module: Any = await asyncio.to_thread(importlib.import_module, "pivotd.app.alarms")
        leftovers_module: Any = await asyncio.to_thread(importlib.import_module, "pivotd.app.leftovers")
        sys.setswitchinterval(limits.SWITCH_INTERVAL_S)
        verdicts: Any = None
        if self._fleet is not None:
            module: Any = importlib.import_module("pivotd.app.fleet_verdicts")
            verdicts = module.FleetVerdicts(self._fleet, self._journal.calm)
        reads = await service.Reads.attach(self._config.state_dir, self._host, self._journal, verdicts)
        daemon_service = service.DaemonService(self._config, self._host, self._journal, reads, self._fleet)
        access = access_module.Access.of(self._config.access)
        reloader = reload.Reloader(
            self._path, self._config, self._host, self._journal, access, daemon_service, self._status
        )
        sock = _listener(self._config.socket)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        api_stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            status = group.create_task(self._status.run(), name="status")
            found = group.create_task(self._say_found(sock), name="found")
            discovery = group.create_task(self._discover(reloader), name="discovery")
            in_fleet = self._join_fleet(group, reads)
            looks = alarms_module.Alarms(self._host, self._journal, reads, self._fleet)
            alarms = group.create_task(looks.run(), name="alarms")
            leftovers = group.create_task(leftovers_module.Leftovers(self._host, reads).run(), name="leftovers")
            retention = group.create_task(daemon_service.retention.run(), name="retention")
            reloading = group.create_task(reloader.run(self._hangup, reload_listener), name="reload")
            api = group.create_task(server.serve(daemon_service, access, sock, api_stop), name="api")
            await self._stop.wait()
            daemon_service.end()
            api_stop.set()
            for task in (status, found, discovery, alarms, leftovers, retention, reloading, *in_fleet):
                task.cancel()
            await api
        await reads.close()

    def _join_fleet(self, group: asyncio.TaskGroup, reads: Any) -> list[asyncio.Task[None]]:
        """Claim and release guests in the fleet from now on, and be seen there, if this host belongs to one."""
        if self._fleet is None:
            return []
        module: Any = importlib.import_module("pivotd.app.owned_guests")
        owners = module.OwnedGuests(
            self._host, self._fleet, self._clock, self._journal, reads.enter_fleet, reads.tell_news
        )
        presence: Any = importlib.import_module("pivotd.app.fleet_presence")
        return [
            group.create_task(owners.run(), name="fleet owners"),
            group.create_task(presence.show(self._fleet), name="fleet presence"),
        ]

    async def _say_found(self, sock: socket.socket) -> None:
        """Log which QEMUs were found, once each domain was connected to, or could not be."""
        wait_s = limits.CONNECT_TIMEOUT_S + limits.GREETING_TIMEOUT_S
        await asyncio.gather(*(supervisor.settled(wait_s) for supervisor in self._host.supervisors.values()))
        sessions = {name: supervisor.session for name, supervisor in sorted(self._host.supervisors.items())}
        logger.info(
            "daemon.serving",
            socket=sock.getsockname(),
            domains=len(sessions),
            qemus=[_described(name, session) for name, session in sessions.items() if session is not None],
            not_connected=[name for name, session in sessions.items() if session is None],
        )

    async def _discover(self, reloader: Any) -> None:
        while True:
            await asyncio.sleep(DISCOVER_INTERVAL_S)
            await self._host.discover(reloader.config.discover)

    async def _watchdog(self) -> None:
        """Tell systemd that the event loop runs and the journal is written; otherwise systemd restarts pivotd."""
        interval_s = sd.watchdog_interval_s()
        while interval_s is not None and self._journal.alive:
            sd.notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)
        if interval_s is not None:
            sd.notify("STATUS=the journal's writer has died: waiting for a restart")


def _described(name: str, session: Session) -> str:
    """Return a domain with its QEMU; libvirt's are not asked for their version until somebody looks at them."""
    version = f"QEMU {session.version_text}, " if session.version_text else ""
    return f"{name} ({version}process {session.pid})"


def flusher(loop: asyncio.AbstractEventLoop) -> Callable[[float], None]:
    """Return what has log.flush() called by this loop, in whose thread this runs, after so many seconds."""
    thread = threading.get_ident()

    def wake(seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the rest is written at exit
            if threading.get_ident() == thread:
                loop.call_later(seconds, log.flush)  # in a pause: a wake-up would be another turn of the loop
            else:
                loop.call_soon_threadsafe(loop.call_later, seconds, log.flush)

    return wake


def _listener(path: Path) -> socket.socket:
    """Return the socket from systemd, or a new one; the journal's lock shows that no other daemon runs."""
    handed = sd.listen_fds()
    if handed:
        return handed[0]
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    # Who may do what is decided by peer credentials, request by request.
    path.chmod(0o666)
    sock.listen(limits.STREAMS_MAX)
    return sock


if __name__ == "__main__":
    main()
