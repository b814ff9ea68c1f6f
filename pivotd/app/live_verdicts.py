"""Verdicts of the journal, checked against what QEMU shows now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from pivotd import limits
from pivotd.core import verdict
from pivotd.core.phases import is_decided
from pivotd.core.pivot import Image, Pivot, PivotDisk
from pivotd.core.verdict import Verdict
from pivotd.errors import ConflictError, QmpError
from pivotd.host import files, process
from pivotd.host.threads import in_thread
from pivotd.qmp.blocks import DiskSeen
from pivotd.qmp.session import Session

Key = tuple[str, str]
"""Domain and disk."""
Moved = tuple[Pivot, PivotDisk]
"""The last pivot of a disk, and the disk in it."""


class LiveVerdicts:
    """The journal's verdict on each disk, checked against QEMU. ``latest``: the last pivot of each disk."""

    def __init__(self, latest: Iterable[Moved]) -> None:
        self._last: dict[Key, Moved] = {(pivot.domain, disk.disk): (pivot, disk) for pivot, disk in latest}
        self._found: dict[Key, Verdict] = {key: verdict.of_pivot(*moved) for key, moved in self._last.items()}
        self._confirmed: set[Key] = set()
        """Disks that the pivot's own QEMU has shown: this QEMU lives, so no other one starts the guest."""

    async def all(self, sessions: Mapping[str, Session], disk: str | None, image: str | None) -> list[Verdict]:
        """Return the requested verdicts. ``sessions``: the connected QEMUs, by domain.

        Raises: ConflictError: the storage of ``image`` does not answer.
        """
        await asyncio.gather(*(self._check_domain(name, session) for name, session in sessions.items()))
        for key, (pivot, _) in self._last.items():
            if verdict.may_be_overtaken(pivot) and key not in self._confirmed:
                self._found[key] = verdict.provisional(self._found[key])
        chosen = [(key, v) for key, v in sorted(self._found.items()) if disk is None or v.disk == disk]
        if image is None:
            return [v for _, v in chosen]
        try:
            named = await in_thread(
                limits.FILE_TIMEOUT_S,
                lambda: [_names_image(v, self._last.get(key), image) for key, v in chosen],
                paths=[image, *(side.filename for last in self._last.values() for side in _unidentified(last))],
            )
        except TimeoutError as error:
            raise ConflictError(f"{error}: ask by domain and disk instead") from None
        return [v for (_, v), wanted in zip(chosen, named, strict=True) if wanted]

    async def _check_domain(self, name: str, session: Session) -> None:
        try:
            for disk in (await session.disks()).values():
                await self._check_disk((name, disk.disk), disk, session)
        except (QmpError, TimeoutError):
            return  # QEMU or the storage does not answer: the journal's word stands

    async def _check_disk(self, key: Key, disk: DiskSeen, session: Session) -> None:
        moved = self._last.get(key)
        if moved is None:
            live = verdict.Live(await image_path(disk.filename, session), disk.format)
            self._found[key] = verdict.without_pivot(*key, live)
        else:
            paths = [disk.filename, *(side.filename for side in _unidentified(moved))]
            live = await in_thread(limits.FILE_TIMEOUT_S, _live, disk, moved, session, paths=paths)
            self._found[key] = verdict.check(self._found[key], live, decided=is_decided(moved[0]))
            if live.same_qemu:
                self._confirmed.add(key)


async def image_path(filename: str, session: Session) -> str:
    """Return the absolute path of an image, or QEMU's own spelling if the storage does not answer."""
    directory = process.working_directory(session.pid)
    try:
        file = await in_thread(limits.FILE_TIMEOUT_S, files.resolve, filename, directory, paths=[filename])
    except TimeoutError:
        return filename
    return file.path or filename


def _unidentified(last: Moved) -> list[Image]:
    """Return the images whose files have to be looked at to compare them."""
    return [side for side in (last[1].source, last[1].destination) if side.file_id is None]


def _live(disk: DiskSeen, last: Moved, session: Session) -> verdict.Live:
    pivot, moved = last
    known = pivot.identity
    same = (known.pid, known.start_ticks, known.boot_id) == (
        session.pid,
        process.start_ticks(session.pid),
        process.boot_id(),
    )
    file = files.resolve(disk.filename, process.working_directory(session.pid))
    return verdict.Live(
        image=file.path or disk.filename,
        format=disk.format,
        same_qemu=same,
        is_source=(same and disk.node == moved.source.node) or files.same(moved.source, file),
        is_destination=(same and disk.node == moved.destination.node) or files.same(moved.destination, file),
    )


def _names_image(found: Verdict, last: Moved | None, image: str) -> bool:
    file = files.named(image)
    if found.image == image:
        return True
    return last is not None and any(files.same(side, file) for side in (last[1].source, last[1].destination))
