"""The log: what a line looks like, when it goes out, and that nobody ever waits for its reader."""

from __future__ import annotations

import ast
import asyncio
import fcntl
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pivotd import journald, log, log_kinds, log_lines
from pivotd.daemon import flusher
from pivotd.engine import pivot_log

ROOT = Path(__file__).parents[1]


@dataclass
class Piped:
    """An output that writes to a pipe, and both ends of the pipe."""

    output: log.Output
    read_fd: int
    write_fd: int

    @property
    def logger(self) -> log.Logger:
        return log.Logger(self.output)

    def lines(self) -> list[str]:
        """Return the lines that are in the pipe now."""
        os.set_blocking(self.read_fd, False)
        data = b""
        try:
            while chunk := os.read(self.read_fd, 1 << 20):
                data += chunk
        except BlockingIOError:
            pass
        assert not data or data.endswith(b"\n")
        return data.decode().splitlines()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def piped() -> Iterator[Piped]:
    read_fd, write_fd = os.pipe()
    output = log.Output()
    output.attach(write_fd)
    yield Piped(output, read_fd, write_fd)
    output.close()
    os.close(read_fd)
    os.close(write_fd)


@pytest.fixture
def loaded(piped: Piped) -> Piped:
    piped.output.load()
    return piped


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with its stderr on a pipe."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_line_is_one_json_object(loaded: Piped) -> None:
    """A line has time, level, event and the facts, numbers as numbers."""
    loaded.logger.bind(domain="web1").info("pivot.switched", pause_ms=3.2, backlog_bytes=0)
    (event,) = loaded.events()
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "level": "info",
        "event": "pivot.switched",
        "domain": "web1",
        "pause_ms": 3.2,
        "backlog_bytes": 0,
    }


def test_events_wait_for_load_in_order_and_with_their_time(piped: Piped) -> None:
    """Before load() nothing is written; after it everything is, in order, with the times of the events."""
    for number in range(3):
        piped.logger.info("recovery.step", number=number)
    logged = datetime.now(UTC)
    assert piped.lines() == []
    piped.output.load()
    events = piped.events()
    assert [event["number"] for event in events] == [0, 1, 2]
    assert all(datetime.fromisoformat(event["timestamp"]) <= logged for event in events)


def test_waiting_events_are_bounded_and_the_first_stay(piped: Piped) -> None:
    """Beyond the bound events are counted, and the count goes out with the next line."""
    for number in range(log.PENDING_MAX + 7):
        piped.logger.info("recovery.step", number=number)
    reader = threading.Thread(target=piped.output.load)
    reader.start()
    reader.join()
    events = piped.events()
    assert events[0]["log_lines_dropped"] == 7
    assert events[0]["number"] == 0
    assert len(events) <= log.PENDING_MAX


def test_full_pipe_drops_and_the_next_line_says_how_many(loaded: Piped) -> None:
    """Nobody reads: lines are dropped whole and counted; once there is room, the next line has the count."""
    fcntl.fcntl(loaded.write_fd, fcntl.F_SETPIPE_SZ, 4096)
    for number in range(300):
        loaded.logger.info("copy.progress", number=number, text="x" * 200)
    kept = loaded.events()
    assert [event["number"] for event in kept] == list(range(len(kept)))
    loaded.logger.info("copy.progress", number=300)
    (after,) = loaded.events()
    assert after["log_lines_dropped"] == 300 - len(kept)
    loaded.logger.info("copy.progress", number=301)
    (after,) = loaded.events()
    assert "log_lines_dropped" not in after


def test_shared_description_stays_blocking(loaded: Piped) -> None:
    """Other processes write to the same stderr: it is not put into non-blocking mode under their feet."""
    loaded.logger.info("a.b")
    assert os.get_blocking(loaded.write_fd)


def test_socket_that_nobody_reads_drops_too() -> None:
    """The journal is a stream socket: a full one takes no line, is not waited for, and no line is torn."""
    left, right = socket.socketpair()
    with left, right:
        output = log.Output()
        output.attach(left.fileno())
        output.load()
        for _ in range(2000):
            log.Logger(output).info("copy.progress", text="x" * 500)
        assert left.getblocking()
        right.settimeout(60)
        received = right.makefile("rb")
        assert json.loads(received.readline())["event"] == "copy.progress"
        output.close()


