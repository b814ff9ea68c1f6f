"""A snapshot puts a new empty overlay on each disk, all at one instant, and switches to them. Pure."""

from __future__ import annotations

from pivotd.core.kinds.kind_rules import KindRules
from pivotd.core.kinds.new_image import half_made, next_step

SNAPSHOT = KindRules(next_step, half_made, has_jobs=False)
"""One transaction, no job. The source below the overlay keeps its contents."""
