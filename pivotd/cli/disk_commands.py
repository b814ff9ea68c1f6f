"""Commands on disks: the guest devices of a domain."""

from __future__ import annotations

import itertools

import click

from pivotd.cli import render
from pivotd.cli.context import App, pass_app
from pivotd.cli.known_names import DOMAIN
from pivotd.client import DiskView


def _layers(row: DiskView) -> list[str]:
    layers = itertools.zip_longest(row.backing_chain, row.backing_formats)
    return [f"{image} ({form})" if form else image for image, form in layers]


def _kept_inside(row: DiskView) -> list[str]:
    return [f"internal snapshots of {kept.image}: {', '.join(kept.names)}" for kept in row.internal_snapshots]


def _data(row: DiskView) -> list[str]:
    return [one.path if one.image == row.image else f"{one.path} of {one.image}" for one in row.data_files]


def _journal(row: DiskView) -> str:
    if row.pivot is None:
        return "never moved by pivotd"
    decided = f"{row.outcome} by pivot {row.pivot}"
    if row.phase is None:
        return decided
    # Until it is decided, the source is right, which is no outcome of this pivot.
    return f"{decided}, still open" if row.phase == "decided" else f"{row.phase}: pivot {row.pivot} is open"


def _libvirt(row: DiskView) -> list[str]:
    """Return what libvirt believes, in lines: one if all agrees."""
    believed = row.libvirt
    if believed is None:
        return []
    job = [] if believed.job == "none" else [f"its job is {believed.job}"]
    if believed.agree:
        return ["agrees: this image live" + (" and at the next boot" if believed.persistent else ""), *job]
    following = believed.next or ("none" if believed.persistent else "none, the domain is transient")
    return ["DOES NOT AGREE", f"live {believed.live or 'none'}", f"next boot {following}", *job]


@click.group(short_help="Disks of a domain: image, backing chain, job, journal.")
def disk() -> None:
    """Show the disks of a domain."""


@disk.command("ls")
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
@pass_app
def ls(app: App, domain: str) -> None:
    """List every disk of DOMAIN: what QEMU shows, and what the journal says."""
    found = app.client.disks(domain)
    if render.answer(app, found):
        return
    for row in found:
        render.card(
            f"{row.disk}  {render.text(row.image)}",
            (
                ("format", row.format),
                ("size", render.size(row.size_bytes)),
                ("access", "read-only" if row.read_only else None),
                ("backing", _layers(row)),
                ("data", _data(row)),
                ("inside", _kept_inside(row)),
                ("device", row.qdev),
                ("node", row.node),
                ("job", row.job),
                ("written by", ", ".join(row.other_writers) or None),
                ("libvirt", _libvirt(row)),
                ("journal", _journal(row)),
            ),
        )
