"""One domain of libvirt for the rest of pivotd: libvirt changes the guest, QEMU is asked through libvirt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pivotd import limits
from pivotd.core import kinds, names
from pivotd.core.actions import Step
from pivotd.core.believed import DiskBelieved
from pivotd.core.observation import EXECUTING, Asked, Observation, Qemu, Root
from pivotd.core.pivot import Identity, JsonObject, Pivot, PivotDisk
from pivotd.core.request import Limits, Manager
from pivotd.errors import DomainUnreachableError, QmpError, QmpRefusedError, QmpUnknownError, QmpUnsentError
from pivotd.host import process
from pivotd.libvirt import after_switch, calls, domain_xml, durable, library, pivot_look, qemu_process, run_states
from pivotd.libvirt.after_switch import After, Definitions
from pivotd.libvirt.connection import open_connection, translated
from pivotd.libvirt.definition_file import DefinitionFile
from pivotd.libvirt.domain_xml import DomainDefined
from pivotd.libvirt.line import Line
from pivotd.libvirt.passthrough import Passthrough
from pivotd.qmp import blocks, cleaning, looking, replies, rollback
from pivotd.qmp.blocks import Blocks, DiskSeen
from pivotd.qmp.monitor import ask, command
from pivotd.qmp.session import Session

NO_QEMU = 0
"""The pid of a session with a domain that does not run: only libvirt's word on its next boot is there."""


