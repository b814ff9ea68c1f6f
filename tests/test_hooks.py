"""The example hooks in systemd/hooks, each run by a real follower for real pivots; and docs/hooks.md."""

from __future__ import annotations

import email
import email.policy
import http.server
import json
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.ctl import COMMAND, environment
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

pytestmark = pytest.mark.qemu

TREE = Path(__file__).parents[1]
HOOKS = TREE / "systemd" / "hooks"
PAGE = TREE / "docs" / "hooks.md"
VOLUME = "local:100/vm-100-disk-0.qcow2,cache=none,iothread=1,size=64M"
QM = """#!/bin/sh
echo "$*" >>"$TRIED"
case $1 in
list)
	echo '      VMID NAME                 STATUS     MEM(MB)    BOOTDISK(GB) PID'
	echo '       100 web1                 running    2048              32.00 4711'
	echo '       101 web10                stopped    2048              32.00 0'
	if [ "${TWICE-}" ]; then echo '       102 web1                 stopped    2048              32.00 0'; fi ;;
status) echo "status: ${STATUS-running}" ;;
config)
	printf '%s\\n' 'boot: order=scsi0' "scsi0: $VOLUME" 'name: web1'
	if [ "${HOTPLUG-}" ]; then echo "hotplug: $HOTPLUG"; fi ;;
set) echo "update VM $2: $*"; exit "${FAILS-0}" ;;
esac
"""


