"""libvirt's Python binding: an optional dependency, imported only once a configuration or an open pivot needs it.

Distributions install it for their own interpreter and not into virtual environments; on package indexes there is only
its source. So a virtual environment takes the distribution's modules from the directory where that interpreter looks.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pivotd.errors import LibvirtUnreachableError
from pivotd.host.threads import starts

DISTRIBUTION = (
    Path("/usr/lib/python3/dist-packages"),
    Path(f"/usr/lib64/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"),
)
"""Where Debian and Fedora, and what descends from them, keep modules of their interpreter."""


class Library(NamedTuple):
    """The modules ``libvirt`` and ``libvirt_qemu``."""

    api: Any
    qemu: Any


_loaded: list[Library] = []
_loading = threading.Lock()


def load() -> Library:
    """Return the modules; the first call imports them and starts libvirt's event loop in a thread of its own.

    Raises: LibvirtUnreachableError.
    """
    with _loading:
        if not _loaded:
            library = _import()
            library.api.registerErrorHandler(lambda *_: None, None)  # by default each error is printed, too
            library.api.virEventRegisterDefaultImpl()
            if not starts(threading.Thread(target=_run_events, args=[library.api], name="libvirt events", daemon=True)):
                raise LibvirtUnreachableError("this host gives pivotd no thread for the events of libvirt")
            _loaded.append(library)
    return _loaded[0]


def _import() -> Library:
    """Import from this environment, else from the distribution's. Raises: LibvirtUnreachableError."""
    places = [str(place) for place in DISTRIBUTION if (place / "libvirt.py").exists() and str(place) not in sys.path]
    sys.path += places  # at the end, and only for this: nothing else may come from there
    try:
        return Library(import_module("libvirt"), import_module("libvirt_qemu"))
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        if places:
            raise LibvirtUnreachableError(
                f"the libvirt binding in {places[0]} is not for Python {version}, which runs pivotd ({error}): install "
                "pivotd with the distribution's /usr/bin/python3"
            ) from error
        raise LibvirtUnreachableError(
            f"Python {version} has no module {error.name}: install the package python3-libvirt"
        ) from error
    finally:
        for place in places:
            sys.path.remove(place)


def await_events(timeout_s: float) -> None:
    """Wait until the callbacks of all events that this process has read have returned, at most timeout_s.

    Events are handed over in a timer of their connection; the loop runs a timer that is added later after it.
    """
    api = load().api
    reached = threading.Event()

    def reach(timer: int, _opaque: Any) -> None:
        api.virEventRemoveTimeout(timer)
        reached.set()

    api.virEventAddTimeout(0, reach, None)
    reached.wait(timeout_s)


def _run_events(api: Any) -> None:
    """Serve libvirt's timers and sockets for ever: without this no keepalive ends a call to a daemon that hangs."""
    # A timer that does nothing: the loop sleeps until its next timer, and a connection that is added wakes it anyway.
    api.virEventAddTimeout(60_000, lambda *_: None, None)
    while True:
        api.virEventRunDefaultImpl()
