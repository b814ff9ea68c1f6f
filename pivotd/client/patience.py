"""How long a client retries while the daemon is away: a restart must end neither a wait nor a stream."""

from __future__ import annotations

import time
from collections.abc import Callable

from pivotd.client.transport import LOST, UNREACHABLE
from pivotd.errors import ClientError, UnknownError

PATIENCE_S = 30.0
"""systemd restarts pivotd at once, and recovery looks at every guest first."""
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0

Tell = Callable[[str], None]


class Patience:
    """Bounds the retries after consecutive lost connections. Calls ``tell`` once for each outage."""

    def __init__(self, limit_s: float, tell: Tell) -> None:
        self._limit_s, self._tell = limit_s, tell
        self._deadline: float | None = None
        self._pause_s = RETRY_FIRST_S
        self._kind: type[ClientError] | None = None

    def rest(self) -> None:
        """The daemon answered: the next outage starts from zero."""
        if self._deadline is not None:
            self._tell("pivotd answers again")
        self._deadline, self._kind, self._pause_s = None, None, RETRY_FIRST_S

    def spend(self, failure: ClientError) -> None:
        """Sleep briefly before the next try.

        Raises: the failure, if another try cannot help; once the time is over, UnsentError if no try reached the
        daemon, else UnknownError.
        """
        if failure.kind not in {LOST, UNREACHABLE}:
            raise failure
        if self._kind is not UnknownError:
            self._kind = type(failure)
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._limit_s
            self._tell(f"lost pivotd, trying again for {self._limit_s:.0f} s")
        if now >= self._deadline:
            raise self._kind(
                UNREACHABLE,
                f"pivotd did not come back within {self._limit_s:.0f} s ({failure.message}); "
                "what the journal holds is safe: `pivotctl --offline STATE_DIR verdict`",
                **failure.fields,
            ) from None
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, RETRY_MAX_S)
