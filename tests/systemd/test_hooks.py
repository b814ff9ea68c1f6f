"""docs/hooks.md, followed to the letter under a real systemd: the shipped unit in its sandbox, and those of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import seeds
from tests.support.waiting import until
from tests.systemd.host import REPOSITORY, Host
from tests.systemd.test_systemd import host

__all__ = ["host"]
pytestmark = [pytest.mark.systemd, pytest.mark.qemu, pytest.mark.chaos, pytest.mark.timeout(400)]

PAGE = (REPOSITORY / "docs" / "hooks.md").read_text()
COPIES = 6
ODD_NAME = '/srv/images/odd "$x` \\y.qcow2'
SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open("/run/posted", "ab") as file:
            file.write(body)
        self.send_response(204)
        self.end_headers()
with http.server.HTTPServer(("127.0.0.1", 8080), Handler) as server:
    open("/run/listens", "w").close()
    server.serve_forever()
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def environment_file(host: Host) -> Path:
    return host.container.inside / "etc/pivotd/vm/web1.env"


def named(host: Host) -> list[str]:
    """Return the images in the environment file, by disk."""
    found = dict(line.split("=", 1) for line in environment_file(host).read_text().splitlines())
    return [found[name].strip('"') for name in ("DISK0", "DISK1")]


@pytest.fixture(scope="module")
def hooks(host: Host) -> Host:
    """The service, installed as the page says, and a definition of web1."""
    for script in blocks("sh"):
        host.container.run("sh", "-euc", f"cd /srv/source\n{script}")
    environment_file(host).write_text("DISK0=old\nDISK1=old\n")
    assert until((host.container.inside / "var/lib/pivotd-hooks/cursor").exists), journal(host)
    return host


def journal(host: Host, unit: str = "pivotd-hooks") -> str:
    return host.container.run("journalctl", "--no-pager", "-u", unit).stdout


def test_the_definition_follows_in_the_sandbox(hooks: Host) -> None:
    """After a copy the file names the images that QEMU uses."""
    assert hooks.closed(hooks.copy())["outcome"] == "switched"
    assert until(lambda: named(hooks) == hooks.images()), journal(hooks)


def test_systemd_reads_the_name_that_was_written(hooks: Host) -> None:
    """Quotes, dollars and backslashes in a name arrive in the guest's unit as they are."""
    status, _ = hooks.ctl("copy", "web1", f"disk0={ODD_NAME}")
    assert status == 0
    assert until(lambda: "odd" in environment_file(hooks).read_text()), journal(hooks)
    unit = ("--wait", "--pipe", "--quiet", "-p", "EnvironmentFile=/etc/pivotd/vm/web1.env")
    assert hooks.container.run("systemd-run", *unit, "printenv", "DISK0").stdout == f"{ODD_NAME}\n"
    assert hooks.closed(hooks.copy())["outcome"] == "switched"


def test_kills_of_follower_and_daemon_leave_the_right_definition(hooks: Host) -> None:
    """SIGKILL to either in the middle of copies: systemd starts it again, and the file names the last images."""
    rng = seeds.rng("hooks")
    for _ in range(COPIES):
        pivot = hooks.copy()
        for unit in rng.sample(["pivotd", "pivotd-hooks"], 2):
            pid = int(hooks.container.property_of(unit, "MainPID"))
            if pid:
                hooks.container.run("sh", "-c", f"kill -9 {pid}", check=False)
        assert hooks.closed(pivot)["outcome"] in {"switched", "kept"}
    assert until(lambda: named(hooks) == hooks.images()), journal(hooks)
    assert hooks.is_untouched()


def test_a_stop_is_clean_and_a_cursor_of_another_journal_fails(hooks: Host) -> None:
    """The state of the unit says which of the two it is, and its log what to do."""
    run, property_of = hooks.container.run, hooks.container.property_of
    run("systemctl", "stop", "pivotd-hooks")
    assert property_of("pivotd-hooks", "ActiveState") == "inactive"
    cursor = hooks.container.inside / "var/lib/pivotd-hooks/cursor"
    good = cursor.read_text()
    cursor.write_text(json.dumps(json.loads(good) | {"seq": 10**9}))
    run("systemctl", "start", "pivotd-hooks", check=False)
    assert until(lambda: property_of("pivotd-hooks", "ActiveState") == "failed")
    # systemd may know of the end before its journal has the last words.
    assert until(lambda: "remove /var/lib/pivotd-hooks/cursor to go on from now" in journal(hooks)), journal(hooks)
    cursor.write_text(good)
    run("systemctl", "start", "pivotd-hooks")
    assert property_of("pivotd-hooks", "ActiveState") == "active"


def test_a_service_for_each_command(hooks: Host) -> None:
    """The units of the page: a mail by a stand-in for sendmail, a POST by a user who may only look."""
    inside, run = hooks.container.inside, hooks.container.run
    sendmail = inside / "usr/sbin/sendmail"
    sendmail.write_text("#!/bin/sh\ncat >>/run/mailed\n")
    sendmail.chmod(0o755)
    run("systemd-run", "--quiet", "--unit=taker", "python3", "-c", SERVER)
    assert until((inside / "run/listens").exists)
    for text in blocks("ini"):
        path = Path(re.findall(r"^# (/etc/systemd/system/\S+)$", text, re.MULTILINE)[0])
        (inside / path.relative_to("/")).write_text(text)
        run("systemctl", "daemon-reload")
        run("systemctl", "start", path.name)
    for name in ("mail", "webhook"):
        assert until((inside / f"var/lib/pivotd-{name}/cursor").exists), journal(hooks, f"pivotd-{name}")
    pivot = hooks.copy()
    assert hooks.closed(pivot)["outcome"] == "switched"
    for name, file in (("mail", "run/mailed"), ("webhook", "run/posted")):
        assert until(contains(inside / file, pivot)), journal(hooks, f"pivotd-{name}")


def contains(path: Path, text: str) -> Callable[[], bool]:
    return lambda: path.exists() and text in path.read_text()
