"""The judge of a round: what was promised, checked against the images, the journal and what QEMU shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pivotd.core.pivot import Pivot
from pivotd.host import files
from pivotd.qmp.blocks import disk_name
from tests.chaos.plan import Heir, Plan
from tests.chaos.process import journal
from tests.chaos.world import BITMAP, STRIDE, World
from tests.support.history import verdicts
from tests.support.moves import Move
from tests.support.proxy import Direction
from tests.support.qemu import Qemu
from tests.support.throttle import SLOW_NODE

CHANGING = {
    "object-add",
    "object-del",
    "blockdev-add",
    "blockdev-create",
    "blockdev-mirror",
    "blockdev-snapshot",
    "block-commit",
    "block-stream",
    "transaction",
    "blockdev-del",
    "stop",
    "cont",
    "job-complete",
    "job-finalize",
    "job-cancel",
    "job-dismiss",
    "block-dirty-bitmap-add",
    "block_set_io_throttle",
    "yank",
}
"""The commands of pivotd that change something."""


LAYERS = 3
"""Of each disk whose layers are to be merged."""
AFTER = {Move.COPY: 1, Move.COMMIT: 1, Move.INNER_COMMIT: LAYERS - 1, Move.PULL: 1, Move.SNAPSHOT: 2}
"""How many there are after each move."""


def root_path(qemu: Qemu, disk: str) -> str:
    """Return the path of the image that a disk uses; QEMU writes ``json:`` for one on another chain than it names."""
    filename = qemu.root(disk).filename
    return files.resolve(filename, None).path or filename


def depths_of(query_block: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of layers of each disk."""
    found = {}
    for entry in query_block:
        if "inserted" not in entry:
            continue
        image, depth = entry["inserted"]["image"], 1
        while "backing-image" in image:
            image, depth = image["backing-image"], depth + 1
        found[disk_name(entry)] = depth
    return found


