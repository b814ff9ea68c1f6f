"""`pivotctl completion`: the script by which a shell completes pivotctl's words."""

from __future__ import annotations

import click

from pivotd.cli.help import ExampleCommand

EXAMPLES = (
    "source <(pivotctl completion bash)    # in ~/.bashrc",
    "source <(pivotctl completion zsh)     # in ~/.zshrc, after compinit",
    "pivotctl completion fish > ~/.config/fish/completions/pivotctl.fish",
)


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="The script for a shell's completion.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete commands, options, and the names of domains, disks and pivots.

    The names are asked of the daemon with each TAB, or of the journal if --offline was typed. Without an answer within
    a second there are none.
    """
    from pivotd.cli.main import cli  # noqa: PLC0415 - it imports this module
    from pivotd.cli.shells import script  # noqa: PLC0415 - 10 ms, and not for the help

    print(script(cli, shell), end="")
