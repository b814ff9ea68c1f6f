"""Names that a pivot leaves in headers, or writes behind: each must lead to the very file that QEMU has open."""

from __future__ import annotations

import os
from dataclasses import replace

from pivotd.core.image_names import describe, storable
from pivotd.core.pivot import Image, PivotDisk
from pivotd.errors import BadRequestError
from pivotd.host import files, qcow2
from pivotd.host.held import Astray, astray, data_astray
from pivotd.planning.destination_files import unlike
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp import descriptions
from pivotd.qmp.blocks import DiskSeen

_OTHER_LAYER = Astray("there is another file at this name now, which QEMU has as another layer")
HEADER_NAME_BYTES_MAX = 1023
"""The longest backing file name of qcow2. Source: docs/interop/qcow2.txt of QEMU."""


def checked(domain: DomainSnapshot, seen: DiskSeen, disk: PivotDisk) -> PivotDisk:
    """Refuse a pivot that would name, or write into, a file whose name is gone or leads to another file now.

    This takes in every layer below the named one: a chain with a hole cannot be opened again. Layers that the pivot
    itself takes out of the chain may be lost: that is how their data is saved. If the source is one of those, no file
    at its name is the right one, and the disk returned says so. Raises: BadRequestError.
    """
    layers = domain.images(seen)
    _refuse_not_utf8(layers, seen.disk)
    every = range(len(layers))
    needed = (*every[_above(disk, layers)], *every[_below(disk, layers)])
    other = next((place for place in every if _is_another_layer(domain, seen, layers, place)), None)
    if needed and other is not None:
        raise BadRequestError(_sentence(layers[other].filename, _OTHER_LAYER), disk=seen.disk)
    for place in needed:
        found = _astray(domain, seen, layers, place)
        if found is not None and not (found.unseen and domain.options.force):
            raise BadRequestError(_sentence(layers[place].filename, found), disk=seen.disk)
    if disk.backing_file is not None and len(os.fsencode(disk.backing_file)) > HEADER_NAME_BYTES_MAX:
        raise BadRequestError(
            f"{disk.backing_file[:80]}… is too long for a header, which takes {HEADER_NAME_BYTES_MAX} bytes: copy the "
            "disk in full to a new image",
            disk=seen.disk,
        )
    found = _OTHER_LAYER if other == 0 else _astray(domain, seen, layers, 0)
    if found is None or found.unseen:
        return disk
    if domain.options.keep_synced:
        raise BadRequestError(
            f"{disk.source.filename} was replaced, deleted or renamed: leave out --keep-synced, which would follow it "
            "by its name",
            disk=seen.disk,
        )
    return replace(disk, source=replace(disk.source, file_id=files.LOST))


def _refuse_not_utf8(layers: list[Image], disk: str) -> None:
    """Raises: BadRequestError: the journal cannot have a name; QEMU's working directory has it, as QMP is UTF-8."""
    for layer in layers:
        if (shown := storable(layer.filename)) != layer.filename:
            raise BadRequestError(
                f"{shown} is not UTF-8, and cannot be recorded: start the guest from a directory whose name is",
                disk=disk,
            )


def _is_another_layer(domain: DomainSnapshot, seen: DiskSeen, layers: list[Image], place: int) -> bool:
    """Return whether the name of a layer certainly leads to a file that QEMU has, but not as this layer.

    Layers can change their names among each other. Their headers tell them apart: each names the next one.
    """
    layer, found = seen.layers[place], describe(layers[place].filename)
    if layer.format != "qcow2" or found.path is None or found.is_part or unlike(found.path, domain.pid) is not None:
        return False
    if descriptions.inner(layer.filename) or astray(found.path, domain.held) is not None:
        return False  # the header is not at the beginning of a file that is encrypted below qcow2
    try:
        head = qcow2.look(found.path)
        name = "" if head is None or head.header is None else (head.header.backing_file or "")
        name.encode()  # QEMU shows no name that is not UTF-8 as it is
    except (OSError, ValueError):
        return False
    return head is not None and (head.header is None or name != (layer.backing_file or ""))


def _astray(domain: DomainSnapshot, seen: DiskSeen, layers: list[Image], place: int) -> Astray | None:
    """Return why the name of a layer does not lead to the data that QEMU has there, None if it does."""
    if (found := astray(layers[place].filename, domain.held)) is not None:
        return found
    data, nodes = seen.layers[place].data_file, domain.blocks.graph.chain(seen.node)
    if data is not None:
        return data_astray(data, domain.directory, domain.held)
    if len(nodes) == len(layers) and nodes[place] in domain.blocks.graph.with_data_file:
        return Astray("its data is in an external file that it does not name", fleeting=True)
    return None


def _sentence(name: str, found: Astray) -> str:
    if found.unseen:
        return (
            f"{name}: {found.why}; with --force pivotd goes on without a look, and if that name is wrong, the data "
            "behind it ends with QEMU"
        )
    if found.fleeting:
        return f"{name} cannot stand in a header: {found.why}; copy the disk in full to a new image"
    what = "deleted or renamed" if found.gone else "replaced"
    return (
        f"{name} was {what}: {found.why}, and the file that QEMU has open ends with QEMU; put the file "
        "back, or copy the disk in full to a new image"
    )


def backing_name(below: Image, above: str, written: str | None) -> str:
    """Return the name of a lower image for the header of the file ``above``; relative if ``written``, the old one, was.

    QEMU looks from the directory of the name by which it opens ``above``. If that is a link, the name must lead to the
    same file from where the link leads, too.
    """
    if written is None or written.startswith("/") or ":" in written.split("/", 1)[0]:
        return below.filename
    if not below.filename.startswith("/") or not above.startswith("/"):
        return below.filename
    name = files.relative(below.filename, above)
    places = {os.path.dirname(above), os.path.dirname(os.path.realpath(above))}  # noqa: PTH120
    leads = {files.file_id(os.path.join(place, name)) for place in places}  # noqa: PTH118
    return name if len(places) == 1 or leads == {files.file_id(below.filename)} - {None} else below.filename


def _above(disk: PivotDisk, layers: list[Image]) -> slice:
    """Return the layers that stay above merged ones: they take in data, or get a new backing file name."""
    return slice(0 if disk.switches or disk.top is None else _place(disk.top, layers))


def _below(disk: PivotDisk, layers: list[Image]) -> slice:
    """Return the layers with which the chain goes on downwards after the pivot."""
    return slice(len(layers) if disk.below is None else _place(disk.below, layers), None)


def _place(image: Image, layers: list[Image]) -> int:
    return next(place for place, layer in enumerate(layers) if layer.filename == image.filename)
