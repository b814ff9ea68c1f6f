"""What the global options mean for a command: where answers come from and in which form they go out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import click

from pivotd.cli.client import Client
from pivotd.cli.errors import UsageError

JsonObject = dict[str, Any]


class Reads(Protocol):
    """What can be read both from the daemon and from the journal alone."""

    def domains(self) -> list[JsonObject]:
        """Return every domain known."""
        ...

    def pivots(self, domain: str | None = None, *, open_only: bool = False) -> list[JsonObject]:
        """Return pivots, newest first."""
        ...

    def pivot(self, pivot: str) -> JsonObject:
        """Return one pivot with its records."""
        ...

    def verdicts(self, domain: str | None, disk: str | None, image: str | None) -> list[JsonObject]:
        """Return the verdicts asked for."""
        ...

    def events(self, after: int) -> Iterator[JsonObject]:
        """Yield every record there is with seq > after."""
        ...


@dataclass(slots=True)
class App:
    """The global options, and the exit status once it is known.

    ``status`` is set before the answer is printed: it holds also if nobody reads the answer.
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
        return Client(self.socket)

    @property
    def reads(self) -> Reads:
        """Return the journal with ``--offline``, else the daemon."""
        if self.offline is None:
            return self.client
        from pivotd.cli.offline import OfflineJournal  # noqa: PLC0415 - SQLite only where it is read

        journal = OfflineJournal(self.offline)
        click.get_current_context().find_root().call_on_close(journal.close)
        return journal


pass_app = click.make_pass_decorator(App)
