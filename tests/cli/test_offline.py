"""Answers from the journal alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome, Phase, Pivot
from pivotd.journal.journal import Journal
from tests.cli.ctl import Answer, complaint, ctl
from tests.journal.samples import make_pivot

AT = "2226-11-23T09:00:01.000000Z"
"""Later than the images are made: a file that is made after a pivot is none of its images."""


async def _fill(state_dir: Path) -> None:
    journal = Journal.open(state_dir)
    await journal.add_domain("web9", "/run/web9.qmp", 0)
    for number, outcome in ((1, Outcome.SWITCHED), (2, Outcome.UNKNOWN), (3, None)):
        sample = make_pivot(number, images=str(state_dir.parent))
        for disk in sample.disks:
            Path(disk.source.filename).touch()
            Path(disk.destination.filename).touch()
        pivot, _ = await journal.accept(sample, {})
        if outcome is not None:
            await _decide(journal, pivot, outcome)
    await journal.close()


async def _decide(journal: Journal, pivot: Pivot, outcome: Outcome) -> None:
    disks = tuple(replace(disk, outcome=outcome) for disk in pivot.disks)
    decided: dict[str, Any] = {"disks": disks, "decided_at": AT, "error": "see\nthere"}
    pivot = await journal.advance(pivot, outcome.value, {"seen": "it"}, phase=Phase.DECIDED, **decided)
    await journal.advance(pivot, "closed", {}, phase=Phase.CLOSED, closed_at=AT)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "state"
    path.mkdir()
    asyncio.run(_fill(path))
    return path


def offline(state_dir: Path, *arguments: str) -> Answer:
    return ctl("--offline", state_dir, "--json", *arguments)


def test_verdict(state_dir: Path) -> None:
    """A disk that was named gives one object, in the public shape."""
    answer = offline(state_dir, "verdict", "web1", "disk1")
    assert answer.status == 0
    expected = {
        "domain": "web1",
        "disk": "disk1",
        "outcome": "switched",
        "certain": True,
        "pivot": "P0001",
        "since": AT,
    }
    assert (
        answer.json.items()
        >= {**expected, "image": f"{state_dir.parent}/destination1.qcow2", "format": "qcow2"}.items()
    )
    assert answer.json["reason"]
    assert answer.json["evidence"]


def test_unknown_verdict(state_dir: Path) -> None:
    """One unknown verdict among those shown is exit status 6."""
    answer = offline(state_dir, "verdict")
    assert answer.status == 6
    assert [(row["disk"], row["certain"]) for row in answer.json] == [
        ("disk1", True),
        ("disk2", False),
        ("disk3", True),
    ]


def test_open_pivot_is_the_source(state_dir: Path) -> None:
    """Without a durable outcome the verdict is the source."""
    answer = offline(state_dir, "verdict", "web1", "disk3")
    assert (answer.json["outcome"], answer.json["image"]) == ("kept", f"{state_dir.parent}/source3.qcow2")


def test_disk_without_pivot(state_dir: Path) -> None:
    """A disk that the journal does not know has no outcome and no image."""
    answer = offline(state_dir, "verdict", "web1", "disk7")
    assert answer.status == 0
    assert (answer.json["outcome"], answer.json["image"], answer.json["certain"]) == (None, None, True)
    mistyped = offline(state_dir, "image", "web7", "disk7")
    assert (mistyped.status, mistyped.json["error"]["kind"]) == (4, "not-found")


@pytest.mark.parametrize("side", ["source", "destination"])
def test_verdict_by_image(state_dir: Path, side: str) -> None:
    """Both images of a pivot lead to the disk's verdict."""
    answer = offline(state_dir, "verdict", "--image", f"{state_dir.parent}/./{side}1.qcow2")
    standing = "current" if side == "destination" else "stale"
    right = f"{state_dir.parent}/destination1.qcow2"
    assert [(row["image"], row["standing"]) for row in answer.json] == [(right, standing)]


def test_verdict_by_strange_image(state_dir: Path) -> None:
    """Of an image that no pivot knows nothing is claimed, with a status of its own."""
    answer = offline(state_dir, "verdict", "--image", "/images/other.qcow2")
    assert (answer.status, answer.json) == (7, [])


def test_pivot_ls(state_dir: Path) -> None:
    """Pivots are newest first, and can be narrowed to the open ones and to a domain."""
    assert [row["id"] for row in offline(state_dir, "pivot", "ls").json] == ["P0003", "P0002", "P0001"]
    assert [row["id"] for row in offline(state_dir, "pivot", "ls", "--open").json] == ["P0003"]
    assert offline(state_dir, "pivot", "ls", "--domain", "web9").json == []


def test_pivot_show(state_dir: Path) -> None:
    """A pivot is shown by its id or its request id, with all its records."""
    shown = offline(state_dir, "pivot", "show", "P0001").json
    assert shown == offline(state_dir, "pivot", "show", "request-1").json
    assert [record["event"] for record in shown["records"]] == ["accepted", "switched", "closed"]
    keys = {"id", "request_id", "domain", "kind", "phase", "outcome", "requested_by", "disks", "pause_ms", "pauses"}
    assert shown.keys() >= keys | {"created", "closed", "error", "records"}


def test_no_such_pivot(state_dir: Path) -> None:
    """A pivot that is not there is exit status 4."""
    assert offline(state_dir, "pivot", "show", "P9999").status == 4


