"""Every error that pivotd raises on purpose, and the only table that says how each is shown.

PivotdError
+-- ConfigError             the configuration file is wrong
+-- RequestError            the caller's fault; nothing was recorded
|   +-- BadRequestError     malformed or contradictory input
|   +-- NotAllowedError     the caller's uid and gid do not permit it
|   +-- NotFoundError       no such domain, disk, pivot or image
|   +-- ConflictError       right in itself, impossible now
|       +-- DiskBusyError   another pivot or job has the disk
|       +-- PhaseConflictError  the pivot has moved on
|       |   +-- RevisionConflictError  another writer recorded a change of it first
|       +-- BusyError       the pivot's driver did not take the request in time
+-- UncertainError          nobody can say which image is right
+-- NeverMovedError         pivotd has never moved the disk: it says nothing of its image
+-- TooBusyError            too many readers ask at once; a retry is safe
+-- UnansweredError         the pivot's driver took the request and did not answer in time
+-- DomainUnreachableError  QEMU's monitor does not answer
|   +-- MonitorBusyError    another client holds the monitor
|   +-- LibvirtUnreachableError  libvirt's daemon, or its Python binding, cannot be used
+-- UnsupportedQemuError    QEMU is older than the protocol allows
+-- QmpError                one command; see what is known about its effect
|   +-- QmpUnsentError      never sent: a retry is safe
|   +-- QmpRefusedError     QEMU refused it
|   +-- QmpUnknownError     no answer: it may or may not have happened
+-- FleetError              one message to the fleet
|   +-- FleetSilentError    no answer: a write may or may not have happened, or happen yet
|   +-- FleetConflictError  the domain has changed since it was read: nothing was written
|   +-- FleetRefusedError   etcd refuses this host, or holds what pivotd cannot read: a person has to act
+-- ClientError             a request of pivotd.client; see what is known about its effect
|   +-- UnsentError         never reached the daemon: a retry is safe
|   +-- RefusedError        the daemon refused: nothing was changed
|   +-- UnknownError        no conclusive answer: it may or may not have happened
+-- JournalError            the journal cannot be used
    +-- JournalNotAllowedError  this user may not read it
    +-- JournalLockedError  another daemon has it
    +-- JournalCorruptError not a journal, or damaged
    +-- JournalNewerError   written by a newer pivotd
    +-- ArchiveError        an archive beside it is missing, damaged or of another version
    +-- JournalFullError    no space: the record is certainly not there
    +-- JournalLostError    the open file has lost its name: the record is certainly not there
    +-- JournalWriteError   I/O error: the record may or may not be there
"""

from __future__ import annotations

from typing import Any, ClassVar

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_REFUSED = 4
EXIT_KEPT = 5
EXIT_UNKNOWN = 6
EXIT_NEVER_MOVED = 7
EXIT_FOUND = 8
"""`pivotctl doctor` has found something."""


class PivotdError(Exception):
    """Base of all; ``message`` is one line: what, why, what next. ``fields`` carry the facts."""

    kind: str = "internal"
    http_status: ClassVar[int] = 500
    exit_status: int = EXIT_REFUSED

    def __init__(self, message: str, **fields: Any) -> None:
        # Names come from callers and texts from QEMU: neither may break the line.
        self.message = message if message.isprintable() else "".join(map(_shown, message))
        super().__init__(self.message)
        self.fields = fields


class ConfigError(PivotdError):
    """The configuration cannot be used."""

    kind = "config"
    exit_status = EXIT_USAGE


class RequestError(PivotdError):
    """The request cannot be taken; nothing was recorded and nothing was changed."""

    kind = "refused"
    http_status = 422


class BadRequestError(RequestError):
    """The request is malformed or contradicts itself."""

    kind = "bad-request"
    http_status = 400


class TooLargeError(BadRequestError):
    """The request is larger than the server reads."""

    kind = "too-large"
    http_status = 413


class NotAllowedError(RequestError):
    """The caller may not do this."""

    kind = "not-allowed"
    http_status = 403


class NotFoundError(RequestError):
    """There is no such domain, disk or pivot."""

    kind = "not-found"
    http_status = 404


class ConflictError(RequestError):
    """The request is valid, but impossible in the present state."""

    kind = "conflict"
    http_status = 409


class DiskBusyError(ConflictError):
    """Another pivot or block job has the disk."""

    kind = "disk-busy"


class PhaseConflictError(ConflictError):
    """The pivot is not in the phase that the change starts from."""

    kind = "phase-conflict"


class RevisionConflictError(PhaseConflictError):
    """The pivot was changed since it was read: nothing was recorded. Fields: ``pivot``, ``phase``, ``revision``."""

    kind = "revision-conflict"


