"""The global options: where a command gets its answers, and in which form it prints them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import click

from pivotd.cli.complaints import UsageError
from pivotd.client import Client
from pivotd.errors import EXIT_DONE

if TYPE_CHECKING:
    from msgspec import Struct

    from pivotd.cli.journal_answers import OfflineJournal
    from pivotd.cli.template import Template


class Form(StrEnum):
    """In which form answers are printed; see render.answer()."""

    TABLE = "table"
    """For people."""
    JSON = "json"
    YAML = "yaml"
    NAME = "name"
    TEMPLATE = "template"


def tell(message: str) -> None:
    """Print a message that is not part of the answer."""
    if sys.stderr is not None:
        print(f"pivotctl: {message}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class App:
    """The global options, and the exit status once it is known.

    ``status`` is set before the answer is printed: what was done is done also if nothing reads the answer. A command
    that only looks calls found() instead: without its answer, it has done nothing.
    """

    socket: str
    offline: str | None = None
    status: int | None = None
    form: Form = Form.TABLE
    template: Template | None = None
    """With Form.TEMPLATE."""
    header: bool = True
    """Whether tables have one."""

    @property
    def for_people(self) -> bool:
        """Whether the answer is for people: then there is progress, and advice."""
        return self.form is Form.TABLE

    @property
    def documents(self) -> bool:
        """Whether the answer, and an error, is a whole document that says all there is to say."""
        return self.form in {Form.JSON, Form.YAML}

    def found(self, status: int) -> None:
        """Take the exit status of an answer that is all there is: if that is bad, also where it cannot be written."""
        if status != EXIT_DONE:
            self.status = status

    def will_answer(self, answer: type[Struct]) -> None:
        """Check the template before something is changed. Raises: TemplateError: the answer lacks a field of it."""
        if self.template is not None:
            self.template.check(answer.__struct_fields__)

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
