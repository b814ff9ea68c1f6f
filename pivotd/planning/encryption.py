"""Encrypted images: their data lands in an image that is not encrypted only if the request says so."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from pivotd.core import nbd
from pivotd.core.pivot import PivotDisk
from pivotd.errors import BadRequestError
from pivotd.host import view
from pivotd.host.threads import look_at
from pivotd.planning import filters
from pivotd.planning.domain_snapshot import DomainSnapshot
from pivotd.qmp.blocks import DiskSeen

_QCOW2 = struct.Struct(">4s28xI")
"""Magic, and the method of encryption, 0 for none. Source: docs/interop/qcow2.txt of QEMU."""
_QCOW2_MAGIC = b"QFI\xfb"
_LUKS_MAGIC = b"LUKS\xba\xbe"


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
    raise BadRequestError(
        f"{seen.disk}: {name} {state}, and {disk.destination.filename} would hold data without encryption: {otherwise}",
        disk=seen.disk,
    )


def _is_encrypted(filename: str) -> bool:
    """Return whether a file says of itself that it is encrypted; False if pivotd may not look."""
    if nbd.is_uri(filename) or view.hidden(os.path.realpath(filename)) is not None:
        return False
    look_at(filename)
    try:
        descriptor = os.open(filename, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        head = os.pread(descriptor, _QCOW2.size, 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    magic, method = _QCOW2.unpack(head.ljust(_QCOW2.size, b"\0"))
    return head.startswith(_LUKS_MAGIC) or (magic == _QCOW2_MAGIC and method != 0)
