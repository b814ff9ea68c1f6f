"""The real pivotctl with the real daemon and a real QEMU."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Bench
from tests.cli.ctl import COMMAND, REPOSITORY, Answer, complaint, ctl, environment, interrupt, start
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

pytestmark = pytest.mark.qemu


def test_domain_ls(bench: Bench) -> None:
    """A connected domain is shown with its run state and QEMU's version."""
    (row,) = bench.json("domain", "ls").json
    assert (row["name"], row["connection"], row["run_state"]) == ("web1", "connected", "running")
    assert row["qemu_version"] in bench.ctl("domain", "show", "web1").stdout


def test_domain_add_and_rm(bench: Bench, tmp_path: Path) -> None:
    """A domain is added with an absolute path from a relative one, and forgotten again."""
    added = bench.json("domain", "add", "web2", "--qmp", "none.qmp")
    assert (added.status, added.json["qmp"]) == (0, str(Path.cwd() / "none.qmp"))
    assert bench.ctl("domain", "rm", "web2").status == 0
    assert bench.json("domain", "show", "web2").json["error"]["kind"] == "not-found"


def test_disk_ls(bench: Bench) -> None:
    """Every disk is shown with its image, node and size."""
    rows = bench.json("disk", "ls", "web1").json
    assert [(row["disk"], row["format"], row["size_bytes"]) for row in rows] == [
        ("disk0", "qcow2", 64 << 20),
        ("disk1", "qcow2", 64 << 20),
    ]
    assert rows[0]["image"] in bench.ctl("disk", "ls", "web1").stdout


def test_copy(bench: Bench) -> None:
    """A copy waits until the disk has switched: status 0, the outcome on stdout, QEMU on the new image."""
    image = bench.image()
    answer = bench.ctl("copy", "web1", f"disk0={image}")
    assert answer.status == 0
    assert answer.stdout.startswith(f"web1 disk0: switched, its data is in {image}\n")
    assert bench.qemu.root("disk0").filename == str(image)


def test_copy_json(bench: Bench) -> None:
    """With ``--json`` a copy gives one document, the pivot at its end, and nothing on stderr."""
    answer = bench.json("copy", "web1", f"disk0={bench.image()}", f"disk1={bench.image()}")
    assert (answer.status, answer.stderr) == (0, "")
    assert (answer.json["phase"], answer.json["outcome"]) == ("closed", "switched")
    assert answer.json["pause_ms"] > 0


def test_same_request_id(bench: Bench) -> None:
    """The same request id gives the same pivot, at any time; another request under it is refused."""
    image = bench.image()
    first = bench.json("copy", "web1", f"disk0={image}", "--id", "move-1")
    assert bench.json("copy", "web1", f"disk0={image}", "--id", "move-1").json == first.json
    assert bench.json("copy", "web1", f"disk0={bench.image()}", "--id", "move-1").status == 4


def test_detach(bench: Bench) -> None:
    """``--detach`` returns at once with the pivot, which can be waited for by its request id."""
    answer = bench.ctl("copy", "web1", f"disk0={bench.image()}", "--detach", "--id", "move-2")
    assert answer.status == 0
    assert "`pivotctl pivot wait " in answer.stdout
    assert bench.json("pivot", "wait", "move-2").json["outcome"] == "switched"


def test_no_pivot_and_complete(bench: Bench) -> None:
    """``--no-pivot`` ends at ready with status 0; ``pivot complete`` switches."""
    pivot = bench.at_ready()
    assert bench.ctl("pivot", "wait", pivot).status == 0
    answer = bench.json("pivot", "complete", pivot)
    assert (answer.status, answer.json["outcome"]) == (0, "switched")


def test_cancel(bench: Bench) -> None:
    """A cancelled pivot keeps the source: ``cancel`` is done, who waits for it gets status 5."""
    pivot = bench.at_ready()
    assert bench.ctl("pivot", "cancel", pivot).status == 0
    answer = bench.ctl("pivot", "wait", pivot)
    assert answer.status == 5
    assert "kept the source" in complaint(answer)


