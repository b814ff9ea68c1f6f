"""`pivotctl fleet verdict`, `take` and `forget`: one domain, or the verdicts of all."""

from __future__ import annotations

import functools
from datetime import UTC, datetime

from pivotd import limits
from pivotd.cli import fleet_answers, render
from pivotd.cli.complaints import NeverMovedError, UncertainError
from pivotd.cli.context import App
from pivotd.cli.fleet_command import asked
from pivotd.client.answers import FleetVerdict
from pivotd.core.fleet import FleetImage, FleetView
from pivotd.core.rules.fleet_owners import take_over
from pivotd.core.rules.fleet_pivots import Here
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.errors import EXIT_DONE, EXIT_UNKNOWN, ConflictError, FleetConflictError, FleetSilentError
from pivotd.fleet.store import EtcdFleet
from pivotd.host.process import boot_id


def verdict(app: App, domain: str | None, disk: str | None) -> None:
    """Show the fleet's verdicts."""
    if domain is None:
        views, _ = asked(lambda store: store.domains(store.timeout_s))
        found = [fleet_answers.verdict(view, name) for view in views for name in fleet_answers.disks(view)]
        app.status = _status(found)
        if not render.answer(app, found):
            _table(found)
        return
    view = asked(lambda store: store.read(domain, store.timeout_s))
    names = fleet_answers.disks(view) if disk is None else [disk]
    found = [fleet_answers.verdict(view, name) for name in names]
    moved = [one for one in found if one.image is not None or not one.certain]
    if not moved:
        what = domain if disk is None else f"{domain} {disk}"
        owner = None if view.owner is None else view.owner.host
        raise NeverMovedError(f"pivotd has never moved {what} in this fleet", domain=domain, disk=disk, host=owner)
    app.status = _status(found)
    if not render.answer(app, found[0] if disk is not None else found):
        for one in found:
            _card(one)


def take(app: App, domain: str, chosen: dict[str, str]) -> None:
    """Take a guest over, and show the images to start it from."""
    view = asked(functools.partial(_taken, domain=domain, chosen=chosen))
    found = [fleet_answers.verdict(view, name) for name in fleet_answers.disks(view)]
    app.status = EXIT_DONE
    if render.answer(app, found):
        return
    owner = view.owner
    assert owner is not None
    print(f"{render.text(domain)} belongs to {owner.host} now (epoch {owner.epoch})")
    for one in found:
        _card(one)
    if not found:
        print("pivotd has never moved a disk of it in this fleet: start it from its images as they are configured")


def forget(app: App, domain: str) -> None:
    """Remove a domain."""
    asked(functools.partial(_forgotten, domain=domain))
    app.status = EXIT_DONE
    if not render.answer(app, {"forgotten": domain}):
        print(f"etcd has forgotten {render.text(domain)}")


async def _taken(store: EtcdFleet, *, domain: str, chosen: dict[str, str]) -> FleetView:
    """Return the domain once it belongs to this host.

    Raises: FleetError, NeverMovedError, ConflictError, UncertainError.
    """
    for _ in range(limits.FLEET_TAKES_MAX):
        before = await store.read(domain, store.timeout_s)
        after = _taking(before, store.host, chosen)
        if after == before:
            return before
        try:
            return await store.write(before, after, store.timeout_s)
        except FleetConflictError:
            continue  # the old host, or another one, has been quicker: judge again
        except FleetSilentError as silent:
            return await _looked(store, after, silent)
    raise FleetConflictError(f"domain {domain} changes all the time: is its host fenced?", domain=domain)


async def _looked(store: EtcdFleet, after: FleetView, silent: FleetSilentError) -> FleetView:
    """Return the domain if a write without an answer has come. Raises: FleetSilentError."""
    again = f"; whether {store.host} has taken {after.domain} is not known: repeat the command"
    try:
        found = await store.read(after.domain, store.timeout_s)
    except FleetSilentError as error:
        raise FleetSilentError(error.message + again) from silent
    if found.owner == after.owner:
        return found
    raise FleetSilentError(silent.message + again)


def _taking(before: FleetView, host: str, chosen: dict[str, str]) -> FleetView:
    """Return the domain as it has to be for a take-over. Raises: NeverMovedError, ConflictError, UncertainError."""
    domain = before.domain
    if before.owner is None:
        raise NeverMovedError(f"this fleet has never heard of {domain}: there is nothing to take", domain=domain)
    if before.owner.host == host and not chosen:
        if before.intent is None:
            return before
        raise ConflictError(
            f"{domain} belongs to this host, {host}, whose own journal knows more: `pivotctl verdict {domain}`; if "
            "it is lost, name the images with --image",
            domain=domain,
        )
    images = {disk: _chosen(before, disk, name) for disk, name in chosen.items()}
    here = Here(host, boot_id(), datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"))
    after = take_over(before, here, images)
    if isinstance(after, FleetView):
        return after
    doubtful = [disk for disk in fleet_answers.disks(before) if not fleet_verdict(before, disk).certain]
    kind = UncertainError if set(doubtful) - chosen.keys() else ConflictError
    raise kind(f"{domain} is not taken: {after}", domain=domain)


def _chosen(view: FleetView, disk: str, name: str) -> FleetImage:
    """Return the image of which a person has given the name, with the format that the fleet knows."""
    word = fleet_verdict(view, disk)
    known = (*word.candidates, *([word.image] if word.image is not None else []))
    return next((image for image in known if image.filename == name), FleetImage(name, ""))


async def _forgotten(store: EtcdFleet, *, domain: str) -> None:
    before = await store.read(domain, store.timeout_s)
    if before == FleetView(domain):
        raise NeverMovedError(f"this fleet has never heard of {domain}", domain=domain)
    if before.intent is not None:
        raise ConflictError(
            f"pivot {before.intent.pivot} of {domain} is undecided, and {before.intent.host} will tell its outcome: "
            f"wait, or `pivotctl fleet take {domain}`",
            domain=domain,
        )
    await store.forget(before, store.timeout_s)


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
