"""What QEMU shows at one instant, reduced to the facts that the decision needs.

Jobs are read before the graph: a job seen as ended then has its final effect in the graph that is read after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pivotd.core.dirty_bitmaps import Bitmaps


class Qemu(StrEnum):
    """Which process answers on the domain's socket."""

    SAME = "same"
    """The process in which the pivot began; it answers."""
    SILENT = "silent"
    """Perhaps the same process, but it does not answer: nothing can be decided."""
    GONE = "gone"
    """The process has ended, or the host has been rebooted."""
    REPLACED = "replaced"
    """Another process answers."""


class Root(StrEnum):
    """Which image is directly under the disk's device."""

    SOURCE = "source"
    DESTINATION = "destination"
    OTHER = "other"
    """Neither: another client has changed the graph."""
    ABSENT = "absent"
    """The disk does not exist (it was unplugged) or has no medium."""


class JobBelief(StrEnum):
    """How libvirt believes that its block job on a disk stands."""

    NONE = "none"
    COPYING = "copying"
    READY = "ready"
    PIVOTING = "pivoting"
    ABORTING = "aborting"


@dataclass(frozen=True, slots=True)
class Belief:
    """What libvirt believes of one disk; it may be wrong if libvirtd was killed in the middle of a pivot.

    libvirt must be asked after QEMU, and QEMU by a command that waits for libvirt's job lock: whatever a call has
    changed in QEMU is then in these answers too.
    """

    live: Root
    """The image by the definition of the running guest; ABSENT if libvirt does not take the guest for running."""
    next: Root | None
    """The image by the definition from which the guest starts next; None: a transient guest has none."""
    job: JobBelief = JobBelief.NONE
    job_id: str | None = None
    """QEMU's name of that job: libvirt chooses it."""
    next_has_disk: bool = True
    """Whether the definition of the next boot has the disk at all, with whatever medium."""
    next_image: str = ""
    """The name of the next boot's image, where it is neither of the pivot's."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was seen right after libvirt had switched the disks of a pivot, by disk.

    ``saved``: those whose destination was then made durable for the next boot; ``raced``: somebody else has defined the
    guest at the same moment.
    """

    roots: Mapping[str, Root]
    beliefs: Mapping[str, Belief]
    saved: frozenset[str] = frozenset()
    raced: bool = False


@dataclass(frozen=True, slots=True)
class JobSeen:
    """One job: QEMU's JobStatus, its error text, and bytes still to copy and copied (None if not queried).

    ``io_status``: QEMU's BlockDeviceIoStatus; not ``ok`` if an I/O error has made the job wait.
    """

    status: str
    error: str | None = None
    backlog_bytes: int | None = None
    copied_bytes: int | None = None
    io_status: str = "ok"

    @property
    def interrupted(self) -> bool:
        """Whether an I/O error has made the job wait for ``job-resume``."""
        return self.status in {"paused", "standby"} and self.io_status != "ok"

    @property
    def counted(self) -> bool:
        """Whether the job knows how much there is to copy: before that, QEMU shows 0 bytes of 0.

        Source: block/mirror.c, mirror_run() sets what remains only after mirror_dirty_init().
        """
        if self.backlog_bytes is None or self.copied_bytes is None:
            return False
        return self.backlog_bytes + self.copied_bytes > 0 or self.status not in STATUS_BEGINNING


EXECUTING = frozenset({"running", "suspended"})
"""Run states in which guest writes are possible; a suspended guest may wake at any time."""
OUR_PAUSE = frozenset({"paused", "prelaunch"})
"""Run states after ``stop``; a guest reset during the pause turns ``paused`` into ``prelaunch``."""
POSTMIGRATE = "postmigrate"
LEAVING = frozenset({"finish-migrate", POSTMIGRATE})
"""Run states of a guest that leaves by a migration, or has left."""
PASSING = frozenset({"finish-migrate", "save-vm"})
"""Run states that QEMU ends by itself: the guest has left after that, or is here and may run on."""
NEVER_RAN = "prelaunch"
"""The run state of a guest that nobody has let run since its QEMU has started, or has reset it in a pause."""
MIGRATION_STATES = frozenset({"inmigrate", "postmigrate", "finish-migrate", "save-vm", "restore-vm", "colo"})
"""Run states in which another process may own the images."""