class Site:
    """A domain ``web1`` with the disk ``scsi0``, a cursor before its pivots, and programs found first."""

    def __init__(self, directory: Path, daemon: Daemon, qemu: Qemu) -> None:
        self.directory, self.daemon, self.qemu = directory, daemon, qemu
        self.images = directory / "images"
        self.programs = directory / "programs"
        self.cursor = directory / "cursor"
        for made in (self.images, self.programs):
            made.mkdir()
        self.made = 0

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def image(self, name: str = "vm {}.qcow2") -> Path:
        self.made += 1
        return self.images / name.format(self.made)

    def pivot(self, verb: str, *arguments: str, status: int = 0) -> Any:
        answer = self.daemon.ctl(verb, "web1", *arguments)
        assert answer.status == status, answer
        return answer.json

    def listed(self) -> str:
        """Return what ``pivotctl image web1 --all`` prints."""
        words = [*COMMAND, "--socket", str(self.daemon.socket), "image", "web1", "--all"]
        return subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout

    def _command(self, hook: str) -> list[str]:
        words = [*COMMAND, "--socket", str(self.daemon.socket), "events"]
        return [*words, "--exec", hook if hook.startswith("/") else f"{HOOKS}/{hook}", "--cursor", str(self.cursor)]

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        # The hooks run with Debian's Python, for which the warnings of the tests are not meant.
        found = environment({"PATH": f"{self.programs}:{os.environ['PATH']}", **more})
        return {key: value for key, value in found.items() if key not in {"PYTHONWARNINGS", "PYTHONPATH"}} | {
            "PYTHONPATH": str(TREE)
        }

    def follow(self, hook: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the hook for each pivot since the last call; the follower ends with the journal."""
        done = subprocess.run(
            self._command(hook), env=self._environment(more), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done
        return done

    @contextmanager
    def following(self, hook: str, **more: str) -> Iterator[Path]:
        """Run the hook for each pivot until the block ends; yield what it says."""
        said = self.directory / "said"
        with said.open("wb") as file:
            process = subprocess.Popen(
                [*self._command(hook), "--follow"], env=self._environment(more), stdout=file, stderr=file
            )
        try:
            yield said
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        directory = Path(name)
        disk = Disk(create_image(directory / "old.qcow2"), name="scsi0")
        daemon = Daemon(directory, {"web1": directory / "web1.qmp"}, environment=environment())
        with Qemu(directory, [disk]) as qemu, daemon:
            site = Site(directory, daemon, qemu)
            site.follow("webhook.py http://127.0.0.1:1")
            yield site


# -- vm_environment.py

BEFORE = "# web1\nMEMORY=2G\nSCSI0=/old.qcow2\n\nSCSI0_FORMAT=qcow2\nSCSI01=/other\n"


def test_an_environment_file_names_the_right_image(site: Site) -> None:
    """Path and format, in their places; an undo goes back, what was kept changes nothing; mode, link and rest stay."""
    real, link = site.directory / "real.env", site.directory / "web1.env"
    real.write_text(BEFORE)
    real.chmod(0o640)
    link.symlink_to(real)
    hook = f"vm_environment.py {site.directory}"
    raw = site.image('a"$b`c\\ {}.raw')
    site.pivot("copy", f"scsi0={raw}", "--format", "raw")
    site.pivot("copy", f"scsi0={site.image()}", "--no-pivot", "--id", "kept")
    assert site.daemon.ctl("pivot", "cancel", "kept").status == 0
    assert site.daemon.ctl("pivot", "wait", "kept").status == 5
    done = site.follow(hook)
    quoted = str(raw).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
    expected = BEFORE.replace("=/old.qcow2", f'="{quoted}"').replace("=qcow2", "=raw")
    assert real.read_text() == expected, done
    assert (real.stat().st_mode & 0o777, link.is_symlink()) == (0o640, True)
    new = site.image("new{}.qcow2")
    pivot = site.pivot("copy", f"scsi0={new}", "--format", "qcow2", "--keep-synced", "--for", "1h")
    site.follow(hook)
    assert f"\nSCSI0={new}\n\nSCSI0_FORMAT=qcow2\n" in real.read_text()
    undo = site.daemon.ctl("pivot", "undo", pivot["id"]).json
    assert site.daemon.ctl("pivot", "wait", undo["id"]).status == 0
    site.follow(hook)
    assert real.read_text() == expected


def test_the_word_of_a_person_is_followed_too(site: Site) -> None:
    """An accepted image is written like one that was switched to; names as of ``pivotctl image --all``."""
    file = site.directory / "web1.env"
    file.write_text(BEFORE)
    raw, other = site.image("new{}.raw"), create_image(site.image("restored{}.qcow2"))
    site.pivot("copy", f"scsi0={raw}", "--format", "raw")
    site.qemu.stop()
    word = ("verdict", "accept", "web1", "scsi0", str(other), "--format", "qcow2", "--reason", "from the backup")
    assert until(lambda: site.daemon.ctl(*word).status == 0)
    done = site.follow(f"vm_environment.py {site.directory}")
    assert done.stderr.count("ended with 0") == 2
    assert f"\nSCSI0={other}\n\nSCSI0_FORMAT=qcow2\n" in file.read_text()
    listed = dict(line.split("=", 1) for line in site.listed().splitlines())
    found = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
    assert {name: found[name] for name in listed} == {name: value.strip('"') for name, value in listed.items()}


def test_a_variable_that_is_missing_is_added_and_a_missing_file_is_not(site: Site) -> None:
    """A guest that is defined elsewhere is none of the hook's business."""
    new = site.image("new{}.qcow2")
    site.pivot("copy", f"scsi0={new}")
    cursor = site.cursor.read_text()
    site.follow(f"vm_environment.py {site.directory}")
    file = site.directory / "web1.env"
    assert not file.exists()
    for before in ("", "MEMORY=2G", "MEMORY=2G\n"):
        file.write_text(before)
        site.cursor.write_text(cursor)
        site.follow(f"vm_environment.py {site.directory}")
        assert file.read_text().removeprefix("MEMORY=2G\n") == f"SCSI0={new}\nSCSI0_FORMAT=qcow2\n"


def test_a_killed_rewrite_leaves_the_old_file_and_is_repeated(site: Site) -> None:
    """Killed before the new file is durable, and before it has the name."""
    new = site.image("new{}.qcow2")
    site.pivot("copy", f"scsi0={new}")
    file = site.directory / "web1.env"
    file.write_text(BEFORE)
    for call in ("fsync", "rename"):
        tried = site.directory / f"tried-{call}"
        strace = f"strace -qq -o /dev/null -e trace={call} -e inject={call}:signal=SIGKILL:when=1"
        # The first try is killed; the second one finds the mark.
        site.program(
            "once",
            f'#!/bin/sh\ntest -e {tried} && exec "$@"\ntouch {tried}\n{strace} "$@"\ncat {file} >{tried}; exit 1\n',
        )
        hook = site.directory / "hook"
        hook.write_text(f"#!/bin/sh\nexec once {HOOKS}/vm_environment.py {site.directory}\n")
        hook.chmod(0o755)
        cursor = site.cursor.read_text()
        done = site.follow(str(hook))
        assert "failed with exit status 1" in done.stderr
        assert tried.read_text() == BEFORE
        assert f"SCSI0={new}\n" in file.read_text()
        file.write_text(BEFORE)
        site.cursor.write_text(cursor)


# -- proxmox_qm.py


def qm(site: Site, **more: str) -> dict[str, str]:
    site.program("qm", QM)
    return {"TRIED": str(site.directory / "tried"), "VOLUME": VOLUME, **more}


def tried(site: Site) -> list[str]:
    return (site.directory / "tried").read_text().splitlines()


@pytest.mark.parametrize("state", [{"STATUS": "stopped"}, {"HOTPLUG": "network,usb"}, {"HOTPLUG": "0"}])
@pytest.mark.thinned(3)
def test_qm_set_keeps_the_options_of_the_drive(site: Site, state: dict[str, str]) -> None:
    """A stopped guest, or a running one whose disks may not be hotplugged; the guest is found by its name."""
    image = site.images / "100" / "vm-100-disk-1.qcow2"
    image.parent.mkdir()
    site.pivot("copy", f"scsi0={image}")
    site.follow(f"proxmox_qm.py local={site.images} other=/nowhere", **qm(site, **state))
    assert tried(site)[-1] == "set 100 --scsi0 local:100/vm-100-disk-1.qcow2,cache=none,iothread=1,size=64M"


def test_an_image_outside_of_every_storage_stays_a_path(site: Site) -> None:
    """With its format, which Proxmox cannot tell from a path."""
    image = site.image("new{}.raw")
    site.pivot("copy", f"scsi0={image}", "--format", "raw")
    site.follow("proxmox_qm.py local=/var/lib/vz/images", **qm(site, STATUS="stopped"))
    assert tried(site)[-1] == f"set 100 --scsi0 {image},format=raw,cache=none,iothread=1,size=64M"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "would unplug disks of the running guest 100; forbid it with `qm set 100 --hotplug network,usb`"),
        pytest.param({"HOTPLUG": "1"}, "would unplug disks of the running guest 100", marks=pytest.mark.long),
        pytest.param({"HOTPLUG": "usb,disk"}, "would unplug disks of the running guest 100", marks=pytest.mark.long),
        ({"STATUS": "stopped", "TWICE": "1"}, "web1 is the name of several guests: 100 102"),
        ({"STATUS": "stopped", "FAILS": "2"}, "exit status 2"),
    ],
)
@pytest.mark.thinned(3)
def test_qm_is_not_let_loose_on_a_running_guest(site: Site, state: dict[str, str], words: str) -> None:
    """The hook fails with what to do, nothing is set, and the pivot waits."""
    before = site.cursor.read_text()
    site.pivot("copy", f"scsi0={site.image('new{}.qcow2')}")
    with site.following(f"proxmox_qm.py local={site.images}", **qm(site, **state)) as said:
        assert until(lambda: "exit status 1" in said.read_text()), said.read_text()
    assert words in said.read_text()
    assert site.cursor.read_text() == before
    assert "FAILS" in state or not any(line.startswith("set") for line in tried(site))