def test_too_late(bench: Bench) -> None:
    """A pivot that has switched cannot be cancelled or completed: status 4."""
    pivot = bench.json("copy", "web1", f"disk0={bench.image()}").json["id"]
    assert bench.ctl("pivot", "cancel", pivot).status == 4
    assert bench.json("pivot", "complete", pivot).json["error"]["kind"] == "phase-conflict"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["copy", "web9", "disk0=/x"], "not-found"),
        (["copy", "web1", "disk9=/x"], "not-found"),
        (["disk", "ls", "web9"], "not-found"),
        (["pivot", "show", "X"], "not-found"),
        (["pivot", "wait", "X"], "not-found"),
        (["pivot", "show", "../domains"], "not-found"),
        (["verdict", "web1", "disk9"], "not-found"),
        (["domain", "rm", "web1"], "conflict"),
    ],
)
def test_refused(bench: Bench, arguments: list[str], kind: str) -> None:
    """A refusal is status 4 with a stable kind, and nothing was started."""
    answer = bench.json(*arguments)
    assert (answer.status, answer.json["error"]["kind"]) == (4, kind)
    assert answer.json["error"]["message"]


def test_pivot_show(bench: Bench) -> None:
    """A pivot is shown with every record, in order, for people and for programs."""
    pivot = bench.json("copy", "web1", f"disk0={bench.image()}").json["id"]
    records = bench.json("pivot", "show", pivot).json["records"]
    assert [record["seq"] for record in records] == sorted(record["seq"] for record in records)
    assert {"accepted", "pausing", "switched", "closed"} <= {record["event"] for record in records}
    assert records[-1]["at"] in bench.ctl("pivot", "show", pivot).stdout


def test_verdict(bench: Bench) -> None:
    """The verdict names the image that QEMU uses, by disk and by image."""
    image = bench.image()
    bench.ctl("copy", "web1", f"disk0={image}")
    verdict = bench.json("verdict", "web1", "disk0")
    assert (verdict.status, verdict.json["image"], verdict.json["certain"]) == (0, str(image), True)
    (found,) = bench.json("verdict", "--image", image).json
    assert found.items() >= {**verdict.json, "standing": "current", "asked": str(image)}.items()
    assert str(image) in bench.ctl("verdict").stdout


def test_events_are_pages(bench: Bench) -> None:
    """Events without ``--follow`` end, and ``--after`` goes on where the last call ended."""
    pivot = bench.at_ready()
    bench.ctl("pivot", "cancel", pivot)
    bench.ctl("pivot", "wait", pivot)
    rows = bench.json("events").rows
    assert bench.json("events", "--after", str(rows[-2]["seq"])).rows == rows[-1:]


def test_broken_pipe(bench: Bench) -> None:
    """A reader that goes away ends the client without a word."""
    bench.ctl("pivot", "cancel", bench.at_ready())
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "--socket", str(bench.daemon.socket), "events"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment(), check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_full_disk_under_stdout(bench: Bench) -> None:
    """The exit status tells of the pivot also where its answer cannot be written."""
    pivot = bench.at_ready()
    bench.ctl("pivot", "cancel", pivot)
    command = [*COMMAND, "--socket", str(bench.daemon.socket), "--json", "pivot", "wait", pivot]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(), check=False)
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr


