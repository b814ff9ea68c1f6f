"""`pivotctl libvirt install-hooks`: what it writes, what it leaves alone, and what libvirt runs then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pivotd import libvirt_hook
from pivotd.host import libvirt_hooks
from tests.cli.ctl import ctl

HOOKS = "etc/libvirt/hooks"
FILES = [f"{HOOKS}/daemon.d/pivotd", f"{HOOKS}/pivotd-libvirt-hook.py", f"{HOOKS}/qemu.d/pivotd"]
PAGE = Path(__file__).parents[2] / "docs" / "libvirt-hook.md"


def found(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_install_again_and_remove(tmp_path: Path) -> None:
    """Three files, programs where libvirt looks for programs; a second time is no error, and nothing is left."""
    assert ctl("libvirt", "install-hooks", "--root", tmp_path).status == 0
    assert found(tmp_path) == FILES[:2], "what costs each domain something is there only if it is asked for"
    for _ in range(2):
        answer = ctl("libvirt", "install-hooks", "--starts", "--root", tmp_path)
        assert (answer.status, answer.stderr) == (0, "")
        assert found(tmp_path) == FILES
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in FILES}
    assert list(modes.values()) == [0o755, 0o644, 0o755]
    answer = ctl("libvirt", "install-hooks", "--remove", "--root", tmp_path)
    assert (answer.status, found(tmp_path)) == (0, [])
    assert not (tmp_path / HOOKS / "daemon.d").exists()
    assert ctl("libvirt", "install-hooks", "--remove", "--root", tmp_path).status == 0


def test_hooks_of_others_stay(tmp_path: Path) -> None:
    """Libvirt's main hook and other programs in the directories are not ours."""
    mine = [tmp_path / HOOKS / name for name in ("daemon", "qemu", "qemu.d/10-mine")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
    assert ctl("libvirt", "install-hooks", "--starts", "--root", tmp_path).status == 0
    assert ctl("libvirt", "install-hooks", "--remove", "--root", tmp_path).status == 0
    assert found(tmp_path) == sorted(str(path.relative_to(tmp_path)) for path in mine)


@pytest.mark.parametrize("option", [("--starts",), ("--remove",)])
def test_a_file_of_somebody_else_in_our_place_is_left_alone(tmp_path: Path, option: tuple[str, ...]) -> None:
    """One line, status 4, and not one file written or removed."""
    path = tmp_path / HOOKS / "qemu.d" / "pivotd"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\necho mine\n")
    answer = ctl("libvirt", "install-hooks", "--root", tmp_path, *option)
    assert (answer.status, answer.stdout) == (4, "")
    assert answer.stderr == f"pivotctl: {path} is not a file of pivotd; move it away first\n"
    assert found(tmp_path) == [f"{HOOKS}/qemu.d/pivotd"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """One line with the path."""
    (tmp_path / "etc").write_text("a file")
    answer = ctl("libvirt", "install-hooks", "--root", tmp_path)
    assert answer.status == 4
    assert str(tmp_path) in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "operation", "python"),
    [
        (libvirt_hooks.DAEMON, "start", True),
        (libvirt_hooks.DAEMON, "shutdown", False),
        (libvirt_hooks.DAEMON, "reload", False),
        (libvirt_hooks.QEMU, "prepare", True),
        (libvirt_hooks.QEMU, "migrate", True),
        (libvirt_hooks.QEMU, "restore", True),
        (libvirt_hooks.QEMU, "reconnect", False),
        (libvirt_hooks.QEMU, "started", False),
    ],
)
@pytest.mark.parametrize("status", [0, 1, 10, 127])
def test_only_a_refusal_is_a_failure(tmp_path: Path, program: str, operation: str, python: bool, status: int) -> None:
    """Whatever is wrong with the host's Python, guests start; and it runs only where there is something to do."""
    fake = tmp_path / "python3"
    fake.write_text(f"#!/bin/sh\necho ran >>{tmp_path}/ran\nexit {status}\n")
    fake.chmod(0o755)
    script = tmp_path / "pivotd"
    script.write_text(program.replace("/usr/bin/python3", str(fake)))
    done = subprocess.run(["sh", script, "web1", operation, "begin", "-"], check=False)
    assert (tmp_path / "ran").exists() == python
    assert bool(done.returncode) == (python and status == libvirt_hook.REFUSED and program is libvirt_hooks.QEMU)


def test_the_file_runs_alone() -> None:
    """It needs no module that Python itself does not bring, and starts nothing that it does not need at a start."""
    run = "import runpy, sys; sys.argv[1:] = ['daemon', '-', 'start', '-', 'start']; a = set(sys.modules)\n"
    run += f"try: runpy.run_path({libvirt_hook.__file__!r}, run_name='__main__')\nexcept SystemExit as e: assert not e.code\n"
    run += "print(*(set(sys.modules) - a))"
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", run], capture_output=True, text=True, check=True, cwd="/", env={}
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded <= set(sys.stdlib_module_names) | {"__main__"}
    assert not {"argparse", "sqlite3", "subprocess", "asyncio", "typing_extensions"} & loaded


def test_wrong_words_are_said() -> None:
    """Somebody who runs the file by hand reads how."""
    done = subprocess.run(
        [sys.executable, libvirt_hook.__file__, "nonsense"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: pivotd-libvirt-hook.py --dry-run")


def test_the_page_shows_the_programs_as_they_are_written() -> None:
    """Whoever installs by hand gets the same."""
    page = PAGE.read_text()
    assert libvirt_hooks.DAEMON in page
    assert libvirt_hooks.QEMU in page
