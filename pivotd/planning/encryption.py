"""Encrypted images: their data lands in an image that is not encrypted only if the request says so."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pivotd.core import nbd
from pivotd.core.pivot import PivotDisk
from pivotd.errors import BadRequestError
from pivotd.host import qcow2, view
from pivotd.planning import filters
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp.blocks import DiskSeen


def check(domain: DomainSnapshot, seen: DiskSeen, disk: PivotDisk, copied: Iterable[int], taker: int | None) -> None:
    """Refuse to write data of encrypted layers into an image that is not certainly encrypted.

    ``copied``: the places of these layers in the chain. ``taker``: the place of the layer that takes the data, None for
    the destination. Raises: BadRequestError.
    """
    options = domain.options
    hidden = filters.hides_nodes(domain.blocks.graph, seen)
    doubtful = next((place for place in copied if hidden or seen.layers[place].encrypted is not False), None)
    if options.plain or doubtful is None:
        return
    if taker is not None:
        encrypts, created = seen.layers[taker].encrypted is True, False
    elif options.adopted:
        encrypts, created = _is_encrypted(disk.destination.filename), False
    else:
        encrypts, created = options.secret_file is not None, True
    if encrypts:
        return
    layer = seen.layers[doubtful]
    name = domain.images(seen)[doubtful].filename
    state = "is encrypted" if layer.encrypted else "may be encrypted, as QEMU does not describe every node below it"
    otherwise = "--secret-file makes an encrypted image, --plain one that is not" if created else "--plain allows that"
    if domain.libvirts and created:
        otherwise = (
            "--plain makes one that is not; for another, copy with `virsh blockcopy --xml` and have `pivotctl libvirt "
            "pivot` switch"
        )
    raise BadRequestError(
        f"{seen.disk}: {name} {state}, and {disk.destination.filename} would hold data without encryption: {otherwise}",
        disk=seen.disk,
    )


def _is_encrypted(filename: str) -> bool:
    """Return whether a file says of itself that it is encrypted; False if pivotd may not look."""
    if nbd.is_uri(filename) or view.hidden(os.path.realpath(filename)) is not None:
        return False
    try:
        head = qcow2.look(filename)
    except (OSError, ValueError):
        return False
    return head is not None and head.is_encrypted
