"""What exists at the path of a destination: nothing, an image file, a block device; checked without opening an image.

If pivotd may not see the file, QEMU refuses it when it opens the image.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from pivotd import limits
from pivotd.core.pivot import Image
from pivotd.core.request import CopyOptions
from pivotd.errors import BadRequestError
from pivotd.host import qcow2, view
from pivotd.host.threads import look_at
from pivotd.qmp.blocks import DiskSeen

_NEVER_A_FILE = {
    errno.ENAMETOOLONG: "the file system takes no name of that length: choose a shorter one",
    errno.ELOOP: "its symbolic links lead in a circle: name another file",
}
"""Why no file can be at a path, by the error of a look at it."""


def check_path(image: Image, seen: DiskSeen, options: CopyOptions, *, pid: int) -> None:
    """Refuse visible mistakes early, and places where pivotd could not see any: QEMU overwrites what is there.

    ``pid``: QEMU. With ``force`` it goes on without a look. Raises: BadRequestError; its field ``exists`` names a file
    that is in the way of a new image.
    """
    reuse = options.reuse
    path = Path(image.filename)
    look_at(image.filename)
    if is_of_a_process(image.filename):
        raise BadRequestError(f"{path} leads to a file of one process alone: name the file itself", disk=seen.disk)
    if (blind := unlike(image.filename, pid)) is not None:
        if options.force:
            return
        raise BadRequestError(
            f"{path}: {blind}; with --force pivotd goes on without a look: QEMU then overwrites an image that is there",
            disk=seen.disk,
        )
    try:
        found = path.stat()
    except FileNotFoundError:
        if reuse:
            raise BadRequestError(f"{path} does not exist: create it first, or leave out --reuse") from None
        if missing(path.parent):
            raise BadRequestError(f"{path}: directory {path.parent} does not exist") from None
        return
    except NotADirectoryError:
        raise BadRequestError(f"{path}: {path.parent} is not a directory") from None
    except OSError as error:
        if error.errno in _NEVER_A_FILE:
            raise BadRequestError(f"{path}: {_NEVER_A_FILE[error.errno]}") from None
        return
    if not reuse and stat.S_ISBLK(found.st_mode):
        raise BadRequestError(f"{path} is a block device, which is there already: use --reuse to overwrite it")
    if not reuse:
        raise BadRequestError(
            f"{path} exists already: name a new image, or use --reuse to overwrite this one", exists=image.filename
        )
    if stat.S_ISBLK(found.st_mode):
        _check_unclaimed(path)
    elif not stat.S_ISREG(found.st_mode):
        raise BadRequestError(f"{path} is neither a regular file nor a block device: it cannot hold a disk")
    _check_content(path, image.format, seen)


def _check_unclaimed(device: Path) -> None:
    """Raises: BadRequestError: the host itself uses the device, as a mount, a RAID, a volume group does."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BadRequestError(f"{device} is in use by this host: mounted, or part of another device") from None
        return
    os.close(descriptor)


def _check_content(path: Path, image_format: str, seen: DiskSeen) -> None:
    """Check that the image is of the named format, which is never probed, and as large as the disk."""
    try:
        head = qcow2.look(str(path))
    except (OSError, ValueError):
        return
    if head is None:
        return
    size = head.file_bytes
    if image_format == "qcow2":
        if head.header is None:
            raise BadRequestError(f"{path} holds no qcow2 image: create one there first, or name --format raw")
        if head.header.backing_file is not None:
            raise BadRequestError(f"{path} has a backing file: a full copy needs an image that stands alone")
        size = head.header.size_bytes
    if size < seen.size_bytes:
        raise BadRequestError(f"{path} is smaller than {seen.disk}: {size} bytes for {seen.size_bytes}")
    if image_format == "qcow2" and size > seen.size_bytes:
        raise BadRequestError(f"{path} is larger than {seen.disk}: {size} bytes for {seen.size_bytes}; resize it first")


def unlike(filename: str, pid: int) -> str | None:
    """Return one sentence if pivotd does not see the directory of a file as QEMU does, None if nothing shows that."""
    directory = os.path.realpath(os.path.dirname(filename))  # noqa: PTH120
    name = os.path.join(directory, os.path.basename(filename))  # noqa: PTH118, PTH119
    return view.hidden(name) or view.other_directory(pid, directory)


def is_of_a_process(filename: str) -> bool:
    """Return whether a name leads through /proc, or by a descriptor: to another file in each process, and then to none.

    It follows links one by one, as /proc/self is pivotd's own here.
    """
    if filename.startswith("/dev/fdset/"):
        return True
    at, parts, links = "/", [*reversed(Path(filename).parts[1:])], 0
    while parts:
        part = parts.pop()
        at = os.path.dirname(at) if part == ".." else os.path.join(at, part)  # noqa: PTH118, PTH120
        if at == "/proc":
            return True
        look_at(at)
        try:
            link = os.readlink(at)  # noqa: PTH115
        except OSError:
            continue
        if (links := links + 1) > limits.LINKS_MAX:
            return False
        at = "/" if link.startswith("/") else os.path.dirname(at)  # noqa: PTH120
        parts += reversed([name for name in link.split("/") if name not in {"", "."}])
    return False


def missing(path: str | Path) -> bool:
    """Return whether this name certainly does not exist, as far as pivotd's sandbox lets it see."""
    look_at(str(path))
    if view.hidden(os.path.realpath(path)) is not None:
        return False
    try:
        os.stat(path)  # noqa: PTH116 - one system call, no object
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