def test_reader_that_is_gone_is_no_error(loaded: Piped) -> None:
    """A closed pipe costs lines, never an exception."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, loaded.read_fd)
    os.close(null)
    loaded.logger.info("a.b")


def test_file_is_shared_at_one_offset(tmp_path: Path) -> None:
    """Where stderr is a file, our lines and those of others come one after the other."""
    with (tmp_path / "log").open("wb", buffering=0) as file:
        output = log.Output()
        output.attach(file.fileno())
        output.load()
        log.Logger(output).info("first")
        file.write(b"other\n")
        log.Logger(output).info("second")
        output.close()
    first, other, second = (tmp_path / "log").read_text().splitlines()
    assert (json.loads(first)["event"], other, json.loads(second)["event"]) == ("first", "other", "second")


def test_long_line_is_cut_to_what_a_pipe_takes_whole(loaded: Piped) -> None:
    """A line never exceeds PIPE_BUF and stays JSON; long texts are cut and that is said."""
    loaded.logger.info("a.b", short=1, long="x" * 100_000)
    (line,) = loaded.lines()
    event = json.loads(line)
    assert len(line) < log_lines.LINE_BYTES_MAX
    assert (event["short"], len(event["long"]), event["cut"]) == (1, log_lines.SHORT_TEXT_MAX, True)


def test_too_many_facts_leave_the_event(loaded: Piped) -> None:
    """Where even short texts do not fit, event, time and level remain."""
    loaded.logger.info("a.b", **{f"fact{number}": "x" * 100 for number in range(100)})
    (event,) = loaded.events()
    assert set(event) == {"timestamp", "level", "event", "cut"}


def test_odd_facts_do_not_raise(loaded: Piped) -> None:
    """Names that mean something to the log, circles, broken text and failing reprs all give a line."""

    class Broken:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    circle: list[object] = []
    circle.append(circle)
    loaded.logger.info("a", event="b", level="c", timestamp="d", self="e")
    loaded.logger.info("a", circle=circle)
    loaded.logger.info("a", text="\udc80\n")
    loaded.logger.info("a", broken=Broken())
    events = loaded.events()
    assert [event["event"] for event in events] == ["a"] * 4
    assert (events[0]["event_"], events[0]["level_"], events[0]["self_"]) == ("b", "c", "e")


def test_destructor_that_logs_does_not_deadlock(loaded: Piped) -> None:
    """An event that is logged while another is being rendered comes right after it."""

    class Talker:
        def __repr__(self) -> str:
            loaded.logger.info("inner")
            return "talker"

    loaded.logger.info("outer", talker=Talker())
    assert [event["event"] for event in loaded.events()] == ["outer", "inner"]


def test_threads_do_not_mix_lines(loaded: Piped) -> None:
    """Events of many threads all arrive, each on its own line."""
    fcntl.fcntl(loaded.write_fd, fcntl.F_SETPIPE_SZ, 1 << 20)
    threads = [
        threading.Thread(target=lambda: [loaded.logger.info("a.b", text="x" * 50) for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded.events()) == 400


def test_exception_is_one_line_with_its_end(loaded: Piped) -> None:
    """A traceback is one text; where it is cut, its last line stays."""
    try:
        int("x" * 10 + "why")
    except ValueError:
        loaded.logger.exception("domain.failed", padding="y" * 5000)
    (event,) = loaded.events()
    assert event["level"] == "error"
    assert event["exception"].endswith("xwhy'")


def test_journal_gets_a_priority() -> None:
    """Under the journal each line starts with its syslog priority."""
    read_fd, write_fd = os.pipe()
    output = log.Output()
    output.attach(write_fd, log_lines.Style.JOURNAL)
    output.load()
    logger = log.Logger(output)
    logger.info("a")
    logger.warning("b")
    logger.error("c")
    output.close()
    os.close(write_fd)
    with os.fdopen(read_fd) as lines:
        assert [line[:4] for line in lines] == ["<6>{", "<4>{", "<3>{"]


def test_terminal_gets_readable_lines() -> None:
    """On a terminal a line is for people: no JSON, event and facts in it."""
    leader, terminal = pty.openpty()
    output = log.Output()
    output.attach(terminal)
    output.load()
    log.Logger(output).info("pivot.switched", pause_ms=3.2)
    line = os.read(leader, 4096).decode()
    output.close()
    os.close(leader)
    os.close(terminal)
    assert "pivot.switched" in line
    assert "3.2" in line
    assert "{" not in line


def test_libraries_come_out_as_lines_at_warning() -> None:
    """The standard library's logging and warnings arrive as events; below WARNING they do not."""
    done = run("""
import logging, warnings
from pivotd import log
log.setup()
logging.getLogger("qemu.qmp").warning("lost %s", "it")
logging.getLogger("uvicorn.error").info("hidden")
logging.getLogger("asyncio").error("%d", "not a number")
warnings.simplefilter("always")
warnings.warn("old")
log.load()
""")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(event["logger"], event["level"]) for event in events] == [
        ("qemu.qmp", "warning"),
        ("asyncio", "error"),
        ("py.warnings", "warning"),
    ]
    assert events[0]["message"] == "lost it"
    assert {event["event"] for event in events} == {"library.message"}