def test_names_in_a_locale_that_is_not_utf8() -> None:
    """The daemon and pivotctl look at the file that QEMU has, and print its name as it is."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        directory, place = Path(name), Path(name) / "größe"
        place.mkdir()
        command = [sys.executable, "-m", "pivotd.daemon"]
        env = {"PYTHONPATH": str(REPOSITORY), **locale}
        daemon = Daemon(directory, {"web1": directory / "web1.qmp"}, command=command, environment=env)
        with Qemu(directory, [Disk(create_image(place / "a.qcow2"))]), daemon:
            new = place / "b.qcow2"
            made = ctl("--socket", daemon.socket, "copy", "web1", f"disk0={new}", env=locale)
            assert (made.status, new.exists()) == (0, True), made
            right = ctl("--socket", daemon.socket, "image", "web1", "disk0", env=locale)
            assert right == Answer(0, f"{new}\n", "")
            stale = ctl("--socket", daemon.socket, "stale", "-q", env=locale)
            assert stale == Answer(0, f"{place / 'a.qcow2'}\n", "")


LOOKS = (
    ("verdict",),
    ("verdict", "web1", "disk0"),
    ("stale",),
    ("doctor", "--ignore", "pivot-waits"),
    ("journal", "stats"),
    ("evacuate", "--from", "/usr", "--to", "/tmp", "--dry-run"),
)
"""Commands that find nothing wrong here, and do nothing but answer."""


def _unwritten(bench: Bench, *words: str, closed: bool = False) -> tuple[int, str]:
    """Return the status and stderr of a command whose stdout is full, or closed."""
    shell = 'exec "$@" >&-' if closed else 'exec "$@" >/dev/full'
    command = ["sh", "-c", shell, "sh", *COMMAND, "--socket", str(bench.daemon.socket), *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    return done.returncode, done.stderr.removeprefix("pivotctl: the answer cannot be written: ")


def test_an_answer_that_cannot_be_written(bench: Bench) -> None:
    """A command that only looks has then done nothing: status 1, and never 0."""
    pivot = bench.at_ready()
    bench.ctl("pivot", "cancel", pivot)
    bench.ctl("pivot", "wait", pivot)
    for words in LOOKS:
        assert _unwritten(bench, *words) == (1, "No space left on device\n"), words
    for words in (("verdict",), ("domain", "ls", "--json"), ("report", "--since", "1h", "-o", "-"), ("--help",)):
        assert _unwritten(bench, *words, closed=True) == (1, "Bad file descriptor\n"), words


def test_an_error_that_cannot_be_written(bench: Bench) -> None:
    """The status is that of the error, as it would be if stdout took the document."""
    assert _unwritten(bench, "--json", "domain", "show", "nope") == (4, "No space left on device\n")
    assert _unwritten(bench, "domain", "show", "nope", closed=True) == (4, bench.ctl("domain", "show", "nope").stderr)


def test_a_time_that_has_passed(bench: Bench) -> None:
    """It is not waited for, and not said to be."""
    place = bench.directory / "empty"
    place.mkdir()
    answer = bench.ctl("evacuate", "--from", place, "--to", bench.directory, "--at", "2026-01-31T22:00+00:00")
    assert (answer.status, complaint(answer)) == (0, "2026-01-31 22:00 UTC has passed: beginning now")


def test_interrupt(bench: Bench) -> None:
    """Ctrl-C ends the waiting with status 130, says how to go on, and the pivot runs on."""
    image, slow = bench.image(), ["--bandwidth", "64K"]
    bench.qemu.spy(
        "human-monitor-command",
        {"command-line": 'qemu-io -d /machine/peripheral/disk0/virtio-backend "write -P 7 0 16M"'},
    )
    arguments = ["copy", "web1", f"disk0={image}", *slow, "--id", "slow"]
    with start("--socket", bench.daemon.socket, *arguments) as process:
        assert process.stderr is not None
        process.stderr.readline()
        said = interrupt(process)
    pivot = bench.json("pivot", "show", "slow").json
    assert process.returncode == 130
    assert f"`pivotctl pivot cancel {pivot['id']}`" in said
    assert pivot["closed"] is None
    assert bench.ctl("pivot", "cancel", pivot["id"]).status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["domain", "add", "a b", "--qmp", "/a"], 'DOMAIN cannot be "a b": give at most 64 of A-Z'),
        (["copy", "web1", f"disk0=/{'a' * 5000}"], "(5001 characters)"),
        (["copy", "web1", "disk0=/a\nb"], 'IMAGE of disk0 cannot be "/a'),
        (["copy", "web1", f"{'d' * 300}=/a"], "DISK of disk number 1 cannot be "),
        (
            ["copy", "web1", "disk0=/a", "--max-pause", "2min"],
            "--max-pause cannot be 120000: give a whole number of mill",
        ),
        (["copy", "web1", "disk0=/a", "--secret-file", "/a\nb"], "--secret-file cannot be "),
        (["copy", "web1", "disk0=/a", "--id", "a b"], "--id must be 1 to"),
        (["copy", "web1", "disk0=/a", "-o", "version=v9"], '--option version cannot be "v9": give v2 or v3'),
        (["copy", "web1", "disk0=/a", "-o", "refcount-bits=5"], "--option refcount-bits cannot be 5: give 1, 2"),
        (
            ["copy", "web1", "disk0=/a", "-o", "preallocation=x"],
            '--option preallocation cannot be "x": give falloc, full, metadata or off',
        ),
        (["copy", "web1", "disk0=/a", "-o", "luks-iter-ms=0"], "--option luks-iter-ms cannot be 0: give a whole"),
        (["commit", "web1", "disk0", "--base", "/a\nb"], "--base of disk0 cannot be"),
        (["commit", "web1", "disk0", "--top", "/a\nb"], "--top of disk0 cannot be"),
        (["pull", "web1", ""], "DISK of disk number 1 cannot be"),
        (["pivot", "adopt", "web1", "--job", ""], "--job of disk number 1 cannot be"),
        (["verdict", "accept", "web1", "disk0", "/a", "--reason", ""], '--reason cannot be "": give one line of text'),
        (["copy", "a b", "disk0=/a"], "there is no domain a b; known are: web1"),
        (["copy", "web1", "disk9=/a"], "web1 has no disk disk9; its disks are: disk0, disk1"),
    ],
)
def test_wrong_values_are_told_in_the_words_of_the_command_line(bench: Bench, arguments: list[str], said: str) -> None:
    """The option as it was typed: no field of the API, no path in it, no regular expression; nothing was done."""
    answer = bench.ctl(*arguments)
    assert answer.status == 4
    message = complaint(answer)
    assert said in message
    assert not any(word in message for word in ("$", "regex", "Expected", "max_pause_ms", "Idempotency-Key"))


@pytest.mark.parametrize("command", [("copy",), ("pivot", "adopt")])
def test_a_format_that_pivotd_does_not_make(bench: Bench, command: tuple[str, ...]) -> None:
    """A mistake of the command line, with what there is to choose from."""
    answer = bench.ctl(*command, "web1", "disk0=/a", "--format", "vmdk")
    assert answer.status == 2
    assert "'vmdk' is not one of 'qcow2', 'raw'" in complaint(answer)


def on_terminal(bench: Bench, columns: int, *arguments: str) -> list[str]:
    """Return the lines that pivotctl writes on a terminal of this width."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    env = {**environment(), "TERM": "dumb"} | {"NO_COLOR": "1"}
    env.pop("COLUMNS", None)
    done = subprocess.run(
        [*COMMAND, "--socket", bench.daemon.socket, *arguments], stdout=its, stderr=its, env=env, check=True, timeout=60
    )
    os.close(its)
    assert done.returncode == 0
    with contextlib.closing(os.fdopen(ours, "rb", buffering=0)) as terminal:
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while chunk := terminal.read(65536):
                said += chunk
    return said.decode().splitlines()


