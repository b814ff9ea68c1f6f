"""The plan of an evacuation: what the daemon's domains have in the old places now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

from pivotd.cli.evacuate_left import Staying
from pivotd.cli.evacuate_places import Places, digest
from pivotd.cli.evacuate_plan import OWN, DiskMove, Left, Move, Plan, allocated_bytes, made_with
from pivotd.client import Client, DiskView, DomainView, RefusedError, Verdict
from pivotd.core.names import DISKS_MAX

T = TypeVar("T")


class Planner:
    """Looks at the domains of the daemon. ``domains``: only these; empty: all."""

    def __init__(  # noqa: PLR0913 - the facts that a plan depends on
        self,
        client: Client,
        places: Places,
        domains: Sequence[str],
        *,
        name: str,
        image_format: str | None,
        options: Mapping[str, Any],
    ) -> None:
        """``options``: fields of the requests."""
        self._client, self._places, self._domains = client, places, domains
        self._name, self._format, self._sync = name, image_format, options["sync"]
        self._made = made_with(options)
        self._whole = ("preallocation", "full") in self._made or ("preallocation", "falloc") in self._made
        self._staying = Staying(client, places, domains, options)

    def plan(self, only: str | None = None) -> Plan:
        """Return what is to be done now; ``only``: in one domain. Raises: ClientError."""
        moves: list[Move] = []
        left: list[Left] = []
        arrived: list[tuple[str, str, str]] = []
        domains = self._chosen(self._domains if only is None else [only])
        verdicts = self._client.verdicts() if only is None else _of_known(self._client.verdicts, only)
        doubts = {(one.domain, one.disk): one for one in verdicts}
        seen = {domain.name for domain in domains}
        for domain in domains:
            if domain.connection != "connected":
                left += self._staying.of_absent(domain, doubts.values())
                continue
            try:
                disks = self._client.disks(domain.name)
            except RefusedError as failure:
                if failure.kind == "not-found":
                    seen.discard(domain.name)  # it was removed meanwhile
                else:
                    left += self._staying.of_absent(domain, doubts.values(), failure)
                continue
            there = [disk for disk in disks if self._is_there(disk)]
            arrived += [(domain.name, disk.disk, disk.image or "") for disk in there]
            moves += self._of_domain(domain.name, disks, doubts, left.append)
        left += self._staying.of_unknown(seen, doubts.values())
        return Plan(tuple(_without_twins(moves, left.append)), tuple(left), tuple(arrived))

    def _chosen(self, names: Sequence[str]) -> list[DomainView]:
        if not names:
            return self._client.domains()
        return list(chain.from_iterable(_of_known(lambda name: [self._client.domain(name)], name) for name in names))

    def _is_there(self, disk: DiskView) -> bool:
        return disk.image is not None and not self._places.holds(disk.image) and self._places.has_arrived(disk.image)

    def _of_domain(
        self,
        domain: str,
        disks: Sequence[DiskView],
        doubts: dict[tuple[str, str], Verdict],
        leave: Callable[[Left], None],
    ) -> Iterator[Move]:
        """Yield the moves of one domain: those that run already, then one of all its other disks."""
        found: dict[str, DiskMove] = {}
        nodes: set[str | None] = set()
        running: dict[str, list[str]] = {}
        for disk in disks:
            move, verdict = self._of_disk(disk), doubts.get((domain, disk.disk))
            if move is None:
                for left in self._staying.of_other(domain, disk, verdict):
                    leave(left)
            elif (why := self._staying.of_movable(domain, disk, move.image, verdict)) is not None:
                leave(why)
            elif disk.phase is not None and disk.pivot is not None:
                found[disk.disk] = move
                running.setdefault(disk.pivot, []).append(disk.disk)
            elif disk.node is None or disk.node not in nodes:  # QEMU moves other devices on the same image along
                nodes.add(disk.node)
                found[disk.disk] = move
        for pivot, names in running.items():
            mine = [found.pop(name) for name in names]
            if (reason := self._staying.stranger(pivot, mine)) is not None:
                for one in mine:
                    leave(Left(domain, one.disk, one.image, reason))
            else:
                yield self._move(domain, mine, pivot)
        rest = list(found.values())
        for begin in range(0, len(rest), DISKS_MAX):
            yield self._move(domain, rest[begin : begin + DISKS_MAX])

    def _of_disk(self, disk: DiskView) -> DiskMove | None:
        if disk.image is None:
            return None
        target = self._places.target(disk.image, disk.format, self._format)
        if target is None:
            return None
        layers = [disk.image] if self._sync == "top" else [disk.image, *disk.backing_chain]
        size = disk.size_bytes or 0
        held = [allocated_bytes(layer) for layer in layers]
        copied = size if None in held or self._whole else min(size, sum(known or 0 for known in held))
        return DiskMove(disk.disk, disk.image, target, size, copied)

    def _move(self, domain: str, disks: Sequence[DiskMove], pivot: str | None = None) -> Move:
        facts: tuple[object, ...] = (
            domain, [(one.disk, one.image, one.target) for one in disks], self._format, self._sync,
        )  # fmt: skip
        if self._made:
            facts = (*facts, self._made)
        return Move(domain, tuple(disks), f"{OWN}{self._name}-{digest(*facts)[:12]}", pivot)


def _without_twins(moves: Sequence[Move], leave: Callable[[Left], None]) -> Iterator[Move]:
    """Yield the moves in which no disk has the same target as any other disk: the disks of a move go all or none."""
    goes: dict[str, list[str]] = {}
    for move in moves:
        for disk in move.disks:
            goes.setdefault(disk.target, []).append(f"{move.domain} {disk.disk}")
    for move in moves:
        twin = next((disk for disk in move.disks if len(goes[disk.target]) > 1), None)
        if twin is None:
            yield move
            continue
        reason = f"{' and '.join(goes[twin.target])} would both get {twin.target}: move one of them elsewhere first"
        for disk in move.disks:
            leave(Left(move.domain, disk.disk, disk.image, reason))


def _of_known(ask: Callable[[str], list[T]], domain: str) -> list[T]:
    """Return the answer for a domain, nothing if pivotd does not know it any more."""
    try:
        return ask(domain)
    except RefusedError as failure:
        if failure.kind != "not-found":
            raise
        return []