PAUSABLE = frozenset({"running", "paused", "prelaunch", "io-error", "shutdown", "guest-panicked"})
"""Run states from which a switch may begin. Not ``suspended``: before QEMU 9 ``stop`` does not hold such a guest."""

STATUS_BEGINNING = frozenset({"created", "running", "paused"})
"""A job with 0 bytes of 0 in one of these may not have counted yet; in any other there was nothing to copy."""
STATUS_READY = frozenset({"ready", "standby"})
STATUS_ENDED = frozenset({"aborting", "concluded", "null"})
STATUS_PENDING = "pending"
STATUS_FOLLOWING = frozenset({"created", "running", "ready", "standby"})
"""A mirror in one of these takes every write of the guest."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at QEMU for one pivot: what QEMU shows, and nothing else.

    ``jobs`` and ``nodes`` hold only names that belong to the pivot; ``roots`` is by disk.
    ``uses_source`` and ``uses_destination`` describe a REPLACED process: it has that file of some disk as a root.
    Of a guest of libvirt's, ``roots`` compares images, since libvirt chooses the nodes, also in a REPLACED process, and
    ``jobs`` holds libvirt's jobs on the disks, also those whose names are not in the journal yet.
    A libvirt that does not answer is SILENT, unless QEMU is certainly GONE: then ``beliefs`` is empty.
    """

    qemu: Qemu
    run_state: str | None = None
    jobs: Mapping[str, JobSeen] = field(default_factory=dict)
    roots: Mapping[str, Root] = field(default_factory=dict)
    images: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By disk: file name and format of its root; queried only if another client opened the destination."""
    nodes: frozenset[str] = frozenset()
    nodes_below: tuple[str, ...] = ()
    """The value for CopyOptions.nodes_below; queried only before the jobs have begun."""
    merged: frozenset[str] = frozenset()
    """Disks whose chain no longer contains the layers to be merged."""
    has_nonce: bool = True
    migrating: bool = False
    saved: bool = False
    """The guest is in ``postmigrate``, runs nowhere else, and may run on. QEMU says that its migration has failed, or
    was cancelled. Or libvirt says that its memory went to a file here, and that this is over: a dump, a snapshot with
    memory, a save that has failed in the end."""
    uses_source: bool = False
    uses_destination: bool = False
    bitmaps: Bitmaps = field(default_factory=dict)
    """The consistent dirty bitmaps of the present roots."""
    writers: tuple[str, ...] = ()
    """What may write to a disk although the guest stands still; queried only at READY, for pivots that it hinders."""
    exchanged: str | None = None
    """What another client has done to a destination that is not in use yet, in words."""
    snapshots: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """The snapshots inside images that the disks would leave or spoil: an image, and their names. Only at READY."""
    write_thresholds: tuple[tuple[str, int], ...] = ()
    """The value for CopyOptions.write_thresholds."""
    beliefs: Mapping[str, Belief] = field(default_factory=dict)
    """What libvirt believes, by disk; empty for pivots of which pivotd is the manager."""
    calling: bool = False
    """A call of pivotd whose answer was lost may still wait in libvirtd for its turn: the same libvirtd, and not long
    ago."""
    by_monitor: bool = False
    """libvirt does not answer, and QEMU was asked by a monitor of pivotd's own: what libvirt believes is unknown."""
    detail: str | None = None
    """One sentence for users, e.g. why QEMU is silent."""

    @property
    def executing(self) -> bool:
        """Whether the guest can write."""
        return self.run_state in EXECUTING

    @property
    def leaving(self) -> bool:
        """Whether another process may own the images, now or soon."""
        return self.run_state in MIGRATION_STATES and not self.saved

    def job(self, name: str) -> JobSeen:
        """Return the job; a job that QEMU does not list has status ``null``: it is gone."""
        return self.jobs.get(name, _GONE)


_GONE = JobSeen("null")
