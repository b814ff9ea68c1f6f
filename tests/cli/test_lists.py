"""Lists of pivots and records: filters, names by their beginning, what is cut off, and what a narrow terminal shows."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pivotd.cli import fitting
from pivotd.cli.since import Since
from pivotd.core.list_filters import journal_time
from pivotd.core.pivot import Outcome, Phase
from pivotd.core.request import Kind
from pivotd.journal.journal import Journal
from tests.cli.conftest import Bench
from tests.cli.ctl import COMMAND, Answer, complaint, ctl, environment, start
from tests.journal.samples import make_pivot

ULID = "01M8NAXQRJXN3VPV4GA8Z8T1{:02}"
PIVOTS = 12


async def _fill(state_dir: Path) -> None:
    journal = Journal.open(state_dir)
    for number in range(PIVOTS):
        sample = make_pivot(number, domain="web1" if number % 3 else "db1", images="/srv/images/of-guests")
        outcome = Outcome.UNKNOWN if number == 4 else Outcome.SWITCHED
        await journal.accept(
            replace(
                sample,
                id=ULID.format(number),
                kind=Kind.COMMIT if number == 5 else Kind.COPY,
                phase=Phase.CLOSED,
                created_at=f"2026-11-{10 + number}T09:00:00.000000Z",
                disks=(replace(sample.disks[0], disk="disk0", outcome=outcome),),
            ),
            {},
        )
    await journal.close()


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "state"
    path.mkdir()
    asyncio.run(_fill(path))
    return path


def listed(state_dir: Path, *arguments: str) -> list[int]:
    """Return the numbers of the pivots that are listed."""
    answer = ctl("--offline", state_dir, "pivot", "ls", "-q", *arguments)
    assert answer.status == 0, answer
    return [int(line[-2:]) for line in answer.stdout.splitlines()]


def test_filters(state_dir: Path) -> None:
    """Each alone and together; the newest first."""
    assert listed(state_dir, "--outcome", "unknown") == [4]
    assert listed(state_dir, "--kind", "commit") == [5]
    assert listed(state_dir, "--since", "2026-11-19") == [11, 10, 9]
    assert listed(state_dir, "--since", "2026-11-19T10:00:00+01:00", "--domain", "db1") == [9]
    assert listed(state_dir, "--outcome", "switched", "--kind", "copy", "--last", "2") == [11, 10]
    assert listed(state_dir, "--outcome", "split") == listed(state_dir, "--since", "2126-01-01") == []


def test_what_is_cut_off_is_said(state_dir: Path) -> None:
    """In every form of the answer, on stderr; with the number where the journal has it at once."""
    last = "pivotctl: the newest 2 of 12 pivots; see --last, --since\n"
    for form in ((), ("--json",), ("-q",), ("--format", "{id}")):
        assert ctl("--offline", state_dir, "pivot", "ls", "--limit", "2", *form).stderr == last
    assert "the newest 2 of 4 pivots" in complaint(ctl("--offline", state_dir, "pivot", "ls", "-n2", "--domain", "db1"))
    filtered = ctl("--offline", state_dir, "pivot", "ls", "-n2", "--kind", "copy")
    assert complaint(filtered) == "the newest 2 pivots; there are older ones: see --last, --since"
    assert ctl("--offline", state_dir, "pivot", "ls", "-n12").stderr == ""


def test_the_beginning_of_an_id(state_dir: Path) -> None:
    """As much as no other id has, in any case; else the candidates are told, with status 4; a request id is itself."""

    def shown(name: str) -> Answer:
        return ctl("--offline", state_dir, "pivot", "show", name, "-q")

    assert shown("01M8NAXQRJXN3VPV4GA8Z8T107").stdout == "01M8NAXQRJXN3VPV4GA8Z8T107\n"
    assert shown("01m8naxqrjxn3vpv4ga8z8t111").stdout == "01M8NAXQRJXN3VPV4GA8Z8T111\n"
    assert shown("request-1").stdout == "01M8NAXQRJXN3VPV4GA8Z8T101\n"
    ambiguous = shown("01M8NAXQRJXN3VPV4GA8Z8T11")
    assert ambiguous.status == 4
    assert complaint(ambiguous) == (
        "01M8NAXQRJXN3VPV4GA8Z8T11 is the beginning of several pivots: 01M8NAXQRJXN3VPV4GA8Z8T110 (web1, switched), "
        "01M8NAXQRJXN3VPV4GA8Z8T111 (web1, switched); give more of the id"
    )
    assert "and others; give more" in complaint(shown("01M"))
    found = ctl("--offline", state_dir, "--json", "pivot", "show", "01M8NAXQRJXN3VPV4GA8Z8T11").json["error"]
    assert (found["kind"], len(found["pivots"])) == ("ambiguous", 2)
    assert (shown("request-").status, shown("X").status) == (4, 4)


@pytest.mark.qemu
def test_each_command_takes_the_beginning_of_an_id(bench: Bench) -> None:
    """The daemon's pivots too, and what is refused is refused before anything is done."""
    pivot = bench.at_ready()
    assert bench.ctl("pivot", "show", pivot[:-2], "-q").stdout == f"{pivot}\n"
    assert bench.ctl("pivot", "set", pivot[:-2], "--bandwidth", "1M", "-q").stdout == f"{pivot}\n"
    assert bench.ctl("pivot", "wait", pivot[:-1], "-q").stdout == f"{pivot}\n"
    assert bench.ctl("pivot", "cancel", pivot[:-1].lower()).status == 0
    bench.ctl("pivot", "wait", pivot)
    ended = bench.ctl("copy", "web1", f"disk1={bench.image()}", "-q").stdout.strip()
    common = pivot[:4]
    assert ended.startswith(common)
    assert "is the beginning of several pivots" in complaint(bench.ctl("pivot", "cancel", common))


