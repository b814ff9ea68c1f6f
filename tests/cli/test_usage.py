"""Help that is complete, and command lines that make no sense."""

from __future__ import annotations

import click
import pytest

from pivotd.cli.help import EXIT_STATUSES, SECTIONS
from pivotd.cli.main import cli
from tests.cli.ctl import complaint, ctl

WIDTH = 80


def leaves(group: click.Group, prefix: str = "") -> list[str]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        path = f"{prefix}{name}"
        found += leaves(command, f"{path} ") if isinstance(command, click.Group) else [path]
    return found


def test_help_names_every_command() -> None:
    """The first page names every command there is and no other."""
    rows = [usage for _, rows in SECTIONS for usage, _ in rows]
    shown = [
        " ".join(word for word in part.split() if word.islower() and word[0].isalpha())
        for row in rows
        for part in row.split(" | ")
    ]
    twice = {"pivot cancel", "pivot complete", "pivot wait"}
    assert sorted({*shown} - {"verdict accept"}) == sorted({*leaves(cli)} - twice)
    assert twice <= {*leaves(cli)}


def test_help_fits() -> None:
    """Help is on stdout with status 0, fits a terminal of 80 columns and explains every exit status."""
    answer = ctl("--help")
    assert (answer.status, answer.stderr) == (0, "")
    assert max(map(len, answer.stdout.splitlines())) <= WIDTH
    assert [status for status, _ in EXIT_STATUSES] == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "130"]
    assert all(why in answer.stdout for _, why in EXIT_STATUSES)


@pytest.mark.parametrize("path", leaves(cli))
def test_help_of_each_command(path: str) -> None:
    """Each command has help with a promise in its first line and no foreign words."""
    command: click.Command = cli
    for name in path.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    text = command.get_help(click.Context(command, info_name=path))
    assert command.help
    assert not {"vm", "drive", "task"} & set(text.lower().split())


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["bogus"], "'bogus'"),
        (["copy", "web1"], "DISK=IMAGE"),
        (["copy", "web1", "disk0"], "'disk0' is not DISK=IMAGE"),
        (["copy", "web1", "disk0=a", "disk0=b"], "disk disk0 is named twice"),
        (["copy", "web1", "disk0=a", "disk1=a"], "is named twice"),
        (["copy", "web1", "disk0=a", "--attempts", "0"], "--attempts"),
        (["copy", "web1", "disk0=a", "--max-pause", "soon"], "'soon'"),
        (["domain", "add", "web1"], "--qmp"),
        (["report", "--since", "1h", "-o", ""], "'-o' / '--output': must not be empty"),
        (["--format", "", "pivot", "ls"], "--format must not be empty"),
        (["verdict", "web1", "--image", "/a"], "not both"),
        (["verdict", ""], "must not be empty"),
        (["events", "--after", "-1"], "--after"),
        (["--offline", "/nowhere", "events", "--event", ""], "'--event': must not be empty"),
        (["--offline", "/nowhere", "copy", "web1", "disk0=a"], "`copy` needs the daemon"),
        (["--offline", "/nowhere", "pivot", "wait", "X"], "`pivot wait` needs the daemon"),
        (["--offline", "/nowhere", "events", "--follow"], "needs the daemon"),
    ],
)
def test_usage(arguments: list[str], needle: str) -> None:
    """A command line that makes no sense gives one line that names the mistake, and status 2."""
    answer = ctl(*arguments)
    assert (answer.status, answer.stdout) == (2, "") or "--json" in arguments
    assert answer.status == 2
    assert needle in (answer.json["error"]["message"] if "--json" in arguments else complaint(answer))


def test_no_command() -> None:
    """Without a command there is help, and status 2."""
    answer = ctl()
    assert answer.status == 2
    assert "Examples:" in answer.stderr


def test_usage_json() -> None:
    """With ``--json`` a usage error is a document on stdout."""
    answer = ctl("--json", "bogus")
    assert (answer.status, answer.stderr) == (2, "")
    assert answer.json["error"]["kind"] == "usage"


def test_not_utf8() -> None:
    """An argument that is not UTF-8 cannot go into JSON and is refused in words."""
    answer = ctl("verdict", b"\xff")
    assert answer.status == 2
    assert complaint(answer) == r"'\xff' is not UTF-8: give a name that is, or for a path a link with such a name"


def test_version() -> None:
    """``--version`` says the version."""
    assert ctl("--version").stdout.startswith("pivotctl 0")