def test_a_guest_that_proxmox_does_not_have_is_left_alone(site: Site) -> None:
    """And what was kept does not even ask."""
    site.pivot("copy", f"scsi0={site.image()}", "--no-pivot", "--id", "kept")
    assert site.daemon.ctl("pivot", "cancel", "kept").status == 0
    site.daemon.ctl("pivot", "wait", "kept")
    more = qm(site)
    site.follow("proxmox_qm.py", **more)
    assert not (site.directory / "tried").exists()
    site.pivot("copy", f"scsi0={site.image('new{}.qcow2')}")
    site.program("qm", QM.replace(" web1 ", " web2 "))
    site.follow("proxmox_qm.py", **more)
    assert tried(site) == ["list"]


# -- mail.py and webhook.py


def test_a_mail_says_where_the_data_is(site: Site) -> None:
    """What sendmail gets is a mail that a person understands; it is sent again if sendmail fails."""
    letters = site.directory / "letters"
    site.program(
        "sendmail",
        f'#!/bin/sh\ntest "$*" = "-i -t" || exit 64\ncat >>{letters}\necho ==== >>{letters}\n'
        f"test $(grep -c ==== {letters}) -gt 1 || exit 75\n",
    )
    image = site.image("neü{}.qcow2")
    pivot = site.pivot("copy", f"scsi0={image}")
    done = site.follow("mail.py root@example.org admin@example.org")
    assert "failed with exit status 75" in done.stderr
    first, second, _ = letters.read_bytes().split(b"====\n")
    assert first == second
    mail = email.message_from_bytes(first, policy=email.policy.default)
    assert mail["To"] == "root@example.org, admin@example.org"
    assert mail["Subject"] == "web1: copy of 1 disk(s): switched"
    assert pivot["id"] in mail["Message-ID"]
    assert f"scsi0: switched, {image}\n" in mail.get_content()


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with one status after the other, and keeps what came."""

    statuses: list[int]
    seen: list[tuple[str, str | None, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.command, self.headers["Idempotency-Key"], body))
        self.send_response(self.statuses.pop(0))
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


def test_a_webhook_gets_the_document_until_it_takes_it(site: Site) -> None:
    """A failure and a redirection are tried again, with the same key and the same body."""
    handler = type("Handler", (Answers,), {"statuses": [503, 302, 204], "seen": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        pivot = site.pivot("copy", f"scsi0={site.image()}")
        done = site.follow(f"webhook.py http://127.0.0.1:{server.server_port}/pivots")
        server.shutdown()
        thread.join()
    assert "HTTP Error 503" in done.stderr
    assert "HTTP Error 302" in done.stderr
    assert [(verb, key) for verb, key, _ in handler.seen] == [("POST", pivot["id"])] * 3
    (body,) = {body for _, _, body in handler.seen}
    assert keys(json.loads(body)) == keys(documented())


# -- docs/hooks.md


def documented() -> Any:
    """Return the example document of the page."""
    return json.loads(re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)[0])


def keys(value: Any) -> Any:
    """Return the shape of a document: names in their order."""
    if isinstance(value, dict):
        return [(key, keys(inner)) for key, inner in value.items()]
    return [keys(inner) for inner in value] if isinstance(value, list) else None


@pytest.mark.parametrize("hook", sorted(path.name for path in HOOKS.glob("*.py")))
def test_each_hook_is_documented_and_says_how_to_call_it(hook: str) -> None:
    """Called with nonsense, it gives one line and status 1; docs/hooks.md names it; it may be executed."""
    assert hook in PAGE.read_text()
    words = [HOOKS / hook] if hook == "mail.py" else [HOOKS / hook, "", ""]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:6], len(done.stderr.splitlines())) == (1, "usage:", 1)