@pytest.mark.qemu
def test_the_end_of_the_log(bench: Bench) -> None:
    """--tail is the end of what the filters leave; with --follow it goes on without a gap."""
    every = bench.json("events").rows
    assert bench.json("events", "--tail", "3").rows == every[-3:]
    closed = [row for row in every if row["event"] == "closed"]
    assert bench.json("events", "--event", "closed", "--domain", "web1").rows == closed
    assert bench.json("events", "--event", "closed", "--tail", "1", "--since", "1h").rows == closed[-1:]
    assert bench.json("events", "--since", "2126-01-01").rows == []
    with start(
        "--socket", bench.daemon.socket, "events", "--follow", "--tail", "1", "--event", "closed", "-q"
    ) as following:
        assert following.stdout is not None
        assert int(following.stdout.readline()) == closed[-1]["seq"]
        bench.ctl("copy", "web1", f"disk1={bench.image()}")
        assert int(following.stdout.readline()) == bench.json("events", "--tail", "1").rows[0]["seq"]
        following.terminate()
    with start("--socket", bench.daemon.socket, "events", "--follow", "--since", "1h", "-q") as following:
        assert following.stdout is not None
        seqs = [int(following.stdout.readline()) for _ in range(len(every) + 1)]
        assert seqs == list(range(1, len(every) + 2))
        following.terminate()


def test_an_event_that_nobody_knows(state_dir: Path) -> None:
    """It may be mistyped: one line, with the name that is near. An event that did not happen is an empty answer."""
    said = "this pivotctl knows no event {}, and the journal has none"
    for words in (("swtiched",), ("Switched",), ("swtiched", "--tail", "3"), ("swtiched", "--domain", "web1")):
        answer = ctl("--offline", state_dir, "events", "--event", *words)
        assert (answer.status, answer.stdout) == (4, "")
        assert complaint(answer) == f"{said.format(words[0])}: do you mean switched?"
    far = ctl("--offline", state_dir, "--json", "events", "--event", "TYPO").json["error"]
    assert (far["kind"], far["event"], far["message"]) == (
        "not-found", "TYPO", f"{said.format('TYPO')}; docs/journal.md lists all",
    )  # fmt: skip
    assert ctl("--offline", state_dir, "events", "--event", "gave-up") == Answer(0, "", "")


async def test_an_event_of_another_release(tmp_path: Path) -> None:
    """The journal knows what this pivotctl does not: then the answer is as empty as the filters make it."""
    journal = Journal.open(tmp_path)
    await journal.note("from-the-future", {})
    await journal.close()
    assert ctl("--offline", tmp_path, "events", "--event", "from-the-future", "-q").stdout == "1\n"
    nothing = ctl("--offline", tmp_path, "events", "--event", "from-the-future", "--since", "2126-01-01")
    assert nothing == Answer(0, "", "")


