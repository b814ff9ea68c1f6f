"""The places of an evacuation: which images lie below the old ones, and where each goes below the new one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from pivotd.cli.complaints import UnusableFileError, UsageError
from pivotd.core.image_names import describe
from pivotd.host import mounts, places

SUFFIXES = {"qcow2": ".qcow2", "raw": ".raw"}
"""The ends of file names that say the format; a name that says the old format gets the end of the new one."""

UNFINISHED = 0o700
"""The mode of a directory that is being made: after a kill in the middle the next run finishes it."""


class Places:
    """The old places and the new one, as pivotctl sees them.

    An image keeps its path below its old place: names cannot collide within one place, and the target of an image does
    not depend on what else is moved, now or in an earlier run.

    A name counts as it is written and as its links lead: the disk of a link below an old place needs that place too. So
    does that of a bind mount of it, and of a loop device on a file there.
    """

    def __init__(self, sources: Iterable[str], to: str) -> None:
        """Raises: UsageError, UnusableFileError: a place is no directory, or is old and new."""
        self.to = _directory(to, "--to")
        real = os.path.realpath(self.to)
        found = {os.path.realpath(name): name for name in reversed([_directory(name, "--from") for name in sources])}
        if real in found:
            raise UsageError(
                f"--from {found[real]} and --to {self.to} are one directory; see `pivotctl evacuate --help`"
            )
        self.roots = {
            place: name
            for place, name in sorted(found.items())
            if not any(place != other and _below(place, other) for other in found)
        }
        """Real path -> name as given. A place inside another one is a part of that."""
        self._inside = [place for place in (self.to, real) if any(_below(place, root) for root in self.roots)]
        """The new place by its names, if it lies inside an old one: what is there has arrived."""

    def holds(self, image: str) -> bool:
        """Return whether an image, by a name of the daemon's, lies below an old place, or on a file there."""
        if self._found(image) is not None:
            return True
        path = _path(image)
        return path is not None and any(
            self._found(file) is not None for file in places.of(path).below if file.startswith("/")
        )

    def has_arrived(self, image: str) -> bool:
        """Return whether an image lies below the new place."""
        path = _path(image)
        return path is not None and any(
            _below(name, place) for name in _names(path) for place in (self.to, os.path.realpath(self.to))
        )

    def target(self, image: str, old_format: str | None, new_format: str | None) -> str | None:
        """Return the path of the new image; None for one that does not lie below an old place, or not by itself."""
        found = self._found(image)
        if found is None:
            return None
        below = Path(found[1])
        if new_format is not None and old_format != new_format and below.suffix == SUFFIXES.get(old_format or ""):
            below = below.with_suffix(SUFFIXES[new_format])
        return str(Path(self.to, below))

    def make_directory(self, target: str, image: str) -> None:
        """Make the directories of a new image, each with owner and mode of its old one. Raises: UnusableFileError."""
        found = self._found(image)
        assert found is not None
        old, new = Path(found[0]), Path(self.to)
        for part in Path(target).parent.relative_to(self.to).parts:
            old, new = old / part, new / part
            try:
                if new.is_dir() and not _is_unfinished(new):
                    continue
                like = old.stat()
                new.mkdir(mode=UNFINISHED, exist_ok=True)
                os.chown(new, like.st_uid, like.st_gid)
                new.chmod(like.st_mode & 0o7777)
            except OSError as error:
                message = f"{new} cannot be made: {error.strerror or error}; make it, so that QEMU can write there"
                raise UnusableFileError(message, path=str(new)) from None

    def _found(self, image: str) -> tuple[str, str] | None:
        """Return the old place of an image and its path below that, None if it lies elsewhere."""
        path = _path(image)
        if path is None or any(_below(name, place) for name in _names(path) for place in self._inside):
            return None
        return next(
            (
                (place, os.path.relpath(name, place))
                for name in _names(path)
                for root in self.roots.items()
                for place in reversed(root)
                if _below(name, place)
            ),
            None,
        )

    @property
    def mark(self) -> str:
        """Return a short word that stands for these places, in any order."""
        return digest(sorted(self.roots), os.path.realpath(self.to))[:8]


def digest(*facts: object) -> str:
    """Return hexadecimal digits that stand for facts, the same in each run."""
    return hashlib.sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()


def _is_unfinished(path: Path) -> bool:
    found = path.stat()
    return found.st_uid == os.geteuid() and found.st_mode & 0o7777 == UNFINISHED and not any(path.iterdir())


def _directory(name: str, option: str) -> str:
    path = os.path.normpath(name)
    if Path(path).exists() and not Path(path).is_dir():
        raise UsageError(f"{option} {name} is no directory; see `pivotctl evacuate --help`")
    try:
        os.stat(path)  # noqa: PTH116 - its error says why
    except PermissionError:
        return path  # the daemon may see what its caller does not
    except OSError as error:
        raise UnusableFileError(f"{option} {name}: {error.strerror}; check the path", path=name) from None
    return path


def _path(image: str) -> str | None:
    """Return the absolute path of an image's file, None if it is no file. ``..`` after a link leads elsewhere."""
    path = describe(image).path
    if path is None or not path.startswith("/"):
        return None
    if ".." in Path(path).parts:
        path = str(Path(os.path.realpath(Path(path).parent), Path(path).name))
    return os.path.normpath(path)


def _names(path: str) -> list[str]:
    """Return the names of a file: as it is written, without links, by other mounts, and of the file behind a device."""
    real = os.path.realpath(path)
    found, file = [path, real, *mounts.other_names(real)], places.backing_file_of(real)
    return list(dict.fromkeys([*found, *([] if file is None else _names(file))]))


def _below(path: str, place: str) -> bool:
    return path.startswith(f"{place.rstrip('/')}/")
