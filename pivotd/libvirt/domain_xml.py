"""What libvirt's definitions of a domain say of its disks, live and at the next boot. Pure.

Source: https://libvirt.org/formatdomain.html, "Hard drives, floppy disks, CDROMs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

from pivotd.core.observation import JobBelief

ARGUMENTS = "./{http://libvirt.org/schemas/domain/qemu/1.0}commandline/{http://libvirt.org/schemas/domain/qemu/1.0}arg"
CHARDEV = "id=pivotd"
JOBS = {"yes": JobBelief.READY, "pivot": JobBelief.PIVOTING, "abort": JobBelief.ABORTING}


@dataclass(frozen=True, slots=True)
class DiskDefined:
    """One disk; ``image`` is the path of its file or device, None where it has none or is not a local one."""

    target: str
    image: str | None
    format: str | None
    alias: str | None = None
    """The id of its device in QEMU; only while the domain runs."""
    device: str = "disk"
    transient: bool = False
    shareable: bool = False
    elsewhere: bool = False
    """Its image is no local file or device by this definition: it is on the network, or a volume of a pool."""
    job: JobBelief = JobBelief.NONE
    job_kind: str | None = None
    """``copy`` or ``active-commit``."""
    mirror: str | None = None
    """The image to which the job would switch."""
    mirror_format: str | None = None
    chain: tuple[tuple[str | None, str | None], ...] = ()
    """Image and format of each layer below, nearest first."""


@dataclass(frozen=True, slots=True)
class DomainDefined:
    """One definition of a domain."""

    name: str
    uuid: str
    disks: dict[str, DiskDefined]
    monitor: str | None = None
    """The QMP socket that the definition gives to pivotd."""
    runs: bool = False
    """It is that of a running domain, which has a number."""


def parse(text: str) -> DomainDefined:
    """Return what a definition says. Raises: ValueError: it is none."""
    try:
        root = ET.fromstring(text)  # noqa: S314 - libvirt's daemon has written it
    except ET.ParseError as error:
        raise ValueError(str(error)) from error
    disks = [_disk(element) for element in root.findall("./devices/disk")]
    return DomainDefined(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        disks={disk.target: disk for disk in disks if disk is not None},
        monitor=monitor_of([argument.get("value", "") for argument in root.iterfind(ARGUMENTS)]),
        runs=root.get("id") is not None,
    )


def monitor_of(arguments: Sequence[str]) -> str | None:
    """Return the path of the QMP socket that arguments of QEMU give to pivotd: that of the chardev ``pivotd``."""
    for option, value in pairwise(arguments):
        words = value.split(",")
        if option == "-chardev" and words[0] == "socket" and CHARDEV in words[1:]:
            return next((word.removeprefix("path=") for word in words if word.startswith("path=/")), None)
    return None


def _disk(element: ET.Element) -> DiskDefined | None:
    target = element.find("target")
    if target is None:
        return None
    mirror, alias = element.find("mirror"), element.find("alias")
    driver = element.find("driver")
    source = None if mirror is None else mirror.find("source")
    return DiskDefined(
        target=target.get("dev", ""),
        image=image_of(element.find("source")),
        format=None if driver is None else driver.get("type"),
        alias=None if alias is None else alias.get("name"),
        device=element.get("device", "disk"),
        transient=element.find("transient") is not None,
        shareable=element.find("shareable") is not None,
        elsewhere=element.get("type", "file") not in {"file", "block"},
        job=_job(mirror),
        job_kind=None if mirror is None else mirror.get("job", "copy"),
        mirror=image_of(source),
        mirror_format=None if mirror is None else _format(mirror),
        chain=tuple(_chain(element)),
    )


def image_of(source: ET.Element | None) -> str | None:
    """Return the path in a <source> element, None if it names no local file or device."""
    return None if source is None else source.get("file") or source.get("dev")


def _format(element: ET.Element) -> str | None:
    shown = element.find("format")
    return None if shown is None else shown.get("type")


def _job(mirror: ET.Element | None) -> JobBelief:
    if mirror is None:
        return JobBelief.NONE
    return JOBS.get(mirror.get("ready", ""), JobBelief.COPYING)


def _chain(element: ET.Element) -> list[tuple[str | None, str | None]]:
    found = []
    below = element.find("backingStore")
    while below is not None and below.find("source") is not None:
        found.append((image_of(below.find("source")), _format(below)))
        below = below.find("backingStore")
    return found
