"""`pivotctl help`: the help of a command, by its name."""

from __future__ import annotations

import click

from pivotd.cli.complaints import UsageError
from pivotd.cli.help import below


@click.command(short_help="The help of pivotctl, or of a command.")
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def help_(context: click.Context, words: tuple[str, ...]) -> None:
    """Print the help of a command, as `pivotctl COMMAND --help` does."""
    root = context.find_root()
    found = click.Context(root.command, info_name=root.info_name, help_option_names=root.help_option_names)
    for word in words:
        following = below(found, word)
        if following is None:
            raise UsageError(f"there is no command {' '.join(words)!r}; see `{found.command_path} --help`")
        found = following
    click.echo(found.get_help())