class Judge:
    """Collects broken promises in ``problems``."""

    def __init__(self, world: World, plan: Plan, sources: Sequence[Path], state_dir: Path) -> None:
        self.problems: list[str] = []
        self._world, self._plan, self._state_dir = world, plan, state_dir
        self._sources = {f"disk{index}": str(image) for index, image in enumerate(sources)}

    def check_images(self, when: str, images: Mapping[str, str] | None = None) -> list[str]:
        """Check that images hold every acknowledged block: those given, or those that the journal alone names."""
        named = images or {v.disk: str(v.image) for v in verdicts(journal(self._state_dir))} or self._sources
        for disk, image in named.items():
            missing = self._world.missing(disk, image)
            if missing:
                self.problems.append(f"{when}: {image} lacks acknowledged blocks {missing} of {disk}")
        return sorted(named.values())

    def check_alive(self, qemu: Qemu, before: str) -> None:
        """Check that the pivot is closed, the run state restored, the verdict what QEMU uses, and nothing left."""
        found = journal(self._state_dir)
        if found and found[0].phase != "closed":
            self.problems.append(f"the journal did not close: {found[0].phase}")
        state = self._world.spy("query-status")["status"]
        if state != before:
            self.problems.append(f"the guest is {state}, it was {before}")
        disks = self._plan.setup.disks
        roots = {f"disk{i}": root_path(qemu, f"disk{i}") for i in range(disks)}
        for verdict in verdicts(found):
            if verdict.image != roots[verdict.disk]:
                self.problems.append(f"verdict {verdict.image}, QEMU uses {roots[verdict.disk]} for {verdict.disk}")
        if self._plan.setup.bitmap:
            self.check_bitmaps()
        if self._world.limits_before and (limits := self._world.limits()) != self._world.limits_before:
            self.problems.append(f"the limits are {limits}, they were {self._world.limits_before}")
        theirs = self._plan.setup.adopted and not found
        if not theirs and (jobs := self._world.spy("query-jobs")):
            self.problems.append(f"jobs are left: {jobs}")
        depths = depths_of(self._world.spy("query-block"))
        if found and depths != {f"disk{i}": self._depth(found[0].outcome) for i in range(disks)}:
            self.problems.append(f"with outcome {found[0].outcome} the chains have these numbers of layers: {depths}")
        graph = self._world.spy("x-debug-query-block-graph")["nodes"]
        nodes = [node["name"] for node in graph if node["type"] == "block-driver"]
        wanted = 2 * sum(depths.values()) + self._others(nodes, found[0].outcome if found else None)
        if len(nodes) != wanted:
            self.problems.append(f"{len(nodes)} nodes are left, not {wanted}: {nodes}")

    def _others(self, nodes: list[str], outcome: str | None) -> int:
        """Return how many nodes somebody else has opened, or holds: pivotd leaves them alone."""
        setup, switched = self._plan.setup, outcome == "switched"
        if setup.adopted and setup.move is Move.COPY:
            return 0 if switched else 2 * setup.disks
        return (1 if switched else 2) if SLOW_NODE in nodes else 0

    def _depth(self, outcome: str | None) -> int:
        """Return how many layers each disk's chain has after an outcome."""
        move = self._plan.setup.move
        before = LAYERS if move.needs_chain else 1
        return AFTER[move] if outcome in {"switched", "merged"} else before

    def check_bitmaps(self) -> None:
        """Check that the bitmap of each disk's present image records and marks every block since it was made."""
        for entry in self._world.spy("query-block"):
            found = entry["inserted"].get("dirty-bitmaps", [])
            bitmap = next((bitmap for bitmap in found if bitmap.get("name") == BITMAP), None)
            if bitmap is None or not (bitmap["recording"] and bitmap["persistent"]):
                self.problems.append(f"{entry['qdev']} has no such bitmap as before: {found}")
                continue
            disk = next(name for name in self._world.blocks if name in entry["qdev"])
            wanted = (len(self._world.blocks[disk]) - self._world.unmarked.get(disk, 0)) * STRIDE
            if bitmap["count"] < wanted:
                self.problems.append(f"the bitmap of {disk} marks {bitmap['count']} bytes, {wanted} were written")

    def check_told(self, told: Any, when: str) -> None:
        """Check that pivotd tells the same as its journal, and is certain where QEMU agrees."""
        named = {v.disk: v.image for v in verdicts(journal(self._state_dir))}
        rows = told if isinstance(told, list) else told["verdicts"]
        if untold := named.keys() - {row["disk"] for row in rows}:
            self.problems.append(f"{when} pivotd tells nothing of {untold}")
        for row in rows:
            if row["disk"] in named and (not row["certain"] or row["image"] != named[row["disk"]]):
                self.problems.append(f"{when} pivotd tells {row}, the journal {named[row['disk']]}")

    def check_heir(
        self, heir: Qemu, seen: Sequence[tuple[Direction, str, int]], before: Pivot | None, after: Pivot | None,
        told: Any, *, alone: bool,
    ) -> None:  # fmt: skip
        """Check that pivotd left the other QEMU alone and drew the right conclusion from what it uses.

        ``before`` is the pivot right before the heir was started; ``alone``: pivotd was dead then.
        """
        changed = [label for _, label, _ in seen if label.partition(":")[2] in CHANGING]
        if changed:
            self.problems.append(f"pivotd changed the other QEMU: {changed}")
        if (state := heir.run_state()) != "prelaunch":
            self.problems.append(f"the other QEMU is {state}, it was prelaunch")
        if before is None or after is None:
            return
        if after.phase != "closed":
            self.problems.append(f"the journal did not close: {after.phase}")
        destination = self._plan.heir is Heir.DESTINATION
        if before.outcome is not None and before.phase in {"decided", "closed"}:
            expected = {before.outcome}
        else:
            expected = {"unknown"} if destination else {"kept"}
            if not alone:
                # pivotd may have recorded either before the other QEMU was there.
                expected |= {"kept", "switched"}
        if after.outcome not in expected:
            self.problems.append(f"the outcome is {after.outcome}, not {' or '.join(sorted(expected))}")
        agrees = after.outcome in ({"switched"} if destination else {"kept", "merged"})
        rows = told if isinstance(told, list) else told["verdicts"]
        if len(rows) < len(after.disks):
            self.problems.append(f"pivotd tells of {len(rows)} of {len(after.disks)} disks")
        for row in rows:
            if row["certain"] != agrees:
                self.problems.append(f"with outcome {after.outcome} and {self._plan.heir} pivotd tells {row}")

    def check_answers(self, answers: Sequence[Any], pivot: Pivot | None) -> None:
        """Check that a cancel that was answered with ``cancelling`` or ``kept`` holds."""
        for answer in answers:
            promised = answer.get("phase") == "cancelling" or answer.get("outcome") == "kept"
            if promised and (pivot is None or pivot.outcome != "kept"):
                self.problems.append(f"a cancel was answered {answer}, the pivot ended {pivot and pivot.outcome}")
