"""Deliberate defects, each a change of one line or two, and the tests that must turn red for it.

A test suite that stays green with one of these built in proves nothing. ``python -m tests.mutation`` applies them one at a
time to a copy of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pivotd.core.fleet import OnSilence
from pivotd.core.pivot import Phase
from pivotd.core.request import Manager
from tests.model.explore import Bounds
from tests.model.fleet_explore import DriverBounds
from tests.model.fleet_hosts import FleetBounds
from tests.model.libvirt_explore import LibvirtBounds
from tests.support.moves import Move


@dataclass(frozen=True, slots=True)
class Defect:
    """One wrong build.

    ``old`` stands exactly once in ``file``; ``tests`` are arguments of pytest, and at least one test must fail.
    ``rung`` names what catches it, for the table in docs/reliability.md.
    """

    name: str
    promise: str
    file: str
    old: str
    new: str
    rung: str
    tests: tuple[str, ...]


DECIDE, STATE, INTENT = "pivotd/core/decide.py", "pivotd/engine/driver_state.py", "pivotd/engine/intent.py"
PAUSE, RECORDS = "pivotd/engine/pause_steps.py", "pivotd/engine/record_steps.py"
JOURNAL_FAILURES, DRIVER = "pivotd/engine/journal_failures.py", "pivotd/engine/driver.py"
PAUSING, NEW_IMAGE, ENDINGS = (
    "pivotd/core/rules/pausing.py",
    "pivotd/core/kinds/new_image.py",
    "pivotd/core/rules/endings.py",
)
SESSION, PREPARATION = "pivotd/qmp/session.py", "pivotd/qmp/preparation.py"
LOOKING, CLEANING = "pivotd/qmp/looking.py", "pivotd/qmp/cleaning.py"
SEARCH, TABLE, ORDER = "exhaustive search", "decision table", "order of the commands"
ETCD = "real QEMU and etcd"
IN_ORDER = "tests/model/test_order.py::test_records_and_commands_come_in_the_order_of_the_protocol"


def searched(
    crashes: int, faults: int, disks: int = 1, move: Move = Move.COPY, found: str = "running", **more: bool
) -> tuple[str]:
    """Return the one search that is to find the defect."""
    bounds = Bounds(disks=disks, crashes=crashes, faults=faults, move=move, run_state=found, **more)
    return (f"tests/model/test_exhaustive.py::test_every_state_within_the_bounds_keeps_every_promise[{bounds}]",)


def of_table(words: str) -> tuple[str, ...]:
    """Return the tests of the decision whose name holds these words."""
    return ("tests/core/test_decide.py", "tests/core/test_decide_merge.py", "-k", words)


PROTOCOL = (
    Defect(
        "stop before the intent is durable", "G6", STATE,
        "        self.recorded(await self.journal.advance(before, event, facts, **changes))\n",
        "        if changes.get('phase') is Phase.PAUSING and self.domain.session:\n"
        "            await self.domain.session.stop((), lambda: None)\n"
        "        self.recorded(await self.journal.advance(before, event, facts, **changes))\n",
        SEARCH, searched(3, 0),
    ),
    Defect(
        "cont before the result is durable", "G1", RECORDS,
        "    await state.record(event, facts, **changes)\n",
        "    if isinstance(action, actions.RecordOutcome) and state.domain.session and state.pivot.owes_resume:\n"
        "        await state.domain.session.resume()\n"
        "    await state.record(event, facts, **changes)\n",
        SEARCH, searched(3, 0),
    ),
    Defect(
        "a snapshot's record after cont", "G1", PAUSE,
        "    roots = await session.snapshot(state.pivot)\n",
        "    roots = await session.snapshot(state.pivot)\n    await session.resume()\n",
        SEARCH, searched(2, 0, 2, Move.SNAPSHOT),
    ),
    Defect(
        "a snapshot without a pause", "G1", PAUSING,
        "        return Stop(complete=tuple(disk.job for disk in pivot.disks) if at_once else ())\n",
        "        return Stop() if kinds.of(pivot).has_jobs else Snapshot()\n",
        SEARCH, searched(2, 0, 2, Move.SNAPSHOT),
    ),
    Defect(
        "a pull without stop", "G1", PAUSING,
        "    if not attempt.stop_sent:\n        return Stop()\n    if seen.executing:\n", "    if False:\n",
        SEARCH, searched(2, 0, 2, Move.PULL),
    ),
    Defect(
        "a stop without an answer counts as done", "G2", PAUSE,
        "    state.remember(stop_sent=None, completing=", "    state.remember(stop_sent=True, completing=",
        SEARCH, searched(1, 1, 1, Move.PULL, "paused"),
    ),
    Defect(
        "job-complete before stop", "G1", SESSION,
        "        burst = [replies.run_state.command, command(\"stop\"),",
        "        await self.complete(complete)\n        burst = [replies.run_state.command, command(\"stop\"),",
        ORDER, (f"{IN_ORDER}[copy]",),
    ),
    Defect(
        "jobs finalize themselves", "G1", PREPARATION,
        '"auto_finalize": False', '"auto_finalize": True',
        SEARCH, searched(2, 0, 2, Move.PULL),
    ),
    Defect(
        "a guest that stopped by itself is taken for paused by pivotd", "G3", SESSION,
        "        await self._refuse_to_start()\n        await self._monitor.execute(", "        await self._monitor.execute(",
        SEARCH, searched(0, 1, 3),
    ),
    Defect(
        "a stop that found somebody else's pause counts as pivotd's", "G3", PAUSE,
        "    ours = before in EXECUTING or resumed or", "    ours = True or before in EXECUTING or",
        SEARCH, searched(0, 1, 3),
    ),
    Defect(
        "a write-blocking copy begins with wiping its image", "G1", "pivotd/qmp/mirror_start.py",
        "_start_on_zeroes(monitor, _with(mirror, sync=\"top\"))", "_start_on_zeroes(monitor, mirror)",
        "real QEMU", ("tests/engine/test_destinations.py::test_qemu_does_not_wipe_an_image_that_it_already_writes_to[new]",),
    ),
    Defect(
        "an image that is there keeps its data where the disk has none", "G1", "pivotd/qmp/mirror_start.py",
        "    return seen.format in RAW and", "    return True or",
        "rules for images", ("tests/engine/test_thin.py::test_only_files_and_devices_are_known_to_have_all_of_a_disk",),
    ),
    Defect(
        "an image that is there is taken for empty", "G1", "pivotd/host/qcow2.py",
        "        if os.pread(descriptor, length, at + offset) != bytes(length):\n", "        if False:\n",
        "rules for images", ("tests/engine/test_blank.py::test_one_allocated_cluster_is_enough",),
    ),
    Defect(
        "a mirror begins again on an image that is taken for zeroes", "G1", "pivotd/qmp/mirror_start.py",
        "    if not options.reuse and written:\n", "    if False:\n",
        "real QEMU", ("tests/engine/test_thin.py::test_a_mirror_never_begins_again_on_what_another_has_written",),
    ),
    Defect(
        "jobs are dismissed before the outcome is durable", "G5", PAUSE,
        "    roots = await session.finalize(state.pivot, action.jobs)\n",
        "    roots = await session.finalize(state.pivot, action.jobs)\n"
        "    done = [{'execute': 'job-dismiss', 'arguments': {'id': job}} for job in action.jobs]\n"
        "    await session._monitor.burst(done, 5.0)\n",
        ORDER, (f"{IN_ORDER}[copy]",),
    ),
    Defect(
        "the destination is opened with cache=unsafe", "G1", "pivotd/qmp/opening.py",
        '"file": names.file_node(pivot.id, disk.index),\n'
        '        "cache": {"direct": past_cache(pivot.options, disk.cache_direct), "no-flush": False}',
        '"file": names.file_node(pivot.id, disk.index),\n'
        '        "cache": {"direct": past_cache(pivot.options, disk.cache_direct), "no-flush": True}',
        SEARCH, searched(3, 0),
    ),
    Defect(
        "the journal does not flush", "G6", "pivotd/journal/schema.py",
        '("synchronous", "FULL", 2)', '("synchronous", "OFF", 0)',
        "forgetful disk", ("tests/journal_disk/test_journal_cut.py",),
    ),
)  # fmt: skip
"""The order of things."""

JUDGEMENT = (
    Defect(
        "a job that ended without an error counts as switched", "G2", PAUSING,
        "    ended = [disk for disk in pivot.disks if status[disk.job] in STATUS_ENDED]\n    if ended:\n",
        "    ended = [disk for disk in pivot.disks if status[disk.job] in STATUS_ENDED]\n"
        "    if ended and not any(seen.job(disk.job).error for disk in ended):\n"
        "        from pivotd.core.rules.endings import record_all\n"
        "        from pivotd.core.pivot import Outcome\n"
        "        return record_all(pivot, Outcome.SWITCHED, 'completed')\n"
        "    if ended:\n",
        SEARCH, searched(0, 1, 3),
    ),
    Defect(
        "the graph is read before the jobs", "G2", LOOKING,
        "        replies.jobs,\n        blocks.block_jobs,\n        blocks.disks,\n",
        "        blocks.disks,\n        replies.jobs,\n        blocks.block_jobs,\n",
        "QMP", ("tests/qmp/test_identity.py",),
    ),
    Defect(
        "a job found pending under a running guest is finalized", "G1", PAUSING,
        '        return Abandon("the guest was found running after a job had been completed or had ended")\n',
        "        return Stop()\n",
        TABLE, of_table("found_running"),
    ),
    Defect(
        "a guest that was paused before is resumed", "G3", INTENT,
        'owes_resume=now.run_state == "running"', "owes_resume=True",
        SEARCH, searched(1, 1, found="paused"),
    ),
    Defect(
        "somebody else's pause is resumed", "G3", PAUSE,
        "        state.remember(not_ours=before)\n", "        state.remember(not_ours=None)\n",
        SEARCH, searched(0, 1, 3),
    ),
    Defect(
        "an earlier pause of its own is taken for somebody else's", "G3", PAUSE,
        " and (seen.executing or not same_moment(state, session)):", ":",
        SEARCH, searched(2, 0, 2, Move.PULL),
    ),
    Defect(
        "the nonce is not checked", "G2", LOOKING,
        "    if marked or _same_process(monitor.pid, pivot):\n", "    if True:\n",
        SEARCH, searched(1, 1),
    ),
    Defect(
        "a pid counts without its start time", "G2", "pivotd/host/process.py",
        "    return ticks is not None and now is not None and now != ticks\n", "    return False\n",
        "QMP", ("tests/qmp/test_identity.py",),
    ),
    Defect(
        "another QEMU on the destination means kept", "G2", ENDINGS,
        "    if seen.uses_destination and pivot.switches:\n", "    if False:\n",
        TABLE, of_table("another_qemu"),
    ),
    Defect(
        "another QEMU makes a merge unknown", "G2", ENDINGS,
        "    if seen.uses_destination and pivot.switches:\n", "    if seen.uses_destination:\n",
        SEARCH, searched(1, 1, 1, Move.PULL),
    ),
    Defect(
        "a foreign root means kept", "G2", ENDINGS,
        "by_root.get(root(seen, disk), Outcome.UNKNOWN)", "by_root.get(root(seen, disk), Outcome.KEPT)",
        TABLE, of_table("foreign"),
    ),
    Defect(
        "the deadline is ignored", "G4", "pivotd/core/attempt.py",
        "deadline_passed=self.deadline is not None and now >= self.deadline", "deadline_passed=False",
        "real QEMU", ("tests/engine/test_copy.py", "-k", "deadline"),
    ),
    Defect(
        "a cancel is sent before it is recorded", "G6", PAUSING,
        "        return Abandon(reason if clean else f",
        "        if attempt.cancelled_by:\n            return CancelJobs(tuple(status), resume=True)\n"
        "        return Abandon(reason if clean else f",
        TABLE, of_table("every_state"),
    ),
    Defect(
        "a retry with other disks passes for the same", "G7", "pivotd/app/start.py",
        "    if not same or not all(disk is not None and _same_target(request.kind, disk, t) for disk, t in asked):\n",
        "    if not same:\n",
        "API", ("tests/api/test_api.py", "-k", "used_request_id"),
    ),
    Defect(
        "a reservation is not looked at again", "G1", "pivotd/app/reservations.py",
        "            if not taken.isdisjoint(marks_of):\n", "            if False:\n",
        "API", ("tests/app/test_start.py", "-k", "for_many_at_once"),
    ),
    Defect(
        "a pivot is accepted for a domain that is being removed", "G3", "pivotd/app/start.py",
        "self._host.supervisors.get(domain) is not supervisor or supervisor.ended", "False",
        "API", ("tests/app/test_start.py", "-k", "removed_and_added"),
    ),
    Defect(
        "nobody can have written to a disk that is gone", "G1", DRIVER,
        "state.remember(unwritten=state.attempt.unmoved == moment(session))",
        "state.remember(unwritten=True)",
        "real QEMU", ("tests/interference/test_machines.py", "-k", "written_on_its_destination"),
    ),
    Defect(
        "a migration that is about to end is not waited for", "G2", SESSION,
        "            if not replies.migrating(migrate):\n", "            if True:\n",
        "wire", ("tests/wire/test_resume.py", "-k", "about_to_end"),
    ),
    Defect(
        "the guest is let run without a look at its run state", "G2", SESSION,
        "        if state not in OUR_PAUSE and not await not_left.may_run_on(self._monitor, state, migrate):\n", "        if False:\n",
        "wire", ("tests/wire/test_resume.py", "-k", "every_time"),
    ),
    Defect(
        "a second reply replaces the first", "G2", "pivotd/qmp/burst.py",
        "self._replies.setdefault(index, (reply, self._moment()))", "self._replies[index] = (reply, self._moment())",
        "wire", ("tests/wire/test_stream.py", "-k", "second_answer"),
    ),
    Defect(
        "what is below the images is not noted", "G5", CLEANING,
        "    found += pivot.options.nodes_below\n", "",
        SEARCH, searched(2, 0, 1, Move.COMMIT, named=True),
    ),
    Defect(
        "a full disk is taken for certainty", "G1", "pivotd/journal/writer.py",
        "                self.in_doubt = not self._settle(connection)\n", "                self.in_doubt = False\n",
        "disk that forgets", ("tests/journal_disk/test_journal_faults.py", "-k", "old_generation"),
    ),
    Defect(
        "a verdict is certain while its record may be on the way", "G2", "pivotd/core/verdict.py",
        "    return pivot.phase in {Phase.PAUSING, Phase.CANCELLING}\n", "    return False\n",
        "QEMU killed before the record", ("tests/chaos/test_overtaken.py",),
    ),
    Defect(
        "an image that is there is overwritten", "G5", NEW_IMAGE,
        "        if not reuse and names.create_file_job(pivot.id, index) not in seen.jobs:\n",
        "        if False:\n",
        TABLE, of_table("never_written_to"),
    ),
    Defect(
        "nodes are left behind", "G5", CLEANING,
        "    doomed = _unwanted(await blocks_of(monitor), pivot)\n", "    doomed: list[str] = []\n",
        "kill at every message", ("tests/chaos/test_moves.py", "-k", "order and copy"),
    ),
    Defect(
        "a journal that fails leaves the guest paused", "G3", JOURNAL_FAILURES,
        "    if session is None:\n        return False\n", "    return True\n",
        "disk that forgets", ("tests/journal_disk/test_pivot_faults.py", "-k", "its_end_cannot_be_recorded and enospc"),
    ),
)  # fmt: skip
"""What is made of what is seen."""

ONE_OWNER = (
    Defect(
        "a request records beside the driver", "G3", DRIVER,
        "        return await self.ask(Complete(who))\n",
        "        disks = tuple(replace(disk, outcome=None) for disk in self.pivot.disks)\n"
        "        changes = {'hold': False, 'attempt': 0, 'error': None, 'disks': disks}\n"
        "        pivot = await self.state.journal.advance(self.pivot, 'complete-requested', {}, **changes)\n"
        "        self.state.recorded(pivot)\n"
        "        self.wake()\n"
        "        return pivot\n",
        "real QEMU", ("tests/engine/test_requests.py", "-k", "any_moment"),
    ),
    Defect(
        "a change is not compared with what was read", "G1", "pivotd/journal/changes.py",
        '"revision": before.revision}', '"phase": before.phase.value}',
        "journal", ("tests/journal/test_changes.py", "-k", "two_writers"),
    ),
    Defect(
        "a message is lost while the driver waits", "G7", "pivotd/engine/inbox.py",
        "        self._messages.append(message)\n",
        "        if self.woken.is_set():\n            return\n        self._messages.append(message)\n",
        "real QEMU", ("tests/engine/test_requests.py", "-k", "any_moment"),
    ),
    Defect(
        "a read does not wait for the end of a pause", "G4", "pivotd/app/lanes.py",
        "            await self._calm()\n", "            pass\n",
        "app", ("tests/app/test_reads.py", "-k", "nothing_is_read_in_a_pause"),
    ),
    Defect(
        "the last look before the intent decides nothing", "G2", INTENT,
        "    if not isinstance(decide(state.pivot, now, state.attempt), actions.Converge):\n", "    if False:\n",
        "real QEMU", ("tests/engine/test_requests.py", "-k", "right_before"),
    ),
    Defect(
        "a pause that cannot be recorded as pivotd's lasts", "G4", "pivotd/engine/record_steps.py",
        "        if await without_paused(state):\n            state.remember(ours=None)\n", "",
        "real QEMU", ("tests/engine/test_layers.py", "-k", "another_client_had and full"),
    ),
    Defect(
        "a resume before a `stop` without an answer is forgotten", "G3", PAUSE,
        " or (again and _resumed_since_intent(state, session))\n", "\n",
        SEARCH, searched(0, 2, move=Move.INNER_COMMIT, found="paused"),
    ),
)  # fmt: skip
"""Only a pivot's driver records it."""

