"""The fleet for answers without the daemon: [fleet] of this host's configuration, if there is one to read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from pivotd import config
from pivotd.core.pivot import FleetStage
from pivotd.core.rules.fleet_local import DiskHere
from pivotd.core.verdict import Verdict
from pivotd.errors import ConfigError, FleetError, FleetRefusedError


class OfflineFleet:
    """Asks etcd for each domain. ``may_be``: whether this host belongs to a fleet, as far as that can be told."""

    def __init__(self) -> None:
        self._broken: ConfigError | None = None
        self._settings = config.Fleet()
        try:
            self._settings = config.load().fleet
        except ConfigError as error:
            self._broken = error
        self.may_be = bool(self._settings.endpoints) or self._broken is not None

    def knows(self, domain: str) -> bool:
        """Return whether the fleet has heard of a domain. Raises: FleetError."""
        if not self._settings.endpoints:
            return False

        async def ask() -> bool:
            fleet = import_module("pivotd.fleet").connect(self._settings)
            try:
                found: bool = await import_module("pivotd.fleet.verdicts").knows(fleet, domain)
            finally:
                fleet.close()
            return found

        return asyncio.run(ask())

    def together(self, of_domain: Mapping[str, Sequence[DiskHere]], *, every: bool, local: bool) -> list[Verdict]:
        """Return verdicts of which the certain ones may be acted upon; ``every``: with disks only the fleet knows."""
        if self._settings.endpoints:
            return asyncio.run(self._ask(of_domain, every=every, local=local))
        return [self._unasked(disk, local=local) for disks in of_domain.values() for disk in disks]

    async def _ask(self, of_domain: Mapping[str, Sequence[DiskHere]], *, every: bool, local: bool) -> list[Verdict]:
        verdicts: Any = import_module("pivotd.fleet.verdicts")
        fleet = import_module("pivotd.fleet").connect(self._settings)
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        said: list[Verdict] = []
        silent: FleetError | None = None
        try:
            for domain, disks in of_domain.items():
                try:
                    if silent is not None:  # it would take as long for each domain
                        raise silent
                    said += (await verdicts.in_fleet(fleet, domain, disks, now, every=every)).verdicts
                except FleetError as error:
                    silent = error if error.kind == "fleet-silent" else None
                    said += verdicts.without_fleet(disks, error, local=local)
        finally:
            fleet.close()
        return said

    def _unasked(self, disk: DiskHere, *, local: bool) -> Verdict:
        """Return a verdict where the configuration cannot be read: pivots show whether this host was in a fleet."""
        assert self._broken is not None
        if disk.moved is None or disk.moved[0].fleet is FleetStage.NONE:
            return disk.verdict
        why = f"its configuration cannot be read: {self._broken.message}"
        found: list[Verdict] = import_module("pivotd.fleet.verdicts").without_fleet(
            [disk], FleetRefusedError(why), local=local
        )
        return found[0]
