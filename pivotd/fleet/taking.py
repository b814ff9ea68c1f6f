"""Taking a guest from a lost host, and forgetting one: what a person asks of the fleet."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from pivotd import limits
from pivotd.core.fleet import FleetImage, FleetView
from pivotd.core.rules.fleet_changes import forgotten
from pivotd.core.rules.fleet_local import disks_of
from pivotd.core.rules.fleet_owners import take_over
from pivotd.core.rules.fleet_pivots import Here
from pivotd.core.rules.fleet_words import fleet_verdict
from pivotd.errors import ConflictError, FleetConflictError, FleetSilentError, NeverMovedError, UncertainError
from pivotd.fleet.store import EtcdFleet
from pivotd.host.process import boot_id


async def take(store: EtcdFleet, domain: str, chosen: Mapping[str, str]) -> FleetView:
    """Return the domain once it belongs to this host; ``chosen``: a person's word, image by disk.

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


def _taking(before: FleetView, host: str, chosen: Mapping[str, str]) -> FleetView:
    """Return the domain as it has to be for a take-over. Raises: NeverMovedError, ConflictError, UncertainError."""
    domain = before.domain
    if before.owner is None:
        raise NeverMovedError(f"this fleet does not know {domain}: there is nothing to take", domain=domain)
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
    doubtful = [disk for disk in disks_of(before) if not fleet_verdict(before, disk).certain]
    kind = UncertainError if set(doubtful) - chosen.keys() else ConflictError
    raise kind(f"{domain} is not taken: {after}", domain=domain)


def _chosen(view: FleetView, disk: str, name: str) -> FleetImage:
    """Return the image of which a person has given the name, with the format that the fleet knows."""
    word = fleet_verdict(view, disk)
    known = (*word.candidates, *([word.image] if word.image is not None else []))
    return next((image for image in known if image.filename == name), FleetImage(name, ""))


async def forget(store: EtcdFleet, domain: str) -> None:
    """Remove a domain. Raises: FleetError, NeverMovedError, ConflictError: a pivot of it is undecided."""
    before = await store.read(domain, store.timeout_s)
    if not before.known:
        raise NeverMovedError(f"this fleet does not know {domain}", domain=domain)
    if before.intent is not None:
        raise ConflictError(
            f"pivot {before.intent.pivot} of {domain} is undecided, and {before.intent.host} will tell its outcome: "
            f"wait, or `pivotctl fleet take {domain}`",
            domain=domain,
        )
    await store.write(before, forgotten(before), store.timeout_s)
