"""Several pivots that one command follows at once, and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from pivotd.client import Client, Pivot, Progress

LOOK_COSTS_S = 0.02
"""Added to the time between two looks for each pivot that runs: many must not keep the daemon busy."""


@dataclass(eq=False)
class Running:
    """A pivot under way. ``estimated_bytes``: how much there is to copy, as long as QEMU has not counted that."""

    domain: str
    pivot: Pivot
    estimated_bytes: int = 0
    progress: Progress | None = None

    @property
    def copies(self) -> bool:
        """Whether a limit of the bandwidth counts: once the copy is ready, QEMU applies none."""
        return self.pivot.phase in {"preparing", "copying"}

    @property
    def total_bytes(self) -> int:
        """How much there is to copy, as far as that is known."""
        known = None if self.progress is None else self.progress.total_bytes
        return self.estimated_bytes if known is None else known

    @property
    def copied_bytes(self) -> int:
        """How much of it has been copied."""
        return 0 if self.progress is None else min(self.progress.copied_bytes or 0, self.total_bytes)


class Totals(Struct, frozen=True):
    """All pivots of a command together. The bytes are without those of pivots that have failed."""

    pivots: int
    ended: int
    failed: int
    copied_bytes: int
    total_bytes: int
    bytes_per_s: int


def totals(running: Sequence[Running], *, waiting: Sequence[int], done: Sequence[int], failed: int) -> Totals:
    """Return the sum. ``waiting``: the bytes of each pivot that has not begun; ``done``: of each that is done."""
    return Totals(
        pivots=len(running) + len(waiting) + len(done) + failed,
        ended=len(done) + failed,
        failed=failed,
        copied_bytes=sum(done) + sum(one.copied_bytes for one in running),
        total_bytes=sum(done) + sum(waiting) + sum(one.total_bytes for one in running),
        bytes_per_s=sum((one.progress and one.progress.copy_bytes_per_s) or 0 for one in running),
    )


def look(client: Client, running: Sequence[Running], interval_s: float) -> None:
    """Look at each pivot, at the first one for up to ``interval_s`` until it rests. Raises: ClientError."""
    wait_s = interval_s + len(running) * LOOK_COSTS_S
    for one in running:
        one.pivot = client.wait(one.pivot.id, wait_s)
        wait_s = 0.0
        if not one.pivot.rests:
            one.progress = client.progress(one.pivot.id)
