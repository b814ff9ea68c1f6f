"""Completion in the real shells, typed at a terminal: commands, options, and the names that a live daemon knows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Bench
from tests.cli.ctl import ctl, environment

pytestmark = pytest.mark.qemu
PATIENCE_S = 60.0
MARK = "%%"
SETUP = {
    "bash": ("bash --norc --noprofile", "source <(pivotctl completion bash)"),
    "zsh": ("zsh -f", "autoload -U compinit; compinit -u -D; source <(pivotctl completion zsh)"),
    "fish": ("fish --no-config", "pivotctl completion fish | source"),
}


class Terminal:
    """A shell in a terminal of 200 columns."""

    def __init__(self, shell: str, directory: Path, socket: Path | str) -> None:
        # A socket of its own: the server of another test's terminal may not have ended yet.
        self._tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        command, setup = SETUP[shell]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = environment({"PATH": path, "PIVOTCTL_SOCKET": str(socket), "HOME": str(directory), "TERM": "screen"})
        self._run("new-session", "-d", "-x", "200", "-y", "50", "-c", str(directory), command, env=env)
        self.type(f"{setup}; echo set''up", "Enter")
        self.until("setup\n")

    def _run(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True, env=env)
        return done.stdout

    def type(self, text: str, *keys: str) -> None:
        """Type a text, then keys by their names."""
        self._run("send-keys", "-l", text)
        for key in keys:
            self._run("send-keys", key)

    def screen(self) -> str:
        """Return the lines without the spaces at their ends."""
        return "\n".join(line.rstrip() for line in self._run("capture-pane", "-p", "-J").splitlines())

    def until(self, text: str) -> str:
        """Return the screen once it shows a text."""
        end = time.monotonic() + PATIENCE_S
        while text not in (shown := self.screen()):
            assert time.monotonic() < end, f"{text!r} does not appear:\n{shown}"
            time.sleep(0.1)
        return shown

    def completes(self, typed: str, expected: str) -> None:
        """Type a text and TAB, then a mark: the line has the expected text before it; then clear the line."""
        self.type(typed, "Tab")
        self.until(expected.rstrip())
        self.type(MARK)
        shown = self.until(MARK)
        assert f"{expected}{MARK}" in shown, shown
        self._run("send-keys", "C-e", "C-u", "C-l")
        self.until_not(MARK)

    def until_not(self, text: str) -> None:
        """Return once the screen does not show a text any more."""
        end = time.monotonic() + PATIENCE_S
        while text in (shown := self.screen()):
            assert time.monotonic() < end, f"{text!r} stays:\n{shown}"
            time.sleep(0.1)

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture(params=sorted(SETUP))
def shell(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if shutil.which(name) is None or shutil.which("tmux") is None:
        pytest.skip(f"there is no {name}, or no tmux")
    return name


@pytest.fixture
def terminal(shell: str, bench: Bench, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(shell, tmp_path, bench.daemon.socket)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pivot(bench: Bench) -> Iterator[str]:
    """The only pivot that is open."""
    found = bench.at_ready()
    yield found
    assert bench.ctl("pivot", "cancel", found).status == 0


def test_tab(terminal: Terminal, pivot: str, tmp_path: Path) -> None:
    """Each word is completed: a space after what is whole, none where more follows."""
    (tmp_path / "a-directory").mkdir()
    (tmp_path / "a-directory" / "image.qcow2").touch()
    terminal.completes("pivotctl verd", "pivotctl verdict ")
    terminal.completes("pivotctl domain show w", "pivotctl domain show web1 ")
    terminal.completes("pivotctl disk ls web1 --no-h", "pivotctl disk ls web1 --no-header ")
    terminal.completes("pivotctl pivot ls --outcome unk", "pivotctl pivot ls --outcome unknown ")
    terminal.completes("pivotctl copy web1 disk1", "pivotctl copy web1 disk1=")
    terminal.completes("pivotctl copy web1 disk1=a-d", "pivotctl copy web1 disk1=a-directory/")
    terminal.completes("pivotctl copy web1 disk1=a-directory/i", "pivotctl copy web1 disk1=a-directory/image.qcow2 ")
    terminal.completes("pivotctl pivot cancel ", f"pivotctl pivot cancel {pivot} ")


def test_a_file_is_one_word_whatever_it_is_called(terminal: Terminal, tmp_path: Path) -> None:
    """The shell quotes its name: what stands in it is neither a further word nor a command that Enter would start."""
    (tmp_path / "b $(touch made).qcow2").touch()
    terminal.type("pivotctl copy web1 disk0=b", "Tab")
    terminal.until("made")
    terminal.type(" --no-such-option", "Enter")
    terminal.type("echo don''e", "Enter")
    terminal.until("done\n")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["b c.qcow2", "b*[d]?", "b\\e'f\"g", "b&h;i|j", "b$HOME`k`"])
def test_bash_gets_a_file_name_as_it_has_to_be_typed(tmp_path: Path, name: str) -> None:
    """And takes it for one word with that name, of which the beginning can be completed again."""
    (tmp_path / name).touch()
    (tmp_path / "b").mkdir() if "*" in name else None
    script = """
        source <(pivotctl completion bash)
        compopt() { :; }
        COMP_WORDS=(pivotctl copy web1 disk0 = "$1") COMP_CWORD=5
        _pivotctl_completion pivotctl
        for found in "${COMPREPLY[@]}"; do eval "printf '%s\\n' $found"; done
    """
    for typed in ("b", re.sub(r"([^\w])", r"\\\1", name[:3])):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = ["bash", "-c", script, "bash", typed]
        done = subprocess.run(
            command, env=environment({"PATH": path}), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert name in done.stdout.splitlines(), (typed, done)
        assert done.stderr == ""


def test_a_dead_daemon_is_silent(shell: str, tmp_path: Path) -> None:
    """Nothing is written over the line that is being typed."""
    terminal = Terminal(shell, tmp_path, tmp_path / "none.sock")
    try:
        terminal.type("pivotctl domain show ", "Tab")
        terminal.completes("wx", "pivotctl domain show wx")
    finally:
        terminal.close()


def test_the_names_of_a_journal(bench: Bench, pivot: str) -> None:
    """With --offline typed, the journal is asked; what cannot be asked gives nothing, and says nothing."""

    def asked(*words: str) -> list[str]:
        env = {
            "_PIVOTCTL_COMPLETE": "bash_complete",
            "COMP_WORDS": "\n".join(("pivotctl", *words)),
            "COMP_CWORD": str(len(words)),
        }
        answer = ctl(env=env)
        assert (answer.status, answer.stderr) == (0, "")
        return [line.removeprefix("plain,") for line in answer.stdout.splitlines() if line]

    state_dir = str(bench.daemon.state_dir)
    assert asked("--offline", state_dir, "pivot", "show", pivot[:-1]) == [pivot]
    assert asked("--offline", state_dir, "image", "web1", "d") == ["disk1"]
    assert asked("--offline", "/nonexistent", "pivot", "show", "") == []
    assert asked("--socket", "/nonexistent", "disk", "ls", "") == []
    assert asked("--format", "{", "disk", "ls", "") == []
    assert "--offline" in asked("pivot", "ls", "--o")
