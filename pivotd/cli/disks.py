"""Commands on disks: the guest devices of a domain."""

from __future__ import annotations

import itertools
from typing import Any

import click

from pivotd.cli import render
from pivotd.cli.app import App, pass_app
from pivotd.cli.values import Name


def _layers(row: dict[str, Any]) -> list[str]:
    chain, formats = row.get("backing_chain") or (), row.get("backing_formats") or ()
    return [f"{image} ({form})" if form else image for image, form in itertools.zip_longest(chain, formats)]


@click.group(short_help="Disks of a domain: image, backing chain, job, journal.")
def disk() -> None:
    """Look at the disks of a domain."""


@disk.command("ls")
@click.argument("domain", metavar="DOMAIN", type=Name())
@pass_app
def ls(app: App, domain: str) -> None:
    """List every disk of DOMAIN: what QEMU shows, and what the journal says."""
    found = app.client.disks(domain)
    if render.answer(app, found):
        return
    for row in found:
        journal = f"{row['outcome']} by pivot {row['pivot']}" if row.get("pivot") else "never moved by pivotd"
        render.card(
            f"{row['disk']}  {render.text(row.get('image'))}",
            (
                ("format", row.get("format")),
                ("size", render.size(row.get("size_bytes"))),
                ("access", "read-only" if row.get("read_only") else None),
                ("backing", _layers(row)),
                ("device", row.get("qdev")),
                ("node", row.get("node")),
                ("job", row.get("job")),
                ("journal", journal),
            ),
        )
