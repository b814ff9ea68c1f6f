"""Slows the guest's writes step by step if they are faster than the destination."""

from __future__ import annotations

from collections.abc import Mapping

from pivotd import limits
from pivotd.core.pivot import Pivot
from pivotd.core.request import Limits, WriteLimit
from pivotd.engine.ports import Session

BURSTS = ("bps_max", "bps_wr_max", "iops_max", "iops_wr_max")


class Slowing:
    """Measures the guest's writes, and halves their rate with each step."""

    def __init__(self) -> None:
        self._since_s = 0.0
        self._writes: Mapping[str, tuple[int, int]] = {}

    async def begin(self, session: Session, pivot: Pivot, now_s: float) -> None:
        """Begin to measure the guest's writes."""
        self._since_s, self._writes = now_s, await session.writes(pivot)

    async def next(self, session: Session, pivot: Pivot, now_s: float, share: float) -> tuple[WriteLimit, ...] | None:
        """Return the limits that leave the guest this share of its writes, at most half.

        None if the guest is as slow as it may be made. A disk that shares its limits with other disks is left alone.
        """
        before = {limit.qdev: limit for limit in pivot.options.write_limits}
        present = await session.io_limits(pivot)
        had, seconds = self._writes, max(now_s - self._since_s, 0.1)
        await self.begin(session, pivot, now_s)
        found, changed = dict(before), False
        for qdev, limits_now in present.items():
            limit = before.get(qdev)
            if qdev not in had or qdev not in self._writes:
                continue
            rates = [int((now - then) / seconds) for now, then in zip(self._writes[qdev], had[qdev], strict=True)]
            slower = slowed(
                limits_now if limit is None else limit.placed[-1],
                max(int(rates[0] * min(share, 0.5)), limits.SLOWED_BYTES_PER_S_MIN),
                max(int(rates[1] * min(share, 0.5)), limits.SLOWED_WRITES_PER_S_MIN),
            )
            if limit is None:
                found[qdev] = WriteLimit(qdev, limits_now, (slower,))
            elif slower != limit.placed[-1]:
                found[qdev] = WriteLimit(qdev, limit.before, (*limit.placed, slower))
            elif limits_now != limit.before or limits_now == slower:
                continue
            # else: they are recorded, and the command was lost with its connection, or with the process that sent it
            changed = True
        return tuple(found.values()) if changed else None


def slowed(before: Limits, bytes_per_s: int, writes_per_s: int) -> Limits:
    """Return limits that slow the guest's writes to these rates, unless they are slower already.

    Burst limits are removed, because a guest would use them. QEMU accepts no write limit beside a limit on the total.
    """
    values = {name: value for name, value in before if not name.startswith(BURSTS)}
    for kind, rate in (("bps", bytes_per_s), ("iops", writes_per_s)):
        name = kind if values.get(kind) else f"{kind}_wr"
        present = values.get(name)
        values[name] = min(rate, present) if isinstance(present, int) and present else rate
    return tuple(sorted(values.items()))
