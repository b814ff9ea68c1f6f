"""What history says of images, for every disk that has or had them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from pivotd.core import verdict
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.standing import Asked, Finding, History, ImageFound, Moved, Standing
from pivotd.core.verdict import Verdict, of_pivot
from pivotd.journal.reader import Reader

Key = tuple[str, str]
"""Domain and disk."""
OBSOLETE = frozenset({Standing.STALE, Standing.UNUSED, Standing.RELEASED})
"""The standings of an image that no guest of the journal needs any more."""


def images_found(
    reader: Reader,
    name: str,
    asked: Asked,
    verdicts: Mapping[Key, Verdict],
    gone: Callable[[Pivot], bool] = lambda _pivot: False,
) -> list[ImageFound]:
    """Return how an image stands to each disk that has or had it; ``verdicts``: at least those of these disks.

    ``gone``: whether the QEMU of a pivot has certainly ended, and with it what kept an old image in sync. All records
    are of one moment. It is that of the verdicts if ``news()`` has none at that same moment.
    """
    return reader.at_once(lambda: _images_found(reader, name, asked, verdicts, gone))


def news(reader: Reader, known: Mapping[Key, Moved | None]) -> set[Key]:
    """Return the disks of which the journal says something else now than is ``known``: their last pivots by then."""

    def look() -> set[Key]:
        now = {key: next(iter(reader.latest(*key, limit=1)), None) for key in known}
        return {key for key, moved in known.items() if state_of(moved) != state_of(now[key])}

    return reader.at_once(look)


def state_of(moved: Moved | None) -> object:
    """Return what is another one after each record on which a verdict rests: of the last pivot, and of a doubt."""
    if moved is None:
        return None
    pivot, disk = moved
    return pivot.id, pivot.revision, disk.left_at, disk.ran_on


def _images_found(
    reader: Reader, name: str, asked: Asked, verdicts: Mapping[Key, Verdict], gone: Callable[[Pivot], bool]
) -> list[ImageFound]:
    moved, ran_on = reader.image(asked.names, asked.file_ids), reader.ran_on()
    moved = [(replace(one, hold=False) if one.window_open and gone(one) else one, disk) for one, disk in moved]
    last = {_key(one): one for one in moved if asked.is_file(one)}
    last |= {_key(one): one for one in moved if asked.is_named(one)}  # a name says more than a file's number
    found = [
        ImageFound(name, right, History(right, _finder(reader, key), ran_on.get(key, {})).of_image(asked, one))
        for key, one in last.items()
        if (right := verdicts.get(key)) is not None
    ]
    for key, right in verdicts.items():
        if key not in last and right.image in asked.names:
            now = Finding(Standing.CURRENT, "QEMU uses it now", right.since, right.pivot)
            found.append(ImageFound(name, right, now))
    return sorted(found, key=lambda one: (one.verdict.domain, one.verdict.disk))


def with_lower(
    found: list[ImageFound], name: str, lower: Mapping[Key, Finding], verdicts: Mapping[Key, Verdict]
) -> list[ImageFound]:
    """Return what was found of an image, and the disks that need it though no pivot says so, which counts for more."""
    said = {(one.verdict.domain, one.verdict.disk): one for one in found}
    for key, finding in lower.items():
        if key in verdicts and (key not in said or said[key].finding.standing in OBSOLETE):
            said[key] = ImageFound(name, verdicts[key], finding)
    return [said[key] for key in sorted(said)]


def standings(reader: Reader, name: str, asked: Asked) -> list[ImageFound]:
    """Return how an image stands to each disk that has ever had it, by the journal alone, as of one moment."""

    def look() -> list[ImageFound]:
        keys = {_key(one) for one in reader.image(asked.names, asked.file_ids)}
        latest = [one for key in keys for one in reader.latest(*key, limit=1)]
        return images_found(reader, name, asked, {_key(one): of_pivot(*one) for one in latest})

    return reader.at_once(look)


def left_by(reader: Reader, asked: Asked) -> list[tuple[Moved, Finding]]:
    """Return the last pivot of each disk whose guest has used an image and gone on with another one, and how that is.

    Whatever has run on it since. Not where a person has chosen an image since, nor for a new file of that name.
    """

    def look() -> list[tuple[Moved, Finding]]:
        found = []
        for one in reader.image(asked.names, asked.file_ids):
            last = next(iter(reader.latest(*_key(one), limit=1)))
            if last[1].accepted is None and _has_used(asked, one):
                finding = History(of_pivot(*last), _finder(reader, _key(one))).of_image(asked, one)
                found += [(last, finding)] if finding.standing in {Standing.STALE, Standing.UNUSED} else []
        return found

    return reader.at_once(look)


def _has_used(asked: Asked, moved: Moved) -> bool:
    """Return whether an image was the active one of a disk before a pivot, or was to be after it."""
    pivot, disk = moved
    until = pivot.decided_at or pivot.closed_at
    is_new = asked.born is not None and until is not None and asked.born > until
    return not is_new and any(asked.finds(one, pivot) for one in (disk.source, disk.destination))


def overtaken(found: Iterable[ImageFound], keys: Collection[Key]) -> list[ImageFound]:
    """Return what was found of an image, with nothing certain of these disks: it is put together from two moments."""
    shown = []
    for one in found:
        if (one.verdict.domain, one.verdict.disk) in keys:
            right = verdict.overtaken(one.verdict)
            finding = Finding(Standing.UNKNOWN, right.reason, right.since, right.pivot)
            shown.append(replace(one, verdict=right, finding=finding))
        else:
            shown.append(one)
    return shown


def obsolete(reader: Reader, after: str, limit: int) -> tuple[list[ImageFound], str | None]:
    """Return those of the next ``limit`` images after a name that no disk needs, by the journal alone.

    Also returns the name to go on from, None if there are no more images. All of it is of one moment.
    """
    return reader.at_once(lambda: _obsolete(reader, after, limit))


def _obsolete(reader: Reader, after: str, limit: int) -> tuple[list[ImageFound], str | None]:
    names, rows = reader.images(after, limit)
    ran_on = reader.ran_on()
    stands: dict[str, list[ImageFound]] = {name: [] for name in names}
    for name, moved, latest in rows:
        right = of_pivot(*latest)
        history = History(right, _finder(reader, _key(moved)), ran_on.get(_key(moved), {}))
        finding = history.of_image(Asked(frozenset({name})), moved)
        stands[name].append(ImageFound(name, right, finding, _known_file(name, *moved)))
    found = [
        max(of_disks, key=lambda one: one.finding.since or "")
        for of_disks in stands.values()
        if of_disks and all(one.finding.standing in OBSOLETE for one in of_disks)
    ]
    return found, names[-1] if len(names) == limit else None


def _key(moved: Moved) -> Key:
    return moved[0].domain, moved[1].disk


def _known_file(name: str, pivot: Pivot, disk: PivotDisk) -> tuple[str, str] | None:
    sides = (disk.source, disk.destination, disk.top, disk.base)
    file_id = next((one.file_id for one in sides if one is not None and one.filename == name), None)
    return None if file_id is None else (pivot.identity.boot_id, file_id)


def _finder(reader: Reader, key: Key) -> Callable[[str], Moved | None]:
    def find(name: str) -> Moved | None:
        return next((one for one in reader.image([name]) if _key(one) == key), None)

    return find
