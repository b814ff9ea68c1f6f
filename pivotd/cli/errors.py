"""What a call of pivotctl can fail with: one line, a stable kind and an exit status."""

from __future__ import annotations

from typing import Any

from pivotd.errors import EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE, PivotdError

EXIT_OUTPUT = 1
"""The answer could not be written."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as a shell shows it."""
EXIT_BROKEN_PIPE = 141
"""128 + SIGPIPE."""


class CtlError(Exception):
    """``message`` is one line: what, why, what next. ``fields`` are facts for ``--json``."""

    def __init__(self, kind: str, message: str, exit_status: int = EXIT_REFUSED, **fields: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.exit_status = exit_status
        self.fields = fields

    @classmethod
    def of(cls, error: PivotdError) -> CtlError:
        """Return the same error as the client shows it."""
        return cls(error.kind, error.message, error.exit_status, **error.fields)


class UsageError(CtlError):
    """The command line makes no sense; nothing was asked of anybody."""

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__("usage", message, EXIT_USAGE, **fields)


class UnreachableError(CtlError):
    """No connection: the request was not sent."""

    def __init__(self, message: str, *, kind: str = "unreachable", exit_status: int = EXIT_UNREACHABLE) -> None:
        super().__init__(kind, message, exit_status)


class LostError(CtlError):
    """The connection ended before the answer: the request may or may not have been carried out."""

    def __init__(self, message: str) -> None:
        super().__init__("connection-lost", message, EXIT_UNREACHABLE)


class NotPivotdError(CtlError):
    """Somebody answers at the socket, but not like pivotd."""

    def __init__(self, socket: str, why: str) -> None:
        super().__init__(
            "not-pivotd",
            f"what answers at {socket} is not pivotd ({why}); check --socket and PIVOTCTL_SOCKET",
            EXIT_UNREACHABLE,
        )
