"""A real pivot while its journal's disk fails, fills up or hangs: the guest must not be left in its pause.

One guest is moved again and again, with the nth write or fsync after the request failing, until a request meets no
fault. PIVOTD_LONG=1 tries every fsync, PIVOTD_DISK_STRIDE=1 every write too.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.process import has_record
from tests.conftest import LONG
from tests.journal_disk.disk import Disk
from tests.journal_disk.fixture import COMPLETE, WAIT_S, Ground
from tests.journal_disk.server import Fault
from tests.journal_disk.store import Mark
from tests.support.proxy import Message
from tests.support.seeds import seed
from tests.support.waiting import until

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(300)]

STRIDE = int(os.environ.get("PIVOTD_DISK_STRIDE", "20"))
FSYNC_STRIDE = 1 if LONG else min(2, STRIDE)
FAULTS_MAX = 1000
HANGS_MIN = 6
PAUSE_S_MAX = 1.5
"""The default max_pause and what a loaded machine adds to it, now and then more: PAUSES tries are judged by the best."""
PAUSES = 4
PATIENCE_S = 5.0
"""Longer than the longest pause that a test uses and than a driver waits before it looks again."""


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Disk(tmp_path / "state") as disk, Ground(tmp_path, disk) as prepared:
        prepared.daemon.start()
        yield prepared


def strikes(ground: Ground, answer: Any) -> bool:
    """Wait until the fault strikes; False if the pivot closes without that."""
    while not ground.disk.await_strike(timeout_s=0.05):
        if "id" not in answer or ground.closed():
            return ground.disk.await_strike(timeout_s=0)
    return True


def judge_broken(ground: Ground, chance: random.Random, where: str, how: str) -> None:
    """While the disk is broken: a running guest runs on what the journal will name, whatever becomes of the journal.

    A guest may be left in its pause only after the switch, while nobody can know whether ``switched`` is on disk; a
    full disk leaves no such doubt.
    """
    runs = ground.await_running(PATIENCE_S)
    roots = ground.roots()
    named = dict(ground.verdicts_now(chance))
    if runs:
        assert all(verdict == roots for verdict in named.values()), f"{where}: runs on {roots}, named {named}"
    else:
        last = [change for change in ground.disk.log() if isinstance(change, Mark)][-1:]
        assert (last, how) in (([Mark(COMPLETE)], "eio"), ([Mark(COMPLETE)], "hang")), f"{where}: left paused: {named}"


def judge_sound(ground: Ground, answer: Any, where: str) -> None:
    """With the disk sound again: the pivot closes, the guest runs, nothing is left, and the verdict is the truth."""
    if answer is not None and "id" in answer:
        found = ground.rest(answer["id"])
        if found["phase"] == "ready":
            ground.daemon.ctl("pivot", "cancel", answer["id"])
        assert until(ground.closed, WAIT_S), f"{where}: {found}"
    assert ground.await_running(PATIENCE_S), f"{where}: the guest is {ground.run_state()}"
    assert ground.world.spy("query-jobs") == [], where
    verdicts = ground.daemon.ctl("verdict", offline=True).json
    named = [verdict["image"] for verdict in verdicts] or [str(image) for image in ground.images]
    assert named == ground.roots(), f"{where}: {verdicts}"


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize(
    ("what", "how"), [("fsync", "eio"), pytest.param("write", "eio", marks=pytest.mark.long), ("write", "enospc")]
)
@pytest.mark.thinned(2)
def test_guest_goes_on_whichever_request_fails(ground: Ground, what: str, how: str, lasting: bool) -> None:
    """It runs, on the image that any crash would leave as the verdict, also while the disk is still broken."""
    chance = random.Random(seed())
    stride = STRIDE if what != "fsync" else 3 if lasting else FSYNC_STRIDE
    struck = 0
    for nth in itertools.count(1 + chance.randrange(stride), stride):
        assert nth < FAULTS_MAX
        where = f"{what} {nth} after the request: {how}{' from then on' if lasting else ''}; see {ground.directory}"
        ground.disk.fail(Fault(what, nth, how, lasting=lasting))
        answer = ground.copy()
        if not strikes(ground, answer):
            break
        struck += 1
        if lasting:
            judge_broken(ground, chance, where, how)
        ground.disk.fail()
        judge_sound(ground, answer, where)
    assert struck >= (6 if stride == 1 else 2)
    assert ground.missing() == {}
    print(f"{struck} faults")  # noqa: T201


def test_guest_goes_on_whichever_fsync_hangs(ground: Ground) -> None:
    """It runs while the disk hangs, unless what hangs is the ``switched`` record; with the answer everything closes."""
    chance = random.Random(seed())
    for nth in itertools.count(1 + chance.randrange(FSYNC_STRIDE), FSYNC_STRIDE):
        assert nth < FAULTS_MAX
        where = f"fsync {nth} after the request hangs; see {ground.directory}"
        ground.disk.fail(Fault("fsync", nth, "hang"))
        asking = ground.copy_in_background()
        while not ground.disk.await_strike(timeout_s=0.05):
            if not asking.is_alive() and ground.closed():
                assert nth > HANGS_MIN
                return
        judge_broken(ground, chance, where, "hang")
        ground.disk.fail()
        asking.join(WAIT_S)
        assert until(ground.closed, WAIT_S), where
        judge_sound(ground, None, where)


@pytest.mark.parametrize("how", ["hang", "eio", "enospc"])
def test_guest_goes_on_when_the_switch_fails_and_its_end_cannot_be_recorded(ground: Ground, how: str) -> None:
    """The mirror ends in the pause, and from then on the disk is out of order: back to the source within max_pause."""
    began: list[float] = []

    def strike(message: Message) -> None:
        if message.label == "return:stop" and not began:
            began.append(time.monotonic())
            ground.disk.fail(Fault("any", 1, how, lasting=how != "hang"))
            mirror = next(job for job in ground.world.spy("query-jobs") if job["type"] == "mirror")
            ground.world.spy("job-cancel", id=mirror["id"])

    ground.hook = strike
    pauses_s: list[float] = []
    while len(pauses_s) < PAUSES and min(pauses_s, default=PAUSE_S_MAX) >= PAUSE_S_MAX:
        began.clear()
        pivot = ground.copy()["id"]
        assert until(lambda: bool(began), WAIT_S)
        assert ground.await_running(PATIENCE_S), f"left paused; see {ground.directory}"
        pauses_s.append(time.monotonic() - began[0])
        assert ground.disk.await_strike()
        assert ground.roots() == [str(ground.images[0])]
        ground.disk.fail()
        assert ground.rest(pivot)["outcome"] == "kept"
        judge_sound(ground, None, f"see {ground.directory}")
    assert ground.missing() == {}
    assert min(pauses_s) < PAUSE_S_MAX, pauses_s


@pytest.mark.parametrize("whose", ["pivotd's", "somebody's"])
@pytest.mark.parametrize("how", ["hang", "enospc"])
@pytest.mark.thinned(2)
def test_writes_of_a_guest_that_somebody_lets_run_are_not_held_for_the_journal(
    ground: Ground, how: str, whose: str
) -> None:
    """A job at pending holds them, and pivotd has to cancel it: also where that, or whose pause it is, is no record."""
    done: list[str] = []

    def break_journal() -> None:
        ground.disk.fail(Fault("any", 1, how, lasting=how != "hang"))

    def strike(message: Message) -> None:
        if message.label == "command:query-status" and whose == "somebody's" and not done and intended(ground):
            done.append("stop")
            break_journal()
            ground.world.spy("stop")
        if message.label == "command:job-complete" and "cont" not in done:  # pivotd hears of the resume first
            assert until(lambda: ground.run_state() == "paused", WAIT_S)
            if not done:
                break_journal()
            done.append("cont")
            ground.world.spy("cont")

    ground.hook = strike
    pivot = ground.copy()["id"]
    assert until(lambda: "cont" in done, WAIT_S)
    assert until(lambda: {job["status"] for job in ground.world.spy("query-jobs")} == {"concluded"}, PATIENCE_S)
    assert ground.run_state() == "running"
    assert ground.roots() == [str(ground.images[0])]
    ground.disk.fail()
    assert ground.rest(pivot)["outcome"] == "kept"
    judge_sound(ground, None, f"see {ground.directory}")


def intended(ground: Ground) -> bool:
    """Return whether the intent is on disk: the next command is for the pause."""
    return has_record(ground.daemon.state_dir, "pausing")
