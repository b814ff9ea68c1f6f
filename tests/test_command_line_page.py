"""docs/command-line.md: each line that it shows is run against a real daemon."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pivotd.cli.global_options import GlobalOption
from pivotd.cli.main import cli
from pivotd.cli.verdict_command import accept
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

PAGE = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text()
LINES = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="pp") as name:
        directory = Path(name)
        disk = Disk(create_image(directory / "web1.qcow2"))
        with Qemu(directory, [disk]) as qemu, Daemon(directory, {"web1": qemu.qmp}) as daemon:
            yield daemon


@pytest.mark.qemu
@pytest.mark.parametrize("line", LINES)
def test_each_line_is_understood(daemon: Daemon, line: str):
    """Status 0, and no complaint; one that follows the log is ended once it has."""
    environment = {
        **os.environ,
        "PIVOTCTL_SOCKET": str(daemon.socket),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ["sh", "-c", f"exec {line}"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if "--follow" in line:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)
            process.terminate()
            assert process.communicate()[1] == b""
        else:
            assert (process.communicate(timeout=60)[1], process.returncode) == (b"", 0)


@pytest.mark.parametrize("option", ["-o", "--format"])
def test_commands_that_keep_an_option_for_themselves_are_on_the_page(option: str):
    """A command whose own option hides a global one is named, and no other: there the global one goes before it."""
    commands = {**dict(_commands(cli)), "verdict accept": accept}
    own = {
        name
        for name, command in commands.items()
        if any(option in one.opts and not isinstance(one, GlobalOption) for one in command.params)
    }
    told = re.search(rf"^(.*) have a `{option}` of their own", PAGE, re.MULTILINE)
    assert told is not None
    assert {*re.findall(r"`([a-z ]+)`", told[1])} == own


def _commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{prefix}{name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")


def test_each_global_option_is_on_the_page():
    """And no form that there is not."""
    for option in (
        "`-o table`",
        "`-o json`, `--json`",
        "`-o yaml`",
        "`-o name`, `-q`",
        "`--format TEMPLATE`",
        "`--no-header`",
    ):
        assert option in PAGE
