"""Commands on domains: the running QEMU processes that pivotd looks after."""

from __future__ import annotations

from typing import Any

import click

from pivotd.cli import render
from pivotd.cli.app import App, pass_app
from pivotd.cli.values import AbsolutePath, Name


@click.group(short_help="Domains: connection, run state, QEMU, open pivots.")
def domain() -> None:
    """Look at domains, add them and remove them.

    A domain is one running QEMU process with a QMP Unix socket.
    """


@domain.command("ls")
@pass_app
def ls(app: App) -> None:
    """List every domain.

    With --offline: the domains that the journal knows, without what only a running daemon can see.
    """
    found = app.reads.domains()
    if render.answer(app, found):
        return
    render.table(
        ("DOMAIN", "CONNECTION", "RUN STATE", "QEMU", "UPTIME", "OPEN PIVOTS"),
        [
            (
                row["name"],
                row.get("connection"),
                row.get("run_state"),
                row.get("qemu_version"),
                render.duration(row.get("uptime_s")),
                " ".join(row.get("open_pivots") or ()),
            )
            for row in found
        ],
    )


@domain.command("show")
@click.argument("name", metavar="DOMAIN", type=Name())
@pass_app
def show(app: App, name: str) -> None:
    """Show everything about one domain, also the block jobs that somebody else started.

    Those that `pivotctl pivot adopt` can take are marked, the others tell why it cannot.
    """
    found = app.client.domain(name)
    if not render.answer(app, found):
        _card(found)


@domain.command("add")
@click.argument("name", metavar="DOMAIN", type=Name())
@click.option("--qmp", type=AbsolutePath(), metavar="PATH", required=True, help="QMP socket of the QEMU process.")
@pass_app
def add(app: App, name: str, qmp: str) -> None:
    """Add a domain; it is remembered across restarts of the daemon.

    Adding the same domain with the same socket again is no error. pivotd keeps the socket's monitor to itself: give
    QEMU a monitor of its own for pivotd.
    """
    found = app.client.add_domain(name, qmp)
    if not render.answer(app, found):
        _card(found)


@domain.command("rm")
@click.argument("name", metavar="DOMAIN", type=Name())
@pass_app
def rm(app: App, name: str) -> None:
    """Forget a domain; QEMU runs on, and the journal keeps its pivots.

    Refused while a pivot of the domain is open, and for a domain from the configuration.
    """
    app.client.remove_domain(name)
    if not render.answer(app, {"removed": name}):
        print(f"domain {render.text(name)} is forgotten; its pivots stay in the journal")


def _card(found: dict[str, Any]) -> None:
    render.card(
        found["name"],
        (
            ("connection", found.get("connection")),
            ("detail", found.get("detail")),
            ("run state", found.get("run_state")),
            ("QEMU", found.get("qemu_version")),
            ("pid", found.get("pid")),
            ("uptime", render.duration(found.get("uptime_s")) if found.get("uptime_s") is not None else None),
            ("QMP socket", found.get("qmp")),
            ("known from", found.get("origin")),
            ("open pivots", list(found.get("open_pivots") or ())),
            ("others' jobs", [_job(job) for job in found.get("jobs") or ()]),
        ),
    )


def _job(job: dict[str, Any]) -> str:
    where = f" of {job['disk']}" if job.get("disk") else ""
    adopting = "can be adopted" if job.get("adoptable") else f"cannot be adopted: {job.get('reason')}"
    return f"{job['id']}: {job['type']}{where}, {job['status']}; {adopting}"
