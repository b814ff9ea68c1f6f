"""The model of libvirtd in tests/model does not lie: the same sequences of calls and deaths, on it and on a real one.

After each step everything must be the same: libvirt's answer (ok, certainly without effect, or unknown), what it takes
for the state of the guest, the image in the live definition, in that of the next boot and in both files, the mark of
the job, the job in the status file's list, and QEMU's run state, root and job.
"""

from __future__ import annotations

import os

import pytest

from pivotd.core.observation import Root
from tests.libvirt.libvirtd import Libvirtd
from tests.model.libvirt_sequences import MOVES, Happening, Pair, play
from tests.support.moves import Move
from tests.support.seeds import rng

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(900)]

SEQUENCES = int(os.environ.get("PIVOTD_SEQUENCES", "12"))
"""Drawn sequences of each kind for each release, where the long tests run."""
LENGTH = 14
TOLD, DISMISSED = "QEMU has been told", "libvirtd has dismissed the job"
ENDED, SAVED = "libvirtd has saved that the job has ended", "libvirtd has saved the status"
START, PLAIN, HOOK = Happening("start"), Happening("start libvirtd"), Happening("start libvirtd", hook=True)
KILL, SUSPEND, RESUME = Happening("kill libvirtd"), Happening("suspend"), Happening("resume")
PIVOT, ABORT, SNAPSHOT = Happening("pivot"), Happening("abort"), Happening("snapshot")
QUICK = {
    "a pivot that is saved as ended only": (Move.COPY, [START, SUSPEND, Happening("pivot", dies_at=ENDED), PLAIN, ABORT, KILL, HOOK]),
    "an abort of a commit that is not saved": (Move.COMMIT, [START, Happening("abort", dies_at=TOLD), HOOK, START, PIVOT]),
    "a snapshot of which libvirt does not learn": (Move.SNAPSHOT, [SUSPEND, Happening("snapshot", dies_at=TOLD), PLAIN, SNAPSHOT]),
}  # fmt: skip
FOUND = {
    "a copy that is ended twice": (Move.COPY, [START, ABORT, START, PIVOT, RESUME, Happening("update", Root.SOURCE)]),
    "a job that is not in the list any more": (
        Move.COPY,
        [START, SUSPEND, Happening("pivot", dies_at=DISMISSED), PLAIN, KILL, HOOK, ABORT, PIVOT],
    ),
    "an abort that is not in the list any more": (
        Move.COPY,
        [START, SUSPEND, Happening("abort", dies_at=DISMISSED), PLAIN, KILL, HOOK, START, ABORT],
    ),
    "a next boot that is not saved": (Move.COPY, [START, Happening("pivot", dies_at=SAVED), HOOK, Happening("update", Root.DESTINATION)]),
    "a job without its mirror, aborted": (Move.COPY, [Happening("start", dies_at=TOLD), PLAIN, START, ABORT, START]),
    "a job without its mirror, pivoted": (Move.COPY, [Happening("start", dies_at=TOLD), PLAIN, PIVOT, HOOK]),
    "a commit without its mirror, aborted": (Move.COMMIT, [Happening("start", dies_at=TOLD), PLAIN, ABORT, PLAIN]),
    "a commit without its mirror, pivoted": (Move.COMMIT, [Happening("start", dies_at=TOLD), PLAIN, PIVOT]),
    "an overlay that is there": (Move.SNAPSHOT, [Happening("snapshot", dies_at="libvirtd is about to tell QEMU"), PLAIN, SNAPSHOT]),
    "an image that QEMU has open": (Move.COPY, [Happening("start", dies_at="libvirtd is about to tell QEMU"), HOOK, START]),
}  # fmt: skip
"""What the first comparison with a real libvirtd has found."""


def same(both: Pair, steps: list[Happening]) -> None:
    """Play steps that are written down."""
    for step in steps:
        differs = both.take(step)
        assert differs is None, differs


@pytest.mark.parametrize("case", QUICK)
def test_what_was_found_wrong_in_the_model(libvirtd: Libvirtd, case: str):
    """A few sequences in which libvirtd does what one would not expect."""
    if libvirtd.tree is not None:
        pytest.skip("the long tests play it on every release")
    move, steps = QUICK[case]
    same(Pair(libvirtd, move), steps)


@pytest.mark.long
@pytest.mark.parametrize("case", [*QUICK, *FOUND])
def test_every_release_does_what_the_model_does(libvirtd: Libvirtd, case: str):
    """All that was found, on every release."""
    move, steps = (QUICK | FOUND)[case]
    same(Pair(libvirtd, move), steps)


@pytest.mark.parametrize("move", MOVES)
def test_a_drawn_sequence(libvirtd: Libvirtd, move: Move):
    """One sequence of each kind; the seed says which."""
    if libvirtd.tree is not None:
        pytest.skip("the long tests play more of them on every release")
    differs = play(rng("libvirt model", move), Pair(libvirtd, move), LENGTH)
    assert differs is None, differs


@pytest.mark.long
@pytest.mark.parametrize("index", range(SEQUENCES))
@pytest.mark.parametrize("move", MOVES)
def test_drawn_sequences(libvirtd: Libvirtd, move: Move, index: int):
    """More of them: PIVOTD_SEQUENCES of each kind; PIVOTD_SEED for others."""
    differs = play(rng("libvirt model", move, index), Pair(libvirtd, move), LENGTH)
    assert differs is None, differs