IMAGES = "tests/cli/test_images.py"
UNASKED = "tests/cli/test_unasked.py"
NEXT_BOOT = (
    Defect(
        "a new pivot washes a doubt away", "G1", "pivotd/app/start.py",
        "            if await self._refuse_doubtful(planned, ask_fleet=epoch is not None):\n", "            if True:\n",
        "real QEMU", (IMAGES, "-k", "stale_image_that_runs"),
    ),
    Defect(
        "an image that is not there is certain", "G1", "pivotd/core/verdict.py",
        "before a guest starts.\"\n    return replace(verdict, certain=False, reason=reason)\n",
        "before a guest starts.\"\n    return verdict\n",
        "real QEMU", (IMAGES, "-k", "not_the_one and gone"),
    ),
    Defect(
        "a new file with the number of a deleted one is taken for it", "G1", "pivotd/core/standing.py",
        "            return image.born == self.born\n        return until is None or self.born <= until\n",
        "            return True\n        return True\n",
        "rules for images", ("tests/core/test_standing.py", "-k", "birth"),
    ),
    Defect(
        "a forced pivot leaves the other disk certain", "G1", "pivotd/journal/changes.py",
        "        for one in overwritten:\n", "        for one in ():\n",
        "real QEMU", ("tests/app/test_holders.py", "-k", "in_doubt"),
    ),
    Defect(
        "the right image of a guest that is off is overwritten", "G1", "pivotd/app/holders.py",
        "                elif one.finding.standing in NEEDED and key not in found.renamed:\n", "                elif False:\n",
        "real QEMU", ("tests/app/test_holders.py", "-k", "the_right_image_of"),
    ),
    Defect(
        "a restored journal is certain", "G1", "pivotd/journal/changes.py",
        '"UPDATE disk_latest SET doubtful = 1"', '"UPDATE disk_latest SET doubtful = 0"',
        "real QEMU", (IMAGES, "-k", "person_accepts_what"),
    ),
    Defect(
        "a guest that has left by a migration is forgotten", "G1", "pivotd/app/alarms.py",
        "            await self._journal.left(domain)\n", "            pass\n",
        "real QEMU", ("tests/app/test_alarms.py", "-k", "has_left and gone"),
    ),
    Defect(
        "a journal without its daemon is certain while QEMU runs", "G1", "pivotd/cli/right_images.py",
        "    said, taken = before or journal.running(domain), journal.is_taken\n", "    said, taken = None, False\n",
        "real QEMU", (IMAGES, "-k", "daemon_is_dead_and_qemu"),
    ),
)  # fmt: skip
"""Which image a guest starts from next."""

