"""One snapshot of disks, graph and jobs, and what it says of a pivot."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from pivotd.core import names
from pivotd.core.observation import Root
from pivotd.core.pivot import Image, Phase
from pivotd.core.request import CopyOptions, Kind, Sync
from pivotd.errors import QmpRefusedError, QmpUnknownError
from pivotd.libvirt import pivot_look
from pivotd.qmp import blocks, of_pivot, replies
from pivotd.qmp.blocks import Blocks, Graph
from tests.core.build import pivot

QDEV = "/machine/peripheral/disk0/virtio-backend"
OTHER = "/machine/peripheral-anon/device[0]/virtio-backend"
BITMAP = {"granularity": 65536, "persistent": True, "recording": True, "count": 65536}


def image(name: str, below: dict[str, Any] | None = None, *bitmaps: str) -> dict[str, Any]:
    """Return an image as query-block shows it, with the bitmaps that its file names."""
    stored = [{"name": bitmap, "granularity": 65536, "flags": ["auto"]} for bitmap in bitmaps]
    shown = {"filename": name, "format": "qcow2", "virtual-size": 1 << 20}
    shown["format-specific"] = {"type": "qcow2", "data": {"bitmaps": stored}}
    return shown if below is None else {**shown, "backing-image": below}


def entry(qdev: str, node: str, device: str = "", **more: Any) -> dict[str, Any]:
    """Return one entry of query-block."""
    cache = {"direct": True, "no-flush": False}
    inserted = {"node-name": node, "drv": "qcow2", "ro": False, "cache": cache, "image": image(f"/{node}"), **more}
    return {"device": device, "qdev": qdev, "inserted": inserted}


def test_disks_are_known_by_their_device_ids():
    """Also an empty drive takes part in a name, but is no disk."""
    empty = {"device": "", "qdev": "cd0"}
    found = blocks.disks([entry(QDEV, "a"), entry("scsi0", "b"), entry(OTHER, "c", device="legacy"), empty])
    assert {name: seen.node for name, seen in found.items()} == {"disk0": "a", "scsi0": "b", "legacy": "c"}


def test_two_devices_of_one_name_are_known_by_their_paths():
    """And a pivot that began before the second one came still finds its own disk."""
    found = blocks.disks([entry(QDEV, "src0"), entry(OTHER, "other", device="disk0")])
    assert set(found) == {QDEV, OTHER}
    began_before = pivot(Phase.PAUSING)
    disk = began_before.disks[0]
    before = replace(began_before, disks=(replace(disk, qdev=QDEV, source=replace(disk.source, node="src0")),))
    assert of_pivot.roots(found, before) == {disk.disk: Root.SOURCE}


def test_every_reader_finds_the_same_disk():
    """Bitmaps, limits and the root of the first of two devices of one name are its own."""
    first = entry(QDEV, "src0", **{"dirty-bitmaps": [{**BITMAP, "name": "mine"}], "bps": 7, "group": "g"})
    second = entry(OTHER, "other", device="disk0", **{"dirty-bitmaps": [{**BITMAP, "name": "not mine"}], "bps": 8})
    found = blocks.disks([second, first])
    moved = pivot(Phase.PAUSING)
    mine = replace(moved, disks=(replace(moved.disks[0], qdev=QDEV),))
    shown = of_pivot.bitmaps(Blocks(found, Graph()), mine)
    assert [bitmap.name for bitmap in shown[mine.disks[0].disk]] == ["mine"]
    assert found[QDEV].limits == (("bps", 7), ("group", "g"))


def chain(*nodes: str) -> Graph:
    """Return the graph of one backing chain."""
    return Graph(frozenset(nodes), backing=dict(pairwise(nodes)))


def test_layers_between_are_counted_from_below():
    """A job's filter is a node above, and no image."""
    layers = image("/top", image("/middle", image("/base"), "nightly"), "nightly")
    shown = Blocks(blocks.disks([entry(QDEV, "filter", image=layers)]), chain("filter", "top", "middle", "base"))
    top, base = (Image(f"/{node}", "qcow2", node) for node in ("top", "base"))
    disk = replace(pivot(Phase.PAUSING).disks[0], qdev=QDEV, top=top, base=base)
    assert of_pivot.between(shown, disk) == {"middle": frozenset({"nightly"})}


