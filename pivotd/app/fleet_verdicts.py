"""The daemon's verdicts together with the fleet's word, on a host that belongs to one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pivotd import limits
from pivotd.app.live_verdicts import Key, LiveVerdicts
from pivotd.core.fleet import FleetImage
from pivotd.core.pivot import Image, Phase
from pivotd.core.rules.fleet_local import DiskHere, Together
from pivotd.core.verdict import Verdict
from pivotd.errors import FleetError
from pivotd.host import files
from pivotd.host.threads import in_thread
from pivotd.journal.changes import utc_now

if TYPE_CHECKING:
    from pivotd.fleet.late import LateFleet


class FleetVerdicts:
    """Asks the fleet about each domain, and tells it what it does not know, before a verdict is given to anybody."""

    def __init__(self, fleet: LateFleet, calm: Callable[[], Awaitable[None]]) -> None:
        """``calm``: returns while no guest is in its pause."""
        self._fleet = fleet
        self._calm = calm
        self._module: Any = None
        self._silent_s = float("-inf")
        """When etcd has last not answered a whole request, by the clock of the event loop."""

    async def knows(self, domain: str) -> bool:
        """Return whether the fleet has heard of a domain. Raises: FleetError."""
        found: bool = await (await self._verdicts()).knows(self._fleet, domain)
        return found

    async def enter(self, live: LiveVerdicts, found: Mapping[Key, Verdict], domain: str) -> None:
        """Tell the fleet what it does not know of a domain; ``found`` was read before. Raises: FleetError."""
        disks = [_here(live, key, one) for key, one in found.items()]
        await (await self._verdicts()).in_fleet(self._fleet, domain, disks, utc_now(), every=False)

    async def together(
        self, live: LiveVerdicts, found: Mapping[Key, Verdict], domain: str | None, disk: str | None, *, local: bool
    ) -> dict[Key, Verdict]:
        """Return verdicts, sorted, of which the certain ones may be acted upon; ``found`` was read before.

        ``domain`` alone: with the disks of it that only the fleet knows.
        """
        of_domain: dict[str, list[DiskHere]] = {} if domain is None else {domain: []}
        for key, one in found.items():
            of_domain.setdefault(key[0], []).append(_here(live, key, one))
        module, turns = await self._verdicts(), asyncio.Semaphore(limits.FLEET_READS_AT_ONCE)
        silent: list[FleetError] = []

        async def ask(name: str, disks: Sequence[DiskHere]) -> Sequence[Verdict]:
            async with turns:
                await self._calm()
                try:
                    if silent:  # the others would wait as long
                        raise silent[0]
                    every = domain is not None and disk is None
                    answer: Together = await module.in_fleet(self._fleet, name, disks, utc_now(), every=every)
                    live.against |= {(name, one): image for one, image in answer.against.items()}
                    said: Sequence[Verdict] = answer.verdicts
                except FleetError as error:
                    if error.kind == "fleet-silent":
                        silent.append(error)
                        self._silent_s = asyncio.get_running_loop().time()
                    said = module.without_fleet(disks, error, local=local)
            return said

        answers = await asyncio.gather(*(ask(name, disks) for name, disks in of_domain.items()))
        verdicts = {(one.domain, one.disk): one for said in answers for one in said}
        for key, one in verdicts.items():
            if key not in found or (one.image, one.pivot) != (found[key].image, found[key].pivot):
                live.theirs.add(key)
        return dict(sorted(verdicts.items()))

    async def compared(self, live: LiveVerdicts, found: Mapping[Key, Verdict]) -> dict[Key, Verdict]:
        """Return a host's certain verdicts together with the fleet's word; ``live`` then has what that contradicts.

        Right after etcd has not answered, nobody waits for it here, and nothing is returned: many domains may be looked
        at.
        """
        if asyncio.get_running_loop().time() - self._silent_s < limits.FLEET_SILENT_S:
            return {}
        said = await self.together(live, found, None, None, local=False)
        for key, image in list(live.against.items()):
            if image is not None and await _is_one(image, live.shown[key]):
                del live.against[key]  # it has two names
                said[key] = found[key]
        return said

    async def _verdicts(self) -> Any:
        if self._module is None:
            self._module = await asyncio.to_thread(import_module, "pivotd.fleet.verdicts")
        return self._module


async def _is_one(image: FleetImage, shown: FleetImage) -> bool:
    """Return whether two names lead to one image here; False if its storage does not answer."""
    if image.format != shown.format:
        return False
    name, other = image.filename, shown.filename
    with suppress(TimeoutError):
        return await in_thread(limits.FILE_TIMEOUT_S, _leads_to_one, name, other, paths=[name, other])
    return False


def _leads_to_one(name: str, other: str) -> bool:
    return files.same(Image(name, "", ""), files.named(other))


def _here(live: LiveVerdicts, key: Key, found: Verdict) -> DiskHere:
    moved = live.moved(key)
    return DiskHere(
        found,
        moved,
        live=live.shown.get(key),
        left=key[0] in live.left or (moved is not None and moved[1].left_at is not None),
        driven=moved is not None and moved[0].phase is not Phase.CLOSED,
        spoiled=key in live.spoiled,
        seen=live.is_confirmed(key),
    )
