"""How one move of an evacuation begins, or goes on: the pivot that makes it already, or a new one.

Whatever was killed: the pivot of a move is found by its request id, and a try that kept the source gives the next try
the next id. So no disk is moved twice, and a copy that was given up is made again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any

from pivotd.cli.complaints import UnusableFileError
from pivotd.cli.evacuate_places import Places
from pivotd.cli.evacuate_plan import OWN, DiskMove, Move
from pivotd.client import Client, CopyDisk, CopyRequest, ImageVerdict, Pivot, RefusedError, UnknownError
from pivotd.host.birth import born


class Starter:
    """Begins moves. ``options``: further fields of the requests."""

    def __init__(self, client: Client, places: Places, image_format: str | None, options: Mapping[str, Any]) -> None:
        self._client, self._places, self._format, self._options = client, places, image_format, options

    def begin(self, move: Move, bytes_per_s: int) -> Pivot | None:
        """Return the pivot that makes a move, None if the disks are there already.

        ``bytes_per_s``: how fast each job of a new pivot may copy; 0: no limit.
        Raises: ClientError, UnusableFileError: a directory cannot be made.
        """
        known, request_id = self._known(move)
        if known is not None:
            return self._tried_again(known)
        for disk in move.disks:
            self._places.make_directory(disk.target, disk.image)
        try:
            return self._start(move, request_id, bytes_per_s)
        except RefusedError:
            if self._has_arrived(move):
                return None
            raise

    def _known(self, move: Move) -> tuple[Pivot | None, str]:
        """Return the open pivot of a move, None if there is none, and the request id of the next try."""
        if move.pivot is not None:
            return self._client.pivot(move.pivot), move.pivot
        for attempt in count(1):
            request_id = f"{move.series}-{attempt}"
            try:
                found = self._client.pivot(request_id)
            except RefusedError as failure:
                if failure.kind != "not-found":
                    raise
                return None, request_id
            if found.closed is None:
                return found, request_id
        raise AssertionError("count() does not end")

    def _tried_again(self, pivot: Pivot) -> Pivot:
        """Return an open pivot; one that had failed too often, and waits, tries again."""
        waits = pivot.phase == "ready" and pivot.hold
        return self._client.complete(pivot.id) if waits and pivot.request_id.startswith(OWN) else pivot

    def _start(self, move: Move, request_id: str, bytes_per_s: int) -> Pivot:
        disks = [CopyDisk(disk=one.disk, image=one.target, format=self._format) for one in move.disks]  # type: ignore[arg-type]
        request = CopyRequest(disks=disks, bandwidth_bytes_per_s=bytes_per_s, **self._options)
        try:
            return self._client.start(move.domain, request, request_id=request_id)
        except UnknownError as failure:
            try:
                return self._client.pivot(request_id)
            except RefusedError:
                raise failure from None
        except RefusedError as failure:
            if "exists" not in failure.fields:
                raise
            self._refuse_foreign(move)
            request.reuse = True
            return self._client.start(move.domain, request, request_id=request_id)

    def _refuse_foreign(self, move: Move) -> None:
        """Raises: UnusableFileError: a file that is in the way is not certainly what an earlier try has left."""
        for disk in move.disks:
            options = self._options
            made_anew = options["sync"] == "top" or options["image_options"] or options["secret_file"]
            if made_anew or not self._is_left_over(move.domain, disk):
                message = f"{disk.target} exists already: if nobody needs it (`pivotctl verdict --image`), remove it"
                if not os.path.lexists(disk.target):
                    message = f"{disk.target} does not exist, though the image of another disk of {move.domain} does"
                raise UnusableFileError(f"{message}; then evacuate again", path=disk.target)

    def _is_left_over(self, domain: str, disk: DiskMove) -> bool:
        """Return whether the file of a target is the one that an earlier evacuation has made for this disk, and left.

        The journal has it as an image that no disk was ever switched to, and nobody has written to it since.
        """
        known = self._client.image(disk.target)
        return bool(known) and all(self._was_made(domain, disk, one) for one in known)

    def _was_made(self, domain: str, disk: DiskMove, known: ImageVerdict) -> bool:
        if (known.domain, known.disk) != (domain, disk.disk) or known.standing_pivot is None:
            return False
        pivot = self._client.pivot(known.standing_pivot)
        own = _is_own_end(pivot) and known.standing == "never switched to"
        return own and _is_of(disk.target, pivot, self._makers(domain, disk, pivot))

    def _makers(self, domain: str, disk: DiskMove, last: Pivot) -> Iterable[Pivot]:
        """Return the ended tries of evacuations that may have made the file of a target which ``last`` had."""
        if not last.options.reuse:
            return [last]
        return (
            one
            for one in self._client.pivots(domain)
            if _is_own_end(one)
            and not one.options.reuse
            and any((each.disk, each.destination) == (disk.disk, disk.target) for each in one.disks)
        )

    def _has_arrived(self, move: Move) -> bool:
        """Return whether every disk is on its new image by now."""
        now = {disk.disk: disk.image for disk in self._client.disks(move.domain)}
        return all(now.get(disk.disk) == disk.target for disk in move.disks)


def _is_own_end(pivot: Pivot) -> bool:
    return pivot.request_id.startswith(OWN) and pivot.closed is not None


def _is_of(path: str, last: Pivot, makers: Iterable[Pivot]) -> bool:
    """Return whether a file was made while one of these pivots was open, and not changed after the end of the last.

    A pivot that overwrote what an earlier one had made is younger than the file.
    """
    made = born(path)
    try:
        found = os.stat(path)  # noqa: PTH116 - one system call
    except OSError:
        return False
    changed = max(found.st_ctime, found.st_mtime)  # nobody can set the first, as `cp -p` sets the second
    assert last.closed is not None
    at = datetime.fromtimestamp(changed, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if made is None or at > last.closed:
        return False
    return any(one.closed is not None and one.created <= made <= one.closed for one in makers)