@pytest.mark.parametrize("nodes", [("top", "middle"), ("top", "middle", "another", "base")], ids=["no base", "more"])
def test_a_chain_that_was_changed_leaves_without_facts(nodes: tuple[str, ...]):
    """What the layers in between mark must not be taken for nothing."""
    layers = image("/top", image("/middle"))
    shown = Blocks(blocks.disks([entry(QDEV, "top", image=layers)]), chain(*nodes))
    top, base = (Image(f"/{node}", "qcow2", node) for node in ("top", "base"))
    disk = replace(pivot(Phase.PAUSING).disks[0], qdev=QDEV, top=top, base=base)
    with pytest.raises(QmpUnknownError):
        of_pivot.between(shown, disk)


@pytest.mark.parametrize("question", [blocks.disks, blocks.graph, blocks.block_jobs, replies.run_state, replies.jobs])
def test_a_query_that_is_refused_leaves_without_facts(question: Any):
    """A healthy QEMU refuses none."""
    with pytest.raises(QmpUnknownError, match="a query failed"):
        question(QmpRefusedError("QEMU refused it: no"))


@pytest.mark.parametrize("wrong", ["inserted", "node-name", "ro", "cache", "image", "drv"])
def test_a_disk_of_another_shape_is_an_error(wrong: str):
    """One that was left out would look unplugged."""
    odd = entry(QDEV, "src0")
    (odd if wrong == "inserted" else odd["inserted"])[wrong] = 7
    with pytest.raises(QmpUnknownError, match="query-block has another shape"):
        blocks.disks([odd])


LAYERS = ("src0", "mid", "low", "base")
TOP, MID, _, BASE = (Image(f"/{name}", "qcow2", name) for name in LAYERS)


@pytest.mark.parametrize(
    ("kind", "changes", "options", "lost"),
    [
        (Kind.COPY, {}, {}, "src0 mid low base"),
        (Kind.COPY, {}, {"sync": Sync.TOP}, "src0"),
        (Kind.SNAPSHOT, {}, {}, ""),
        (Kind.COMMIT, {"top": TOP, "base": BASE, "between": ("/mid", "/low")}, {}, "src0 mid low"),
        (Kind.COMMIT, {"top": MID, "base": BASE, "between": ("/low",)}, {}, "mid low"),
        (Kind.PULL, {"top": MID, "between": ("/low", "/base")}, {}, "src0 mid low base"),
        (Kind.PULL, {"top": MID, "base": BASE, "between": ("/low",)}, {}, "src0 mid low"),
    ],
)
def test_snapshots_inside_the_layers_that_a_disk_leaves_or_spoils(
    kind: Kind, changes: dict[str, Any], options: dict[str, Any], lost: str
):
    """The same layers as at the plan, by the name of the image; an undo leaves the new image alone."""
    below: dict[str, Any] | None = None
    for name in reversed(LAYERS):
        below = {**image(f"/{name}", below), "snapshots": [{"id": "1", "name": f"of-{name}"}]}
    graph = Graph(frozenset(LAYERS), backing=dict(pairwise(LAYERS)))
    shown = Blocks(blocks.disks([entry(QDEV, "src0", image=below)]), graph)
    disk = pivot(Phase.READY).disks[0]
    stays = kind is Kind.PULL or changes.get("top") is MID
    disk = replace(disk, source=TOP, destination=TOP if stays else disk.destination, **changes)
    moved = pivot(Phase.READY, kind=kind, disks=(disk,), options=CopyOptions(**options))
    wanted = tuple((f"/{name}", (f"of-{name}",)) for name in lost.split())
    assert of_pivot.snapshots(shown, moved) == wanted
    assert of_pivot.snapshots(shown, replace(moved, phase=Phase.PAUSING)) == (), "not in the pause"
    if kind is Kind.COPY:
        assert of_pivot.snapshots(shown, replace(moved, undo_of="other")) == wanted[:1]
        answers = {replies.run_state: {"status": "running"}, replies.jobs: []}
        answers[blocks.disks] = [entry(QDEV, "src0", image=below)]
        guarded = pivot_look.observed(moved, pivot_look.Shown(answers, {}, None))
        assert guarded.snapshots == wanted, "of a guest of libvirt's, too"


def test_the_guard_against_loading_is_nobodys_bitmap():
    """It marks nothing, and must not come along, or hinder a plan."""
    guard = {**BITMAP, "name": names.load_guard(pivot(Phase.READY).id)}
    found = blocks.disks([entry(QDEV, "src0", **{"dirty-bitmaps": [guard, {**BITMAP, "name": "mine"}]})])
    assert [bitmap.name for bitmap in found["disk0"].bitmaps] == ["mine"]