AGREEMENT, LIBVIRT_STEPS = "pivotd/core/rules/agreement.py", "pivotd/engine/libvirt_steps.py"
GUEST_WRITES = "pivotd/engine/guest_writes.py"
HANGS = "pivotd/core/rules/libvirt_hangs.py"


def guarded(**bounds: Any) -> tuple[str]:
    """Return the one search of libvirt's model that is to find the defect."""
    chosen = LibvirtBounds(**bounds)
    return (f"tests/model/test_libvirt.py::test_every_state_of_a_guarded_pivot_keeps_every_promise[{chosen}]",)


LIBVIRT = (
    Defect(
        "a guest is resumed of which libvirt does not know the image", "G1", AGREEMENT,
        "        if belief.live is not now or ending", "        if ending",
        SEARCH, guarded(crashes=1, faults=1),
    ),
    Defect(
        "a next boot that seems right is not made durable", "G1", AGREEMENT,
        "believed(seen, disk).next in SIDES\n    ]", "believed(seen, disk).next in SIDES - {images[disk.disk]}\n    ]",
        SEARCH, guarded(crashes=2),
    ),
    Defect(
        "a next boot that libvirt could not save is taken for durable", "G1", LIBVIRT_STEPS,
        "    if asked.saved or asked.raced:\n        await _note_written(state, dict.fromkeys(asked.saved, ",
        "    if True:\n        await _note_written(state, dict.fromkeys(asked.beliefs, ",
        SEARCH, guarded(crashes=0, faults=1),
    ),
    Defect(
        "libvirt is asked before that is on disk", "G6", LIBVIRT_STEPS,
        "    if not await in_time(state, seen, state.finish_record()):\n        return False\n"
        "    if not counts:\n        return True\n"
        "    options = replace(state.pivot.options, guest_writes=writes)\n"
        '    facts = {"guest_writes": dict(writes)}\n'
        '    state.begin_record("writes-counted", facts, after_s=limits.CALL_LEAVES_S, options=options)\n', "",
        SEARCH, guarded(crashes=2),
    ),
    Defect(
        "a switch that libvirt may still make is forgotten", "G1", LIBVIRT_STEPS,
        "        state.remember(ask_in_doubt=True)", "        state.remember(ask_in_doubt=False)",
        SEARCH, guarded(crashes=1, faults=1),
    ),
    Defect(
        "a suspend that libvirt may still carry out is forgotten", "G3", "pivotd/core/rules/libvirt_phases.py",
        "    if not paused and seen.calling:\n", "    if False:\n",
        SEARCH, guarded(crashes=1, faults=1),
    ),
    Defect(
        "a snapshot that libvirt does not know of is left to it", "G3", "pivotd/core/rules/libvirt_pause.py",
        "    if not behind or attempt.rollback_failed or attempt.may_have_written or", "    if True or",
        SEARCH, guarded(crashes=2, move=Move.SNAPSHOT, from_phase=Phase.PREPARING),
    ),
    Defect(
        "a switch is taken back after the guest has written", "G1", GUEST_WRITES,
        "before[disk] == now.get(disk)", "True",
        SEARCH, ("tests/model/test_libvirt.py", "-k", "unless_the_guest_has_written"),
    ),
    Defect(
        "a switch is taken back although nobody knows the guest's writes", "G1", GUEST_WRITES,
        "disk in before and before[disk] ==", "before.get(disk, now.get(disk)) ==",
        SEARCH, ("tests/model/test_libvirt.py", "-k", "unless_the_guest_has_written"),
    ),
    Defect(
        "an overlay is taken back after the guest has written", "G1", GUEST_WRITES,
        "        return (await session.unwritten(state.pivot)).issuperset(disks)\n", "        return True\n",
        SEARCH, ("tests/model/test_libvirt.py", "-k", "unless_the_guest_has_written"),
    ),
    Defect(
        "the resume of a guest that is saved in its pause is forgotten", "G3", "pivotd/core/rules/libvirt_phases.py",
        "    if not seen.leaving:\n", "    if True:\n",
        TABLE, ("tests/core/test_libvirt.py", "-k", "stays_owed"),
    ),
    Defect(
        "a definition of somebody else is overwritten without a word", "G2", LIBVIRT_STEPS,
        "    if raced:\n", "    if False:\n",
        SEARCH, guarded(crashes=1, faults=1),
    ),
    Defect(
        "the directory of libvirt's definitions is not synced", "G2", "pivotd/libvirt/durable.py",
        "        fsync_directory(directory)\n    except", "        pass\n    except",
        "real QEMU", ("tests/libvirt/test_durable.py::test_where_the_directory_may_not_be_read_its_file_system_is_synced",),
    ),
    Defect(
        "without a record a transient guest runs on", "G1", AGREEMENT,
        "        durable = next_ is now and", "        durable = next_ is None or next_ is now and",
        TABLE, ("tests/core/test_libvirt.py", "-k", "without_a_record"),
    ),
    Defect(
        "a guest runs on while a libvirt that hangs may still switch its disk", "G1", HANGS,
        "    if pivot.asking and live:\n", "    if False and live:\n",
        SEARCH, guarded(crashes=1, faults=1, monitor=True),
    ),
    Defect(
        "a guest runs on behind a libvirt that hangs in the middle of the switch", "G1", HANGS,
        "    if away is not None or reversing", "    if False or reversing",
        SEARCH, guarded(crashes=1, faults=1, monitor=True),
    ),
    Defect(
        "somebody else's pause is ended while libvirt hangs", "G3", HANGS,
        "not pivot.owes_resume or ", "",
        TABLE, ("tests/core/test_libvirt.py", "-k", "nothing_else"),
    ),
    Defect(
        "a pivot of libvirt's is certain while libvirt is asked", "G1", "pivotd/core/verdict.py",
        "    return pivot.manager is Manager.LIBVIRT and pivot.asking", "    return False and pivot.asking",
        TABLE, ("tests/core/test_libvirt.py", "-k", "verdict"),
    ),
    Defect(
        "a resume is not owed any more although a suspend still waits", "G3", "pivotd/engine/pause_steps.py",
        "    if action.owed:\n", "    if False:\n",
        SEARCH, ("tests/model/test_libvirt.py", "-k", "still_waits"),
    ),
    Defect(
        "a cancelled pivot waits for what libvirt never learns", "G3", "pivotd/core/rules/libvirt_phases.py",
        "    if still and (back", "    if False and (back",
        TABLE, ("tests/core/test_libvirt.py", "-k", "after_a_cancel"),
    ),
)  # fmt: skip
"""Guests of libvirt's."""

