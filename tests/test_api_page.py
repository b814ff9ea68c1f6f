"""docs/api.md: its programs are run against a real daemon, its tables compared with the code."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd.api.routes import ROUTES
from pivotd.cli.help import EXIT_STATUSES
from pivotd.client import daemon_client
from pivotd.client.requests import NewPivot
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def blocks(language: str) -> list[str]:
    """Return the examples of the page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="pp") as name:
        directory = Path(name)
        (directory / "new").mkdir()
        disk = Disk(create_image(directory / "web1.qcow2"))
        with Qemu(directory, [disk]) as qemu, Daemon(directory, {"web1": qemu.qmp}) as daemon:
            yield daemon


def run(daemon: Daemon, *command: str) -> str:
    environment = {**os.environ, "PIVOTCTL_SOCKET": str(daemon.socket)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.mark.qemu
def test_the_programs_do_what_they_say(daemon: Daemon):
    """The disk is moved, and run again the first program finds its pivot; the second one follows until it is closed."""
    move, follow = blocks("python")
    move = move.replace("/new/", f"{daemon.directory}/new/")
    said = run(daemon, sys.executable, "-W", "error", "-c", move)
    assert said.startswith("switched, the guest was paused for ")
    assert f"the data of disk0 is in {daemon.directory}/new/web1.qcow2" in said
    assert run(daemon, sys.executable, "-W", "error", "-c", move) == said
    assert run(daemon, sys.executable, "-W", "error", "-c", follow).splitlines()[-1].split()[2] == "closed"


@pytest.mark.qemu
@pytest.mark.parametrize("line", "".join(blocks("sh")).splitlines())
def test_the_lines_with_curl_are_answered(daemon: Daemon, line: str):
    """JSON, and no complaint."""
    if subprocess.run(["sh", "-c", "command -v curl"], capture_output=True, check=False).returncode:
        pytest.skip("there is no curl")
    assert run(daemon, "sh", "-c", line)[0] in "[{"


def test_the_client_can_do_what_the_api_can():
    """Each route is asked by a method of it; the document of the routes alone is for generators of other clients."""
    asked = set(re.findall(r"\"(/(?:v1|metrics)[^\"?]*)", inspect.getsource(daemon_client)))
    verbs = {target.replace("{request.verb}", kind.verb) for target in asked for kind in NewPivot.__subclasses__()}
    patterns = [re.sub(r"{[^}]*}", "{[a-z]+}", target) for target in verbs]
    missed = [one.path for one in ROUTES if not any(re.fullmatch(pattern, one.path) for pattern in patterns)]
    assert missed == ["/v1/openapi.json"]


def test_the_exit_statuses_are_those_of_the_help():
    """Each once, in the same words."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    assert rows == list(EXIT_STATUSES)
