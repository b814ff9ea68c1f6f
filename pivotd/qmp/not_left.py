"""Whether a guest that QEMU has stopped for a migration is still here: the migration has failed, or was cancelled.

QEMU then lets a guest run again that ran before. One that stood still in a pause of pivotd's QEMU 7.2 leaves in
``postmigrate`` (measured). Source: migration/migration.c, migration_iteration_finish().
"""

from __future__ import annotations

from typing import Any

from pivotd.core.observation import POSTMIGRATE
from pivotd.qmp import replies
from pivotd.qmp.monitor import Monitor, ask


async def may_run_on(monitor: Monitor, run_state: str, migrate: Any) -> bool:
    """Return whether a guest in ``postmigrate`` has certainly not left; ``migrate``: the answer to query-migrate.

    After a post-copy nobody can tell: the guest may have run on the other host. Raises: QmpError.
    """
    if run_state != POSTMIGRATE or not replies.given_up(migrate):
        return False
    return not await ask(monitor, replies.may_run_there_first)
