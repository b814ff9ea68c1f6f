"""Objects that pivotd puts into QEMU: the nonce of a pivot, and the passphrase of encrypted images.

QEMU needs a passphrase as long as it may open the image again, so the object stays while a node of its pivot stays.
"""

from __future__ import annotations

from typing import Any

from pivotd import limits
from pivotd.core import names
from pivotd.core.pivot import Pivot
from pivotd.errors import QmpRefusedError
from pivotd.qmp import blocks, replies
from pivotd.qmp.monitor import Monitor, ask, command

DUPLICATE = "duplicate property"


async def place(monitor: Monitor, pivot: Pivot) -> None:
    """Add the passphrase, then the nonce: if the nonce is there, the passphrase is too.

    The nonce's data is not secret, only its name matters. Raises: QmpRefusedError.
    """
    burst = [command("object-add", qom_type="secret", id=pivot.identity.nonce, data="pivotd was here")]
    if pivot.options.secret_file is not None:
        secret = names.secret_object(pivot.id)
        burst.insert(0, command("object-add", qom_type="secret", id=secret, file=pivot.options.secret_file))
    *earlier, nonce = await monitor.burst(burst, limits.COMMAND_TIMEOUT_S)
    refusals = [reply for reply in (*earlier, nonce) if _refused(reply)]
    if refusals:
        raise refusals[0]


def _refused(reply: Any) -> bool:
    return isinstance(reply, QmpRefusedError) and DUPLICATE not in reply.fields["text"]


async def remove_unused(monitor: Monitor, pivot: str | None) -> None:
    """Remove passphrases of pivots that have no node and, except for ``pivot``, no nonce any more."""
    objects = await ask(monitor, replies.object_names)
    owners = {owner: name for name in objects if (owner := names.pivot_of_secret(name)) is not None}
    if not owners:
        return
    graph = await ask(monitor, blocks.graph)
    unused = [
        name
        for owner, name in owners.items()
        if (owner == pivot or names.nonce_object(owner) not in objects)
        and not any(names.belongs_to(node, owner) for node in graph.nodes)
    ]
    await monitor.burst([command("object-del", id=name) for name in unused], limits.COMMAND_TIMEOUT_S)