class LibvirtSession(Session):
    """One domain of libvirt, running or not. Its disks have libvirt's names for them, such as ``vda``."""

    manager = Manager.LIBVIRT

    def __init__(self, monitor: Passthrough, uri: str, domain: Any, uuid: str, mark: str) -> None:
        """``mark``: what another QEMU process of the same domain does not have."""
        super().__init__(monitor, uri)
        self._libvirt = monitor
        self._domain = domain
        self._uuid = uuid
        self._mark = mark
        self._doubt_until = 0.0
        """Until when a call whose answer was lost may still be carried out, by the monotonic clock."""
        self.own_monitor: str | None = None
        """The monitor that the definition gives to pivotd; whoever connects finds it out."""
        self._looked_quickly = False
        """Nothing of a pivotd before this one waited in libvirtd then; what has waited since is not pivotd's."""

    @classmethod
    async def open(cls, uri: str, name: str, line: Line, *, wanted: bool = False) -> LibvirtSession:
        """Connect to a domain by its name; ``wanted``: also to one that does not run.

        Raises: DomainUnreachableError.
        """
        timeout_s = limits.LIBVIRT_CONNECT_TIMEOUT_S
        try:
            connection, domain, uuid = await line.call("a connection", timeout_s, _open, uri, name, wanted)
        except QmpError as error:
            raise DomainUnreachableError(f"{uri}: {error.message}", uri=uri) from error
        monitor = Passthrough(line, connection, domain, NO_QEMU)
        mark = ""
        try:
            await line.call("its events", timeout_s, monitor.listen)
            # Only now: the end of a process that was found before would not be told, and another could pass for it.
            # And in the thread: reading about a QEMU that hangs in the kernel can hang.
            if uuid is not None:
                monitor.pid, mark = await line.call("its process", timeout_s, _process, uri, name, uuid)
        except BaseException as error:
            await monitor.close()
            if isinstance(error, QmpError):
                raise DomainUnreachableError(f"{uri}: {error.message}", uri=uri) from error
            raise
        session = cls(monitor, uri, domain, uuid or "", mark)
        if line.lost:
            session._doubt_until = time.monotonic() + limits.LIBVIRT_DOUBT_S
        line.lost = False
        return session

    def identity(self, pivot: str = "") -> Identity:
        """Return what distinguishes this QEMU process; nothing is put into it."""
        return Identity(
            process.boot_id(), self.pid, process.start_ticks(self.pid), f"{qemu_process.NONCE}{self._uuid}-{self._mark}"
        )

    async def refuse_libvirts(self) -> None:
        """Nothing is refused: this session goes through libvirt."""

    def end_unless_qemu(self) -> None:
        """Let the connection end if libvirt's domain does not run."""
        if self.pid == NO_QEMU:
            self._libvirt.lost()

    # -- looking ------------------------------------------------------------------------------------------------

    async def run_state(self) -> str:
        """Return the guest's run state as libvirt knows it, in QEMU's words; QEMU itself is not asked.

        Raises: QmpUnsentError: the guest has ended, and not by a migration.
        """
        if self._domain is None:  # it was transient
            raise QmpUnsentError("the guest has ended")
        state, reason = await self._ask("the state", self._domain.state)
        found = run_states.of(library.load().api, state, reason)
        if found == run_states.SHUT_OFF:
            raise QmpUnsentError("the guest has ended")
        return found

    async def defined(self, *, inactive: bool = False) -> DomainDefined:
        """Return the live definition, or that of the next boot. Raises: QmpError."""
        flag = library.load().api.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        return _parsed(await self._ask("the definition", lambda: self._domain.XMLDesc(flag)))

    async def persistent(self) -> bool:
        """Return whether the domain is defined for a next boot. Raises: QmpError."""
        return bool(await self._ask("whether it is persistent", self._domain.isPersistent))

    async def believed(self) -> Mapping[str, DiskBelieved]:
        """Return what libvirt believes of each disk. Raises: QmpError."""
        live, persistent = await self.defined(), await self.persistent()
        following = (await self.defined(inactive=True)).disks if persistent else {}
        return {
            name: DiskBelieved(
                disk.image,
                following[name].image if name in following else None,
                persistent=persistent,
                next_has_disk=name in following,
                job=disk.job,
                job_kind=disk.job_kind,
                mirror=disk.mirror,
                mirror_format=disk.mirror_format,
                elsewhere=disk.elsewhere,
                transient=disk.transient,
                shareable=disk.shareable,
                removable=disk.device in {"cdrom", "floppy"},
            )
            for name, disk in live.disks.items()
        }

    def was_switched(self, disk: str) -> bool:
        """Return whether libvirt has told over this connection that a job of its has switched the disk."""
        return disk in self._libvirt.switched

    async def _learn_version(self) -> None:
        """Ask QEMU for its version, once. libvirt knows only that of its default emulator."""
        if not any(self._libvirt.version):
            self._libvirt.version = await ask(self._libvirt, replies.version)

    async def disks(self) -> Mapping[str, DiskSeen]:
        """Return every disk with a medium by its name in libvirt."""
        await self._learn_version()
        return named(await ask(self._libvirt, blocks.disks), await self.defined())

    async def blocks(self) -> Blocks:
        """Return every disk with a medium, the block graph, and every block job."""
        await self._learn_version()
        seen = await looking.blocks_of(self._libvirt)
        return replace(seen, disks=named(seen.disks, await self.defined()))

    async def look(self, pivot: Pivot) -> Observation:
        """Look at QEMU, then at libvirt's definitions."""
        began_s = time.monotonic()
        seen = await self._look(pivot)
        took_s = time.monotonic() - began_s
        if seen.qemu is Qemu.SAME and self._libvirt.line.is_anew:
            self._doubt_until = 0.0
        elif took_s > limits.LIBVIRT_QUICK_S and not self._looked_quickly:
            self._doubt_until = time.monotonic() + limits.LIBVIRT_DOUBT_S
        self._looked_quickly |= took_s <= limits.LIBVIRT_QUICK_S
        return replace(seen, calling=time.monotonic() < self._doubt_until)

    async def _look(self, pivot: Pivot) -> Observation:
        known = pivot.identity
        same = (known.boot_id, known.pid, known.nonce) == (process.boot_id(), self.pid, self.identity().nonce)
        if not same and not process.is_gone(known.pid, known.start_ticks, known.boot_id):
            what = "says that it does not run" if self.pid == NO_QEMU else "has another process for it"
            return Observation(
                Qemu.SILENT,
                detail=f"QEMU process {known.pid}, in which the pivot began, still lives, and libvirt {what}: "
                "restart libvirtd with pivotd's hook in place",
            )
        if self.pid == NO_QEMU:
            following = (
                None
                if self._domain is None
                else await self._ask("the next boot", lambda: pivot_look.next_boot(self._domain))
            )
            beliefs = {disk.disk: pivot_look.belief(disk, {}, following, {}) for disk in pivot.disks}
            return Observation(Qemu.GONE, beliefs=beliefs)
        query = self._libvirt.query
        try:
            shown = await self._ask("a look", lambda: pivot_look.ask(pivot, self._domain, query))
        except ValueError as error:
            raise QmpUnknownError(f"libvirt's answer to a look cannot be read: {error}") from error
        seen = pivot_look.observed(pivot, shown)
        if same:
            return seen
        roots = set(seen.roots.values())
        source, destination = Root.SOURCE in roots, Root.DESTINATION in roots
        return replace(seen, qemu=Qemu.REPLACED, uses_source=source, uses_destination=destination)

    async def intent_facts(self) -> JsonObject:
        """Return what the record of an intent says besides: whose guest it is, and libvirt's own notes on it.

        Where only a whole file system can be made durable, that is done once here, so that it is short in the pause.
        """

        def look() -> str | None:
            if self._domain.isPersistent():
                with suppress(OSError):  # in the pause it is an error
                    durable.sync_definition(self.path, self._domain.name(), self._uuid)
            return durable.status_file(self.path, self._domain.name(), self._uuid)

        status = await self._ask("its status file", look)
        monitor = {} if self.own_monitor is None else {"own_monitor": self.own_monitor}
        return {"uuid": self._uuid, **monitor, **({} if status is None else {"status_file": status})}

    # -- changing -----------------------------------------------------------------------------------------------

    async def prepare(self, pivot: Pivot, disk: PivotDisk, step: Step) -> None:
        """Have libvirt start its job on one disk. Raises: QmpRefusedError."""
        assert step is Step.START_JOB, step
        await self._change(f"the job of {disk.disk}", lambda: calls.start_job(self._domain, pivot, disk))

    async def set_bandwidth(self, pivot: Pivot) -> None:
        """Set the bandwidth of each job of the pivot."""
        flag = library.load().api.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        for disk in pivot.disks:
            speed = pivot.options.bandwidth_bytes_per_s
            await self._change("the bandwidth", lambda: self._domain.blockJobSetSpeed(disk.disk, speed, flag))  # noqa: B023 - awaited here

    async def stop(self, complete: Sequence[str], leaving: Callable[[], None]) -> tuple[str, bool, int]:
        """Pause the guest; see ports.Session."""
        assert not complete, "libvirt completes its own jobs"
        resumes = self.resumes
        before = await ask(self._libvirt, replies.run_state)
        leaving()
        if before in EXECUTING:
            await self._change("the pause", self._domain.suspend)
        return before, self.resumes != resumes, self.resumes

    async def resume(self) -> None:
        """Resume the guest. Raises: QmpRefusedError: it is no longer in a pause, or (``lasts``) libvirt is at it."""
        if (why := await self._change("the resume", lambda: calls.resume(self._domain))) is not None:
            lasts = {"lasts": True} if why == calls.BUSY else {}
            raise QmpRefusedError(f"the guest is {why}: it is not pivotd's to resume", **lasts)

    async def ask_libvirt(self, pivot: Pivot, disks: Sequence[str], *, switch: bool) -> Asked | None:
        """Have libvirt end its jobs on disks, or put the overlays on them, and look; see ports.LibvirtSession."""
        monitor = self._libvirt
        if not switch:
            assert kinds.of(pivot).has_jobs, "a snapshot has no job to abort"
            await self._certain("the end of its job", lambda: calls.end_jobs(self._domain, disks, switch=False))
            return None

        def ask() -> After | None:
            file = DefinitionFile(self.path, self._domain.name, self._uuid)
            definitions = Definitions(self._domain, pivot, file, lambda: monitor.defined_by_others)
            try:
                if kinds.of(pivot).has_jobs:
                    calls.end_jobs(self._domain, disks, switch=True)
                else:
                    calls.snapshot(self._domain, pivot)
            except BaseException:
                definitions.drop()
                raise
            after = after_switch.look(pivot, definitions, monitor.query)
            if after is not None and after.times > 0:
                monitor.hear()
            return after

        after: After | None = await self._certain("the switch", ask)
        if after is None:
            return None
        monitor.has_defined(after.times)
        raced = after.times > 0 and bool(after.named) and monitor.defined_by_others > after.others
        return Asked(after.roots, after.beliefs, after.named if after.durable else frozenset(), raced)

    async def _certain(self, what: str, function: Callable[[], Any]) -> Any:
        """Make a call that may move a disk. Raises: QmpRefusedError: it certainly has not, and will not."""
        try:
            return await self._change(what, function)
        except QmpRefusedError as error:
            if calls.has_had_no_effect(error.fields["code"], error.fields["text"]):
                raise
            raise QmpUnknownError(error.message, command=what) from error

    async def agree(self, pivot: Pivot, images: Mapping[str, Root]) -> tuple[frozenset[str], bool]:
        """Have libvirt write the definition for the next boot, durably; see ports.LibvirtSession."""
        by_name = {disk.disk: disk for disk in pivot.disks}
        wanted = {
            name: by_name[name].destination if side is Root.DESTINATION else by_name[name].source
            for name, side in images.items()
        }
        allowed = {disk.disk: {disk.source.filename, disk.destination.filename} for disk in pivot.disks}
        defined = self._libvirt.defined_by_others

        def define() -> tuple[frozenset[str], int]:
            written, times = calls.define(self._domain, wanted, allowed)
            if written:
                durable.sync_definition(self.path, self._domain.name(), self._uuid)
                self._libvirt.hear()
            return written, times

        try:
            written, times = await self._change("the definition of the next boot", define)
        except (OSError, ValueError) as error:
            raise QmpRefusedError(f"the definition of the next boot is not certain: {error}") from error
        self._libvirt.has_defined(times)
        return written, bool(written) and self._libvirt.defined_by_others > defined

    async def reverse(self, pivot: Pivot, disk: PivotDisk, resumes: int) -> bool:
        """Take back a switch that libvirt does not know of; True when the source is the root again.

        Only while the guest is still, and not a commit: its old top would have to be opened anew, under a name that
        libvirt does not have.
        """
        root = (await self.disks())[disk.disk].node
        if root == disk.source.node or disk.destination == disk.base:
            return root == disk.source.node
        below = (await self.blocks()).graph.children.get(root, ())
        moved = replace(disk, destination=replace(disk.destination, node=root))
        with self._libvirt.taking_back():
            await rollback.take_back(self._libvirt, pivot, moved, resumes)
            back = (await self.disks())[disk.disk].node == disk.source.node
            if back:
                done = command("job-dismiss", id=names.reverse_job(pivot.id, disk.index))
                await self._libvirt.burst([done], limits.ROLLBACK_TIMEOUT_S)
                await cleaning.remove(self._libvirt, [root, *(node for node in below if node != disk.source.node)])
        return back

    async def cancel(self, jobs: Sequence[str], *, resume: bool) -> None:
        """Cancel jobs of pivotd's own, which take a disk back; a pivotd that was killed leaves them behind."""
        assert not resume, "libvirt resumes its guests"
        with self._libvirt.taking_back():
            await super().cancel(jobs, resume=False)

    async def place_nonce(self, pivot: Pivot) -> None:
        """Nothing is put into a QEMU of libvirt's."""

    async def place_thresholds(self, pivot: Pivot) -> None:
        """Nothing: libvirt keeps write thresholds."""

    async def takes_target_is_zero(self) -> bool:
        """Return False: libvirt does not tell QEMU that."""
        return False

    async def write_blocking(self, pivot: Pivot) -> bool:
        """Return False: libvirt cannot change that of a job that runs."""
        return False

    async def io_limits(self, pivot: Pivot) -> Mapping[str, Limits]:
        """Return nothing: pivotd does not slow guests of libvirt's."""
        return {}

    async def restore_limits(self, pivot: Pivot) -> list[str]:
        """Return nothing: no limits were set."""
        return []

    async def refusal_of_bitmaps(self, pivot: Pivot) -> str | None:
        """Return None: libvirt carries the bitmaps itself."""
        return None

    async def cut(self, pivot: Pivot, disks: Sequence[PivotDisk]) -> bool:
        """Return False: libvirt passes no out-of-band command on."""
        return False

    async def clean_up(self, pivot: Pivot) -> list[str]:
        """Return nothing: libvirt cleans up what it has made."""
        return []

    async def _ask(self, what: str, function: Callable[[], Any]) -> Any:
        return await self._libvirt.call(what, limits.QUERY_TIMEOUT_S, function)

    async def _change(self, what: str, function: Callable[[], Any]) -> Any:
        """Make a call that changes something; one without an answer may still be carried out for a while."""
        try:
            return await self._libvirt.call(what, limits.COMMAND_TIMEOUT_S, function)
        except QmpUnknownError:
            self._libvirt.line.lose()
            raise
        except asyncio.CancelledError:
            self._libvirt.line.lose()
            raise


