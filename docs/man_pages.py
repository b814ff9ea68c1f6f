"""Makes the manual pages of pivotctl, pivotd and pivotd.toml from the help, and from the example of the configuration.

python -m docs.man_pages DIRECTORY
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from os import environ
from pathlib import Path

import click

from pivotd import __version__, daemon
from pivotd.cli.help import EXAMPLES, EXIT_STATUSES, SECTIONS, ExampleCommand, below
from pivotd.cli.main import cli

EXAMPLE_TOML = Path(__file__).parents[1] / "systemd" / "pivotd.toml"
LINE_LENGTH_MAX = 78
DAEMON_STATUSES = (
    ("0", "ended by SIGTERM; --check: the configuration is right; --reload: it is in effect"),
    ("2", "the command line or the configuration is wrong"),
    ("3", "--check: libvirt or etcd, which the configuration names, does not answer; --reload: pivotd does not"),
    ("4", "the journal cannot be used; --check: etcd refuses this host; --reload: refused, nothing has changed"),
)
DAEMON = """
pivotd moves the disks of running QEMU guests from one image to another, and is never unsure which image is right. It
runs in the foreground, one process per host, usually as a service of systemd. `pivotctl` tells it what to do.

On SIGHUP it reads its configuration again; either the whole new configuration takes effect or none of it does. On
SIGTERM it ends; block jobs in QEMU go on, and the next pivotd goes on from what the journal says. It can be killed at
any time.
"""
TOML = """
The configuration of pivotd, in TOML. After `/etc/pivotd/pivotd.toml`, pivotd reads the files in
`/etc/pivotd/pivotd.toml.d/` whose names end in .toml, in the order of their names. Tables are merged key by key; a
later value or list replaces an earlier one. A key that is unknown, or a value that is wrong, is refused with the file,
the key and what was expected; `pivotd --check` says so without starting anything.
"""
SEE = {
    "pivotctl": ("pivotd(8)", "pivotd.toml(5)", "qemu-img(1)"),
    "pivotd": ("pivotctl(1)", "pivotd.toml(5)", "systemd(1)"),
    "pivotd.toml": ("pivotctl(1)", "pivotd(8)"),
}


def main() -> None:
    """Write the pages."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    pages = {"pivotctl.1": pivotctl(), "pivotd.8": pivotd(), "pivotd.toml.5": pivotd_toml()}
    for name, lines in pages.items():
        (directory / name).write_text("".join(f"{line}\n" for line in lines if line))


def pivotctl() -> Iterator[str]:
    """Yield the page of pivotctl: what `pivotctl --help` has, and the help of each command."""
    yield from _head("pivotctl", "1", "move disks of running QEMU guests, and know which image is right")
    yield ".SH SYNOPSIS"
    yield f"{_bold('pivotctl')} [OPTIONS] COMMAND [ARGS]..."
    yield ".SH DESCRIPTION"
    yield from _paragraphs(cli.help or "")
    root = click.Context(cli, info_name="pivotctl", help_option_names=["-h", "--help"])
    yield ".SH OPTIONS"
    yield from _paragraphs("They count before the command and after it.")
    yield from _options(cli, root)
    for title, rows in SECTIONS:
        yield f".SH {_text(title.upper())}"
        for path in dict.fromkeys(path for usage, _ in rows for path in _paths(usage)):
            yield from _command(root, path)
    yield ".SH EXAMPLES"
    for why, example in EXAMPLES:
        yield from [".TP", _text(why)] if why else [".br"]
        yield _bold(example)
    yield ".SH EXIT STATUS"
    yield from _rows(EXIT_STATUSES)
    yield ".SH ENVIRONMENT"
    yield from _rows([("PIVOTCTL_SOCKET", "The socket of the daemon, unless --socket names another.")])
    yield from _end("pivotctl")