@pytest.mark.qemu
def test_following_an_event_that_nobody_knows(bench: Bench) -> None:
    """It is said, and waited for."""
    with start("--socket", bench.daemon.socket, "events", "--follow", "--event", "clsoed") as following:
        assert following.stderr is not None
        assert "do you mean closed?; waiting for its first record" in following.stderr.readline()
        following.terminate()


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (("events", "--tail", "0"), "--tail"),
        (("events", "--tail", "1", "--after", "3"), "give --tail or --after, not both"),
        (("events", "--exec", "true", "--cursor", "/x", "--domain", "web1"), "leave --tail, --since, --domain"),
        (("events", "--since", "soon"), "'soon' is no time: give how long ago, like 2m, 12h or 3d, or a date"),
        (("pivot", "ls", "--since", "5"), "'5' is no time"),
        (("pivot", "ls", "--since", "-3d"), "is no time"),
        (("pivot", "ls", "--since", "99999999d"), "is no time"),
        (("pivot", "ls", "--last", "0"), "'0': give a whole number, 1 or more; see"),
        (("events", "--after", "x"), "'x': give a whole number, 0 or more; see"),
        (("pivot", "ls", "--outcome", "lost"), "'lost' is not one of 'switched'"),
        (("pivot", "ls", "--kind", "move"), "'move' is not one of 'copy'"),
        (("pivot", "ls", "--last", "0"), "--last"),
        (("pivot", "ls", "--last", "9223372036854775807"), "--last"),
        (("pivot", "ls", "--last", "99999999999999999999"), "--last"),
        (("events", "--tail", "99999999999999999999"), "--tail"),
        (("events", "--after", "99999999999999999999"), "--after"),
    ],
)
def test_wrong_filters(state_dir: Path, words: tuple[str, ...], needle: str) -> None:
    """One line, status 2."""
    answer = ctl("--offline", state_dir, *words)
    assert (answer.status, answer.stdout) == (2, "")
    assert needle in complaint(answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23", "2026-11-23T00:00:00.000000Z"),
        ("2026-11-23T09:30", "2026-11-23T09:30:00.000000Z"),
        ("2026-11-23 09:30:05z", "2026-11-23T09:30:05.000000Z"),
        ("2026-11-23T09:30:05.5+02:00", "2026-11-23T07:30:05.500000Z"),
        ("0999-01-01", "2000-01-01T00:00:00.000000Z"),
    ],
)
def test_since(text: str, expected: str) -> None:
    """Dates and times in UTC, unless they say otherwise."""
    assert journal_time(Since().convert(text, None, None)) == expected


@pytest.mark.parametrize(
    ("text", "ago"), [("2m", timedelta(minutes=2)), ("1.5h", timedelta(hours=1.5)), ("1w", timedelta(7))]
)
def test_ago(text: str, ago: timedelta) -> None:
    """A length of time means that long before now."""
    since = Since().convert(text, None, None)
    passed = datetime.now(UTC) - since
    assert ago <= passed < ago + timedelta(minutes=1)


# -- terminals ----------------------------------------------------------------------------------------------------


def at_terminal(columns: int, *arguments: str | Path) -> str:
    """Return what pivotctl prints to a terminal of a width."""
    near, far = pty.openpty()
    environ = environment({"COLUMNS": str(columns), "LINES": "50", "TERM": "dumb"})
    with subprocess.Popen([*COMMAND, *arguments], stdout=far, stderr=far, env=environ) as process:
        os.close(far)
        shown = b""
        while select.select([near], [], [], 60)[0]:
            try:
                shown += os.read(near, 65536)
            except OSError:
                break
        assert process.wait() == 0
    os.close(near)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [30, 60, 80, 120, 200])
def test_a_table_fits_and_no_id_is_cut(state_dir: Path, columns: int) -> None:
    """Every line fits; each id stands whole on a line; what has no room is named."""
    lines = at_terminal(columns, "--offline", state_dir, "pivot", "ls", "-n3").splitlines()
    table = [line for line in lines if not line.startswith("pivotctl: ")]
    assert max(map(len, table)) <= columns, "\n".join(lines)
    assert [line[:26] for line in table if line.startswith("01")] == [ULID.format(number) for number in (11, 10, 9)]
    missing = [line for line in lines if line.startswith("pivotctl: no room for ")]
    assert bool(missing) == (columns < 200)
    assert "KIND" in table[0] or columns < 60
    assert ("IMAGES" in table[0]) == (columns >= 120)


def test_what_a_narrow_table_does_without() -> None:
    """Columns without a value first, and unsaid; then the spare ones in their order; never the first column."""
    columns, spare = ("ID", "EMPTY", "PATH", "WORDS"), ("WORDS", "PATH", "EMPTY")
    rows = [["x" * 26, "-", "/a/very/long/path/to/an/image.qcow2", "running"]]

    def fitted(width: int) -> tuple[list[int], list[str]]:
        return fitting.fit(columns, rows, spare, width, headed=True)

    assert fitted(100) == ([0, 1, 2, 3], [])
    assert fitted(75) == fitted(60) == ([0, 2, 3], [])
    assert fitted(50) == ([0, 2], ["WORDS"])
    assert fitted(30) == fitted(5) == ([0], ["WORDS", "PATH"])


