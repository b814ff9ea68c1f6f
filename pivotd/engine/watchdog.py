"""Cuts the connection to an NBD destination that hangs, so that neither the guest nor the pivot hangs with it.

Only while every disk concerned has its source as root: then nothing but the copy depends on the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from pivotd import limits
from pivotd.core import actions, nbd
from pivotd.core.observation import Observation, Root
from pivotd.core.pivot import Pivot, PivotDisk
from pivotd.core.request import Kind
from pivotd.engine.ports import Clock
from pivotd.errors import QmpError

T = TypeVar("T")


class Cut(Protocol):
    """How the connections to the exports of disks are cut; ``hangs``: because they do not answer."""

    def __call__(self, disks: Sequence[PivotDisk], *, hangs: bool) -> Awaitable[None]:
        """Cut them. Raises: QmpError."""
        ...


class Watchdog:
    """Bounds what one pivot does to a QEMU that may hang on a destination."""

    def __init__(self, clock: Clock, cut: Cut) -> None:
        self._clock = clock
        self._cut = cut

    async def bound(
        self,
        work: Coroutine[Any, Any, T],
        pivot: Pivot,
        action: actions.Action,
        seen: Observation,
        deadline: float | None,
    ) -> T:
        """Return what work returns; if it does not come to its end in time, the connections are cut first."""
        disks = _exports(pivot, seen)
        if disks and isinstance(action, actions.CancelJobs):
            # At once: QEMU 7.2 does not always let go of a mirror that was cancelled before its server was cut off.
            with contextlib.suppress(QmpError):
                await self._cut(disks, hangs=False)
            return await work
        patience_s = self._patience_s(pivot, action, deadline) if disks else None
        if patience_s is None:
            return await work
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task], timeout=patience_s)
            if not task.done():
                with contextlib.suppress(QmpError):
                    await self._cut(disks, hangs=True)
            return await task
        finally:
            task.cancel()

    def _patience_s(self, pivot: Pivot, action: actions.Action, deadline: float | None) -> float | None:
        now = self._clock.monotonic()
        left_s = limits.YANK_GRACE_S + (0.0 if deadline is None else max(0.0, deadline - now))
        match action:
            case actions.Prepare():
                return limits.PREPARE_PATIENCE_S
            case actions.Stop():
                return pivot.options.max_pause_ms / 1000 + limits.YANK_GRACE_S
            case actions.Complete():
                return left_s
        # What comes after a job-finalize is left alone: the guest may depend on the destination by then.
        return None


def _exports(pivot: Pivot, seen: Observation) -> list[PivotDisk]:
    """Return the disks that are copied to an export and are still on their source."""
    if pivot.kind is not Kind.COPY:
        return []
    return [
        disk
        for disk in pivot.disks
        if nbd.is_uri(disk.destination.filename) and seen.roots.get(disk.disk) is Root.SOURCE
    ]
