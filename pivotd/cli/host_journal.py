"""Where the journal of a daemon is that does not answer: its configuration says so."""

from __future__ import annotations

import os
from pathlib import Path

from pivotd.cli.context import App
from pivotd.client import ClientError
from pivotd.config import load
from pivotd.errors import ConfigError


def state_dir_without(app: App, away: ClientError) -> Path:
    """Return the state directory of the daemon that is ``away``.

    Any other journal would name its own images with the same certainty. Raises: ``away``, with the reason, if this
    host's configuration cannot be read, or is that of another daemon.
    """
    try:
        found = load()
    except ConfigError as error:
        why = error.message
    else:
        if os.path.realpath(found.socket) == os.path.realpath(app.socket):
            return found.state_dir
        why = f"the configuration of this host is of a pivotd at {found.socket}"
    away.message += f"; and {why}: give --offline STATE_DIR"
    raise away from None
