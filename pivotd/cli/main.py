"""The entry point of pivotctl: global options, and the only place that turns an error into one line and a status."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, NoReturn

if not {"http.client", "ssl"} & sys.modules.keys():
    # A Unix socket needs no OpenSSL, which http.client loads if it can: 7 ms of the 90 that a command takes.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    import_module("http.client")
    del sys.modules["ssl"]

import click

from pivotd import utf8
from pivotd.cli import global_options, render
from pivotd.cli.complaints import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    EXIT_OUTPUT,
    OutputError,
    TemplateError,
    UnusableFileError,
    UsageError,
    as_typed,
)
from pivotd.cli.context import App, Form
from pivotd.cli.help import HELP, GroupedGroup
from pivotd.cli.render import one_line
from pivotd.client import DEFAULT_SOCKET
from pivotd.errors import EXIT_USAGE, PivotdError

COMMANDS = {
    "domain": "domain_commands",
    "disk": "disk_commands",
    "copy": "copy_command",
    "evacuate": "evacuate_command",
    "snapshot": "layer_commands",
    "commit": "layer_commands",
    "pull": "layer_commands",
    "pivot": "pivot_commands",
    "wait": "ending_commands",
    "complete": "ending_commands",
    "cancel": "ending_commands",
    "verdict": "verdict_command",
    "image": "image_command",
    "guard": "guard_command",
    "stale": "stale_command",
    "doctor": "doctor_command",
    "events": "event_command",
    "report": "report_command",
    "metrics": "metrics_command",
    "journal": "journal_command",
    "libvirt": "libvirt_command",
    "fleet": "fleet_command",
    "completion": "completion_command",
    "help": "help_command",
}
"""Each command, and the module in this folder that defines it."""


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from pivotd import __version__  # noqa: PLC0415 - asked for rarely

        click.echo(f"pivotctl {__version__}")
        context.exit()


class LazyGroup(GroupedGroup):
    """Imports only the command that is called: importing all would take 20 ms."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """Return one command, None for an unknown name."""
        if name not in COMMANDS:
            return None
        module = import_module(f"pivotd.cli.{COMMANDS[name]}")
        command = getattr(module, "help_" if name == "help" else name)
        assert isinstance(command, click.Command)
        return global_options.after(command)


@click.group(cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@global_options.before
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Replaced by HELP."""


def main() -> NoReturn:
    """Run one command and exit; an error is one line, never a traceback."""
    utf8.require()
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY), closefd=False)
    if sys.stdout is None:
        # It was closed. Writing here fails, as it would there, and no other file becomes number 1.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # A file name that is not text must not stop an answer, and one that is has the bytes that the file has.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    if asked := os.environ.get("_PIVOTCTL_COMPLETE"):
        import_module("pivotd.cli.shells").complete(cli, asked)
        sys.exit(0)
    app = App(DEFAULT_SOCKET)
    try:
        status = _run(app, sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        status = EXIT_BROKEN_PIPE if app.status is None else app.status
        _forget_stdout()
    except OSError as error:
        if error.filename is not None:
            # An error of stdout names no file.
            sys.exit(_complain(app, UnusableFileError.of(error)))
        _forget_stdout()
        _say(OutputError(f"the answer cannot be written: {error.strerror or error}"))
        status = EXIT_OUTPUT if app.status is None else app.status
    sys.exit(status)


def _run(app: App, arguments: list[str]) -> int:
    try:
        _check_text(arguments)
        # Not cli.main(): it turns a broken pipe into status 1 by itself.
        with cli.make_context("pivotctl", list(arguments), obj=app) as context:
            status = cli.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        if _as_document(app, arguments):
            return _complain(app, UsageError("a command is missing; see `pivotctl --help`"))
        print(error.format_message(), file=sys.stderr)
        return EXIT_USAGE
    except click.UsageError as error:
        _as_document(app, arguments)
        return _complain(app, _usage(error))
    except click.ClickException as error:
        return _complain(app, UsageError(error.format_message()))
    except TemplateError as error:
        # What the command has done counts more than how it is shown.
        status = _complain(app, error)
        return app.status or status
    except PivotdError as error:
        return _complain(app, error)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    if app.status is not None:
        return app.status
    return status if isinstance(status, int) else 0


def _as_document(app: App, arguments: list[str]) -> bool:
    """Return whether an error is a document; if the command is wrong, click has not read all global options yet."""
    if app.for_people and global_options.asks_for_json(arguments):
        app.form = Form.JSON
    return app.documents


def _check_text(arguments: list[str]) -> None:
    """JSON carries text only. Raises: UsageError."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = one_line(os.fsencode(argument).decode(errors="backslashreplace"))
            raise UsageError(
                f"'{shown}' is not UTF-8: give a name that is, or for a path a link with such a name"
            ) from None


def _usage(error: click.UsageError) -> UsageError:
    message = one_line(error.format_message()).rstrip(".")
    command = error.ctx.command_path if error.ctx else "pivotctl"
    return UsageError(f"{message[:1].lower()}{message[1:]}; see `{command} --help`")


def _complain(app: App, error: PivotdError) -> int:
    """Show the error and return its exit status."""
    message = one_line(as_typed(error))
    if app.documents:
        shown: dict[str, Any] = {"kind": error.kind, "message": message, "exit_status": error.exit_status}
        if app.status is None:
            app.status = error.exit_status
        print(render.document(app, {"error": {**error.fields, **shown}}))
    else:
        _say(error)
    return error.exit_status


def _say(error: PivotdError) -> None:
    """Show the error as a line."""
    if sys.stderr is not None:
        print(f"pivotctl: {one_line(as_typed(error))}", file=sys.stderr)


def _forget_stdout() -> None:
    """Keep the interpreter's last flush from failing if nothing reads stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
