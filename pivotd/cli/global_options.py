"""The global options: accepted before the command and after it, and written to the App as soon as they are read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import click

from pivotd.cli.context import App, Form
from pivotd.cli.values import AbsolutePath
from pivotd.client import DEFAULT_SOCKET

F = TypeVar("F", bound=Callable[..., Any])


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Write the option to the App; the last one on the command line counts."""
    app = context.obj
    if value is None or value is False or not isinstance(app, App):
        return
    match parameter.name:
        case "socket" | "offline":
            setattr(app, parameter.name, value)
        case "no_header":
            app.header = False
        case "template":
            from pivotd.cli.template import Template  # noqa: PLC0415 - asked for rarely

            app.form, app.template = Form.TEMPLATE, Template(value)
        case "as_json":
            app.form = Form.JSON
        case "quiet":
            app.form = Form.NAME
        case _:
            app.form = Form(value)


class GlobalOption(click.Option):
    """An option of every command. The help of a command leaves it out; `pivotctl --help` shows it once."""

    def __init__(self, declarations: Sequence[str], **settings: Any) -> None:
        super().__init__(declarations, expose_value=False, is_eager=True, callback=_keep, **settings)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the line of the help, None below the first command."""
        return super().get_help_record(ctx) if ctx.parent is None else None


OPTIONS: dict[tuple[str, ...], dict[str, Any]] = {
    ("--socket",): {
        "type": AbsolutePath(),
        "metavar": "PATH",
        "help": f"Socket of the daemon.  [env PIVOTCTL_SOCKET; default {DEFAULT_SOCKET}]",
    },
    ("--offline",): {
        "type": AbsolutePath(),
        "metavar": "STATE_DIR",
        "help": "Read the journal in STATE_DIR without the daemon, changing nothing.",
    },
    ("-o", "--output"): {
        "type": click.Choice(("table", "json", "yaml", "name")),
        "metavar": "FORM",
        "help": "table (for people), json, yaml, or name: one on each line.",
    },
    ("--json", "as_json"): {"is_flag": True, "help": "-o json: one document on stdout; one per line for streams."},
    ("--format", "template"): {"metavar": "TEMPLATE", "help": "One line for each, like '{id} {disks.disk}'."},
    ("-q", "--quiet"): {"is_flag": True, "help": "-o name: names alone, and no progress."},
    ("--no-header",): {"is_flag": True, "help": "Tables without their first line."},
}
"""Each option's words and settings."""


def before(function: F) -> F:
    """Add the global options to the program itself, where the environment counts too."""
    for words, settings in reversed(OPTIONS.items()):
        more = {"envvar": "PIVOTCTL_SOCKET"} if words == ("--socket",) else {}
        click.option(*words, cls=GlobalOption, **settings, **more)(function)
    return function


@cache
def _option(words: tuple[str, ...], left: tuple[str, ...]) -> GlobalOption:
    """Return an option by the words that are left of its own; all commands share it."""
    return GlobalOption(left, **OPTIONS[words])


def after(command: click.Command) -> click.Command:
    """Let a command, and all below it, take the global options too; one with an option of the same name keeps that."""
    taken = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
    names = {parameter.name for parameter in command.params}
    for words in OPTIONS:
        left = [word for word in words if word not in taken]
        if any(word.startswith("-") for word in left):
            option = _option(words, tuple(left))
            if option.name not in names:
                command.params.append(option)
    if isinstance(command, click.Group):
        for one in command.commands.values():
            after(one)
    return command


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Return whether a command line that click could not read asks for JSON."""
    pairs = itertools.pairwise(arguments)
    return bool({"--json", "-ojson", "--output=json"} & set(arguments)) or any(
        word in {"-o", "--output"} and value == "json" for word, value in pairs
    )
