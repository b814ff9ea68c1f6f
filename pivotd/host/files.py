"""Image file names as QEMU shows them, and their files: two names are one image if device and inode agree."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pivotd.core import nbd
from pivotd.core.image_names import Description, describe
from pivotd.core.pivot import FileSeen, Image, Pivot, PivotDisk
from pivotd.core.standing import Asked
from pivotd.core.verdict import Presence
from pivotd.host import devices, view
from pivotd.host.birth import born
from pivotd.host.process import boot_id
from pivotd.host.threads import look_at

LOST = "lost"
"""The Image.file_id of an image whose name did not lead to its file when pivotd planned: no file at this name is it."""


@dataclass(frozen=True, slots=True)
class File:
    """An absolute path or an NBD address if the name is one, and the id of the file if pivotd may look at it."""

    path: str | None
    file_id: str | None


@dataclass(frozen=True, slots=True)
class Birth:
    """When a file was made, UTC, RFC 3339: ``at`` if that was noted, else no later than ``until``; None: not known."""

    at: str | None = None
    until: str | None = None

    def contradicts(self, at: str | None) -> bool:
        """Return whether a file that was made at this time, None if that is not told, is certainly another one."""
        if at is None or self.at is not None:
            return at is not None and at != self.at
        return self.until is not None and at > self.until


UNKNOWN_BIRTH = Birth()


def resolve(filename: str, directory: Path | None) -> File:
    """Return the file behind a name that QEMU shows; relative names start at QEMU's working directory.

    QEMU writes ``json:{…}`` where a plain name would not say everything. Where it is only the backing image that QEMU
    has otherwise than by the header, the file itself counts. A part of a file has a name and an id of its own. NBD
    addresses come in one spelling. Other names that are no paths (``ssh:…``, ``/dev/fdset/7``) have no file.
    """
    found = describe(filename, None if directory is None else str(directory))
    if found.text.startswith(("/", "json:")) or nbd.canonical(found.text) is not None:
        return File(found.text, _id_of(found))
    return File(None, None)


def with_drivers(node: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a node with the driver of each file named: QEMU's -blockdev finds out nothing by itself."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found[key] = with_drivers(value) if isinstance(value, dict) else value
    if "driver" not in found and "filename" in found:
        look_at(found["filename"])
        found["driver"] = "host_device" if Path(found["filename"]).is_block_device() else "file"
    return found


def named(name: str) -> File:
    """Return the image that a user names: an absolute path, or an NBD address in any spelling."""
    return File(describe(name).text, file_id(name))


def asked(name: str) -> Asked:
    """Return an image that a user asks about, by every name that it may have in the journal, and by its file."""
    found = describe(name)
    if not found.text.startswith("/"):
        return Asked(frozenset({name, found.text}), _id_of(found), boot_id(), None)
    file = file_id(name)
    names = {name, os.path.normpath(name), os.path.realpath(name)}
    return Asked(frozenset(names), file, boot_id(), None if file is None else born(name))


def relative(filename: str, image: str) -> str:
    """Return the name of a lower file relative to the directory of the image; both arguments are absolute paths.

    ``..`` after a directory that is a symbolic link does not lead back to where the link stands. QEMU takes text before
    a colon for a protocol, unless a slash comes first.
    """
    place, name = os.path.split(filename)
    found = os.path.relpath(os.path.join(os.path.realpath(place), name), os.path.realpath(os.path.dirname(image)))  # noqa: PTH118, PTH120
    return f"./{found}" if ":" in found.split("/", 1)[0] else found


def normal(path: str) -> str:
    """Return an absolute path without ``..``, as it is if pivotd cannot see its directory; it looks at files.

    ``..`` after a directory that is a symbolic link leads to another directory than the text says.
    """
    if ".." not in path.split("/"):
        return path
    text, real = os.path.normpath(path), os.path.realpath(os.path.dirname(path))  # noqa: PTH120
    if not sees_directory(path):
        return path
    if os.path.realpath(os.path.dirname(text)) == real:  # noqa: PTH120
        return text
    return os.path.join(real, os.path.basename(path))  # noqa: PTH118, PTH119


def file_id(name: str) -> str | None:
    """Return ``DEV:INO``, ``block:MAJOR:MINOR`` for a block device: its name in /dev comes and goes.

    Of an image that is a part of a file, with ``@OFFSET+SIZE`` after it. None if there is no such file or pivotd may
    not look.
    """
    return _id_of(describe(name))


def _id_of(image: Description) -> str | None:
    if image.path is None or not image.path.startswith("/"):
        return None
    found = _file_id(image.path)
    part = f"@{image.offset}+{'' if image.size_bytes is None else image.size_bytes}" if image.is_part else ""
    return None if found is None else f"{found}{part}"


def _file_id(path: str) -> str | None:
    if view.hidden(path) is not None:
        return None
    look_at(path)
    try:
        return identify(os.stat(path))  # noqa: PTH116 - one system call, no object
    except (OSError, ValueError):
        return None


def with_file(image: Image) -> Image:
    """Return an image with the file that its name leads to now; as it is if pivotd cannot see one."""
    found = file_id(image.filename)
    return image if found is None else replace(image, file_id=found, born=made(image.filename))


def made(filename: str) -> str | None:
    """Return when the file of an image was made, of a loop device the file behind it.

    None of another device: its name in /dev is made anew with each boot.
    """
    path = describe(filename).path
    if path is None or view.hidden(path) is not None:
        return None
    look_at(path)
    return born(path) if os.path.isfile(path) else devices.made(path)  # noqa: PTH113


def change_times(images: Iterable[Image]) -> dict[str, int]:
    """Return, by name, when the file of each image was changed last, in ns; not of a file that is another by now.

    Nobody can set this time: whoever writes to a file, also under an older modification time, or gives it to another
    user, changes it.
    """
    found = {}
    for image in images:
        with contextlib.suppress(OSError, ValueError):
            if image.file_id is not None and file_id(image.filename) == image.file_id:
                found[image.filename] = os.stat(image.filename).st_ctime_ns  # noqa: PTH116
    return found


def identities(name: str) -> frozenset[str]:
    """Return identities of the image behind a name, existing or not: two names of one image share at least one.

    For a file, or a part of one: its real path, its entry in its directory, and the file itself. For an NBD export:
    its address.
    """
    found = describe(name)
    if found.path is None:
        return frozenset({found.export or found.text})
    look_at(found.path)
    path = os.path.realpath(found.path)
    directory, itself = file_id(os.path.dirname(path)), file_id(path)  # noqa: PTH120
    place = None if directory is None else f"{directory}/{os.path.basename(path)}"  # noqa: PTH119
    return frozenset(filter(None, (path, place, itself)))


def identify(found: os.stat_result) -> str:
    """Return Image.file_id of what stat has found."""
    if stat.S_ISBLK(found.st_mode):
        return f"block:{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return f"{found.st_dev}:{found.st_ino}"


def opened(pid: int) -> frozenset[str] | None:
    """Return the files that a process has open, as Image.file_id; None if /proc does not show them."""
    found = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                look_at(str(entry.readlink()))
                found.add(identify(entry.stat()))
    except OSError:
        return None
    return frozenset(found)


def lost(images: Iterable[Image], pid: int = 0, *, blind: bool = False) -> str | None:
    """Return a sentence on the first image whose name no longer leads to its file, None if there is none.

    A file without a name is gone as soon as QEMU closes it. This skips files that pivotd may not look at, and files
    that it has never seen in a directory that it cannot see, or of which QEMU (``pid``) has another; with ``blind``
    every file that it has never seen.
    """
    for image in map(_at_bottom, images):
        if not image.filename.startswith("/") or view.hidden(image.filename) is not None:
            continue
        look_at(image.filename)
        try:
            found = os.stat(image.filename)  # noqa: PTH116 - one system call, no object
        except (FileNotFoundError, NotADirectoryError):
            deleted = f"{image.filename} was deleted or renamed by another program"
            directory = os.path.dirname(image.filename)  # noqa: PTH120
            if image.file_id is not None or view.same_directory(pid, directory):
                return deleted
            if blind or not sees_directory(image.filename) or view.other_directory(pid, directory) is not None:
                continue
            return f"{deleted}, or QEMU has another {directory} than pivotd, in a mount namespace of its own"
        except OSError:
            continue
        if image.file_id not in {None, identify(found)}:
            return f"{image.filename} was replaced by another file"
    return None


def presence(image: Image, *, sees_all: bool, birth: Birth = UNKNOWN_BIRTH) -> Presence:
    """Return what the name of an image leads to now.

    ``sees_all``: no sandbox hides paths from this process, so that a missing name means a missing file; otherwise only
    if pivotd has seen the file before. ``birth``: when its file was made.
    """
    image = _at_bottom(image)
    if not image.filename.startswith("/"):
        return Presence.GONE if image.file_id == LOST else Presence.NO_FILE
    if view.hidden(image.filename) is not None:
        return Presence.UNSEEN
    look_at(image.filename)
    try:
        found = identify(os.stat(image.filename))  # noqa: PTH116 - one system call, no object
    except (FileNotFoundError, NotADirectoryError):
        return Presence.GONE if sees_all or image.file_id is not None else Presence.UNSEEN
    except (OSError, ValueError):
        return Presence.UNSEEN
    if devices.is_empty(found):
        return Presence.GONE
    same = image.file_id in {None, found} and not born_otherwise(image.filename, birth)
    return Presence.THERE if same else Presence.REPLACED


def _at_bottom(image: Image) -> Image:
    """Return the whole file of which an image is a part; any other image as it is."""
    path = describe(image.filename).path
    if path is None or path == image.filename:
        return image
    return replace(image, filename=path, file_id=None if image.file_id is None else image.file_id.partition("@")[0])


def sees_directory(path: str) -> bool:
    """Return whether this process sees the directory of a path."""
    look_at(path)
    return view.hidden(path) is None and os.path.isdir(os.path.dirname(path))  # noqa: PTH112, PTH120


def of_boot(image: Image, pivot: Pivot) -> Image:
    """Return an image of a pivot without its file's id if the host has booted since: ids count within one boot."""
    lasts = image.file_id == LOST or pivot.identity.boot_id == boot_id()
    return image if lasts else replace(image, file_id=None)


