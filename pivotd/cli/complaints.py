"""What pivotctl itself can fail with, beside what the daemon and the journal say, and the exit statuses of that."""

from __future__ import annotations

from pivotd.errors import EXIT_USAGE, PivotdError

EXIT_OUTPUT = 1
"""The answer could not be written."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as a shell shows it."""
EXIT_BROKEN_PIPE = 141
"""128 + SIGPIPE."""


class UsageError(PivotdError):
    """The command line makes no sense; nothing was asked of anybody."""

    kind = "usage"
    exit_status = EXIT_USAGE


class OutputError(PivotdError):
    """The answer cannot be written."""

    kind = "output"
    exit_status = EXIT_OUTPUT


class InterruptError(PivotdError):
    """Ctrl-C: what was asked for may go on."""

    kind = "interrupted"
    exit_status = EXIT_INTERRUPTED