@pytest.fixture(scope="module")
def gone(bench: Bench) -> str:
    """A domain of which the journal has no more than that it came and went."""
    assert bench.ctl("domain", "add", "gone1", "--qmp", bench.directory / "gone1.qmp").status == 0
    assert bench.ctl("domain", "rm", "gone1").status == 0
    return "gone1"


ABOUT_A_DOMAIN = (
    ("pivot", "ls", "--domain"),
    ("pivot", "ls", "--open", "--since", "1h", "--domain"),
    ("events", "--domain"),
    ("events", "--tail", "3", "--domain"),
    ("events", "--event", "undone", "--domain"),
    ("wait", "--all", "--domain"),
    ("pivot", "complete", "--all", "--domain"),
    ("cancel", "--all", "--domain"),
    ("verdict",),
    ("domain", "show"),
    ("disk", "ls"),
    ("image", "--all"),
)


@pytest.mark.qemu
@pytest.mark.parametrize("words", ABOUT_A_DOMAIN, ids=" ".join)
def test_a_domain_that_nobody_knows(bench: Bench, words: tuple[str, ...]) -> None:
    """One line with the name that may be meant, and status 4."""
    answer = bench.ctl(*words, "wbe1")
    assert (answer.status, answer.stdout) == (4, "")
    assert complaint(answer) == "there is no domain wbe1: do you mean web1?"


@pytest.mark.qemu
@pytest.mark.parametrize("words", ABOUT_A_DOMAIN[2:6:3], ids=" ".join)
def test_a_domain_that_nobody_knows_in_a_document(bench: Bench, words: tuple[str, ...]) -> None:
    """With -o json, an error in the place of the list."""
    document = bench.ctl(*words, "wbe1", "-o", "json")
    assert (document.status, document.stderr) == (4, "")
    assert document.json["error"]["kind"] == "not-found"


@pytest.mark.qemu
@pytest.mark.parametrize("words", ABOUT_A_DOMAIN[1:8:2], ids=" ".join)
def test_a_domain_that_only_the_journal_knows(bench: Bench, gone: str, words: tuple[str, ...]) -> None:
    """It has an ordinary answer, also where there is nothing to say of it."""
    assert bench.ctl(*words, gone).status == 0


def test_a_domain_that_the_journal_alone_does_not_know(state_dir: Path) -> None:
    """The same with --offline; what only history has is known there."""
    for words in (("pivot", "ls", "--domain"), ("events", "--domain"), ("verdict",)):
        answer = ctl("--offline", state_dir, *words, "bd1")
        assert answer.status == 4, answer
        assert complaint(answer) == "there is no domain bd1: do you mean db1?"
    assert ctl("--offline", state_dir, "pivot", "ls", "--domain", "db1", "--since", "2126-01-01").status == 0
    assert complaint(ctl("--offline", state_dir, "verdict", "xyz")) == "there is no domain xyz; known are: db1, web1"
    page = ctl("--offline", state_dir, "report", "--domain", "bd1", "-o", "-")
    assert (page.status, page.stdout, complaint(page)) == (4, "", "there is no domain bd1: do you mean db1?")


@pytest.mark.qemu
def test_a_domain_that_is_yet_to_come_can_be_followed(bench: Bench) -> None:
    """`events --follow` says that nobody knows it, and shows its first record."""
    socket = bench.daemon.socket
    with start("--socket", socket, "events", "--follow", "--domain", "late1") as process:
        try:
            assert process.stderr is not None
            assert process.stdout is not None
            said = process.stderr.readline()
            assert said.startswith("pivotctl: there is no domain late1; known are: ")
            assert said.endswith("; waiting for its first record\n")
            bench.ctl("domain", "add", "late1", "--qmp", bench.directory / "late1.qmp")
            assert "late1 - domain-added" in process.stdout.readline()
        finally:
            process.kill()
    bench.ctl("domain", "rm", "late1")


@pytest.mark.qemu
def test_a_disk_that_nobody_knows(bench: Bench) -> None:
    """The message has the names that there are."""
    answer = bench.ctl("verdict", "web1", "dsik0")
    assert answer.status == 4
    assert complaint(answer) == "web1 has no disk dsik0; its disks are: disk0, disk1"
