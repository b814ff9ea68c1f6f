"""libvirtd, pivotd and QEMU killed at random in guarded pivots, under a guest that writes: the campaign in small."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.chaos.libvirt_guard import RIGHT, UNDISTURBED, GuardedHost, plans
from tests.conftest import LONG
from tests.libvirt.libvirtd import Libvirtd
from tests.support.seeds import rng

ROUNDS = 12 if LONG else 4
"""A round takes about two seconds of processor time."""
ROUNDS_MAX = 5 * ROUNDS
"""Until a kill has come in a pause, which a busy machine may miss."""
KINDS = ["pivot", "commit", "abort", "pivot", "commit-abort"]


@pytest.mark.qemu
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_every_round_ends_right(libvirtd: Libvirtd) -> None:
    """QEMU, both definitions and the verdict name one complete image, whoever was killed, and the guest goes on."""
    if libvirtd.tree is not None and not LONG:
        pytest.skip("the installed libvirt is enough for every run: set PIVOTD_LONG=1 for the others")
    with GuardedHost(libvirtd) as host:
        for number, plan in enumerate(islice(plans(rng("guarded rounds"), KINDS), ROUNDS_MAX)):
            if number >= ROUNDS and host.met["pausing"] + host.met["asking"]:
                break
            word, facts = host.play(plan)
            print(f"{number:>3}  {plan}: {word}: {facts}")  # noqa: T201 - pytest shows it beside a failure
            assert word == RIGHT
        assert host.met["pausing"] + host.met["asking"], f"no kill came in the pause: {host.met}"

        # The judge is none that finds everything complete: the image that was left lacks what came after it.
        left = host.image
        host.move(UNDISTURBED)
        assert host.domain.missing(left)