@pytest.fixture
def away(bench: Bench) -> Iterator[str]:
    """A domain whose QEMU does not run."""
    bench.ctl("domain", "add", "away", "--qmp", "/nowhere/away.qmp")
    assert until(lambda: bench.json("domain", "show", "away").json["connection"] == "unreachable")
    yield "away"
    bench.ctl("domain", "rm", "away")


def test_domain_ls_says_why_a_domain_is_unreachable(bench: Bench, away: str) -> None:
    """In a pipe the last column, which is only there if there is something to say."""
    head, *rows = bench.ctl("domain", "ls").stdout.splitlines()
    assert head.endswith("DETAIL")
    found = {row.split()[0]: row[head.index("DETAIL") :] for row in rows}
    assert found == {away: "/nowhere/away.qmp: no such socket; is the guest running?", "web1": "-"}
    bench.ctl("domain", "rm", away)
    assert "DETAIL" not in bench.ctl("domain", "ls").stdout


@pytest.mark.parametrize("columns", [60, 80])
def test_the_reason_is_a_line_of_its_own_on_a_terminal(bench: Bench, away: str, columns: int) -> None:
    """The table stays as narrow as it was."""
    lines = on_terminal(bench, columns, "domain", "ls")
    said = " ".join(" ".join(lines).split())
    assert said.endswith(f"{away}: /nowhere/away.qmp: no such socket; is the guest running?")
    assert max(map(len, lines)) <= columns
    assert any("unreachable" in line for line in lines)


def test_disk_ls_shows_the_open_pivot_and_its_phase(bench: Bench) -> None:
    """An open pivot has kept nothing yet."""
    pivot = bench.at_ready()
    try:
        said = bench.ctl("disk", "ls", "web1").stdout
        assert f"ready: pivot {pivot} is open" in said
        assert f"kept by pivot {pivot}" not in said
        row = next(row for row in bench.json("disk", "ls", "web1").json if row["disk"] == "disk1")
        assert (row["pivot"], row["phase"]) == (pivot, "ready")
    finally:
        bench.ctl("pivot", "cancel", pivot)
    bench.ctl("pivot", "wait", pivot)
    assert f"kept by pivot {pivot}\n" in bench.ctl("disk", "ls", "web1").stdout
