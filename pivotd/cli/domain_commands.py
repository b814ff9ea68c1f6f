"""Commands on domains: the running QEMU processes that pivotd manages."""

from __future__ import annotations

import click

from pivotd.cli import render
from pivotd.cli.complaints import perhaps_taken
from pivotd.cli.context import App, pass_app
from pivotd.cli.known_names import DOMAIN
from pivotd.cli.values import AbsolutePath, Name
from pivotd.client import DomainView, JobView


@click.group(short_help="Domains: connection, run state, QEMU, open pivots.")
def domain() -> None:
    """List domains, show them, add them and remove them.

    A domain is one running QEMU process with a QMP Unix socket.
    """


@domain.command("ls")
@pass_app
def ls(app: App) -> None:
    """List every domain, and say of one that is not connected, or whose pivot fails, why.

    With --offline: the domains that the journal knows, without the facts that only a running daemon can see.
    """
    found = app.reads.domains()
    if render.answer(app, found):
        return
    render.table(
        ("DOMAIN", "MANAGER", "CONNECTION", "STATE", "QEMU", "UP", "PIVOTS", "DETAIL"),
        [
            (
                row.name,
                row.manager,
                row.connection,
                f"{row.run_state}, wrong image" if row.alarms else row.run_state,
                row.qemu_version,
                render.duration(row.uptime_s),
                " ".join(row.open_pivots),
                # Of the journal alone there is nothing to say of a connection.
                row.detail if row.connection is not None else None,
            )
            for row in found
        ],
        last_below=True,
    )


@domain.command("show")
@click.argument("name", metavar="DOMAIN", type=DOMAIN)
@pass_app
def show(app: App, name: str) -> None:
    """Show one domain, with the block jobs that other programs have started.

    Each job says whether `pivotctl pivot adopt` can take it over, and if not, why.
    """
    found = app.client.domain(name)
    if not render.answer(app, found):
        _card(found)


@domain.command("add")
@click.argument("name", metavar="DOMAIN", type=Name())
@click.option("--qmp", type=AbsolutePath(), metavar="PATH", required=True, help="QMP socket of the QEMU process.")
@pass_app
def add(app: App, name: str, qmp: str) -> None:
    """Add a domain; the daemon remembers it across restarts.

    Adding the same domain with the same socket again is not an error. pivotd occupies the monitor behind the socket:
    give QEMU a separate monitor for pivotd.
    """
    app.will_answer(DomainView)
    with perhaps_taken("the same command again is no error", domain=name):
        found = app.client.add_domain(name, qmp)
    if not render.answer(app, found):
        _card(found)


@domain.command("rm")
@click.argument("name", metavar="DOMAIN", type=DOMAIN)
@pass_app
def rm(app: App, name: str) -> None:
    """Remove a domain; QEMU keeps running, and the journal keeps its pivots.

    pivotd refuses this while a pivot of the domain is open, and for a domain that the configuration names.
    """
    with perhaps_taken("see `pivotctl domain ls`", domain=name):
        app.client.remove_domain(name)
    if not render.answer(app, {"removed": name}):
        print(f"domain {render.text(name)} was removed; its pivots stay in the journal")


def _card(found: DomainView) -> None:
    render.card(
        found.name,
        (
            ("connection", found.connection),
            ("detail", found.detail),
            ("run state", found.run_state),
            ("WRONG IMAGE", list(found.alarms)),
            ("QEMU", found.qemu_version),
            ("pid", found.pid),
            ("uptime", None if found.uptime_s is None else render.duration(found.uptime_s)),
            ("manager", found.manager),
            ("QMP socket" if found.manager == "pivotd" else "reached by", found.qmp),
            ("known from", found.origin),
            ("open pivots", list(found.open_pivots)),
            ("other jobs", [_job(job) for job in found.jobs or ()]),
        ),
    )


def _job(job: JobView) -> str:
    where = f" of {job.disk}" if job.disk else ""
    adopting = "can be adopted" if job.adoptable else f"cannot be adopted: {job.reason}"
    return f"{job.id}: {job.type}{where}, {job.status}; {adopting}"
