"""What one round does: which domain, what is asked of pivotd, where to strike, whom, and who comes after.

A plan has one line of text; ``python -m tests.chaos.campaign --only 'text'`` runs the rounds whose line contains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tests.support.moves import Move
from tests.support.proxy import Direction, When

SYSCALLS = {
    "send": "sendto,sendmsg",
    "receive": "recvfrom,recvmsg",
    "write": "pwrite64",
    "flush": "fdatasync,fsync",
    "first flush": "fdatasync,fsync",
}
"""What strace counts under each of our names; each thread of pivotd has a count of its own.

``first flush`` counts from the making of the journal on. Everything else finds a journal that was there: or else the
main thread, which makes it with a dozen flushes, would be struck before the writer's thread is ever reached.
"""
NEW_JOURNAL = "first flush"


class Victims(StrEnum):
    """Who is killed when the point is reached."""

    PIVOTD = "pivotd"
    QEMU = "QEMU"
    BOTH = "pivotd and QEMU"


class Heir(StrEnum):
    """Which QEMU somebody starts on the same socket after the old one was killed."""

    NOBODY = "nobody"
    SOURCE = "another QEMU with the sources"
    DESTINATION = "another QEMU with the destinations"


class Cancel(StrEnum):
    """When ``pivot cancel`` is asked; the messages are held until the journal has the request."""

    NEVER = "never"
    PREPARING = "preparing"
    COPYING = "copying"
    READY = "ready"
    SLOWED = "slowed"
    """The guest's writes have just been slowed, because they outrun the copy."""
    STOPPING = "stopping"
    COMPLETING = "completing"
    PENDING = "pending"
    SWITCHED = "switched"


FIRST_STEP = {
    Move.COPY: "command:blockdev-create",
    Move.COMMIT: "command:block-commit",
    Move.INNER_COMMIT: "command:block-commit",
    Move.PULL: "command:block-stream",
    Move.SNAPSHOT: "command:blockdev-create",
}
CANCEL_PHASES = {Cancel.COPYING: "copying", Cancel.READY: "ready"}
"""The phase in which it is asked: of a copy that is slow, of a pivot that waits."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The domain and the request. ``binary`` None is the QEMU under test; ``paused``: the guest was paused before."""

    disks: int = 1
    paused: bool = False
    legacy: bool = False
    binary: tuple[str, ...] | None = None
    cancel: Cancel = Cancel.NEVER
    move: Move = Move.COPY
    bitmap: bool = False
    """Each disk has a dirty bitmap for backups."""
    undo: bool = False
    """The old images are kept in sync after the switch, and returned to after some more writes."""
    nbd: bool = False
    """The destinations are exports of NBD servers on Unix sockets."""
    hangs: bool = False
    """These servers answer nothing any more from ``stop`` on."""
    adopted: bool = False
    """The jobs were started by somebody else."""
    named: bool = False
    """Every node of the disks has a name, as libvirt gives them: none goes by itself with the one above it."""
    outrun: bool = False
    """The guest writes faster than the copy, so that it has to be slowed; its disks have limits from before."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        assert self.move is Move.COPY or not (self.undo or self.nbd or self.outrun), "only a copy can"
        assert self.move in {Move.COPY, Move.COMMIT} or not self.adopted, "nothing else is adopted"
        assert self.nbd or not self.hangs, "a file does not hang"
        assert self.disks == 1 or not self.outrun, "one throttle group"

    @property
    def cancel_label(self) -> str | None:
        """The message that is held while the cancel is asked, None where it is asked in a phase."""
        switch = "transaction" if self.move is Move.SNAPSHOT else "job-finalize"
        first = "command:object-add" if self.adopted or self.nbd else FIRST_STEP[self.move]
        return {
            Cancel.PREPARING: first,
            Cancel.SLOWED: "return:block_set_io_throttle",
            Cancel.STOPPING: "command:stop",
            Cancel.COMPLETING: "command:job-complete",
            Cancel.PENDING: f"command:{switch}",
            Cancel.SWITCHED: f"return:{switch}",
        }.get(self.cancel)

    @property
    def cancels(self) -> list[Cancel]:
        """When this pivot can be cancelled."""
        found = [Cancel.PREPARING, Cancel.STOPPING, Cancel.PENDING, Cancel.SWITCHED]
        found += [Cancel.COPYING] * (self.move is not Move.SNAPSHOT)
        found += [Cancel.READY, Cancel.COMPLETING] * (self.move in {Move.COPY, Move.COMMIT})
        return [Cancel.SLOWED] if self.outrun else found

    def __str__(self) -> str:
        words = [f"{self.move} of " * (self.move is not Move.COPY) + f"{self.disks} disk{'s' * (self.disks > 1)}"]
        words += ["paused before"] * self.paused + ["by -drive"] * self.legacy
        words += ["with a bitmap"] * self.bitmap
        words += ["of named nodes"] * self.named
        words += ["undone"] * self.undo
        words += ["to NBD" + " that hangs" * self.hangs] * self.nbd
        words += ["adopted"] * self.adopted + ["outrun by its guest"] * self.outrun
        words += [f"cancelled while {self.cancel}"] * (self.cancel is not Cancel.NEVER)
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Point:
    """Where to strike: a QMP message, or with ``syscall`` the entry of the nth call of that kind of a thread."""

    label: str = ""
    nth: int = 1
    direction: Direction | None = None
    when: When = When.BEFORE
    syscall: str = ""

    def __str__(self) -> str:
        if self.syscall:
            return f"{self.syscall} {self.nth}"
        return f"{self.direction} {self.label} #{self.nth} {self.when}"

    def strace(self, program: str) -> list[str]:
        """Return the command that runs a program and kills it here."""
        calls = SYSCALLS[self.syscall]
        # -D: the program itself is the child, so that it can be killed by its pid. Not --seccomp-bpf: with -D it
        # injects nothing.
        strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"]
        return [*strace, "-e", f"inject={calls}:signal=SIGKILL:when={self.nth}", program]


@dataclass(frozen=True, slots=True)
class Plan:
    """One round. ``point`` None is a clean run; ``again``: where each recovery is struck, one after the other."""

    setup: Setup = Setup()
    point: Point | None = None
    victims: Victims = Victims.PIVOTD
    heir: Heir = Heir.NOBODY
    again: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        assert self.heir is Heir.NOBODY or self.victims is not Victims.PIVOTD, "the old QEMU lives"
        assert self.heir is not Heir.DESTINATION or not self.setup.nbd, "an heir has files"
        assert self.victims is not Victims.QEMU or self.point is None or not self.point.syscall, "strace kills pivotd"

    def __str__(self) -> str:
        words = [str(self.setup), f"{self.victims} killed at {self.point}" if self.point else "nobody killed"]
        words += [f"then {self.heir}"] * (self.heir is not Heir.NOBODY)
        words += [f"again at {point}" for point in self.again]
        return "; ".join(words)
