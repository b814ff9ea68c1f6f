"""The global options: where a command gets its answers, and in which form it prints them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from pivotd.cli.complaints import UsageError
from pivotd.client import Client

if TYPE_CHECKING:
    from pivotd.cli.journal_answers import OfflineJournal


def tell(message: str) -> None:
    """Print a message that is not part of the answer."""
    if sys.stderr is not None:
        print(f"pivotctl: {message}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class App:
    """The global options, and the exit status once it is known.

    ``status`` is set before the answer is printed, so that it also holds if nothing reads the answer.
    """

    socket: str
    json: bool
    offline: str | None
    status: int | None = None

    @property
    def client(self) -> Client:
        """Return the daemon's client. Raises: UsageError with ``--offline``."""
        if self.offline is not None:
            command = click.get_current_context().command_path.partition(" ")[2]
            raise UsageError(f"`{command}` needs the daemon: leave --offline out", command=command)
        return Client(self.socket, tell=tell)

    @property
    def reads(self) -> Client | OfflineJournal:
        """Return the journal with ``--offline``, else the daemon."""
        return self.client if self.offline is None else self.journal

    def with_journal(self, state_dir: str) -> App:
        """Return the same options with the journal in a state directory instead of the daemon."""
        return replace(self, offline=state_dir)

    @property
    def journal(self) -> OfflineJournal:
        """Return the journal of ``--offline``."""
        assert self.offline is not None
        from pivotd.cli.journal_answers import OfflineJournal  # noqa: PLC0415 - SQLite only where it is read

        journal = OfflineJournal(self.offline)
        click.get_current_context().find_root().call_on_close(journal.close)
        return journal


pass_app = click.make_pass_decorator(App)