class BusyError(ConflictError):
    """The pivot's driver has not taken the request in time: it waits for QEMU or the journal."""

    kind = "busy"
    http_status = 503


class UncertainError(PivotdError):
    """Nobody can say which image is right."""

    kind = "unknown"
    http_status = 409
    exit_status = EXIT_UNKNOWN


class NeverMovedError(PivotdError):
    """pivotd has never moved the disk, so it says nothing of its image."""

    kind = "never-moved"
    http_status = 404
    exit_status = EXIT_NEVER_MOVED


class TooBusyError(PivotdError):
    """Too many requests wait already; nothing was done."""

    kind = "too-busy"
    http_status = 503


class UnansweredError(PivotdError):
    """The pivot's driver has begun with the request and waits: it may still carry it out. Field: ``pivot``."""

    kind = "unanswered"
    http_status = 503
    exit_status = EXIT_UNREACHABLE


class DomainUnreachableError(PivotdError):
    """QEMU's monitor cannot be reached or does not answer."""

    kind = "domain-unreachable"
    http_status = 503


class MonitorBusyError(DomainUnreachableError):
    """The socket accepts but sends no greeting: another client holds this monitor."""

    kind = "monitor-busy"


class LibvirtUnreachableError(DomainUnreachableError):
    """libvirt's daemon cannot be reached, or pivotd lacks the module that talks to it."""

    kind = "libvirt-unreachable"


class UnsupportedQemuError(PivotdError):
    """With this QEMU pivotd cannot keep its promises."""

    kind = "unsupported-qemu"
    http_status = 422


class QmpError(PivotdError):
    """One QMP command did not succeed; the subclass says what is known about its effect."""

    kind = "qmp"
    http_status = 502


class QmpUnsentError(QmpError):
    """The command never left pivotd: QEMU has not seen it."""

    kind = "qmp-unsent"


class QmpRefusedError(QmpError):
    """QEMU answered with an error: the command had no effect."""

    kind = "qmp-refused"
    http_status = 422


class QmpUnknownError(QmpError):
    """No answer came: look at QEMU before anything else."""

    kind = "qmp-unknown"


class FleetError(PivotdError):
    """One message to the fleet did not succeed; the subclass says what is known about its effect."""

    kind = "fleet"
    http_status = 503
    exit_status = EXIT_UNREACHABLE


class FleetSilentError(FleetError):
    """No answer in time, or none of a majority. A write may or may not have happened, and may still happen: read."""

    kind = "fleet-silent"


class FleetConflictError(FleetError):
    """Something of the domain has changed since it was read: nothing was written, and it is to be read again."""

    kind = "fleet-conflict"
    http_status = 409
    exit_status = EXIT_REFUSED


class FleetRefusedError(FleetError):
    """etcd refuses this host, or holds what this pivotd cannot read: nothing was written, and a person has to act."""

    kind = "fleet-refused"
    exit_status = EXIT_REFUSED


class ClientError(PivotdError):
    """One request to the daemon did not succeed; the subclass says what is known about its effect.

    ``kind`` is stable; ``fields`` are the facts that the daemon gave with its answer.
    """

    def __init__(self, kind: str, message: str, exit_status: int = EXIT_UNREACHABLE, **fields: Any) -> None:
        super().__init__(message)
        self.kind, self.exit_status, self.fields = kind, exit_status, fields


class UnsentError(ClientError):
    """The request never reached the daemon: sending it again is safe."""


class RefusedError(ClientError):
    """The daemon refused: nothing was recorded and nothing was changed."""


class UnknownError(ClientError):
    """No conclusive answer came: ask again with the same request id, or look."""


class JournalError(PivotdError):
    """The journal cannot be read or written."""

    kind = "journal"
    http_status = 503


class JournalNotAllowedError(JournalError):
    """This user may not read the journal. Field: ``path``, the directory or file that is closed to it."""

    kind = "journal-not-allowed"


class JournalLockedError(JournalError):
    """Another daemon owns the journal."""

    kind = "journal-locked"


class JournalCorruptError(JournalError):
    """The file is not a journal or is damaged; it was left as it is."""

    kind = "journal-corrupt"


class JournalNewerError(JournalError):
    """The journal was written by a newer pivotd; it was left as it is."""

    kind = "journal-newer"


class ArchiveError(JournalError):
    """An archive of the journal cannot be used; all that it does not hold can be read. Field: ``archive``, its path."""

    kind = "journal-archive"


class JournalFullError(JournalError):
    """No space: the record is certainly not in the journal."""

    kind = "journal-full"


class JournalLostError(JournalError):
    """The name of the journal leads to no file, or another one, under the daemon: nothing new was recorded."""

    kind = "journal-lost"


class JournalWriteError(JournalError):
    """The write failed, and it is not known whether the record is on disk."""

    kind = "journal-write"


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
