"""A request that is sent again is the same request, and nothing less."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pivotd.app.start import _same_request
from pivotd.core.pivot import Image, Phase, Pivot
from pivotd.core.request import Kind, PivotRequest, Target
from pivotd.errors import ConflictError
from tests.core.build import pivot

TOP, MIDDLE, BASE = (Image(f"/images/{name}", "qcow2", name) for name in ("top", "middle", "base"))


def known(kind: Kind, *, top: Image, base: Image | None, switches: bool) -> Pivot:
    before = pivot(Phase.COPYING)
    to = BASE if switches else TOP
    disks = tuple(replace(disk, source=TOP, destination=to, top=top, base=base) for disk in before.disks)
    return replace(before, kind=kind, disks=disks)


def asked(of: Pivot, **layers: str) -> PivotRequest:
    return PivotRequest(of.domain, of.kind, tuple(Target(disk.disk, **layers) for disk in of.disks))


@pytest.mark.parametrize(
    ("kind", "switches", "base", "layers"),
    [
        (Kind.COMMIT, False, BASE, {}),
        (Kind.COMMIT, True, BASE, {"top": "/images/middle"}),
        (Kind.COMMIT, False, BASE, {"top": "/images/middle", "base": "/images/other"}),
        (Kind.PULL, False, BASE, {}),
        (Kind.PULL, False, None, {"base": "/images/base"}),
    ],
)
def test_other_layers_are_another_request(kind: Kind, switches: bool, base: Image | None, layers: dict[str, str]):
    """What is left out means something too."""
    had = known(kind, top=TOP if switches else MIDDLE, base=base, switches=switches)
    with pytest.raises(ConflictError, match="use a new id"):
        _same_request(had, asked(had, **layers))


@pytest.mark.parametrize(
    ("kind", "switches", "base", "layers"),
    [
        (Kind.COMMIT, True, BASE, {}),
        (Kind.COMMIT, False, BASE, {"top": "/images/middle", "base": "/images/base"}),
        (Kind.PULL, False, None, {}),
        (Kind.PULL, False, BASE, {"base": "/images/base"}),
    ],
)
def test_the_same_layers_are_the_same_request(kind: Kind, switches: bool, base: Image | None, layers: dict[str, str]):
    """A retry is safe."""
    had = known(kind, top=TOP if switches else MIDDLE, base=base, switches=switches)
    assert _same_request(had, asked(had, **layers)) == had
