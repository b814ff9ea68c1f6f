"""The keys and values in etcd, and the view of a domain that they make. docs/fleet.md describes them.

Every value is JSON with the version of its format, ``v``. What a newer pivotd has written is refused: it may mean
something that this one does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, TypeVar

import msgspec

from pivotd.core.fleet import (
    ACCEPTED,
    FleetDisk,
    FleetImage,
    FleetIntent,
    FleetMove,
    FleetView,
    OnSilence,
    Owner,
)
from pivotd.core.pivot import Outcome
from pivotd.core.request import Manager
from pivotd.errors import FleetRefusedError

VERSION = 1


class _Version(msgspec.Struct):
    v: int


class _Owner(msgspec.Struct, omit_defaults=True):
    """``known`` False: a guest that was forgotten in ``epoch``."""

    v: int
    host: str | None
    epoch: int
    boot_id: str
    since: str
    forgotten: int = 0
    known: bool = True


class _Intent(msgspec.Struct):
    v: int
    pivot: str
    host: str
    epoch: int
    on_silence: OnSilence
    manager: Manager
    moves: tuple[FleetMove, ...]


class _Disk(msgspec.Struct):
    v: int
    image: FleetImage
    other: FleetImage | None
    outcome: str
    pivot: str
    epoch: int
    at: str


class HostSeen(msgspec.Struct):
    """What a host says of itself while it runs. ``machine`` is its machine id, ``since`` UTC, RFC 3339."""

    v: int
    version: str
    since: str
    machine: str


_T = TypeVar("_T", bound=msgspec.Struct)


class Keys:
    """The keys below one prefix."""

    def __init__(self, prefix: str) -> None:
        self.domains = f"{prefix}domains/"
        self.hosts = f"{prefix}hosts/"

    def domain(self, domain: str) -> str:
        """Return what all keys of a domain begin with."""
        return f"{self.domains}{domain}/"

    def owner(self, domain: str) -> str:
        """Return the key of the owner; its revision is that of the whole domain."""
        return f"{self.domain(domain)}owner"

    def host(self, host: str) -> str:
        """Return the key by which a host shows that it runs."""
        return f"{self.hosts}{host}"

    def pairs(self, view: FleetView) -> dict[str, bytes]:
        """Return every key of a domain with its value."""
        base = self.domain(view.domain)
        pairs: dict[str, bytes] = {}
        if view.owner is not None:
            owner = view.owner
            pairs[f"{base}owner"] = _encoded(
                _Owner(VERSION, owner.host, owner.epoch, owner.boot_id, owner.since, view.forgotten)
            )
        elif view.forgotten:
            pairs[f"{base}owner"] = _encoded(_Owner(VERSION, None, view.forgotten, "", "", view.forgotten, known=False))
        if view.intent is not None:
            one = view.intent
            intent = _Intent(VERSION, one.pivot, one.host, one.epoch, one.on_silence, one.manager, one.moves)
            pairs[f"{base}intent"] = _encoded(intent)
        for disk in view.disks:
            value = _Disk(VERSION, disk.image, disk.other, disk.outcome, disk.pivot, disk.epoch, disk.at)
            pairs[f"{base}disks/{disk.disk}"] = _encoded(value)
        return pairs

    def views(self, pairs: Iterable[tuple[str, bytes, int]]) -> Iterator[FleetView]:
        """Yield the domains of (key, value, revision of the key), in the order of keys. Raises: FleetRefusedError."""
        view: FleetView | None = None
        for key, value, revision in pairs:
            domain, _, name = key.removeprefix(self.domains).partition("/")
            if view is None or view.domain != domain:
                if view is not None:
                    yield view
                view = FleetView(domain)
            view = _with(view, key, name, value, revision)
        if view is not None:
            yield view


def _with(view: FleetView, key: str, name: str, value: bytes, revision: int) -> FleetView:
    """Return the view with one more key."""
    if name == "owner":
        kept = decoded(key, value, _Owner)
        owner = Owner(kept.host, kept.epoch, kept.boot_id, kept.since) if kept.known else None
        return replace(view, owner=owner, forgotten=kept.forgotten, revision=revision)
    if name == "intent":
        one = decoded(key, value, _Intent)
        intent = FleetIntent(one.pivot, one.host, one.epoch, one.on_silence, one.manager, one.moves)
        return replace(view, intent=intent)
    kind, _, disk = name.partition("/")
    if kind == "disks" and disk:
        d = decoded(key, value, _Disk)
        one_more = FleetDisk(disk, d.image, d.other, _outcome(key, d.outcome), d.pivot, d.epoch, d.at)
        return replace(view, disks=(*view.disks, one_more))
    raise _refused(key, "is not a key that this pivotd knows: a newer one has written it; update this host")


def _outcome(key: str, word: str) -> Outcome | Literal["accepted"]:
    if word == ACCEPTED:
        return ACCEPTED
    try:
        return Outcome(word)
    except ValueError as error:
        raise _refused(key, f"has an outcome that this pivotd does not know: {word}") from error


def decoded(key: str, value: bytes, kind: type[_T]) -> _T:
    """Return a value. Raises: FleetRefusedError: a newer pivotd or another program has written it."""
    try:
        version = msgspec.json.decode(value, type=_Version).v
        if version == VERSION:
            return msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError as error:
        raise _refused(key, f"is not pivotd's ({error}): choose a prefix that no other program uses") from error
    raise _refused(key, f"has data of version {version}, and this pivotd knows version {VERSION}: update this host")


def _encoded(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value)


def _refused(key: str, why: str) -> FleetRefusedError:
    return FleetRefusedError(f"etcd's key {key} {why}", key=key)
