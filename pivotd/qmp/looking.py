"""One look at QEMU for one pivot: run state, jobs and graph in this order, and whether it is still the same process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pivotd import limits
from pivotd.core import names
from pivotd.core.observation import Observation, Qemu
from pivotd.core.pivot import Phase, Pivot
from pivotd.host import files, process
from pivotd.host.threads import in_thread
from pivotd.qmp import blocks, not_left, of_pivot, replies, write_thresholds, writers
from pivotd.qmp.blocks import Blocks, DiskSeen
from pivotd.qmp.monitor import Monitor

LOOK = tuple(
    question.command
    for question in (
        replies.run_state,
        replies.jobs,
        blocks.block_jobs,
        blocks.disks,
        blocks.graph,
        replies.object_names,
        replies.migrating,
    )
)
"""Jobs come before the graph: the effect of a job seen as ended is in the graph that is read after it.

Never query-named-block-nodes: it aborts QEMU while a qcow2 image is being created (tests/qmp/test_hazards.py).
"""


async def blocks_of(monitor: Monitor) -> Blocks:
    """Ask for the block jobs, the disks and the graph in one write, in this order."""
    questions = [blocks.block_jobs.command, blocks.disks.command, blocks.graph.command]
    jobs, disks, graph = await monitor.burst(questions, limits.QUERY_TIMEOUT_S)
    return Blocks(blocks.disks(disks), blocks.graph(graph), blocks.block_jobs(jobs))


async def look(monitor: Monitor, path: str, pivot: Pivot) -> Observation:
    """Look at run state, jobs and graph, and identify the QEMU process behind the socket at ``path``.

    The nonce, or any job or node named after the pivot, proves that it is the same process.
    """
    answers = await monitor.burst(LOOK, limits.QUERY_TIMEOUT_S)
    status, jobs, block_jobs, disks, graph, objects, migrate = answers
    shown = Blocks(blocks.disks(disks), blocks.graph(graph), blocks.block_jobs(block_jobs))
    own_jobs = of_pivot.jobs(replies.jobs(jobs), shown, pivot)
    roots = of_pivot.roots(shown.disks, pivot)
    seen = Observation(
        qemu=Qemu.SAME,
        run_state=replies.run_state(status),
        jobs=own_jobs,
        roots=roots,
        images=of_pivot.images(
            shown.disks, pivot, process.working_directory(monitor.pid) if pivot.options.adopted else None
        ),
        nodes=frozenset(name for name in shown.graph.nodes if names.belongs_to(name, *pivot.family)),
        nodes_below=of_pivot.nodes_below(shown.graph, pivot) if pivot.phase is Phase.PREPARING else (),
        merged=of_pivot.merged(shown.graph, roots, pivot),
        has_nonce=pivot.identity.nonce in replies.object_names(objects),
        migrating=replies.migrating(migrate),
        saved=await not_left.may_run_on(monitor, replies.run_state(status), migrate),
        bitmaps=of_pivot.bitmaps(shown, pivot),
        write_thresholds=write_thresholds.read(shown.disks, pivot),
        snapshots=of_pivot.snapshots(shown, pivot),
    )
    if pivot.phase is Phase.READY and pivot.switches:
        seen = replace(seen, exchanged=of_pivot.exchanged(shown.graph, pivot))
    if pivot.phase is Phase.READY and pivot.switches and not pivot.options.force:
        # Not within the pause: there is a further question if there is such a writer.
        others = await writers.of_disks(monitor, shown)
        seen = replace(seen, writers=of_pivot.writers(others, shown, pivot))
    marked = seen.has_nonce or seen.nodes or any(names.belongs_to(name, *pivot.family) for name in own_jobs)
    if marked or _same_process(monitor.pid, pivot):
        return seen
    if not process.is_gone(pivot.identity.pid, pivot.identity.start_ticks, pivot.identity.boot_id):
        return Observation(
            Qemu.SILENT,
            detail=f"another QEMU answers on {path} while process {pivot.identity.pid}, in which the pivot began, "
            "still lives",
        )
    try:
        paths = [disk.filename for disk in shown.disks.values()]
        paths += [image.filename for disk in pivot.disks for image in (disk.source, disk.destination)]
        users = await in_thread(limits.FILE_TIMEOUT_S, _uses, monitor.pid, pivot, shown.disks, paths=paths)
    except TimeoutError as error:
        return Observation(Qemu.SILENT, detail=f"another QEMU answers, but {error}")
    return replace(seen, qemu=Qemu.REPLACED, uses_source=users[0], uses_destination=users[1])


def _same_process(pid: int, pivot: Pivot) -> bool:
    """Without a nonce in the process, pid and start time count only while the nonce need not be there.

    A pivot may be cancelled before its nonce was placed.
    """
    may_be_unmarked = pivot.phase in {Phase.PREPARING, Phase.CANCELLING, Phase.DECIDED}
    known = pivot.identity
    return (
        may_be_unmarked
        and (known.pid, known.boot_id) == (pid, process.boot_id())
        and known.start_ticks == process.start_ticks(pid)
    )


def _uses(pid: int, pivot: Pivot, disks: Mapping[str, DiskSeen]) -> tuple[bool, bool]:
    """Return whether this process has the source, and the destination, of any disk of the pivot as a root."""
    directory = process.working_directory(pid)
    roots = [files.resolve(disk.filename, directory) for disk in disks.values()]
    return (
        any(files.same(disk.source, root) for disk in pivot.disks for root in roots),
        any(files.same(disk.destination, root) for disk in pivot.disks for root in roots),
    )
