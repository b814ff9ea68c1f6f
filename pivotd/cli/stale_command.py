"""`pivotctl stale`: the images that no disk needs any more, and whether something uses them all the same."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import click

from pivotd.cli import render
from pivotd.cli.context import App, Form, pass_app, tell
from pivotd.cli.help import ExampleCommand
from pivotd.client import ImageVerdict
from pivotd.errors import EXIT_UNKNOWN, PivotdError
from pivotd.host import files, places
from pivotd.host.birth import born
from pivotd.host.locks import is_locked
from pivotd.host.places import Place
from pivotd.host.process import boot_id

EXAMPLES = (
    "pivotctl stale",
    "pivotctl stale -q | xargs -d '\\n' ls -l",
    "pivotctl --offline /var/lib/pivotd stale",
)
QEMU_IMG_TIMEOUT_S = 20.0


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="Images that no disk needs any more.")
@pass_app
def stale(app: App) -> None:
    """List images that hold no disk's data any more: old sources, layers that were merged, half-made destinations.

    USED BY names a guest whose QEMU has the image open, or a device on it, or whose right image is based on it; or a
    loop device on it; or says that some QEMU has locked it. FILE is "replaced" where the name leads to another file
    than the stale one. pivotctl looks at the files itself, so run it as a user who may see them. Nothing is ever
    deleted by pivotd.

    With -q, the names of images that are there and that nothing uses: nothing is printed and the status is 6 if some
    guest could not be asked, such as one that is off or on another host, as its disks may be based on any image. With
    --offline, no QEMU is asked.
    """
    users = _Users(app)
    shown = [_row(one, users) for one in app.reads.obsolete()]
    if app.form is Form.NAME:
        for row in shown:
            if row["file"] == "there" and row["used_by"] is None and users.complete:
                print(row["image"])
        if not users.complete:
            app.found(EXIT_UNKNOWN)
            tell(f"no name is printed: {users.missed}")
        return
    if render.answer(app, shown):
        return
    columns = ("IMAGE", "SIZE", "STALE FOR", "FILE", "USED BY", "OF")
    render.table(columns, [
        (row["image"], render.size(row["size_bytes"]), render.duration(row["age_s"]), row["file"],
         row["used_by"] or render.NOTHING, f"{row['domain']} {row['disk']}")
        for row in shown
    ])  # fmt: skip
    if users.missed:
        tell(users.missed)


def _row(one: ImageVerdict, users: _Users) -> dict[str, Any]:
    file, size_bytes = _look(one)
    return {
        "image": one.asked,
        "standing": one.standing,
        "domain": one.domain,
        "disk": one.disk,
        "since": one.standing_since,
        "pivot": one.standing_pivot,
        "reason": one.standing_reason,
        "age_s": _age_s(one.standing_since),
        "file": file,
        "size_bytes": size_bytes,
        "used_by": users.of(one.asked) or _locked(one.asked) or users.device_on(one.asked),
        "all_asked": users.complete,
    }


def _look(one: ImageVerdict) -> tuple[str, int | None]:
    """Return whether the file is there, and what it takes on the disk in bytes."""
    path, since = one.asked, one.standing_since
    if not path.startswith("/"):
        return "no file", None
    try:
        found = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return "gone", None
    except OSError:
        return "unseen", None
    knows = one.known_boot_id is not None and one.known_boot_id == boot_id()
    made = born(path) if stat.S_ISREG(found.st_mode) else None
    if (knows and files.identify(found) != one.known_file_id) or (
        made is not None and since is not None and made > since
    ):
        return "replaced", found.st_blocks * 512
    return "there", found.st_blocks * 512


def _locked(path: str) -> str | None:
    """Return who uses an image that some QEMU has locked, perhaps for a guest that pivotd does not know."""
    try:
        return "a QEMU" if path.startswith("/") and is_locked(path, os.stat(path)) else None  # noqa: PTH116
    except OSError:
        return None


def _age_s(since: str | None) -> float | None:
    if since is None:
        return None
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds())


class _Users:
    """Who uses images: the chains that QEMUs show, and the chains of right images while no QEMU shows them.

    ``missed``: one sentence if something could not be asked; ``complete``: nothing was missed.
    """

    def __init__(self, app: App) -> None:
        self.missed: str | None = None
        self._by_name: dict[str, str] = {}
        self._places: dict[str, list[tuple[Place, str]]] = {}
        self._devices = {file: name for name, place in places.loop_devices() for file in place.below}
        if app.offline is not None:
            self.missed = "with --offline no QEMU is asked which images it uses"
        live = set() if app.offline is not None else set(self._of_guests(app))
        for one in app.reads.verdicts():
            if not one.certain and (one.domain, one.disk) not in live:
                self.missed = f"{one.domain} {one.disk} may be on another image: {one.reason}"
            # Its QEMU may have ended since it was asked, and its disk be on another image by now.
            if one.image is not None and ((one.domain, one.disk) not in live or self.of(one.image) is None):
                for layer in self._chain(one.image):
                    self._add(layer, f"{one.domain} {one.disk}")

    @property
    def complete(self) -> bool:
        return self.missed is None

    def of(self, path: str) -> str | None:
        """Return who uses an image, or what it lies on, or what lies on it; None if nobody who was asked."""
        if (found := self._by_name.get(path)) is not None:
            return found
        place = places.of(path)
        near = (one for mark in place.itself | place.below for one in self._places.get(mark, ()))
        return min((user for other, user in near if other.overlaps(place)), default=None)

    def device_on(self, path: str) -> str | None:
        """Return a loop device that lies on an image: it may have users of which pivotd knows nothing."""
        marks = places.of(path).itself
        return min((self._devices[mark] for mark in marks if mark in self._devices), default=None)

    def _of_guests(self, app: App) -> Iterator[tuple[str, str]]:
        for domain in app.client.domains():
            if domain.connection != "connected":
                self.missed = f"{domain.name} is not connected: nobody knows which images its disks use"
                continue
            try:
                disks = app.client.disks(domain.name)
            except PivotdError as error:
                self.missed = f"{domain.name} could not be asked which images it uses: {error.message}"
                continue
            for disk in disks:
                for name in (disk.image, *disk.backing_chain, *(one.path for one in disk.data_files)):
                    if name is not None:
                        self._add(name, f"{domain.name} {disk.disk}")
                yield domain.name, disk.disk

    def _add(self, name: str, user: str) -> None:
        if name in self._by_name:
            return
        self._by_name[name] = user
        place = places.of(name)
        for mark in place.itself | place.below:
            self._places.setdefault(mark, []).append((place, user))

    def _chain(self, image: str) -> Iterable[str]:
        """Return an image, the layers below it, and their external data files."""
        if not image.startswith("/"):
            return [image]
        command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", image]
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and an absolute path
                command, capture_output=True, text=True, timeout=QEMU_IMG_TIMEOUT_S, check=True
            )
            return [name for layer in json.loads(done.stdout) for name in _files(layer)]
        except FileNotFoundError:
            self.missed = "qemu-img is not installed: nobody knows which images are layers of others"
        except subprocess.CalledProcessError as error:
            self.missed = f"the layers of {image} could not be read: {render.one_line(error.stderr)}"
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            self.missed = f"the layers of {image} could not be read: {render.one_line(str(error))}"
        return [image]


def _files(layer: dict[str, Any]) -> list[str]:
    data = layer.get("format-specific", {}).get("data", {}).get("data-file")
    where = os.path.dirname(layer["filename"])  # noqa: PTH120
    return [layer["filename"], *([os.path.join(where, data)] if data else [])]  # noqa: PTH118
