"""What libvirt is asked to change: jobs, the guest, the definition of the next boot. It blocks: for a Line's thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from pivotd.core.observation import OUR_PAUSE
from pivotd.core.pivot import Image, Pivot, PivotDisk
from pivotd.core.request import CopyMode, Sync
from pivotd.libvirt import library, run_states
from pivotd.libvirt.domain_xml import DiskDefined, parse
from pivotd.libvirt.next_boot import NewImage, disk_element, used_source, with_images


def start_job(domain: Any, pivot: Pivot, disk: PivotDisk) -> None:
    """Start the copy or the commit of one disk. Raises: libvirtError."""
    if disk.destination == disk.base:
        _commit(domain, pivot, disk)
    else:
        _copy(domain, pivot, disk)


def _copy(domain: Any, pivot: Pivot, disk: PivotDisk) -> None:
    api, options = library.load().api, pivot.options
    # Without "transient" libvirt refuses the copy of a guest that has a next boot: it could not go on after that.
    flags = api.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    if options.sync is Sync.TOP:
        flags |= api.VIR_DOMAIN_BLOCK_COPY_SHALLOW
    if options.reuse:
        flags |= api.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
    if options.copy_mode is CopyMode.WRITE_BLOCKING:
        flags |= api.VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES
    speed = options.bandwidth_bytes_per_s
    params = {api.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: speed} if speed else {}
    if options.granularity_bytes is not None:
        params[api.VIR_DOMAIN_BLOCK_COPY_GRANULARITY] = options.granularity_bytes
    domain.blockCopy(disk.disk, f"<disk {_kind_and_source(disk.destination)}</disk>", params, flags)


def _commit(domain: Any, pivot: Pivot, disk: PivotDisk) -> None:
    """Commit the active layer; never with the flag that deletes it (libvirt's abort deletes an image in use)."""
    api, base = library.load().api, disk.destination.filename
    flags = api.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | api.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
    domain.blockCommit(disk.disk, base, None, pivot.options.bandwidth_bytes_per_s, flags)


def is_device(path: str) -> bool:
    """Return whether a path is that of a block device; a sandbox may hide devices, but not what /dev/shm has."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)  # noqa: PTH116 - one system call, no object
    except OSError:
        return path.startswith("/dev/") and not path.startswith("/dev/shm/")  # noqa: S108 - nothing is put there


def _kind_and_source(image: Image) -> str:
    """Return type, format and source of an image for libvirt, from within its element on."""
    device, path = is_device(image.filename), quoteattr(image.filename)
    kind, name = ("block", "dev") if device else ("file", "file")
    return f"type='{kind}'><driver name='qemu' type={quoteattr(image.format)}/><source {name}={path}/>"


def end_jobs(domain: Any, disks: Sequence[str], *, switch: bool) -> None:
    """End the jobs on disks, one after the other, and wait for each. Raises: libvirtError."""
    flag = library.load().api.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT if switch else 0
    for disk in disks:
        domain.blockJobAbort(disk, flag)


def snapshot(domain: Any, pivot: Pivot) -> None:
    """Put the overlays on all disks of the pivot in one call; libvirt makes the images. Raises: libvirtError."""
    api = library.load().api
    overlays = {disk.disk: disk.destination for disk in pivot.disks}
    elements = [
        f"<disk name={quoteattr(name)} snapshot='external' {_kind_and_source(overlays[name])}</disk>"
        if name in overlays
        else f"<disk name={quoteattr(name)} snapshot='no'/>"
        for name in parse(domain.XMLDesc(0)).disks
    ]
    flags = (
        api.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | api.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        | api.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    )
    domain.snapshotCreateXML(f"<domainsnapshot><disks>{''.join(elements)}</disks></domainsnapshot>", flags)


BUSY = "being migrated or saved"


def resume(domain: Any) -> str | None:
    """Resume a guest in pivotd's pause; return why not, None if it was resumed. Raises: libvirtError.

    By libvirt's own word, which is a tenth as long under way as QEMU's. While libvirt migrates or saves the guest it
    would not answer for 30 s.
    """
    api = library.load().api
    if domain.jobInfo()[0] != api.VIR_DOMAIN_JOB_NONE:
        return BUSY
    state = run_states.of(api, *domain.state())
    if state not in OUR_PAUSE:
        return state
    domain.resume()
    return None


def was_saved(domain: Any) -> bool:
    """Return whether QEMU's last migration went to a file of this host, and libvirt is through with it.

    By libvirt's word, which ends with libvirtd: after that nobody can tell a save from a migration to another host.
    QEMU begins no other migration in ``postmigrate``. Raises: libvirtError.
    """
    api = library.load().api
    if domain.jobInfo()[0] != api.VIR_DOMAIN_JOB_NONE:
        return False
    last = domain.jobStats(api.VIR_DOMAIN_JOB_STATS_COMPLETED | api.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
    to_a_file = {
        api.VIR_DOMAIN_JOB_OPERATION_SAVE,
        api.VIR_DOMAIN_JOB_OPERATION_DUMP,
        api.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT,
    }
    return last.get(api.VIR_DOMAIN_JOB_OPERATION) in to_a_file


def has_had_no_effect(code: int, text: str) -> bool:
    """Return whether libvirt's error came before QEMU got a command, or is QEMU's own refusal of that command."""
    api = library.load().api
    before = {
        api.VIR_ERR_OPERATION_INVALID,
        api.VIR_ERR_OPERATION_TIMEOUT,
        api.VIR_ERR_OPERATION_UNSUPPORTED,
        api.VIR_ERR_OPERATION_DENIED,
        api.VIR_ERR_CONFIG_UNSUPPORTED,
        api.VIR_ERR_ARGUMENT_UNSUPPORTED,
        api.VIR_ERR_INVALID_ARG,
        api.VIR_ERR_BLOCK_COPY_ACTIVE,
        api.VIR_ERR_XML_ERROR,
    }
    return code in before or "unable to execute QEMU command" in text


def define(domain: Any, images: Mapping[str, Image], allowed: Mapping[str, set[str]]) -> tuple[frozenset[str], int]:
    """Have libvirt write the definition of the next boot with these images, by disk.

    Each disk is written by itself, under libvirt's own lock, so that nobody's change of the rest is lost; also one that
    is right already, since libvirt ignores that it could not save it after a switch.

    ``allowed``: the images, by disk, that it may replace: another one is somebody's decision.

    Returns: the disks that have their image then, and how often something was written.

    Raises: libvirtError, also for a transient domain; ValueError: the definition is not as libvirt writes it.
    """
    api = library.load().api
    # Without "secure" it would lack passwords, and defined again it would have lost them.
    text = domain.XMLDesc(api.VIR_DOMAIN_XML_INACTIVE | api.VIR_DOMAIN_XML_SECURE)
    known = parse(text).disks
    written = set()
    for name, image in images.items():
        if name in known and known[name].image in allowed[name]:
            right = text if has(known[name], image) else with_images(text, {name: _new(domain, name, image)})
            element = disk_element(right, name)
            domain.updateDeviceFlags(element, api.VIR_DOMAIN_DEVICE_MODIFY_CONFIG)
            written.add(name)
    after = parse(domain.XMLDesc(api.VIR_DOMAIN_XML_INACTIVE)).disks
    return frozenset(name for name in written if name in after and has(after[name], images[name])), len(written)


def _new(domain: Any, disk: str, image: Image) -> NewImage:
    """Return an image for the next boot, as libvirt has it in the running guest. Raises: libvirtError, ValueError."""
    secure = library.load().api.VIR_DOMAIN_XML_SECURE
    source = used_source(domain.XMLDesc(secure), disk, image.filename) if domain.isActive() else ""
    return NewImage(image.filename, image.format, is_device(image.filename), source)


def has(disk: DiskDefined, image: Image) -> bool:
    """Return whether a definition gives a disk this image."""
    return (disk.image, disk.format) == (image.filename, image.format)