FLEET_PIVOTS, FLEET_WORDS = "pivotd/core/rules/fleet_pivots.py", "pivotd/core/rules/fleet_words.py"
FLEET_LOCAL = "pivotd/core/rules/fleet_local.py"
FLEET_OWNERS, FLEET_STEPS = "pivotd/core/rules/fleet_owners.py", "pivotd/engine/fleet_steps.py"
WAIT = OnSilence.WAIT


def of_hosts(**bounds: Any) -> tuple[str]:
    """Return the one search of two hosts of a fleet that is to find the defect."""
    chosen = FleetBounds(**bounds)
    return (f"tests/model/test_fleet.py::test_no_host_and_no_fleet_is_certain_of_a_wrong_image[{chosen}]",)


def of_member(**bounds: Any) -> tuple[str]:
    """Return the one search of the driver on a host of a fleet that is to find the defect."""
    chosen = DriverBounds(**bounds)
    return (f"tests/model/test_fleet.py::test_the_driver_keeps_every_promise_on_a_host_of_a_fleet[{chosen}]",)


FLEET = (
    Defect(
        "a pause begins of which the fleet does not know", "G1", INTENT,
        "    if not await fleet_steps.announced(state, seen):\n", "    if False:\n",
        SEARCH, of_member(on_silence=WAIT, crashes=2),
    ),
    Defect(
        "the fleet has a switch before the journal has it", "G6", RECORDS,
        "    await state.record(event, facts, **changes)\n",
        "    if state.attempt.fleet_view is not None and isinstance(action, actions.RecordOutcome) and state.fleet:\n"
        "        from pivotd.core.rules.fleet_changes import published\n"
        "        view, known = state.attempt.fleet_view, replace(state.pivot, disks=changes['disks'])\n"
        "        state.remember(fleet_view=None)\n"
        "        await state.fleet.write(view, published(view, known, ''), 1.0)\n"
        "    await state.record(event, facts, **changes)\n",
        SEARCH, of_member(on_silence=WAIT, crashes=0, faults=1),
    ),
    Defect(
        "a host tells of a guest that another one has taken", "G1", FLEET_PIVOTS,
        "    if owner.host != here.host or (announced_ and owner.epoch != pivot.fleet_epoch):\n", "    if False:\n",
        SEARCH, of_hosts(on_silence=WAIT, restarts=0, unfenced=True),
    ),
    Defect(
        "an intent without an outcome means the source", "G2", FLEET_WORDS,
        "    if intent.on_silence is OnSilence.WAIT and intent.manager is Manager.PIVOTD:\n", "    if True:\n",
        SEARCH, of_hosts(),
    ),
    Defect(
        "an intent of libvirt's means the source", "G2", FLEET_WORDS,
        "    if intent.on_silence is OnSilence.WAIT and intent.manager is Manager.PIVOTD:\n",
        "    if intent.on_silence is OnSilence.WAIT:\n",
        SEARCH, of_hosts(on_silence=WAIT, manager=Manager.LIBVIRT),
    ),
    Defect(
        "a restarted pivotd does not ask the fleet before `cont`", "G1", "pivotd/core/attempt.py",
        "            return cls(ask_in_doubt=pivot.asking, in_fleet=in_fleet)\n",
        "            return cls(ask_in_doubt=pivot.asking, in_fleet=in_fleet, fleet_told=True)\n",
        SEARCH, of_member(on_silence=WAIT, crashes=2),
    ),
    Defect(
        "a host that comes back believes its journal", "G1", FLEET_LOCAL,
        "    if owner is not None and owner.host != here.host:\n", "    if False:\n",
        SEARCH, of_hosts(),
    ),
    Defect(
        "a guest starts again from what the fleet was not told", "G1", FLEET_WORDS,
        "        return Worth.TELL_FIRST\n    if pivot.fleet in", "        return Worth.CERTAIN\n    if pivot.fleet in",
        SEARCH, of_hosts(on_silence=WAIT),
    ),
    Defect(
        "a journal counts although the fleet has forgotten the guest", "G1", FLEET_WORDS,
        "    if _is_forgotten(view, pivot, moved=not kept):\n", "    if False:\n",
        TABLE, ("tests/core/test_fleet.py", "-k", "worth"),
    ),
    Defect(
        "a guest that is gone is entered again in a fleet that has forgotten it", "G1", FLEET_PIVOTS,
        "        if not here.present and (view.forgotten or moved(pivot)):\n", "        if False:\n",
        TABLE, ("tests/core/test_fleet.py", "-k", "forgotten"),
    ),
    Defect(
        "a disk of a kept pivot is not told of again once the fleet has forgotten it", "G1", FLEET_PIVOTS,
        "known is None and before_forgetting(view, pivot)\n", "False\n",
        SEARCH, of_hosts(forgets=1),
    ),
    Defect(
        "telling of one disk of a pivot overwrites a later move of another", "G1", FLEET_LOCAL,
        "after_outcome(tell, pivot, here, only=said.disk)", "after_outcome(tell, pivot, here)",
        TABLE, ("tests/core/test_fleet_local.py", "-k", "leaves_a_later_move"),
    ),
    Defect(
        "an image is named before the fleet was told", "G1", FLEET_LOCAL,
        "    return Together(tuple(found), tell if tell != view else None, against)\n",
        "    return Together(tuple(found), None, against)\n",
        SEARCH, of_hosts(on_silence=WAIT),
    ),
    Defect(
        "a guest that has left is started again by the fleet's older word", "G1", FLEET_LOCAL,
        "    if disk.left and disk.live is None:\n", "    if False:\n",
        SEARCH, of_hosts(migrations=1, takes=0),
    ),
    Defect(
        "a guest runs where only an older journal says, and the fleet keeps its word", "G1", FLEET_LOCAL,
        "        return replace(_uncertain(said, reason), outcome=Outcome.UNKNOWN)\n",
        "        return _uncertain(said, reason)\n",
        SEARCH, of_hosts(takes=2, losses=0, restarts=0, strays=1),
    ),
    Defect(
        "a host that has never moved a disk tells nobody where its guest runs", "G1", FLEET_OWNERS,
        "            view = doubting(view, here, known.pivot, (known.image, other), disk)\n", "            pass\n",
        SEARCH, of_hosts(losses=0, restarts=0, strays=1),
    ),
    Defect(
        "a verdict withdraws the intent of a pivot that goes on", "G3", FLEET_LOCAL,
        "    if disk.driven:\n", "    if False:\n",
        TABLE, ("tests/core/test_fleet_local.py", "-k", "only_its_driver"),
    ),
    Defect(
        "a guest is released before the fleet knows its image", "G1", FLEET_OWNERS,
        "    if view.owner is None or view.owner.host != here.host or view.intent is not None:\n        return view\n",
        "    if view.owner is None or view.owner.host != here.host:\n        return view\n"
        "    from dataclasses import replace\n    view = replace(view, intent=None)\n",
        SEARCH, of_hosts(migrations=1, takes=0),
    ),
    Defect(
        "the fleet does not hear of a guest that has run on another image", "G1", FLEET_OWNERS,
        "    return doubted(view, pivot, disk, (right, other), here.utc_now)\n", "    return view\n",
        SEARCH, of_hosts(losses=0, restarts=0, strays=1),
    ),
    Defect(
        "a doubt about an image does not end in the fleet", "G1", FLEET_OWNERS,
        "    return accepted(view, pivot, disk, image, here.utc_now) if image in {known.image, known.other} else view\n",
        "    return view\n",
        SEARCH, of_hosts(takes=0, restarts=0, strays=2),
    ),
    Defect(
        "a doubt is taken for one about an earlier pivot", "G1", FLEET_OWNERS,
        "        if known.image != right:  # another host has moved it since\n", "        if True:\n",
        TABLE, ("tests/core/test_fleet.py", "-k", "although_the_fleet_knows"),
    ),
    Defect(
        "a guest is claimed that was not seen here", "G1", FLEET_OWNERS,
        "    if not here.present or view.intent is not None", "    if view.intent is not None",
        SEARCH, of_hosts(migrations=1, takes=0, losses=0, restarts=0, strays=1),
    ),
    Defect(
        "a guest that is to wait for the fleet runs on", "G1", FLEET_PIVOTS,
        "    return tried and pivot.options.on_silence == OnSilence.RESUME\n", "    return tried\n",
        SEARCH, of_member(on_silence=WAIT, crashes=0, faults=1),
    ),
    Defect(
        "a pivot closes before the fleet knows", "G1", FLEET_PIVOTS,
        "    if isinstance(action, Close | HandOver) and attempt.in_fleet:\n", "    if False:\n",
        SEARCH, of_member(on_silence=OnSilence.RESUME, crashes=2),
    ),
    Defect(
        "the fleet has an intent that the journal does not know", "G6", FLEET_STEPS,
        "    if any(getattr(state.pivot, name) != value for name, value in changes.items()):\n", "    if False:\n",
        SEARCH, of_member(on_silence=OnSilence.RESUME, crashes=2),
    ),
    Defect(
        "a late intent lands after its pivot has ended", "G4", FLEET_STEPS,
        "        if wanted != view or not moved(state.pivot):\n", "        if wanted != view:\n",
        SEARCH, of_member(on_silence=OnSilence.RESUME, crashes=2),
    ),
    Defect(
        "a source that the fleet does not know is withdrawn only", "G1", FLEET_PIVOTS,
        "(known is not None and known.image != FleetImage(disk.source.filename, disk.source.format))", "False",
        TABLE, ("tests/core/test_fleet.py", "-k", "does_not_name"),
    ),
    Defect(
        "an outcome is told although its intent was settled", "G1", FLEET_PIVOTS,
        "    if announced_ and not mine:\n", "    if False:\n",
        TABLE, ("tests/core/test_fleet.py", "-k", "superseded_unless"),
    ),
    Defect(
        "a pivot replaces the intent of another one", "G1", FLEET_PIVOTS,
        "    if intent is not None and (intent.pivot != pivot.id or", "    if intent is not None and (",
        TABLE, ("tests/core/test_fleet.py", "-k", "others_may_tell"),
    ),
    Defect(
        "a person may choose another image than the certain one", "G2", FLEET_OWNERS,
        "        if word.certain and name in chosen and chosen[name] != word.image:\n", "        if False:\n",
        TABLE, ("tests/core/test_fleet.py", "-k", "exactly_where"),
    ),
    Defect(
        "a host that was frozen in its pause lets its guest run unasked", "G1", FLEET_PIVOTS,
        "    tried = attempt.fleet_silent is not None and not attempt.fleet_silence_stale and attempt.deadline_passed\n",
        "    tried = attempt.fleet_silent is not None and attempt.deadline_passed\n",
        ETCD, ("tests/fleet/test_pivots.py", "-k", "frozen_in and installed"),
    ),
    Defect(
        "a try in which a host was frozen counts as etcd's silence", "G1", FLEET_STEPS,
        "        woken = state.clock.monotonic() > until + limits.FLEET_WOKEN_S\n", "        woken = False\n",
        ETCD, ("tests/fleet/test_pivots.py", "-k", "frozen_in and installed"),
    ),
    Defect(
        "the fleet's older word counts after a pivot that has moved nothing", "G1", FLEET_WORDS,
        "    return pivot.fleet_epoch is not None and known is not None and known.epoch > pivot.fleet_epoch\n",
        "    return True\n",
        SEARCH, of_hosts(targets="DEF", takes=0, losses=0, alone=1),
    ),
)  # fmt: skip
"""Hosts of a fleet."""

