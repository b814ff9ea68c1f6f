"""`pivotctl fleet ls` and `status`: all domains, all hosts, all nodes of etcd."""

from __future__ import annotations

from typing import Any

from pivotd.cli import render
from pivotd.cli.complaints import EXIT_INTERRUPTED
from pivotd.cli.context import App, tell
from pivotd.cli.fleet_command import asked
from pivotd.client.answers import FleetDomain, FleetStatus
from pivotd.core.fleet import FleetView
from pivotd.errors import EXIT_DONE, EXIT_UNREACHABLE, FleetError
from pivotd.fleet import fleet_answers
from pivotd.fleet.records import HostSeen
from pivotd.fleet.store import EtcdFleet
from pivotd.fleet.watching import Watching

COLUMNS = ("DOMAIN", "HOST", "SEEN", "DISK", "IMAGE", "OUTCOME", "UNDECIDED")
Row = tuple[str | None, ...]


def ls(app: App, *, follow: bool) -> None:
    """Show all domains."""
    if follow:
        try:
            asked(lambda store: _follow(store, app))
        except KeyboardInterrupt:
            app.status = EXIT_INTERRUPTED
        return
    views, hosts = asked(_all)
    found = [fleet_answers.domain(view) for view in views]
    if render.answer(app, found):
        return
    render.table(COLUMNS, [row for one in found for row in _rows(one, hosts)])


async def _all(store: EtcdFleet) -> tuple[list[FleetView], dict[str, HostSeen]]:
    views, _ = await store.domains(store.timeout_s)
    return views, await store.hosts(store.timeout_s)


async def _follow(store: EtcdFleet, app: App) -> None:
    """Print each domain, and each change of one, as a line of JSON or a line for each disk."""

    def changed(domain: str, view: FleetView | None) -> None:
        shown: Any = {"domain": domain, "forgotten": True} if view is None else fleet_answers.domain(view)
        if render.each(app, shown, flush=True):
            return
        if view is None:
            print(f"{render.text(domain)} forgotten", flush=True)
        else:
            for row in _rows(fleet_answers.domain(view), None):
                print("  ".join(render.text(cell) for cell in row), flush=True)

    def told(error: FleetError | None) -> None:
        tell("etcd answers again" if error is None else f"{error.message}; waiting for it")

    await Watching(store, changed, told).run()


def _rows(one: FleetDomain, hosts: dict[str, HostSeen] | None) -> list[Row]:
    """Return a row for each disk, or one for a domain without any; ``hosts`` None: nobody knows who was seen."""
    seen = None if hosts is None or one.host is None else "yes" if one.host in hosts else "no"
    head = (one.domain, one.host or "none", seen)
    if not one.disks:
        return [(*head, None, None, None, one.pivot)]
    return [
        (*head, disk.disk, disk.image, disk.outcome or ("unknown" if not disk.certain else None), one.pivot)
        for disk in one.disks
    ]


def status(app: App) -> None:
    """Show etcd's nodes, the hosts and the pivots that are undecided."""
    found = asked(fleet_answers.status)
    app.found(EXIT_DONE if found.quorum else EXIT_UNREACHABLE)
    if render.answer(app, found):
        return
    _print_status(found)
    if found.error is not None:
        tell(found.error)


def _print_status(found: FleetStatus) -> None:
    print(f"etcd cluster {found.cluster or render.NOTHING}: {'a' if found.quorum else 'NO'} majority answers")
    render.table(
        ("ENDPOINT", "VERSION", "LEADER", "ANSWER", "DATABASE", "ERROR"),
        [
            (
                node.endpoint,
                node.version,
                "yes" if node.leader else None,
                render.pause(node.answer_ms),
                render.size(node.database_bytes),
                node.error,
            )
            for node in found.nodes
        ],
        last_below=True,
    )
    if not found.quorum:
        return
    print(f"{found.domains} domains, {len(found.hosts)} hosts seen, {len(found.undecided)} undecided pivots")
    if found.hosts:
        seen = [(host.host, host.version, render.when(host.since)) for host in found.hosts]
        render.table(("HOST", "PIVOTD", "SINCE"), seen)
    if found.undecided:
        rows = [(one.domain, one.pivot, one.host, one.on_silence) for one in found.undecided]
        render.table(("DOMAIN", "UNDECIDED PIVOT", "HOST", "ON SILENCE"), rows)
