"""Which images of a pivot must not be used any more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pivotd.core import kinds
from pivotd.core.pivot import Image, Outcome, Phase
from pivotd.core.request import Kind
from tests.core.build import disk, pivot


@pytest.mark.parametrize("outcome", [Outcome.SWITCHED, Outcome.MERGED])
def test_every_committed_layer_is_stale(outcome: Outcome):
    """The base has moved on below each of them; the base itself, and what is above the uppermost one, is right."""
    one = disk(0, outcome)
    top, base = Image("/top", "qcow2", "t"), Image("/base", "qcow2", "b")
    committed = replace(one, top=top, base=base, between=("/two", "/one"))
    assert kinds.KINDS[Kind.COMMIT].stale(pivot(Phase.CLOSED, kind=Kind.COMMIT), committed) == ["/top", "/two", "/one"]


@pytest.mark.parametrize("outcome", [Outcome.KEPT, Outcome.UNKNOWN, None])
def test_no_layer_is_called_stale_without_a_commit(outcome: Outcome | None):
    """Not committed, or nobody knows: every layer holds what it held."""
    layers = replace(disk(0, outcome), top=Image("/top", "qcow2", "t"), between=("/one",))
    assert kinds.KINDS[Kind.COMMIT].stale(pivot(Phase.CLOSED, kind=Kind.COMMIT), layers) == []


def test_the_layers_that_a_pull_has_replaced_are_not_stale():
    """Nothing was written into any of them."""
    layers = replace(disk(0, Outcome.MERGED), top=Image("/top", "qcow2", "t"), between=("/one",))
    assert kinds.KINDS[Kind.PULL].stale(pivot(Phase.CLOSED, kind=Kind.PULL), layers) == []