def pivotd() -> Iterator[str]:
    """Yield the page of the daemon."""
    yield from _head("pivotd", "8", "move disks of running QEMU guests")
    yield ".SH SYNOPSIS"
    usage = " ".join(daemon.parser().format_usage().split()).removeprefix("usage: pivotd ").replace("[-h] ", "")
    yield f"{_bold('pivotd')} {_text(usage)}"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(DAEMON)
    yield ".SH OPTIONS"
    found = re.findall(r"^  (-\S.*?)(?:  +|\n {8,})(\S.*(?:\n {8,}\S.*)*)", daemon.parser().format_help(), re.MULTILINE)
    yield from _rows((words, " ".join(said.split())) for words, said in found)
    yield ".SH EXIT STATUS"
    yield from _rows(DAEMON_STATUSES)
    yield ".SH FILES"
    yield from _rows(
        [
            ("/etc/pivotd/pivotd.toml", "The configuration."),
            ("/var/lib/pivotd/journal.db", "The journal: which image holds the data of each disk."),
            ("/run/pivotd/pivotd.sock", "Where pivotd listens."),
        ]
    )
    yield from _end("pivotd")


def pivotd_toml() -> Iterator[str]:
    """Yield the page of the configuration: the example that is shipped, with its comments as text."""
    yield from _head("pivotd.toml", "5", "configuration of pivotd")
    yield ".SH DESCRIPTION"
    yield from _paragraphs(TOML)
    yield ".SH KEYS"
    said: list[str] = []
    for line in EXAMPLE_TOML.read_text().split("\n\n", 1)[1].splitlines():
        table, key = re.fullmatch(r"#?(\[[\w.]+\])", line), re.fullmatch(r"#?([a-z_]+ = .*)", line)
        if table:
            yield f".SS {_text(table[1])}"
        if table and said:
            yield from _paragraphs(" ".join(said))
        if key:
            yield from (".TP", _bold(key[1]), _text(" ".join(said)) or ".br")
        if table or key or not line:
            said = []
        elif line.startswith("#"):
            said.append(line.lstrip("# "))
    yield from _end("pivotd.toml")


def _command(root: click.Context, path: tuple[str, ...]) -> Iterator[str]:
    """Yield what the help of a command says."""
    context = root
    for name in path:
        found = below(context, name)
        assert found is not None, path
        context = found
    command = context.command
    pieces = " ".join(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")
    yield f".SS {_text(context.command_path)} {_text(pieces)}".rstrip()
    yield from _paragraphs(command.help or "")
    yield from _options(command, context)
    if isinstance(command, ExampleCommand) and command.examples:
        yield ".PP"
        yield "For example:"
        yield from (".PP", ".nf", *(_bold(example) for example in command.examples), ".fi")


def _paths(usage: str) -> Iterator[tuple[str, ...]]:
    """Yield the commands of a line of the help, as ``("pivot", "ls")``."""
    for part in usage.split(" | "):
        words = [word for word in part.split() if word[0].isalpha() and word.islower() and "|" not in word]
        yield tuple(words)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    records = (parameter.get_help_record(context) for parameter in command.get_params(context))
    known = (record for record in records if record is not None and record[1])
    yield from _rows(record for record in known if context.parent is None or "--help" not in record[0])


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, said in rows:
        yield from (".TP", _bold(name), _text(said))


def _head(name: str, section: str, purpose: str) -> Iterator[str]:
    at = datetime.fromtimestamp(int(environ.get("SOURCE_DATE_EPOCH", "0")) or datetime.now(UTC).timestamp(), UTC)
    yield f'.TH {name.upper()} {section} {at:%Y-%m-%d} "pivotd {__version__}"'
    yield ".SH NAME"
    yield f"{name} \\- {_text(purpose)}"


def _end(name: str) -> Iterator[str]:
    yield ".SH SEE ALSO"
    pages = SEE[name]
    yield ",\n".join(f".BR {page.partition('(')[0]} ({page.partition('(')[2]}" for page in pages).replace(",\n", " ,\n")


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _bold(text: str) -> str:
    return f"\\fB{_text(text, quoted=False)}\\fR"


def _text(text: str, *, quoted: bool = True) -> str:
    """Return text for troff, in short lines: nothing in it is a request, and an option keeps its hyphen."""
    safe = text.replace("\\", "\\e").replace("-", "\\-")
    for char, name in (("'", "aq"), ("^", "ha"), ("~", "ti"), ('"', "dq")):
        safe = safe.replace(char, f"\\({name}")
    if not quoted:
        return safe
    safe = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", safe)
    lines = textwrap.wrap(safe, LINE_LENGTH_MAX, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in lines)


if __name__ == "__main__":
    main()