def test_events_of_a_daemon_that_ends_early_are_written_at_exit() -> None:
    """A daemon that never came to load() still says what happened."""
    done = run("from pivotd import log; log.setup(); log.get_logger().error('config.refused', key='a')")
    assert json.loads(done.stderr)["event"] == "config.refused"


def test_setup_and_events_import_nothing_slow() -> None:
    """Until load(), neither structlog nor what it drags in is imported."""
    done = run("""
import sys
from pivotd import log
log.setup()
log.get_logger().info("a")
print(sorted({"structlog", "rich", "asyncio", "json"} & set(sys.modules)))
""")
    assert done.stdout == "[]\n"


# -- levels -------------------------------------------------------------------------------------------------------


def test_a_level_leaves_out_what_is_less_serious(loaded: Piped) -> None:
    """Details are left out by default; the level can be changed at any time, both ways."""
    for least, wanted in [("info", "iwe"), ("debug", "diwe"), ("warning", "we"), ("error", "e")]:
        if least != "info":
            loaded.output.level(least)
        for level in log.LEVELS:
            loaded.logger.log(level, level[0])
        assert "".join(event["event"] for event in loaded.events()) == wanted


# -- while a guest is in its pause --------------------------------------------------------------------------------


def test_nothing_is_written_while_a_guest_is_paused(loaded: Piped) -> None:
    """Events wait for the last of several pauses, and keep their order and their times."""
    loaded.logger.info("before")
    loaded.output.hold(30)
    loaded.output.hold(30)
    loaded.logger.info("first")
    at = datetime.now(UTC)
    loaded.logger.error("second")
    loaded.output.release()
    assert [event["event"] for event in loaded.events()] == ["before"]
    assert loaded.output.held()
    loaded.output.release()
    first, second = loaded.events()
    assert (first["event"], second["event"]) == ("first", "second")
    assert datetime.fromisoformat(first["timestamp"]) <= at
    loaded.logger.info("after")
    assert [event["event"] for event in loaded.events()] == ["after"]


def test_load_writes_nothing_while_a_guest_is_paused(piped: Piped) -> None:
    """What has waited for load() waits for the pause as well."""
    piped.logger.info("recovery.step")
    piped.output.hold(30)
    piped.output.load()
    assert piped.lines() == []
    piped.output.release()
    assert len(piped.events()) == 1


