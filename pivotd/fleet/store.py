"""The fleet in etcd: a domain is read and written as one, by the revision of its owner's key.

Every write also writes the key of the owner, and happens only if that key has the revision that was read. So a domain
changes by compare-and-set: of any number of copies of a write, late or not, at most one has an effect, and a copy that
arrives after another write has none. Reads are linearizable: they are answered by a majority.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from pivotd import limits
from pivotd.config import Fleet
from pivotd.core.fleet import FleetView, OnSilence
from pivotd.errors import FleetConflictError, FleetRefusedError, FleetSilentError
from pivotd.fleet.gateway import CompactedError, Gateway, Reply
from pivotd.fleet.records import HostSeen, Keys, decoded

RANGE, TXN = "/v3/kv/range", "/v3/kv/txn"


class EtcdFleet:
    """The port ``Fleet`` of the engine, and what the commands need besides."""

    def __init__(self, settings: Fleet) -> None:
        self.host: str = settings.host
        self.on_silence: OnSilence = settings.on_silence
        self.timeout_s = settings.timeout_ms / 1000
        self.gateway = Gateway(settings)
        self.keys = Keys(settings.prefix)

    def close(self) -> None:
        """Close all connections."""
        self.gateway.close()

    async def read(self, domain: str, timeout_s: float) -> FleetView:
        """Return everything of a domain, as of one moment that is not before this call.

        Raises: FleetSilentError, FleetRefusedError.
        """
        reply = await self.gateway.call(RANGE, all_below(self.keys.domain(domain)), timeout_s)
        return self._view(domain, reply.document)

    async def write(self, before: FleetView, after: FleetView, timeout_s: float) -> FleetView:
        """Replace everything of a domain in one transaction, if nothing of it has changed since ``before`` was read.

        ``after`` has an owner or is forgotten. Returns it with its new revision, also if a copy of this write has come
        before.

        Raises: FleetConflictError, FleetRefusedError: nothing was written; FleetSilentError: it may be written, now or
        later.
        """
        assert after.epoch
        old, new = self.keys.pairs(before), self.keys.pairs(after)
        owner = self.keys.owner(after.domain)
        changes = [put(key, value) for key, value in new.items() if key == owner or old.get(key) != value]
        changes += [{"requestDeleteRange": {"key": encoded_key(key)}} for key in old if key not in new]
        reply = await self._transact(before, changes, timeout_s)
        if reply.document.get("succeeded"):
            return replace(after, revision=int(reply.document["header"]["revision"]))
        found = self._found(before, reply)
        if replace(found, revision=0) == replace(after, revision=0):
            return found
        raise _changed(before, found, reply)

    async def domains(self, timeout_s: float) -> tuple[list[FleetView], int]:
        """Return all domains that are known as of one moment, in the order of their names, and that moment's revision.

        ``timeout_s`` bounds each page. Raises: FleetSilentError, FleetRefusedError.
        """
        for _ in range(limits.FLEET_LISTINGS_MAX):
            try:
                pairs, revision = await self._pages(self.keys.domains, timeout_s)
            except CompactedError:
                continue
            return [view for view in self.keys.views(pairs) if view.known], revision
        raise FleetSilentError("etcd compacts its history faster than the domains can be listed: ask again")

    async def hosts(self, timeout_s: float) -> dict[str, HostSeen]:
        """Return the hosts whose pivotd has lately run. Nothing may be decided by that.

        Raises: FleetSilentError, FleetRefusedError.
        """
        pairs, _ = await self._pages(self.keys.hosts, timeout_s)
        return {key.removeprefix(self.keys.hosts): decoded(key, value, HostSeen) for key, value, _ in pairs}

    async def _pages(self, prefix: str, timeout_s: float) -> tuple[list[tuple[str, bytes, int]], int]:
        """Return everything below a prefix as of one moment. Raises: CompactedError, FleetError."""
        pairs: list[tuple[str, bytes, int]] = []
        asked: dict[str, Any] = {**all_below(prefix), "limit": limits.FLEET_PAGE}
        while True:
            document = (await self.gateway.call(RANGE, asked, timeout_s)).document
            pairs += _pairs(document)
            asked.setdefault("revision", document["header"]["revision"])
            if not document.get("more"):
                return pairs, int(asked["revision"])
            asked["key"] = encoded_key(pairs[-1][0] + "\0")

    async def _transact(self, before: FleetView, changes: list[dict[str, Any]], timeout_s: float) -> Reply:
        owner = encoded_key(self.keys.owner(before.domain))
        # A key that is not there has the revision 0.
        compare = {"key": owner, "target": "MOD", "result": "EQUAL", "modRevision": str(before.revision)}
        otherwise = {"requestRange": all_below(self.keys.domain(before.domain))}
        body = {"compare": [compare], "success": changes, "failure": [otherwise]}
        return await self.gateway.call(TXN, body, timeout_s, writes=True)

    def _found(self, before: FleetView, reply: Reply) -> FleetView:
        """Return the domain as it is instead of ``before``."""
        try:
            return self._view(before.domain, reply.document["responses"][0]["response_range"])
        except FleetRefusedError as error:
            if reply.alone:
                raise
            raise FleetSilentError(error.message) from error

    def _view(self, domain: str, document: dict[str, Any]) -> FleetView:
        return next(self.keys.views(_pairs(document)), FleetView(domain))


def _changed(before: FleetView, found: FleetView, reply: Reply) -> FleetConflictError | FleetSilentError:
    """Return what it means that a domain has changed since it was read."""
    changed = f"domain {before.domain} has changed in etcd since it was read"
    if reply.alone:
        return FleetConflictError(f"{changed}: read it again", domain=before.domain, revision=found.revision)
    return FleetSilentError(f"{changed}, perhaps by an earlier copy of the same request: read it again")


def encoded_key(key: str) -> str:
    """Return a key as JSON has it."""
    return b64encode(key.encode()).decode()


def put(key: str, value: bytes | msgspec.Struct, **more: str) -> dict[str, Any]:
    """Return the part of a transaction that writes a key; ``more`` are further fields of PutRequest."""
    raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return {"requestPut": {"key": encoded_key(key), "value": b64encode(raw).decode(), **more}}


def never(key: str) -> dict[str, Any]:
    """Return a transaction that would write a key and never does; etcd refuses it as it refuses one that does."""
    compare = {"key": encoded_key(key), "target": "CREATE", "result": "EQUAL", "createRevision": str(2**63 - 1)}
    return {"compare": [compare], "success": [put(key, b"")]}


def all_below(prefix: str) -> dict[str, Any]:
    """Return the range of all keys with a prefix."""
    assert prefix.endswith("/")
    return {"key": encoded_key(prefix), "range_end": encoded_key(f"{prefix[:-1]}0")}  # "0" is the character after "/"


def _pairs(document: dict[str, Any]) -> Iterator[tuple[str, bytes, int]]:
    for pair in document.get("kvs", ()):
        yield b64decode(pair["key"]).decode(), b64decode(pair.get("value", "")), int(pair["mod_revision"])
