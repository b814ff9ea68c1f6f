"""The forms of an answer: -o, --format, -q, --no-header, before the command and after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pivotd.cli.complaints import TemplateError
from pivotd.cli.main import cli
from pivotd.cli.render import text
from pivotd.cli.template import Template
from tests.cli.conftest import Bench
from tests.cli.ctl import Answer, complaint, ctl
from tests.cli.test_offline import _fill


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms") / "state"
    path.mkdir()
    asyncio.run(_fill(path))
    return path


def offline(state_dir: Path, *arguments: str) -> Answer:
    return ctl("--offline", state_dir, *arguments)


DOCUMENT: dict[str, Any] = {
    "id": "P1",
    "pause_ms": 1.25,
    "closed": None,
    "hold": False,
    "requested_by": {"uid": 7},
    "disks": [{"disk": "disk0", "stale": ["/a\n", "/b"]}, {"disk": "disk1", "stale": []}],
}


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{id}", "P1"),
        (r"{id}\t{hold}", "P1\tfalse"),
        ("{{{id}}}", "{P1}"),
        ("{id:>4}|{id:<4}|", "  P1|P1  |"),
        ("{pause_ms:6.1f}|{closed:6.1f}|{closed}|{closed:<6.1f}|", "   1.2|     -|-|-     |"),
        ("{requested_by.uid:03d}", "007"),
        ("{disks.disk}", "disk0 disk1"),
        ("{disks[1].disk} {disks[9].disk}", "disk1 -"),
        ("{disks[0].stale}", r"/a\x0a /b"),
        ("{disks[1]}", '{"disk": "disk1", "stale": []}'),
    ],
)
def test_template(template: str, line: str) -> None:
    """Fields, fields of fields, places and widths; whatever a name is, it stays on its line."""
    assert Template(template).line(DOCUMENT, text) == line


@pytest.mark.parametrize(
    ("template", "needle"),
    [
        ("{id", "expected '}'"),
        ("}", "Single '}'"),
        ("{}", "names no field"),
        ("{0}", "there is no field 0; there are id, pause_ms"),
        ("{id!r}", "!r is not known"),
        ("{id:{width}}", "has a field in its format"),
        ("{__class__}", "there is no field __class__"),
        ("{id.x}", "id has no fields"),
        ("{id[0]}", "id is no list"),
        ("{disks.nodes}", "there is no field nodes; there are disk, stale"),
        ("{id:d}", "Unknown format code 'd'"),
        ("{id:>9223372036854775807}", "too wide"),
        ("{pause_ms:zz}", "Unknown format code 'z'"),
    ],
)
def test_wrong_template(template: str, needle: str) -> None:
    """A template that is wrong, or does not suit the answer, is told with what would."""
    with pytest.raises(TemplateError, match=r"^--format ") as caught:
        Template(template).line(DOCUMENT, text)
    assert needle in caught.value.message


@pytest.mark.parametrize(
    "command", [("pivot", "ls"), ("domain", "ls"), ("verdict",), ("pivot", "show", "P0001"), ("stale",)]
)
def test_one_document_in_each_form(state_dir: Path, command: tuple[str, ...]) -> None:
    """-o json and --json are the same bytes; YAML has the same document; options count before and after the command."""
    shown = offline(state_dir, "--json", *command)
    form = {"age_s": 0.0}
    assert offline(state_dir, *command, "-o", "json").stdout == shown.stdout or command == ("stale",)
    for words in (("-o", "yaml", *command), (*command, "--output=yaml"), (command[0], "-oyaml", *command[1:])):
        document = yaml.safe_load(offline(state_dir, *words).stdout)
        if command == ("stale",):
            document, expected = ([{**one, **form} for one in many] for many in (document, shown.json))
            assert document == expected
        else:
            assert document == shown.json


def test_names(state_dir: Path) -> None:
    """-q and -o name: what a command takes as arguments, one thing on each line."""
    assert offline(state_dir, "pivot", "ls", "-q").stdout == "P0003\nP0002\nP0001\n"
    assert offline(state_dir, "-o", "name", "domain", "ls").stdout == "web1\nweb9\n"
    assert offline(state_dir, "verdict", "-q").stdout == "web1 disk1\nweb1 disk2\nweb1 disk3\n"
    assert offline(state_dir, "events", "-q").stdout.split() == [str(seq) for seq in range(1, 9)]
    image = offline(state_dir, "image", "web1", "disk1").stdout
    assert offline(state_dir, "image", "web1", "disk1", "-q").stdout == image


def test_lines_by_template(state_dir: Path) -> None:
    """One line for each, in lists, in single answers and in streams."""
    assert (
        offline(state_dir, "pivot", "ls", "--format", "{id} {outcome}").stdout
        == "P0003 -\nP0002 unknown\nP0001 switched\n"
    )
    assert offline(state_dir, "--format", "{request_id}", "pivot", "show", "P0002").stdout == "request-2\n"
    assert offline(state_dir, "events", "--format", "{seq} {event}").stdout.splitlines()[:2] == [
        "1 domain-added",
        "2 accepted",
    ]


def test_events_in_yaml(state_dir: Path) -> None:
    """A stream is one document for each record."""
    assert (
        list(yaml.safe_load_all(offline(state_dir, "events", "-o", "yaml").stdout))
        == offline(state_dir, "events", "--json").rows
    )


def test_without_header(state_dir: Path) -> None:
    """--no-header leaves the rows."""
    headed = offline(state_dir, "pivot", "ls").stdout.splitlines()
    bare = offline(state_dir, "pivot", "ls", "--no-header").stdout.splitlines()
    assert [line.split() for line in bare] == [line.split() for line in headed[1:]]
    assert offline(state_dir, "pivot", "ls", "--domain", "none", "--no-header").stdout == ""


def test_the_last_form_counts(state_dir: Path) -> None:
    """An alias with a form of its own can be overruled on the command line."""
    assert offline(state_dir, "--json", "pivot", "ls", "-q").stdout == "P0003\nP0002\nP0001\n"
    assert offline(state_dir, "-q", "pivot", "ls", "--json").json


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (("pivot", "ls", "--format", "{ide}"), "there is no field ide; there are id, request_id"),
        (("--format", "{id", "pivot", "ls"), "expected '}'"),
        (("pivot", "ls", "-o", "xml"), "'xml' is not one of 'table', 'json', 'yaml', 'name'"),
        (("pivot", "ls", "-o"), "requires an argument"),
    ],
)
def test_wrong_form(state_dir: Path, words: tuple[str, ...], needle: str) -> None:
    """One line and status 2."""
    answer = offline(state_dir, *words)
    assert (answer.status, answer.stdout) == (2, "")
    assert needle in complaint(answer)


def test_errors_in_each_form(state_dir: Path) -> None:
    """With a document, an error is one too, also if click has not read that far; else it is one line on stderr."""
    for words in (("pivot", "show", "X", "-o", "json"), ("--json", "pivot", "show", "X")):
        answer = offline(state_dir, *words)
        assert (answer.status, answer.json["error"]["kind"]) == (4, "not-found")
    assert yaml.safe_load(offline(state_dir, "pivot", "show", "X", "-o", "yaml").stdout)["error"]["kind"] == "not-found"
    for words in (("pivot", "ls", "--bogus", "--json"), ("bogus", "-o", "json"), ("pivot", "show", "--output=json")):
        answer = offline(state_dir, *words)
        assert (answer.status, answer.json["error"]["kind"]) == (2, "usage")
    assert complaint(offline(state_dir, "pivot", "show", "X", "-q"))


def test_what_was_uncertain_stays_so(state_dir: Path) -> None:
    """The exit status of the answer holds, whatever the template makes of it."""
    assert offline(state_dir, "verdict", "--format", "{image}").status == 6
    assert offline(state_dir, "verdict", "--format", "{ima}").status == 6


def test_nothing_is_started_for_a_template_that_fits_no_pivot(bench: Bench) -> None:
    """The template is checked before the request is sent."""
    for words in (
        ("copy", "web1", f"disk0={bench.image()}"),
        ("pivot", "undo", "X"),
        ("verdict", "accept", "a", "b", "/c", "--reason", "x"),
    ):
        answer = bench.ctl("--format", "{ide}", *words)
        assert answer.status == 2
        assert "there is no field ide" in complaint(answer)
    assert bench.ctl("pivot", "ls", "-q").stdout == ""


def test_a_copy_in_each_form(bench: Bench) -> None:
    """-q prints the id alone, and no progress; a command with a --format of its own takes the other one before it."""
    quiet = bench.ctl("copy", "web1", f"disk0={bench.image()}", "-q")
    assert (quiet.status, quiet.stderr) == (0, "")
    assert quiet.stdout == bench.ctl("pivot", "ls", "-q").stdout
    made = bench.ctl(
        "--format", "{disks.destination_format} {outcome}", "copy", "web1", f"disk0={bench.image()}", "--format", "raw"
    )
    assert (made.status, made.stdout, made.stderr) == (0, "raw switched\n", "")


def _commands(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, f"{path} {name}".strip())


def test_the_help_has_the_global_options_once() -> None:
    """On the first page, and not again in the help of each command."""
    assert "--no-header" in ctl("--help").stdout
    assert "--no-header" not in ctl("domain", "ls", "--help").stdout


def test_every_command_takes_the_global_options() -> None:
    """Each command knows each global option, or has an option of its own of that name."""
    for path, command in _commands(cli):
        words = {word for parameter in command.params for word in parameter.opts}
        assert words >= {"--json", "-o", "--output", "--format", "-q", "--no-header", "--socket", "--offline"}, path
