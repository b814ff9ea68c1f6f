"""Completion in the shells, by click; and what its scripts lack: DISK= and directories go on without a space."""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

from pivotd.cli.context import App
from pivotd.client import DEFAULT_SOCKET
from pivotd.errors import PivotdError

VARIABLE = "_PIVOTCTL_COMPLETE"
"""In the environment where a shell asks: SHELL_complete."""
SHELLS = ("bash", "zsh", "fish")
_NO_SPACE = "[[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace"


@add_completion_class
class Bash(BashComplete):
    """bash, which takes ``=`` for the end of a word."""

    source_template = (
        BashComplete.source_template.replace("    return 0\n", f"    {_NO_SPACE}\n    return 0\n", 1)
        .replace("read type", "read -r type")
        .replace("($value)", '("$value")')
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words with what belongs together, and the last one, all without their quotes."""
        words, at = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
        joined: list[str] = []
        for word in words[: at + 1]:
            if joined and (word == "=" or joined[-1].endswith("=")):
                joined[-1] += word
            else:
                joined.append(word)
        return [_unquoted(word) for word in joined[1:-1]], _unquoted(joined[-1])

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """Return only what comes after the ``=``, where bash has its word, as it has to be typed."""
        found = super().get_completions(args, incomplete)
        head = incomplete.rpartition("=")[0]
        if not head or incomplete.startswith("-"):
            return found
        typed = os.environ["COMP_WORDS"].split("\n")[int(os.environ["COMP_CWORD"])]
        return [CompletionItem(_quoted(one.value.removeprefix(f"{head}="), typed), type=one.type) for one in found]


def _unquoted(word: str) -> str:
    """Return what bash makes of a word, in which a quote may still be open."""
    for end in ("", "'", '"', "\\"):
        with suppress(ValueError):
            return "".join(shlex.split(word + end))
    return word


def _quoted(text: str, typed: str) -> str:
    """Return a text so that bash takes it for one word and expands nothing in it; ``typed``: so far, with its quote."""
    if typed.startswith("'"):
        return text.replace("'", "'\\''")
    return re.sub(r'([$`"\\])' if typed.startswith('"') else r"([^\w@%+./,=-])", r"\\\1", text)


@add_completion_class
class Zsh(ZshComplete):
    """zsh."""

    source_template = ZshComplete.source_template.replace(
        'if [[ "$type" == "plain" ]]; then\n',
        'if [[ "$type" == "plain" && "$key" == *[=/] ]]; then\n            compadd -U -S "" -- "$key"\n'
        '        elif [[ "$type" == "plain" ]]; then\n',
    )


@add_completion_class
class Fish(FishComplete):
    """fish."""

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return the item for a script that takes commas for separators."""
        item.help = item.help and item.help.replace(",", ";")
        return super().format_completion(item)


def script(cli: click.Command, shell: str) -> str:
    """Return the script that a shell has to read."""
    made = get_completion_class(shell)
    assert made is not None
    return made(cli, {}, "pivotctl", VARIABLE).source_template % made(cli, {}, "pivotctl", VARIABLE).source_vars()


def complete(cli: click.Command, instruction: str) -> None:
    """Print what a shell asks for; nothing if that is not to be had."""
    made = get_completion_class(instruction.removesuffix("_complete"))
    if made is None:
        return
    with suppress(PivotdError, click.ClickException, OSError, KeyError, ValueError):
        print(made(cli, {"obj": App(DEFAULT_SOCKET)}, "pivotctl", VARIABLE).complete())
