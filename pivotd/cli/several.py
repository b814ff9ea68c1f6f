"""One command on several pivots: which ones, an answer for each, and one exit status for all."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import click

from pivotd.cli import render, unknown_domain
from pivotd.cli.complaints import UsageError, as_typed
from pivotd.cli.context import App, tell
from pivotd.cli.known_names import DOMAIN, OPEN_PIVOT
from pivotd.client import Pivot
from pivotd.errors import (
    EXIT_DONE,
    EXIT_KEPT,
    EXIT_REFUSED,
    EXIT_UNKNOWN,
    EXIT_UNREACHABLE,
    PivotdError,
    UnansweredError,
)

F = TypeVar("F", bound=Callable[..., Any])

GRAVITY = (EXIT_DONE, EXIT_KEPT, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_UNKNOWN)
"""Exit statuses of single pivots, the one that matters most last: it is the status of all."""


def gravest(statuses: Iterable[int]) -> int:
    """Return the exit status of several pivots; of the others, each counts as a refusal does."""
    known = (status if status in GRAVITY else EXIT_REFUSED for status in statuses)
    return max(known, key=GRAVITY.index, default=EXIT_DONE)


def named(which: str) -> Callable[[F], F]:
    """Add ID... and --all to a command; ``which``: the pivots that --all stands for."""

    def add(function: F) -> F:
        said = "With --all: only pivots of this domain."
        function = click.option("--domain", metavar="DOMAIN", type=DOMAIN, help=said)(function)
        function = click.option("--all", "every", is_flag=True, help=f"{which} now.")(function)
        return click.argument("names", metavar="ID...", type=OPEN_PIVOT, nargs=-1)(function)

    return add


def only_one(names: Sequence[str], domain: str | None, *, every: bool) -> bool:
    """Return whether one pivot was named, whose answer is then no list.

    Raises: UsageError: both names and --all were given, or neither, or --domain without --all.
    """
    command = click.get_current_context().command_path
    if every == bool(names):
        raise UsageError(f"give the ids of pivots, or --all; see `{command} --help`")
    if domain is not None and not every:
        raise UsageError(f"--domain goes with --all; see `{command} --help`")
    return len(names) == 1


def select(
    app: App, names: Sequence[str], domain: str | None, *, every: bool, wanted: Callable[[Pivot], bool]
) -> list[str]:
    """Return the pivots that were named, or with --all the open ones that are ``wanted``, oldest first."""
    if not every:
        return list(dict.fromkeys(names))
    found = [pivot.id for pivot in app.client.pivots(domain, open_only=True) if wanted(pivot)]
    if not found:
        unknown_domain.check(app, domain)
    if not found and not app.documents:
        tell(f"no such pivot{'' if domain is None else f' of {render.text(domain)}'} is open")
    return found[::-1]


def typed(names: Iterable[str], domain: str | None, *, every: bool) -> str:
    """Return pivots as a command takes them: their names, or --all."""
    if every:
        return "--all" if domain is None else f"--all --domain {shlex.quote(domain)}"
    return " ".join(map(shlex.quote, names))


class Answers:
    """The answers to one command on several pivots: a pivot or an error for each name, in the order of the names."""

    def __init__(self, app: App, names: Iterable[str]) -> None:
        self._app = app
        self._found: dict[str, tuple[int, Any]] = dict.fromkeys(names, (EXIT_DONE, None))

    def asked(self, names: Iterable[str], ask: Callable[[str], Pivot]) -> Iterator[tuple[str, Pivot]]:
        """Yield each name with its pivot, and tell of errors. After one without a daemon it is asked no further."""
        lost: PivotdError | None = None
        for name in names:
            try:
                if lost is not None:
                    raise lost
                pivot = ask(name)
            except PivotdError as failure:
                away = failure.exit_status == EXIT_UNREACHABLE and failure.kind != UnansweredError.kind
                lost = failure if away else None
                self.fail(name, failure)
            else:
                yield name, pivot

    def take(self, name: str, pivot: Pivot, status: int) -> None:
        """Take the end of one pivot into the answer."""
        self._found[name] = (status, pivot)

    def end(self) -> None:
        """Set the exit status; print the answers unless they are for people."""
        self._app.status = gravest(status for status, _ in self._found.values())
        found = [document for _, document in self._found.values()]
        render.answer(self._app, found if self._app.documents else [one for one in found if isinstance(one, Pivot)])

    def fail(self, name: str, failure: PivotdError) -> None:
        """Take an error into the answer, and tell of it."""
        message = render.one_line(as_typed(failure))
        error = {**failure.fields, "kind": failure.kind, "message": message, "exit_status": failure.exit_status}
        self._found[name] = (failure.exit_status, {"pivot": name, "error": error})
        if not self._app.documents:
            tell(message if name in message else f"{render.text(name)}: {message}")
