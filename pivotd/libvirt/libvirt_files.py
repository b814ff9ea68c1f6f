"""Where a libvirt keeps its files about domains: in fixed directories, or in those of the user whose session it is.

An address may name a socket. By default that lies beside the files about running domains, and libvirt's own settings
can put it elsewhere: then they are looked for at their default place, too.

Source: libvirt, src/qemu/qemu_conf.c, virQEMUDriverConfigNew(); src/util/virutil.c, virGetUserRuntimeDirectory().
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SYSTEM_RUN = Path("/run/libvirt")
SYSTEM_DEFINITIONS = Path("/etc/libvirt/qemu")


def run_directories(uri: str) -> list[Path]:
    """Return where libvirt may note pids and state of its running domains, the likeliest first."""
    session, socket = is_session(uri), _socket(uri)
    places = [] if socket is None else [socket.parent]
    places.append(_user_run() if session else SYSTEM_RUN)
    return list(dict.fromkeys(place / ("qemu/run" if session else "qemu") for place in places))


def definitions(uri: str) -> Path:
    """Return where libvirt keeps the definitions of next boots; see is_by_default()."""
    if not is_session(uri):
        return SYSTEM_DEFINITIONS
    socket = _socket(uri)
    try:
        owner = os.geteuid() if socket is None else socket.stat().st_uid
        home = Path(pwd.getpwuid(owner).pw_dir) if owner != os.geteuid() else Path.home()
    except (OSError, KeyError):
        owner, home = os.geteuid(), Path.home()
    config = os.environ.get("XDG_CONFIG_HOME") if owner == os.geteuid() else None
    return Path(config or home / ".config") / "libvirt/qemu"


def is_by_default(uri: str) -> bool:
    """Return whether libvirt's daemon listens at its usual place, so that its definitions are certainly at theirs."""
    socket = _socket(uri)
    if socket is None:
        return True
    return not is_session(uri) and socket.parent in {SYSTEM_RUN, Path("/var/run/libvirt")}


def is_session(uri: str) -> bool:
    """Return whether the libvirt is that of one user."""
    return urlsplit(uri).path == "/session"


def _socket(uri: str) -> Path | None:
    named = parse_qs(urlsplit(uri).query).get("socket")
    return None if named is None else Path(named[0])


def _user_run() -> Path:
    """Return where the libvirt of a session has its sockets: without a runtime directory, in the cache."""
    run = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(run) / "libvirt"
