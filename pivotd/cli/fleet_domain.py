"""`pivotctl fleet verdict`, `take` and `forget`: one domain, or the verdicts of all."""

from __future__ import annotations

import functools

from pivotd.cli import render
from pivotd.cli.context import App
from pivotd.cli.fleet_command import asked
from pivotd.client.answers import FleetVerdict
from pivotd.core.rules.fleet_words import never_moved
from pivotd.errors import EXIT_DONE, EXIT_UNKNOWN, NeverMovedError
from pivotd.fleet import fleet_answers, taking

DISK = ("domain", "disk")


def verdict(app: App, domain: str | None, disk: str | None) -> None:
    """Show the fleet's verdicts."""
    if domain is None:
        found = asked(functools.partial(fleet_answers.verdicts, domain=None, disk=None))
        app.found(_status(found))
        if not render.answer(app, found, DISK):
            _table(found)
        return
    view = asked(lambda store: store.read(domain, store.timeout_s))
    found = fleet_answers.of_domain(view, disk)
    moved = [one for one in found if one.image is not None or not one.certain]
    if not moved:
        what = domain if disk is None else f"{domain} {disk}"
        owner = None if view.owner is None else view.owner.host
        raise NeverMovedError(never_moved(view, what), domain=domain, disk=disk, host=owner)
    app.found(_status(found))
    if not render.answer(app, found[0] if disk is not None else found, DISK):
        for one in found:
            _card(one)


def take(app: App, domain: str, chosen: dict[str, str]) -> None:
    """Take a guest over, and show the images to start it from."""
    view = asked(functools.partial(taking.take, domain=domain, chosen=chosen))
    found = list(fleet_answers.domain(view).disks)
    app.status = EXIT_DONE
    if render.answer(app, found, DISK):
        return
    owner = view.owner
    assert owner is not None
    print(f"{render.text(domain)} belongs to {owner.host} now (epoch {owner.epoch})")
    for one in found:
        _card(one)
    if not found:
        print(f"{never_moved(view, 'a disk of it')}: start it from its images as they are configured")


def forget(app: App, domain: str) -> None:
    """Remove a domain."""
    asked(functools.partial(taking.forget, domain=domain))
    app.status = EXIT_DONE
    if not render.answer(app, {"forgotten": domain}):
        print(f"etcd has forgotten {render.text(domain)}")


def _status(found: list[FleetVerdict]) -> int:
    return EXIT_DONE if all(one.certain for one in found) else EXIT_UNKNOWN


def _card(one: FleetVerdict) -> None:
    render.card(
        f"{one.domain} {one.disk}  {render.text(one.image)}",
        (
            ("format", one.format),
            ("outcome", one.outcome),
            ("certain", "yes" if one.certain else "NO: a person must look"),
            ("reason", one.reason),
            ("images", [f"{image.image} ({image.format})" for image in one.candidates]),
            ("pivot", one.pivot),
            ("since", one.since),
            ("host", one.host),
        ),
    )


def _table(found: list[FleetVerdict]) -> None:
    if not found:
        print("this fleet has no pivot of any domain")
        return
    render.table(
        ("DOMAIN", "DISK", "OUTCOME", "IMAGE", "FORMAT", "HOST", "SINCE"),
        [
            (one.domain, one.disk, one.outcome or ("unknown" if not one.certain else None), one.image, one.format,
             one.host, render.when(one.since))
            for one in found
        ],
    )  # fmt: skip