def last_seen(image: Image, pivot: Pivot, disk: PivotDisk) -> tuple[Image, Birth]:
    """Return the right image of the last pivot of a disk with the id of its file in this boot, and the file's birth.

    The time of birth counts for ever, also where a new file has got the number of a deleted one. Where nobody has noted
    it, the file was there when the pivot was decided, or when a person accepted it.
    """
    known, seen = of_boot(image, pivot), disk.file_seen
    if known.file_id == LOST:
        return known, UNKNOWN_BIRTH
    until = pivot.decided_at if disk.accepted is None else disk.accepted.at
    if seen is None or seen.filename != image.filename:
        return known, Birth(image.born, until)
    known = replace(known, file_id=seen.file_id) if seen.boot_id == boot_id() else known
    return known, Birth(seen.born or image.born, until)


def seen_now(filename: str) -> FileSeen | None:
    """Return the file at a path, or the loop device; None of other devices: of them no birth is known."""
    described = describe(filename)
    if described.path is None or (found := _id_of(described)) is None:
        return None
    at = made(filename)
    return FileSeen(filename, found, boot_id(), at) if at is not None or os.path.isfile(described.path) else None  # noqa: PTH113


def born_otherwise(filename: str, birth: Birth) -> bool:
    """Return whether the file at a path is certainly another one than that of a birth."""
    return birth != UNKNOWN_BIRTH and birth.contradicts(made(filename))


def renamed(image: Image, pivot: Pivot, file: File) -> bool:
    """Return whether ``file`` is the file of an image of a decided pivot, which has another name now.

    A file system may give the number of a deleted file to a new one, so it must have the image's time of birth, or be
    older than the decision if that was not noted.
    """
    if file.path is None or file.file_id is None or file.file_id != of_boot(image, pivot).file_id:
        return False
    if Birth(image.born).contradicts(made(file.path)):
        return False
    at, until = born(describe(file.path).path or file.path), pivot.decided_at or pivot.closed_at
    is_old = at is not None and (image.born is not None or (until is not None and at <= until))
    return is_old and file_id(image.filename) != file.file_id


def same(image: Image, file: File) -> bool:
    """Return whether both name one file: by device and inode if both are known, else by path."""
    if file.path is None:
        return False
    if file.file_id is not None:
        known = image.file_id or file_id(image.filename)
        if known is not None:
            return known == file.file_id
    return os.path.normpath(describe(image.filename).text) == os.path.normpath(file.path)
