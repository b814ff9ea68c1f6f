"""How an image is created: the options of qcow2 and raw images, and which of them go together. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from pivotd.limits import LUKS_ITER_MS_MAX

PREALLOCATIONS = ("off", "metadata", "falloc", "full")
RAW_PREALLOCATIONS = ("off", "falloc", "full")
VERSIONS = ("v2", "v3")
"""Versions of qcow2; qemu-img calls them compat=0.10 and compat=1.1."""
CLUSTER_BYTES_MIN = 512
CLUSTER_BYTES_MAX = 2 << 20
EXTENDED_L2_CLUSTER_BYTES_MIN = 16 << 10
COMPRESSIONS = ("zlib", "zstd")
REFCOUNT_BITS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Options of new images; None leaves the choice to QEMU. The names are those of ``blockdev-create``."""

    cluster_size: int | None = None
    """Bytes."""
    extended_l2: bool | None = None
    preallocation: str | None = None
    lazy_refcounts: bool | None = None
    version: str | None = None
    refcount_bits: int | None = None
    compression_type: str | None = None
    """Of clusters that are compressed, which only other programs do."""
    luks_iter_ms: int | None = None
    """How long one try of a passphrase takes. QEMU does nothing else meanwhile, when it creates and when it opens."""

    def given(self) -> dict[str, Any]:
        """Return the options that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NAMES = tuple(field.name for field in fields(ImageOptions))


def problem(options: ImageOptions, image_format: str, *, encrypted: bool) -> str | None:
    """Return one line that says why the options do not fit images of this format, None if they do."""
    given = options.given()
    if image_format != "qcow2":
        foreign = next((name for name in given if name != "preallocation"), None)
        if foreign is not None:
            return f"{foreign.replace('_', '-')} is an option of qcow2 images, not of {image_format}"
    choices = PREALLOCATIONS if image_format == "qcow2" else RAW_PREALLOCATIONS
    if options.preallocation is not None and options.preallocation not in choices:
        return f"preallocation={options.preallocation}: expected one of {', '.join(choices)}"
    if options.luks_iter_ms is not None and not encrypted:
        return "luks-iter-ms is for encrypted images: give --secret-file too"
    return _of_qcow2(options) or _old_version(options)


def _of_qcow2(options: ImageOptions) -> str | None:
    size = options.cluster_size
    if size is not None and (size & (size - 1) or not CLUSTER_BYTES_MIN <= size <= CLUSTER_BYTES_MAX):
        return f"cluster-size={size}: expected a power of two from 512 to 2M"
    if options.refcount_bits is not None and options.refcount_bits not in REFCOUNT_BITS:
        return f"refcount-bits={options.refcount_bits}: expected a power of two from 1 to 64"
    if options.version is not None and options.version not in VERSIONS:
        return f"version={options.version}: expected v2 or v3"
    if options.compression_type not in {None, *COMPRESSIONS}:
        return f"compression-type={options.compression_type}: expected zlib or zstd"
    if options.luks_iter_ms is not None and not 1 <= options.luks_iter_ms <= LUKS_ITER_MS_MAX:
        return f"luks-iter-ms={options.luks_iter_ms}: expected 1 to {LUKS_ITER_MS_MAX}"
    if options.extended_l2 and size is not None and size < EXTENDED_L2_CLUSTER_BYTES_MIN:
        return f"extended-l2 needs clusters of 16K or more, not {size}"
    return None


def _old_version(options: ImageOptions) -> str | None:
    if options.version != "v2":
        return None
    new = {
        "lazy-refcounts": options.lazy_refcounts,
        "extended-l2": options.extended_l2,
        "refcount-bits": options.refcount_bits not in {None, 16},
        "compression-type": options.compression_type not in {None, "zlib"},
    }
    wrong = next((name for name, wanted in new.items() if wanted), None)
    return None if wrong is None else f"{wrong} needs version=v3"
