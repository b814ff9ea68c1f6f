"""The images that pivots of this process write to, and those that a person's word is being recorded for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pivotd.app.registry import Host
from pivotd.core.pivot import Image
from pivotd.errors import BadRequestError, DiskBusyError
from pivotd.planning.plan import marks, written_by

Marked = Sequence[tuple[Image, frozenset[str]]]
"""Images, each with its identities: files.identities()."""


@dataclass(frozen=True, slots=True, eq=False)
class _Word:
    """The identities of an accepted image, and of all that it needs: itself, and what lies below it."""

    image: frozenset[str]
    needs: frozenset[str]


class Reservations:
    """Lets one request at a time have an image, by file and by name, from before it is recorded.

    No await comes between the check and a reservation: of many requests for one image, one gets it.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.accepting: set[str] = set()
        """Pivots being recorded, which have no driver yet."""
        self._of_pivots: dict[str, Marked] = {}
        self._of_words: list[_Word] = []

    def reserve(self, pivot: str, marked: Marked) -> None:
        """Reserve the images that a pivot writes to, as long as it is open; it is in ``accepting`` from now on.

        Raises: DiskBusyError, BadRequestError.
        """
        kept = self.accepting | self._host.drivers().keys()
        self._of_pivots = {open_one: images for open_one, images in self._of_pivots.items() if open_one in kept}
        taken = {mark for images in self._of_pivots.values() for _, marks_of in images for mark in marks_of}
        own: dict[str, str] = {}
        for image, marks_of in marked:
            if not taken.isdisjoint(marks_of):
                raise DiskBusyError(f"{image.filename} is the destination of another open pivot")
            if any(not word.needs.isdisjoint(marks_of) for word in self._of_words):
                raise DiskBusyError(
                    f"{image.filename} is just being accepted as the image of another disk, or lies below that"
                )
            twice = next((own[mark] for mark in marks_of if own.get(mark, image.filename) != image.filename), None)
            if twice is not None:
                raise BadRequestError(f"{twice} and {image.filename} are one image: name two")
            own |= dict.fromkeys(marks_of, image.filename)
        self.accepting.add(pivot)
        self._of_pivots[pivot] = marked

    @asynccontextmanager
    async def of_word(self, image: str, below: Sequence[str] = ()) -> AsyncIterator[None]:
        """Reserve an image while a person's word is recorded that it holds a disk's data; ``below``: what it lies on.

        Raises: DiskBusyError: a pivot may write to one of them, or another word for the image is being recorded;
        BadRequestError: a storage does not answer.
        """
        names = (image, *below)
        named = dict(zip(names, await marks([Image(name, "", "") for name in names]), strict=True))
        own = _Word(named[image], frozenset().union(*named.values()))

        def which(written: frozenset[str]) -> str:
            name = next(name for name, marks_of in named.items() if not marks_of.isdisjoint(written))
            return name if name == image else f"{name}, which lies below {image}"

        if any(not (one.needs.isdisjoint(own.image) and one.image.isdisjoint(own.needs)) for one in self._of_words):
            raise DiskBusyError(f"{image}, or an image below it, is just being accepted as the image of another disk")
        being_recorded = [marked for pivot, marked in self._of_pivots.items() if pivot in self.accepting]
        for marks_of in (marks_of for marked in being_recorded for _, marks_of in marked):
            if not marks_of.isdisjoint(own.needs):
                raise DiskBusyError(f"a pivot that begins just now writes to {which(marks_of)}: name another one")
        self._of_words.append(own)
        try:
            # Those that an earlier pivotd began have no reservation here.
            pivots = self._host.open_pivots()
            written = await asyncio.gather(*(written_by([pivot]) for pivot in pivots))
            for pivot, images in zip(pivots, written, strict=True):
                if not images.isdisjoint(own.needs):
                    raise DiskBusyError(
                        f"pivot {pivot.id} of {pivot.domain} may write to {which(images)}: wait for it, or cancel it "
                        "first",
                        pivot=pivot.id,
                    )
            yield
        finally:
            self._of_words.remove(own)
