"""Names that pivotd gives to nodes, jobs and objects inside QEMU.

Each name carries the id of its pivot, so that a name seen in QEMU proves to which pivot it belongs, and no name is
ever used twice. QEMU limits node names to 31 characters: ``p`` + 26 characters of ULID + ``-`` + three. pivotd sends
job names in commands while the guest is paused, and QEMU reads commands byte by byte. So job names carry only the last
ten characters of the ULID, 50 random bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pivotd import limits

NODE_NAME_LENGTH_MAX = 31
JOB_ID_CHARACTERS = 10
DISKS_MAX = 64
NAMES_TOLD = 10
"""Names that a message lists."""
NEAR = 0.66
"""How much of two names has to be the same (difflib) so that one may be meant by the other: two letters of three."""
DOMAIN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
DOMAIN_NAME_WORDS = f"at most {limits.NAME_LENGTH_MAX} of A-Z a-z 0-9 . _ - that starts with a letter or digit"
_NODE = re.compile(r"p([0-9A-Z]{26})-\d+[a-z]*")
_DESTINATION = re.compile(r"p[0-9A-Z]{26}-\d+")


def is_domain_name(name: str) -> bool:
    """Return whether this is a valid domain name, from whatever source: DOMAIN_NAME_WORDS."""
    return len(name) <= limits.NAME_LENGTH_MAX and re.fullmatch(DOMAIN_NAME, name) is not None


def no_domain(name: str, known: Iterable[str]) -> str:
    """Return in words that there is no domain of a name, and which one may be meant, or the first that there are."""
    from difflib import get_close_matches  # noqa: PLC0415 - only for an error

    names = sorted(set(known))
    if near := get_close_matches(name, names, 1, NEAR):
        return f"there is no domain {name}: do you mean {near[0]}?"
    more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
    return f"there is no domain {name}; known are: {', '.join(names[:NAMES_TOLD]) or 'none'}{more}"


def no_disk(domain: str, name: str, known: Iterable[str]) -> str:
    """Return in words that a domain has no disk of a name, with all that it has."""
    return f"{domain} has no disk {name}; its disks are: {', '.join(sorted(known)) or 'none'}"


def _job(pivot: str, index: int, suffix: str) -> str:
    assert index < DISKS_MAX, index
    return f"j{pivot[-JOB_ID_CHARACTERS:]}-{index}{suffix}"


def _node(pivot: str, index: int, suffix: str) -> str:
    name = f"p{pivot}-{index}{suffix}"
    assert len(name) <= NODE_NAME_LENGTH_MAX, name
    assert index < DISKS_MAX, index
    return name


def destination_node(pivot: str, index: int) -> str:
    """Return the node of the destination image's format layer, the root after the switch."""
    return _node(pivot, index, "")


def file_node(pivot: str, index: int) -> str:
    """Return the node of the destination's protocol layer."""
    return _node(pivot, index, "f")


def file_below(node: str) -> str | None:
    """Return the protocol layer's node below a destination of any pivot, None for a node that is not pivotd's."""
    return f"{node}f" if _DESTINATION.fullmatch(node) else None


def pivot_of_node(node: str) -> str | None:
    """Return the pivot that has opened a node, None for a node of anybody else."""
    found = _NODE.fullmatch(node)
    return found[1] if found is not None else None


def reopened_source(pivot: str, index: int) -> str:
    """Return the node of a source that QEMU had closed and that pivotd opened again to return to it.

    A legacy ``-drive`` gives up its node when the disk is switched.
    """
    return _node(pivot, index, "s")


def create_file_job(pivot: str, index: int) -> str:
    """Return the job that creates the destination file."""
    return _job(pivot, index, "c")


def create_format_job(pivot: str, index: int) -> str:
    """Return the job that writes the image format into the destination file."""
    return _job(pivot, index, "q")


def mirror_job(pivot: str, index: int) -> str:
    """Return the job that copies the disk or merges its layers."""
    return _job(pivot, index, "m")


def reverse_job(pivot: str, index: int) -> str:
    """Return the job that takes a finished switch back while the guest is still paused."""
    return _job(pivot, index, "r")


def back_job(pivot: str, index: int) -> str:
    """Return the job that keeps the old image in sync after the switch."""
    return _job(pivot, index, "b")


def nonce_object(pivot: str) -> str:
    """Return the id of the object that marks the QEMU process."""
    return f"pivotd-{pivot}"


def secret_object(pivot: str) -> str:
    """Return the id of the object that gives QEMU the passphrase of the destinations."""
    return f"pivotd-key-{pivot}"


def load_guard(pivot: str) -> str:
    """Return the dirty bitmap that keeps others from loading an internal snapshot into an image."""
    return f"pivotd-load-guard-{pivot}"


def is_load_guard(bitmap: str) -> bool:
    """Return whether a dirty bitmap is one of these, of any pivot."""
    return bitmap.startswith(load_guard(""))


def pivot_of_secret(name: str) -> str | None:
    """Return the pivot whose passphrase an object holds, None for any other object."""
    prefix = secret_object("")
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def belongs_to(name: str, *pivots: str) -> bool:
    """Return whether a node or job name belongs to one of these pivots."""
    return any(name.startswith((f"p{pivot}-", f"j{pivot[-JOB_ID_CHARACTERS:]}-")) for pivot in pivots)
