"""The manual pages: made from the help, complete, and right for those who format them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pivotd import config
from pivotd.cli.main import cli
from tests.cli.test_usage import leaves

ROOT = Path(__file__).parents[1]
PAGES = ("pivotctl.1", "pivotd.8", "pivotd.toml.5")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, "-W", "error", "-m", "docs.man_pages", directory], cwd=ROOT, check=True)
    return directory


def shown(page: Path, width: int = 80) -> str:
    """Return the page as `man` shows it, without what marks bold letters."""
    command = ["man", "-l", page]
    environment = {"MANWIDTH": str(width), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return re.sub("\x1b\\[[0-9;]*m|.\x08", "", done.stdout)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [60, 80])
def test_it_is_a_page(pages: Path, page: str, width: int) -> None:
    """Neither mandoc nor man has anything to say against it; examples alone may be longer than a line."""
    if shutil.which("mandoc") is None or shutil.which("man") is None:
        pytest.skip("there is no mandoc, or no man")
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "style", pages / page], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stdout.splitlines() if "input text line longer than 80 bytes" not in line]
    assert complaints == []
    text = shown(pages / page, width)
    assert text.startswith(page.rpartition(".")[0].upper())
    assert text.count("\nNAME\n") == text.count("\nSEE ALSO\n") == 1


def test_every_command_and_option_is_there(pages: Path) -> None:
    """Under its full name, with its options; the three that are also below `pivot` once."""
    text = " ".join(shown(pages / "pivotctl.1", 400).split())
    for path in {*leaves(cli), "verdict accept"} - {"pivot wait", "pivot complete", "pivot cancel"}:
        assert f" pivotctl {path} " in text, path
    for option in ("--keep-synced", "--outcome [switched|kept|merged|unknown|split]", "--fenced", "-o, --output FORM"):
        assert option in text
    assert "130 interrupted; the pivot continues" in text


def test_every_key_is_there(pages: Path) -> None:
    """Each key of the configuration, in the example that is shipped and so on the page."""
    text = shown(pages / "pivotd.toml.5", 400)
    for key in config._CHECKS:
        assert re.search(rf"^ +{key.rpartition('.')[2]} = ", text, re.MULTILINE), key


def test_every_option_of_the_daemon_is_there(pages: Path) -> None:
    """With what it does, to its end."""
    text = " ".join(shown(pages / "pivotd.8", 400).split())
    for said in ("--config FILE the configuration, with the files in FILE.d; default /etc/pivotd/pivotd.toml", "--check",
                 "--reload PID have a running pivotd read its configuration again", "-V, --version"):  # fmt: skip
        assert said in text


@pytest.mark.parametrize(
    ("configuration", "option", "status", "said"),
    [
        ("", "--check", 0, "--check: the configuration is right"),
        ("wrong = 1", "--check", 2, "the configuration is wrong"),
        ('[fleet]\nendpoints = ["http://127.0.0.1:1"]', "--check", 3, "--check: libvirt or etcd, .* does not answer"),
        ("", "--reload={pid}", 3, "--reload: pivotd does not"),
        ('state_dir = "{file}"', "--config={file}", 4, "the journal cannot be used"),
    ],
)
def test_each_exit_status_of_the_daemon_is_there(
    pages: Path, tmp_path: Path, configuration: str, option: str, status: int, said: str
) -> None:
    """It ends with the status that the page has for that. Of a reload that is refused: test_reload.py."""
    file = tmp_path / "pivotd.toml"
    file.write_text(configuration.replace("{file}", str(file)))
    command = [sys.executable, "-m", "pivotd.daemon", f"--config={file}", option.format(file=file, pid=os.getpid())]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False, timeout=60
    )
    assert done.returncode == status, done.stderr
    text = " ".join(shown(pages / "pivotd.8", 400).partition("EXIT STATUS")[2].split())
    assert re.search(rf"\b{status} [^0-9]*{said}", text), text