ANSWERS = (
    Defect(
        "a word takes an image that a guest may use that cannot be asked", "G1", "pivotd/app/accepting.py",
        "    return one.verdict.pending and one.finding.standing in {*needed, Standing.UNKNOWN}\n", "    return False\n",
        "real QEMU", (IMAGES, "-k", "word_for_an_image"),
    ),
    Defect(
        "storage that hangs hides what is beside it", "G1", "pivotd/host/threads.py",
        "            await asyncio.gather(*(alone(*one) for one in part.items()))\n", "            pass\n",
        "app", ("tests/app/test_threads.py", "-k", "each_of_many"),
    ),
    Defect(
        "the end of another try to connect passes for that of the one asked for", "G1", "pivotd/engine/supervisor.py",
        "                if not (is_on_its_way and self.is_silent):\n", "                if False:\n",
        "wire", ("tests/wire/test_supervisor.py", "-k", "during_another"),
    ),
    Defect(
        "a stray image without a name in UTF-8 leaves no record", "G1", "pivotd/core/image_names.py",
        '    return name.encode(errors="backslashreplace").decode()\n', "    return name\n",
        "real QEMU", ("tests/app/test_alarms.py", "-k", "not_utf8"),
    ),
    Defect(
        "a monitor that cannot be reached counts as one without a QEMU", "G1", "pivotd/engine/supervisor.py",
        '        is_sure = isinstance(error, DomainUnreachableError) and error.fields.get("errno") in NOBODY\n',
        "        is_sure = error is not None\n",
        "real QEMU", (UNASKED, "-k", "on_a_stale_image and old"),
    ),
    Defect(
        "a word does not wait for the QEMU of its own guest", "G1", "pivotd/app/accepting.py",
        "            if (why := await self._reads.cannot_ask(domain, disk)) is not None:\n",
        "            if (why := None) is not None:\n",
        "real QEMU", (UNASKED, "-k", "image_before"),
    ),
    Defect(
        "a guest under another name on an old image is no doubt", "G1", "pivotd/app/old_images.py",
        "            if other != key or last[1].left_at is not None:\n", "            if False:\n",
        "real QEMU", ("tests/cli/test_old_images.py", "-k", "id_on_a_stale"),
    ),
    Defect(
        "a node counts whatever file is below it", "G1", "pivotd/app/live_verdicts.py",
        "(same and disk.node == right.node and not _is_another(right, file))", "(same and disk.node == right.node)",
        "real QEMU", ("tests/cli/test_reopened.py", "-k", "right_image"),
    ),
    Defect(
        "others may load a snapshot into an image that a job fills", "G1", PREPARATION,
        "    await load_guard.place(monitor, pivot, disk)\n", "",
        SEARCH, searched(1, 1),
    ),
    Defect(
        "others may load a snapshot into an old image that is kept in sync", "G1", "pivotd/qmp/mirror_back.py",
        "    guards = [load_guard.add(pivot, disk.source.node) for disk in pivot.disks]\n",
        "    guards = [replies.run_state.command for _ in pivot.disks]\n",
        SEARCH, searched(0, 1, keep_synced=True),
    ),
    Defect(
        "a disk loses an internal snapshot that came after the plan", "G1", "pivotd/core/rules/copying.py",
        "    if seen.snapshots and not pivot.options.drop_internal_snapshots:\n", "    if False:\n",
        SEARCH, searched(1, 1),
    ),
    Defect(
        "an intent goes into a journal that has lost its name", "G1", "pivotd/journal/journal.py",
        "self._if_named(change) if is_intent else change)\n", "change)\n",
        "journal", ("tests/journal/test_lost_names.py", "-k", "no_intent"),
    ),
    Defect(
        "a failed flush before the pause is taken for a storage that does not answer", "G1", "pivotd/host/flush.py",
        "            if error.errno not in _CANNOT_BE_FLUSHED:\n", "            if False:\n",
        "real QEMU", ("tests/engine/test_layers.py", "-k", "flush_that_failed"),
    ),
    Defect(
        "an event that libvirt's answer has overtaken is not waited for", "G2", "pivotd/libvirt/passthrough.py",
        "        library.await_events(limits.QUERY_TIMEOUT_S)\n", "",
        "real QEMU", ("tests/libvirt/test_connections.py", "-k", "counts_as_one"),
    ),
)  # fmt: skip
"""Verdicts, and what they rest on."""

DEFECTS = PROTOCOL + JUDGEMENT + ONE_OWNER + NEXT_BOOT + LIBVIRT + FLEET + ANSWERS