def _open(uri: str, name: str, wanted: bool) -> tuple[Any, Any, str | None]:
    """Connect, and find a domain; its uuid is None if it does not run. Raises: DomainUnreachableError, QmpError."""
    connection = open_connection(uri)
    domain = _find(connection, name)
    runs = domain is not None and translated(connection, "whether it runs", domain.isActive)
    if not runs and not wanted:
        raise DomainUnreachableError(f"{uri}: {name} does not run")
    return connection, domain, domain.UUIDString() if runs else None


def _process(uri: str, name: str, uuid: str) -> tuple[int, str]:
    """Return pid and mark of a domain's QEMU. Raises: DomainUnreachableError."""
    found = qemu_process.find(uri, name, uuid)
    if found is None:
        raise DomainUnreachableError(f"libvirt says that {name} runs, but its QEMU process is not to be found")
    return found


def _find(connection: Any, name: str) -> Any:
    """Return a domain, None if libvirt does not know it. Raises: QmpError."""
    try:
        return translated(connection, "the domain", lambda: connection.lookupByName(name))
    except QmpRefusedError as error:
        if error.fields["code"] != library.load().api.VIR_ERR_NO_DOMAIN:
            raise
        return None


def _parsed(text: str) -> DomainDefined:
    try:
        return domain_xml.parse(text)
    except ValueError as error:
        raise QmpUnknownError(f"libvirt's definition of the domain cannot be read: {error}") from error


def named(disks: Mapping[str, DiskSeen], defined: DomainDefined) -> dict[str, DiskSeen]:
    """Return disks by their names in libvirt, where it knows them: QEMU knows the alias of the device."""
    targets = {disk.alias: disk.target for disk in defined.disks.values() if disk.alias is not None}
    found = {}
    for name, seen in disks.items():
        target = targets.get(name, name)
        found[target] = replace(seen, disk=target)
    return found
