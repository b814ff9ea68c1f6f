"""QEMU's answers, recorded from a real one and then changed: a typed error or an observation, nothing else."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotd.core import names, observation
from pivotd.core.observation import JobSeen, Observation, Root
from pivotd.core.pivot import Image, Phase, Pivot, PivotDisk
from pivotd.errors import QmpError, QmpUnknownError
from pivotd.qmp import blocks, replies
from pivotd.qmp.looking import LOOK
from pivotd.qmp.monitor import Monitor
from pivotd.qmp.session import Session
from tests.core.build import PIVOT, pivot
from tests.fuzz.budget import fuzz
from tests.fuzz.mutate import ANY, mutated
from tests.support.qemu import Disk, Qemu, create_image
from tests.wire.server import FakeQemu, Json

pytestmark = pytest.mark.qemu

BUSES = ("virtio-blk", "virtio-scsi", "ide")
MOMENTS = ("before", "ready", "pending", "concluded")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A pivot and what a real QEMU answered to each query of a look, at several moments of it."""

    pivot: Pivot
    moments: dict[str, list[Any]]


def _disk(index: int) -> PivotDisk:
    return PivotDisk(
        disk=f"disk{index}",
        index=index,
        qdev=f"/machine/peripheral/disk{index}/virtio-backend" if BUSES[index] == "virtio-blk" else f"disk{index}",
        size_bytes=1 << 20,
        source=Image(f"old{index}", "qcow2", f"src{index}"),
        destination=Image(f"new{index}", "qcow2", names.destination_node(PIVOT, index)),
        job=names.mirror_job(PIVOT, index),
    )


def _ask(qemu: Qemu) -> list[Any]:
    return [qemu.spy(str(query["execute"]), query.get("arguments", {})) for query in LOOK]


def _record(directory: Path) -> Recorded:
    """Move disks of three kinds by hand, and ask at every step."""
    disks = [Disk(create_image(directory / f"old{n}", size="1M"), bus=bus) for n, bus in enumerate(BUSES)]
    target = pivot(Phase.PAUSING, disks=tuple(_disk(n) for n in range(len(BUSES))))
    moments = {}
    with Qemu(directory, disks) as qemu:
        qemu.spy("object-add", {"qom-type": "secret", "id": target.identity.nonce, "data": "x"})
        moments["before"] = _ask(qemu)
        for disk in target.disks:
            file = {"driver": "file", "filename": str(create_image(directory / f"new{disk.index}", size="1M"))}
            qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": disk.destination.node, "file": file})
            options = {"job-id": disk.job, "device": disk.source.node, "target": disk.destination.node, "sync": "full"}
            qemu.spy("blockdev-mirror", {**options, "auto-finalize": False, "auto-dismiss": False})
            qemu.await_event("JOB_STATUS_CHANGE", id=disk.job, status="ready")
        qemu.spy("stop")
        moments["ready"] = _ask(qemu)
        for disk in target.disks:
            qemu.spy("job-complete", id=disk.job)
            qemu.await_event("JOB_STATUS_CHANGE", id=disk.job, status="pending")
        moments["pending"] = _ask(qemu)
        for disk in target.disks:
            qemu.spy("job-finalize", id=disk.job)
        moments["concluded"] = _ask(qemu)
    return Recorded(target, moments)


@pytest.fixture(scope="module")
def recorded() -> Iterator[Recorded]:
    with tempfile.TemporaryDirectory(prefix="pf") as directory:
        yield _record(Path(directory))


