"""The disks that have an image in their chains, although no pivot has named it: a layer far below, a data file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from pivotd import limits
from pivotd.app.live_verdicts import Key, LiveVerdicts
from pivotd.app.registry import Host
from pivotd.core import known_chain
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.standing import Finding
from pivotd.core.verdict import Verdict
from pivotd.errors import ConflictError
from pivotd.host import places, process
from pivotd.host.backing import Below, BlindError
from pivotd.host.places import Place
from pivotd.host.threads import in_thread
from pivotd.planning import lower_images

Had = Callable[[str], Awaitable[Sequence[tuple[Pivot, PivotDisk]]]]
"""Returns every pivot that had an image of this name, the newest first."""
Calm = Callable[[], Awaitable[None]]
"""Returns while no guest is in its pause: headers are parsed, which would take processor time from it."""


async def in_chains(  # noqa: PLR0913, PLR0917 - what it works with
    image: str, host: Host, had: Had, live: LiveVerdicts, verdicts: Mapping[Key, Verdict], calm: Calm
) -> tuple[dict[Key, Finding], dict[Key, str]]:
    """Return how an image stands to the disks that have it in their chains: by what QEMUs show, or else by headers.

    And, of disks whose storage does not answer, why nothing is claimed. Nor is anything below images that pivotd may
    not read and has not made. Raises: ConflictError: the storage of the image does not answer.
    """
    try:
        place = await in_thread(limits.FILE_TIMEOUT_S, places.of, image, paths=[image])
    except TimeoutError as error:
        raise ConflictError(f"{error}: ask by domain and disk instead") from None
    keys = list(verdicts)
    found: dict[Key, Finding] = {}
    silent: dict[Key, str] = {}

    async def look(key: Key) -> None:
        try:
            finding = await _look(place, host, had, live, verdicts[key])
        except TimeoutError as error:
            silent[key] = str(error)
        else:
            found.update({} if finding is None else {key: finding})

    for first in range(0, len(keys), limits.FILES_AT_ONCE):
        await calm()
        part = keys[first : first + limits.FILES_AT_ONCE]
        await asyncio.gather(*map(look, part))
    return found, silent


async def _look(place: Place, host: Host, had: Had, live: LiveVerdicts, right: Verdict) -> Finding | None:
    """Return how an image stands to one disk. Raises: TimeoutError: its storage does not answer."""
    supervisor = host.supervisors.get(right.domain)
    session = None if supervisor is None else supervisor.session
    known: dict[str, list[Below]] = {}
    if session is not None and live.is_asked(right.domain):
        seen = live.disks.get((right.domain, right.disk))
        if seen is not None:
            names = [layer.filename for layer in seen.layers]
            directory = process.working_directory(session.pid)
            chain = (place, seen, directory, right)
            return await in_thread(limits.OTHERS_FILE_TIMEOUT_S, lower_images.in_chain, *chain, paths=names)
    while right.image is not None:
        try:
            headers = (place, right, known)
            paths = [right.image]
            return await in_thread(limits.OTHERS_FILE_TIMEOUT_S, lower_images.by_headers, *headers, paths=paths)
        except BlindError as error:
            below = known_chain.right_below(error.image, await had(error.image))
            if below is None or error.image in known:
                return None
            known[error.image] = [(one.filename, one.format) for one in below]
    return None