def test_no_event_waits_for_longer_than_a_pause_may_last(loaded: Piped, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that stays paused does not silence the log: the output asks to be woken, and is not asked twice."""
    asked: list[float] = []
    now_s = 100.0
    monkeypatch.setattr(log, "time", SimpleNamespace(time=time.time, monotonic=lambda: now_s))
    loaded.output.wake_with(asked.append)
    loaded.output.hold(0.5)
    now_s += 0.125
    loaded.logger.info("a")
    loaded.logger.info("b")
    assert asked == [0.5]
    assert loaded.output.held()
    now_s += 0.5
    assert not loaded.output.held()
    loaded.output.flush()
    assert [event["event"] for event in loaded.events()] == ["a", "b"]
    loaded.logger.info("c")
    assert len(asked) == 2


def test_the_end_waits_for_no_pause(loaded: Piped) -> None:
    """At exit everything goes out."""
    loaded.output.hold(30)
    loaded.logger.info("a")
    loaded.output.end()
    assert len(loaded.events()) == 1


# -- journald -----------------------------------------------------------------------------------------------------


@dataclass
class Received:
    """An output that sends to a journald of the test's own, whose lines go to ``piped`` where there is none."""

    piped: Piped
    receiver: socket.socket
    path: Path

    def fields(self) -> list[dict[str, str]]:
        """Return the messages that have arrived, parsed as the protocol says."""
        found = []
        while True:
            try:
                data, files, _, _ = socket.recv_fds(self.receiver, 1 << 20, 1)
            except BlockingIOError:
                return found
            for file in files:
                assert fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
                data = os.pread(file, 1 << 24, 0)
                os.close(file)
            found.append(parsed(data))


def parsed(data: bytes) -> dict[str, str]:
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[8 + size :]
            assert data[:1] == b"\n"
            data = data[1:]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def received(piped: Piped, tmp_path: Path) -> Iterator[Received]:
    path = tmp_path / "journald"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.setblocking(False)
        piped.output.attach(piped.write_fd, log_lines.Style.JOURNAL, journald=path)
        piped.output.load()
        yield Received(piped, receiver, path)


def test_journald_gets_the_facts_as_fields(received: Received) -> None:
    """A sentence for people, the id of its kind, the priority, and one field for each fact; no line on stderr."""
    received.piped.logger.info(
        "pivot.paused", domain="web1", pivot="01K", pause_ms=5.1, attempt=1, ended="decided", **{"odd-fact": [1, "x"]}
    )
    (fields,) = received.fields()
    assert fields.pop("PIVOTD_AT").endswith("Z")
    assert fields == {
        "MESSAGE": "web1: the guest was paused for 5.1 ms, try 1, which ended in phase decided; pivot 01K",
        "MESSAGE_ID": log_kinds.KINDS["pivot.paused"].message_id,
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "pivotd",
        "PIVOTD_EVENT": "pivot.paused",
        "PIVOTD_DOMAIN": "web1",
        "PIVOTD_PIVOT": "01K",
        "PIVOTD_PAUSE_MS": "5.1",
        "PIVOTD_ATTEMPT": "1",
        "PIVOTD_ENDED": "decided",
        "PIVOTD_ODD_FACT": '[1, "x"]',
    }
    assert received.piped.lines() == []


def test_no_fact_can_forge_a_field_or_a_line(received: Received) -> None:
    """A newline in a fact is in its field alone, and escaped in the sentence."""
    received.piped.logger.info("request.refused", path="/a\nPRIORITY=0\n", reason="no", uid=7, user="eve", method="GET")
    (fields,) = received.fields()
    assert fields["PRIORITY"] == "6"
    assert fields["PIVOTD_PATH"] == "/a\nPRIORITY=0\n"
    assert fields["MESSAGE"] == r"GET /a\nPRIORITY=0\n of eve (uid 7) refused: no"


def test_a_message_too_large_for_a_datagram_arrives_whole(received: Received) -> None:
    """It is passed as a sealed file; beyond a bound a text is cut."""
    size = received.receiver.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) + 100_000
    assert size < journald.FIELD_BYTES_MAX
    received.piped.logger.info("library.message", message="ä" * (size // 2))
    received.piped.logger.info("library.message", message="ä" * journald.FIELD_BYTES_MAX)
    whole, cut = received.fields()
    assert whole["PIVOTD_MESSAGE"] == "ä" * (size // 2)
    assert cut["PIVOTD_MESSAGE"] == "ä" * (journald.FIELD_BYTES_MAX // 2)


def test_a_traceback_follows_its_sentence(received: Received) -> None:
    """`journalctl` shows both."""
    try:
        int("why")
    except ValueError:
        received.piped.logger.exception("request.failed", error="ValueError()")
    (fields,) = received.fields()
    first, *_, last = fields["MESSAGE"].splitlines()
    assert first == "pivotd failed on a request: ValueError()"
    assert last.endswith("'why'")
    assert fields["PRIORITY"] == "3"


def test_a_journald_that_does_not_read_costs_events_and_no_time(received: Received) -> None:
    """Events are dropped and counted, as on stderr, and the next one that arrives says how many."""
    for _ in range(5000):
        received.piped.logger.info("copy.progress", text="x" * 500)
    kept = len(received.fields())
    assert kept < 5000
    received.piped.logger.info("copy.progress")
    (fields,) = received.fields()
    assert fields["PIVOTD_LOG_LINES_DROPPED"] == str(5000 - kept)
    assert received.piped.lines() == []


def test_without_journald_there_are_lines(received: Received) -> None:
    """With priorities, on stderr; a journald that comes back gets the next event."""
    received.receiver.close()
    received.piped.logger.info("a.b")
    received.path.unlink()
    received.piped.logger.info("c.d")
    assert [line[:4] for line in received.piped.lines()] == ["<6>{", "<6>{"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(received.path))
        received.piped.logger.info("e.f")
        assert parsed(receiver.recv(10_000))["PIVOTD_EVENT"] == "e.f"


def test_a_fact_that_fails_leaves_the_event(received: Received) -> None:
    """As on stderr."""

    class Broken:
        def __str__(self) -> str:
            raise ZeroDivisionError

        __repr__ = __str__

    received.piped.logger.info("daemon.died", error=Broken())
    (fields,) = received.fields()
    assert (fields["PIVOTD_EVENT"], fields["PIVOTD_CUT"]) == ("daemon.died", "true")


def test_a_long_list_is_short_in_the_sentence(received: Received) -> None:
    """All of it is in the field."""
    received.piped.logger.info("daemon.reloaded", changed=[str(number) for number in range(50)])
    (fields,) = received.fields()
    assert fields["MESSAGE"].endswith("18, 19, and 30 more")
    assert len(json.loads(fields["PIVOTD_CHANGED"])) == 50


# -- kinds of messages --------------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "log.md"


def events_in_the_code() -> set[str]:
    """Return every text of the package that looks like the name of an event and is the argument of a log call."""
    found = set()
    for path in (ROOT / "pivotd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id in {"log", "logger"}:
                texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
                found |= {text for text in texts if isinstance(text, str) and re.fullmatch(r"[a-z]+\.[a-z-]+", text)}
    return found


def test_every_event_has_a_kind() -> None:
    """Whoever filters by MESSAGE_ID misses none; a kind that no code logs is not in the table."""
    by_table = {name for _, name in [*pivot_log.OUTCOMES.values(), *pivot_log.RECORDS.values()]}
    assert set(log_kinds.KINDS) == events_in_the_code() | by_table | {"library.message", "pivot.record"}


def test_message_ids_are_unique() -> None:
    """Each is a 128-bit number of its own."""
    ids = [kind.message_id for kind in log_kinds.KINDS.values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_the_page_has_the_ids_of_the_code() -> None:
    """docs/log.md lists every kind with its id, in the same order."""
    rows = re.findall(r"^\| `([a-z.-]+)` \| `([0-9a-f]{32})` \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [(name, kind.message_id) for name, kind in log_kinds.KINDS.items()]


async def test_the_loop_that_logs_need_not_be_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up is another turn of the loop, in the pause of a guest; only other threads need one."""
    flushed, woken = asyncio.Event(), []
    loop = asyncio.get_running_loop()
    wake_up = loop.call_soon_threadsafe
    monkeypatch.setattr(log, "flush", flushed.set)
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: (woken.append(call), wake_up(*call)))
    wake = flusher(loop)
    wake(0.0)
    await asyncio.wait_for(flushed.wait(), 10)
    assert not woken
    flushed.clear()
    thread = threading.Thread(target=wake, args=(0.0,))
    thread.start()
    await asyncio.wait_for(flushed.wait(), 10)
    thread.join()
    assert woken