class Wire:
    """A session whose QEMU gives the answers that it is told to."""

    def __init__(self, directory: Path, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._answers: dict[str, Any] = {}
        self._fake = FakeQemu(directory / "q", self._answer)

    async def _answer(self, asked: Json) -> Json:
        return dict(self._answers[asked["execute"]])

    def start(self) -> Session:
        async def start() -> Session:
            await self._fake.__aenter__()
            return Session(await Monitor.connect(self._fake.path), self._fake.path)

        self._session = self._runner.run(start())
        return self._session

    def run(self, answers: list[Any], use: Callable[[Session], Coroutine[Any, Any, Any]]) -> Any:
        """Return what use gives where QEMU answers the queries of a look so."""
        named = zip(LOOK, answers, strict=True)
        self._answers = {str(query["execute"]): {"return": answer} for query, answer in named}
        return self._runner.run(use(self._session))

    def stop(self) -> None:
        async def stop() -> None:
            await self._session.close()
            await self._fake.__aexit__()

        self._runner.run(stop())


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with tempfile.TemporaryDirectory(prefix="pf") as directory, asyncio.Runner() as runner:
        wire = Wire(Path(directory), runner)
        wire.start()
        yield wire
        wire.stop()


def _check(seen: Observation, pivot: Pivot) -> None:
    """Check that every field holds what its type says: nothing unchecked of QEMU's answer went through."""
    if seen.qemu is observation.Qemu.SILENT:
        return
    assert isinstance(seen.run_state, str)
    assert all(isinstance(name, str) for name in (*seen.jobs, *seen.nodes))
    assert set(seen.roots) == {disk.disk for disk in pivot.disks}
    assert all(isinstance(root, Root) for root in seen.roots.values())
    for job in seen.jobs.values():
        assert isinstance(job, JobSeen)
        assert isinstance(job.status, str)
        assert job.error is None or isinstance(job.error, str)
        assert job.backlog_bytes is None or type(job.backlog_bytes) is int


def _check_error(error: QmpError) -> None:
    """Check that it is the kind that leaves everything open, on one short line."""
    assert isinstance(error, QmpUnknownError)
    assert "\n" not in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_recorded_answers_are_understood(wire: Wire, recorded: Recorded, moment: str):
    """What is changed below is right to begin with."""
    seen = wire.run(recorded.moments[moment], lambda session: session.look(recorded.pivot))
    where = Root.DESTINATION if moment == "concluded" else Root.SOURCE
    assert set(seen.roots.values()) == {where}
    assert {job.status for job in seen.jobs.values()} == (set() if moment == "before" else {moment})
    assert seen.qemu is observation.Qemu.SAME
    _check(seen, recorded.pivot)


@fuzz(1000)
@given(data=st.data())
def test_a_look_at_changed_answers_is_a_typed_error_or_an_observation(wire: Wire, recorded: Recorded, data: Any):
    """Whatever was changed in the answer to one of the queries."""
    answers = list(recorded.moments[data.draw(st.sampled_from(MOMENTS))])
    which = data.draw(st.integers(0, len(answers) - 1))
    answers[which] = data.draw(mutated(answers[which]))
    try:
        seen = wire.run(answers, lambda session: session.look(recorded.pivot))
    except QmpUnknownError as error:
        _check_error(error)
    else:
        _check(seen, recorded.pivot)


@fuzz(400)
@given(data=st.data())
def test_every_other_question_takes_changed_answers_alike(wire: Wire, recorded: Recorded, data: Any):
    """The parts of a step that read an answer."""
    answers = list(recorded.moments[data.draw(st.sampled_from(MOMENTS))])
    which = data.draw(st.integers(0, len(answers) - 1))
    answers[which] = data.draw(mutated(answers[which]) | ANY)
    uses: list[Callable[[Session], Coroutine[Any, Any, Any]]] = [
        lambda session: session.run_state(),
        lambda session: session.disks(),
        lambda session: session.blocks(),
        lambda session: session.migrating(),
    ]
    for use in uses:
        try:
            wire.run(answers, use)
        except QmpUnknownError as error:
            _check_error(error)


@fuzz(400)
@given(value=ANY)
def test_any_answer_at_all_is_a_typed_error_or_understood(value: Any):
    """The functions that read an answer, each with any JSON."""
    for read in (
        blocks.disks,
        blocks.block_jobs,
        blocks.graph,
        replies.jobs,
        replies.run_state,
        replies.object_names,
        replies.migrating,
        replies.open_chardevs,
    ):
        try:
            read(value)
        except QmpError as error:
            _check_error(error)


@pytest.mark.parametrize("wrong", [{}, "", None, 0, {"a": 1}])
def test_no_list_where_one_is_due_is_not_an_empty_one(wrong: Any):
    """No disk and no job are strong claims: a root that is absent, a job that is gone."""
    for read in (blocks.disks, blocks.block_jobs, replies.jobs):
        with pytest.raises(QmpUnknownError):
            read(wrong)
