"""The power of a host goes around the pivots of its libvirt; and what it would be without pivotd."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from tests.powercut.libvirt_cut import PLAIN, POINTS, Cut, PoweredHost, cuts, missing
from tests.support.seeds import rng

pytestmark = [pytest.mark.qemu, pytest.mark.chaos, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def host() -> Iterator[PoweredHost]:
    if (why := missing()) is not None:
        pytest.skip(why)
    with PoweredHost() as host:
        yield host


def test_the_next_boot_is_from_the_right_image(host: PoweredHost):
    """Right at each event of a guarded pivot, and at some instants after one."""
    chosen = [*(Cut(point, 0.0) for point in POINTS), *islice(cuts(rng("libvirt cuts")), 4)]
    for cut in chosen:
        problems, facts = host.play(cut)
        assert not problems, f"{cut}: {facts}"


def test_libvirt_alone_leaves_the_old_definition(host: PoweredHost):
    """So the rig loses what was not flushed, and the judge sees that the guest would start without its last writes."""
    problems, facts = host.play(PLAIN)
    assert ["lacks the flushed numbers" in problem for problem in problems] == [True], (problems, facts)
