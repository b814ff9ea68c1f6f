"""A pull copies lower layers into the active image, which then no longer needs them; no switch. Pure."""

from __future__ import annotations

from pivotd.core.kinds.commit import start_job
from pivotd.core.kinds.kind_rules import KindRules, nothing_is_stale

PULL = KindRules(start_job, nothing_is_stale, carries_bitmaps=False)
"""The pulled layers keep their contents."""
