"""Names of files are UTF-8 in the protocols that pivotd speaks: they have to be that here, whatever the locale."""

from __future__ import annotations

import os
import sys


def require() -> None:
    """Start this program once more in Python's UTF-8 mode if the locale has another encoding; the process stays.

    With another one, a name that QEMU or the journal gives would lead to another file, or to none.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - itself
