"""libvirt's states of a domain in QEMU's words. Pure."""

from __future__ import annotations

from typing import Any

SHUT_OFF = "shut off"
"""No QEMU is left, and so no word of QEMU's."""


def of(api: Any, state: int, reason: int) -> str:
    """Return libvirt's state of a domain in QEMU's words, or SHUT_OFF.

    A guest that has ended because it was migrated has left, as one whose QEMU still stands in ``postmigrate``.

    Source: libvirt-domain.h, virDomainState and its reasons.
    """
    paused = {
        api.VIR_DOMAIN_PAUSED_MIGRATION: "finish-migrate",
        api.VIR_DOMAIN_PAUSED_POSTCOPY: "finish-migrate",
        # Neither host has the whole guest. It must not run, and whose it is nobody can say.
        api.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: "inmigrate",
        api.VIR_DOMAIN_PAUSED_SAVE: "save-vm",
        api.VIR_DOMAIN_PAUSED_IOERROR: "io-error",
        api.VIR_DOMAIN_PAUSED_WATCHDOG: "watchdog",
        api.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "shutdown",
        api.VIR_DOMAIN_PAUSED_CRASHED: "guest-panicked",
        # libvirt could not resume it after something of its own. Newer than the oldest binding.
        getattr(api, "VIR_DOMAIN_PAUSED_API_ERROR", None): "internal-error",
    }
    states = {
        api.VIR_DOMAIN_RUNNING: "running",
        api.VIR_DOMAIN_BLOCKED: "running",
        api.VIR_DOMAIN_SHUTDOWN: "shutdown",
        api.VIR_DOMAIN_CRASHED: "guest-panicked",
        api.VIR_DOMAIN_PMSUSPENDED: "suspended",
    }
    if state == api.VIR_DOMAIN_SHUTOFF:
        return "postmigrate" if reason == api.VIR_DOMAIN_SHUTOFF_MIGRATED else SHUT_OFF
    return paused.get(reason, "paused") if state == api.VIR_DOMAIN_PAUSED else states.get(state, "internal-error")
