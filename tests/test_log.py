"""The log: what a line looks like, when it goes out, and that nobody ever waits for its reader."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pivotd import log, log_lines

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
        right.settimeout(5)
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
from pivotd import log, log_lines
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
from pivotd import log, log_lines
log.setup()
log.get_logger().info("a")
print(sorted({"structlog", "rich", "asyncio", "json"} & set(sys.modules)))
""")
    assert done.stdout == "[]\n"
