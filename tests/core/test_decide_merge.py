"""The decision about pivots that merge layers below an image, and so switch nothing."""

from __future__ import annotations

from dataclasses import replace

from pivotd.core.actions import Finalize, RecordOutcome, Stop
from pivotd.core.observation import Qemu
from pivotd.core.pivot import Image, Outcome, Phase, Pivot
from pivotd.core.request import Kind
from tests.core.build import decide, disk, jobs, pivot, seen


def pull(phase: Phase) -> Pivot:
    one = disk(0)
    return pivot(phase, kind=Kind.PULL, disks=(replace(one, destination=one.source, top=Image("/b", "qcow2", "b")),))


def test_another_qemu_that_uses_the_image_contradicts_nothing():
    """It is the one image that the disk has, before and after."""
    found = seen(qemu=Qemu.REPLACED, uses_source=True, uses_destination=True)
    action = decide(pull(Phase.PAUSING), found)
    assert isinstance(action, RecordOutcome)
    assert action.outcomes == (("disk0", Outcome.KEPT),)


def test_a_stop_without_an_answer_is_sent_again_before_the_merge():
    """It is for the flush, and of that a guest that was paused before shows nothing."""
    assert decide(pull(Phase.PAUSING), seen("paused", "pending", stop_sent=None)) == Stop()
    assert decide(pull(Phase.PAUSING), seen("paused", "pending", stop_sent=True)) == Finalize(jobs(0))
