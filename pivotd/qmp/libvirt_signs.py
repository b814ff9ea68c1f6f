"""Recognises a QEMU that libvirt has started, although it was reached by a monitor of its own."""

from __future__ import annotations

import re
from typing import Any

from pivotd.errors import UnsupportedQemuError
from pivotd.qmp.monitor import Monitor, ask
from pivotd.qmp.question import asks, of

OWN_MONITOR = "charmonitor"
_PATH = re.compile(r"/domain-[^/]+/monitor\.sock\b")
"""Each libvirt since 1.3 has its monitor in such a directory. Somebody who has copied libvirt's command line to start
QEMU himself has the name, but his socket elsewhere: that QEMU is not libvirt's.
"""


@asks("query-chardev")
def libvirts_monitor(answer: Any) -> str | None:
    """Return the socket by which libvirt reaches this QEMU, None if it is not libvirt's."""
    labels = {of(str, entry["label"]): of(str, entry["filename"]) for entry in of(list, answer)}
    shown = labels.get(OWN_MONITOR, "")
    return shown if _PATH.search(shown) else None


def refuse_path(path: str) -> None:
    """Raises: UnsupportedQemuError: the socket is libvirt's own monitor, where even a connection would do harm."""
    if _PATH.search(path):
        raise UnsupportedQemuError(f"{path} is the monitor that libvirt itself needs; {REMEDY}", qmp=path)


async def refuse(monitor: Monitor, path: str) -> None:
    """Raises: UnsupportedQemuError: libvirt manages this QEMU. QmpError."""
    found = await ask(monitor, libvirts_monitor)
    if found is not None:
        raise UnsupportedQemuError(
            f"{path} leads to a domain of libvirt, which would not learn of a switch; {REMEDY}", qmp=path
        )


REMEDY = 'set uri = "qemu:///system" under [libvirt] in the configuration and use the domain by its name in libvirt'
