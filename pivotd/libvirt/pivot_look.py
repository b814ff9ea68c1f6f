"""One look at a domain of libvirt for one pivot: first QEMU by libvirt, then libvirt's own definitions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pivotd.core import names
from pivotd.core.observation import Belief, JobBelief, JobSeen, Observation, Qemu, Root
from pivotd.core.pivot import Phase, Pivot, PivotDisk
from pivotd.libvirt import calls, library
from pivotd.libvirt.domain_xml import DiskDefined, parse
from pivotd.libvirt.passthrough import Query
from pivotd.qmp import blocks, of_pivot, replies
from pivotd.qmp.blocks import Blocks, DiskSeen, find
from pivotd.qmp.question import Question
from pivotd.qmp.whole_names import name_of

IN_A_PAUSE = (replies.run_state, replies.jobs, blocks.disks)
OUTSIDE = (replies.run_state, replies.jobs, blocks.disks, blocks.block_jobs, replies.migrating)
"""Jobs come before the disks: the effect of a job seen as ended is in the roots that are read after it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What one look has brought: QEMU's answers, and libvirt's definitions after that; None: there is none."""

    answers: Mapping[Question[Any], Any]
    live: Mapping[str, DiskDefined]
    next: Mapping[str, DiskDefined] | None
    saved: bool = False


def ask(pivot: Pivot, domain: Any, query: Query) -> Shown:
    """Ask, in the domain's thread. Raises: libvirtError, ValueError."""
    questions = IN_A_PAUSE if pivot.phase is Phase.PAUSING or pivot.owes_resume else OUTSIDE
    got = query([json.dumps(question.command) for question in questions])
    answers = {question: reply.get("return") for question, reply in zip(questions, got, strict=True)}
    saved = replies.run_state(answers[replies.run_state]) == "postmigrate" and calls.was_saved(domain)
    return Shown(answers, live(domain), next_boot(domain), saved)


def live(domain: Any) -> Mapping[str, DiskDefined]:
    """Return the disks of the definition of the running domain; none if it does not run. Raises: libvirtError."""
    found = parse(domain.XMLDesc(0))
    return found.disks if found.runs else {}  # then it is the definition of the next boot


def next_boot(domain: Any) -> Mapping[str, DiskDefined] | None:
    """Return the disks of the definition of the next boot, None for a transient domain. Raises: libvirtError."""
    if not domain.isPersistent():
        return None
    return parse(domain.XMLDesc(library.load().api.VIR_DOMAIN_XML_INACTIVE)).disks


def observed(pivot: Pivot, shown: Shown) -> Observation:
    """Return what a look shows of a running domain. Raises: QmpUnknownError: QEMU's answers make no sense."""
    answers = shown.answers
    jobs = replies.jobs(answers[replies.jobs])
    running = blocks.block_jobs(answers[blocks.block_jobs]) if blocks.block_jobs in answers else {}
    return Observation(
        qemu=Qemu.SAME,
        run_state=replies.run_state(answers[replies.run_state]),
        jobs=_with_progress(pivot, jobs, running),
        roots=roots(pivot, answers[blocks.disks]),
        migrating=replies.migrating(answers[replies.migrating]) if replies.migrating in answers else False,
        saved=shown.saved,
        beliefs={disk.disk: belief(disk, shown.live, shown.next, jobs) for disk in pivot.disks},
        snapshots=of_pivot.snapshots(Blocks(blocks.disks(answers[blocks.disks]), blocks.Graph()), pivot),
    )


def roots(pivot: Pivot, answer: Any) -> dict[str, Root]:
    """Return the root of each disk by QEMU's answer on its disks. Raises: QmpUnknownError: it makes no sense."""
    disks = blocks.disks(answer)
    return {disk.disk: _root(disk, find(disks, disk)) for disk in pivot.disks}


def belief(
    disk: PivotDisk,
    live: Mapping[str, DiskDefined],
    following: Mapping[str, DiskDefined] | None,
    jobs: Mapping[str, JobSeen],
) -> Belief:
    """Return what libvirt believes of a disk, by image."""
    now = live.get(disk.disk)
    later = None if following is None else following.get(disk.disk)
    next_root = None if following is None else _side(disk, None if later is None else later.image)
    return Belief(
        live=_side(disk, None if now is None else now.image),
        next=next_root,
        job=JobBelief.NONE if now is None else now.job,
        job_id=None if now is None or now.job is JobBelief.NONE else job_of(disk.disk, jobs),
        next_has_disk=following is None or later is not None,
        next_image=(later.image or "") if later is not None and next_root is Root.OTHER else "",
    )


def job_of(target: str, jobs: Mapping[str, Any]) -> str | None:
    """Return QEMU's name of libvirt's job on a disk: libvirt names jobs by kind, disk and node.

    Source: qemu_blockjob.c, qemuBlockJobDiskNew: "copy-%s-%s" and "commit-%s-%s".
    """
    return next((name for name in sorted(jobs) if name.startswith((f"copy-{target}-", f"commit-{target}-"))), None)


def _side(disk: PivotDisk, image: str | None) -> Root:
    """Return which image of the pivot a name in a definition is."""
    sides = {disk.source.filename: Root.SOURCE, disk.destination.filename: Root.DESTINATION}
    return Root.ABSENT if image is None else sides.get(image, Root.OTHER)


def _root(disk: PivotDisk, seen: DiskSeen | None) -> Root:
    """Return which image of the pivot QEMU uses."""
    if seen is None:
        return Root.ABSENT
    return _side(disk, name_of(seen.layers, None))


def _with_progress(pivot: Pivot, jobs: Mapping[str, JobSeen], running: Mapping[str, Any]) -> dict[str, JobSeen]:
    """Return libvirt's jobs on the pivot's disks, and pivotd's own that take one back, with what is left to copy."""
    shown = Blocks({}, blocks.Graph(), dict(running))
    wanted = {disk.job or job_of(disk.disk, jobs) for disk in pivot.disks}
    wanted |= {names.reverse_job(pivot.id, disk.index) for disk in pivot.disks}
    return {name: of_job(job, name, shown) for name, job in jobs.items() if name in wanted}


def of_job(job: JobSeen, name: str, shown: Blocks) -> JobSeen:
    """Return a job with its progress."""
    found = shown.jobs.get(name)
    if found is None:
        return job
    return JobSeen(job.status, job.error, found.left_bytes, found.copied_bytes, found.io_status)
