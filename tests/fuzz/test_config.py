"""Configuration files: accepted, or refused in one line with exit status 2."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pivotd.config import Config, load
from pivotd.errors import EXIT_USAGE, ConfigError
from tests.fuzz.budget import SEED, examples, fuzz
from tests.fuzz.mutate import ANY, mutated

SOUND = {
    "state_dir": "/var/lib/pivotd",
    "socket": "/run/pivotd.sock",
    "discover": ["/run/qemu/*.qmp"],
    "access": {"operators": ["root", "@root"], "readers": ["daemon"]},
    "pause": {"max_ms": 500, "attempts": 5},
    "domains": {"web1": {"qmp": "/run/web1.qmp"}, "web2": {"qmp": "/run/web2.qmp"}},
}
TEXT_ROUNDS, PROCESS_ROUNDS = 1500, 8
PIECES = ["\n", "[", "]", "=", '"', "'", "'''", "\x00", "\xff", "domains", ".", "[[x]]", "1e999", "9" * 5000, "\\u0000", "nan",
          "[" * 3000, "2026-11-24", "\ufeff", "\r", "a = {b = " * 200]  # fmt: skip
KEYS = st.sampled_from(["state_dir", "socket", "discover", "access", "operators", "pause", "max_ms", "domains", "qmp"])
TABLES = st.recursive(ANY, lambda inner: st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4), max_leaves=8)


def toml(value: Any) -> str:
    """Return a value as TOML, on one line; null has no counterpart and becomes an empty table."""
    match value:
        case bool():
            return str(value).lower()
        case None:
            return "{}"
        case int() | float():
            return str(value)
        case str():
            return json.dumps(value)
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)} = {toml(entry)}" for key, entry in value.items()) + "}"
    raise AssertionError(value)


def document(table: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in table.items())


def _load(raw: bytes) -> Config | None:
    with tempfile.TemporaryDirectory(prefix="pc") as directory:
        path = Path(directory) / "pivotd.toml"
        path.write_bytes(raw)
        try:
            return load(path)
        except ConfigError as error:
            _check_line(error.message, path)
            return None


def _check_line(message: str, path: Path) -> None:
    assert message.startswith(str(path)), message
    assert message.isprintable(), message


def _check(config: Config) -> None:
    """Check what the daemon relies on."""
    assert config.state_dir.is_absolute()
    assert config.socket.is_absolute()
    assert type(config.pause.max_ms) is int
    assert type(config.pause.attempts) is int
    assert all(path.is_absolute() for path in config.domains.values())
    assert len({*config.domains.values()}) == len(config.domains)


def test_the_sound_configuration_is_accepted():
    """What is changed below is right to begin with."""
    config = _load(document(SOUND).encode())
    assert config is not None
    assert config.domains["web2"] == Path("/run/web2.qmp")


@fuzz(300)
@given(table=mutated(SOUND))
def test_a_configuration_with_something_changed_is_refused_or_right(table: Any):
    """A value, a key or a table of it."""
    config = _load(document(table if isinstance(table, dict) else {"x": table}).encode(errors="replace"))
    if config is not None:
        _check(config)


@fuzz(150)
@given(table=st.dictionaries(KEYS | st.text(max_size=5), TABLES, max_size=5))
def test_any_table_is_refused_or_right(table: dict[str, Any]):
    """The known keys with any value, and unknown ones."""
    config = _load(document(table).encode(errors="replace"))
    if config is not None:
        _check(config)


def test_text_that_was_changed_is_refused_or_right():
    """Cuts, insertions and changed bytes, so that it is mostly no TOML any more."""
    rng = random.Random(f"{SEED}/config")
    for number in range(examples(TEXT_ROUNDS)):
        raw = _changed(rng)
        try:
            config = _load(raw)
        except BaseException as error:
            error.add_note(f"PIVOTD_SEED={SEED}, text {number}: {raw[:2000]!r}")
            raise
        if config is not None:
            _check(config)


def _changed(rng: random.Random) -> bytes:
    raw = bytearray(document(SOUND).encode())
    for _ in range(rng.choice([1, 2, 5])):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(4):
            case 0:
                raw[at:at] = rng.choice(PIECES).encode("latin-1", "replace")
            case 1:
                del raw[at : at + rng.randint(1, 30)]
            case 2 if at < len(raw):
                raw[at] = rng.randrange(256)
            case _:
                end = rng.randrange(len(raw) + 1)
                raw[at:at] = raw[min(at, end) : max(at, end)]
    return bytes(raw)


async def test_the_daemon_says_one_line_and_exits_with_2(tmp_path: Path):
    """Or --check finds it right."""
    rng = random.Random(f"{SEED}/config process")
    program = Path(sys.executable).parent / "pivotd"
    path = tmp_path / "pivotd.toml"
    for number in range(examples(PROCESS_ROUNDS)):
        raw = _changed(rng)
        path.write_bytes(raw)
        done = await asyncio.to_thread(
            subprocess.run,
            [program, "--config", path, "--check"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        what = f"PIVOTD_SEED={SEED}, process {number}: {raw!r}: {done}"
        assert done.returncode in {0, EXIT_USAGE}, what
        assert len((done.stdout + done.stderr).splitlines()) == 1, what