def test_domains(state_dir: Path) -> None:
    """The domains that the journal knows, with their open pivots, in the daemon's shape."""
    rows = offline(state_dir, "domain", "ls").json
    assert [(row["name"], row["connection"], row["open_pivots"]) for row in rows] == [
        ("web1", None, ["P0003"]),
        ("web9", None, []),
    ]


def test_events(state_dir: Path) -> None:
    """Events are one document per line, from any sequence number on."""
    rows = offline(state_dir, "events").rows
    numbers = [row["seq"] for row in rows]
    assert numbers == sorted(set(numbers))
    assert offline(state_dir, "events", "--after", str(numbers[2])).rows == rows[3:]


@pytest.mark.parametrize("command", ["verdict", "verdict web1", "pivot ls", "pivot show P0002", "domain ls", "events"])
def test_plain(state_dir: Path, command: str) -> None:
    """Without ``--json`` each answer is plain lines: no colour, no trailing space, nothing on stderr."""
    answer = ctl("--offline", state_dir, *command.split())
    assert answer.stderr == ""
    assert "\x1b" not in answer.stdout
    assert all(line == line.rstrip() for line in answer.stdout.splitlines())


def test_nothing_is_changed(state_dir: Path) -> None:
    """Reading leaves the directory as it was."""
    before = [(path.name, path.stat().st_mtime_ns) for path in sorted(state_dir.iterdir())]
    offline(state_dir, "verdict")
    assert [(path.name, path.stat().st_mtime_ns) for path in sorted(state_dir.iterdir())] == before


def test_no_journal(tmp_path: Path) -> None:
    """A directory without journal: status 4, and none is made."""
    answer = ctl("--offline", tmp_path, "verdict")
    assert answer.status == 4
    assert "there is no journal" in complaint(answer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pipe", "directory"])
def test_a_pipe_is_no_journal(tmp_path: Path, name: str) -> None:
    """Status 4 at once: nobody would ever write to it."""
    pipe, directory = tmp_path / "pipe", tmp_path / "directory"
    directory.mkdir()
    os.mkfifo(pipe)
    os.mkfifo(directory / "journal.db")
    for words in (["verdict"], ["image", "web1", "disk0"], ["doctor"]):
        answer = ctl("--offline", tmp_path / name, *words)
        assert (answer.status, "no file" in answer.stdout + answer.stderr) == (8 if words == ["doctor"] else 4, True)


@pytest.fixture
def of_pivotd(state_dir: Path) -> Iterator[Path]:
    """A state directory as the shipped unit makes it, with files as the daemon makes them, and open to a group."""
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        Path(name).chmod(0o755)
        path = shutil.copytree(state_dir, Path(name) / "state")
        for file in path.iterdir():
            file.chmod(0o640)
            os.chown(file, 1, 2)
        path.chmod(0o750)
        os.chown(path, 1, 2)
        yield path


COMMANDS = [
    ("verdict",),
    ("verdict", "--image", "/a"),
    ("verdict", "web1", "disk1"),
    ("image", "web1", "disk1"),
    ("image", "web1", "--all"),
    ("guard", "web1", "disk1=/a"),
    ("stale",),
    ("domain", "ls"),
    ("pivot", "ls"),
    ("pivot", "show", "P0001"),
    ("events",),
]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_directory_that_is_closed(of_pivotd: Path, command: tuple[str, ...]) -> None:
    """Names the directory, who may look into it, and what to do; refused, which is no word on any image."""
    answer = ctl("--offline", of_pivotd, *command, ids=(65534, 65534))
    said = complaint(answer)
    assert (answer.status, answer.stdout) == (4, "")
    assert f"you may not enter {of_pivotd}" in said
    assert "only root, daemon and members of the group bin may (owner daemon:bin, mode 0750)" in said
    assert "usermod -aG bin" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("file", ["journal.db", "journal.lock"])
def test_a_file_that_is_closed(of_pivotd: Path, file: str) -> None:
    """The same for each file of the journal; somebody of the group may read the others."""
    assert ctl("--offline", of_pivotd, "domain", "ls", ids=(65534, 2)).status == 0
    (of_pivotd / file).chmod(0o600)
    answer = ctl("--offline", of_pivotd, "--json", "domain", "ls", ids=(65534, 2))
    assert (answer.status, answer.json["error"]["kind"]) == (4, "journal-not-allowed")
    assert answer.json["error"]["path"] == str(of_pivotd / file)
    assert f"you may not read {of_pivotd / file}" in answer.json["error"]["message"]
    assert "only root and daemon may" in answer.json["error"]["message"]


def test_a_closed_directory_further_up(of_pivotd: Path) -> None:
    """The directory that is closed is named, not the one that was asked for."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    of_pivotd.parent.chmod(0o700)
    answer = ctl("--offline", of_pivotd, "verdict", ids=(65534, 65534))
    assert answer.status == 4
    assert f"you may not enter {of_pivotd.parent}, so the journal" in complaint(answer)


def test_a_file_that_cannot_be_used_is_no_broken_answer(tmp_path: Path) -> None:
    """Only an error of stdout has status 1."""
    answer = ctl("--offline", tmp_path / ("x" * 300), "verdict")
    assert answer.status == 4
    assert "cannot be written" not in complaint(answer)
