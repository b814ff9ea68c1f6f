"""The image to start a guest with, the guard before a start, stale images, and a person's word."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from pivotd.client import Client
from pivotd.errors import ClientError
from pivotd.host import files
from tests.cli.conftest import LONG_PAUSE, PATIENT
from tests.cli.ctl import REPOSITORY, Answer, complaint, ctl, on_a_host_with
from tests.support.daemon import Daemon
from tests.support.file_systems import ext4
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

pytestmark = [pytest.mark.qemu]
LOOK_S, LOOK_TIMEOUT_S = 0.05, 60.0
LONG_BETWEEN_TRIES_S = 3.3
"""After a guest has been away for so long, its supervisor lets some seconds pass between two tries to connect."""


class Guest:
    """A domain ``web1`` with two disks, which can be started again on other images, and its daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disks = [create_image(directory / f"{name}.qcow2") for name in ("old", "data")]
        self.daemon = Daemon(
            directory,
            {"web1": directory / "web1.qmp"},
            configuration=LONG_PAUSE,
            command=PATIENT,
            environment={"PYTHONPATH": str(REPOSITORY)},
        )
        self.qemu = Qemu(directory, [Disk(image) for image in self.disks])

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.qcow2"

    def where(self, *, offline: bool) -> list[str | Path]:
        return ["--offline", self.daemon.state_dir] if offline else ["--socket", self.daemon.socket]

    def ctl(self, *arguments: str | Path, offline: bool = False) -> Answer:
        return ctl(*self.where(offline=offline), *arguments)

    def json(self, *arguments: str | Path) -> Answer:
        return ctl("--socket", self.daemon.socket, "--json", *arguments)

    def moved(self, verb: str = "copy", name: str = "new") -> Path:
        """Move disk0 to a new image."""
        answer = self.ctl(verb, "web1", f"disk0={self.path(name)}")
        assert answer.status == 0, answer
        return self.path(name)

    def start_on(self, image: Path, *, paused: bool = False) -> None:
        """Start the guest again, disk0 on this image, and wait until pivotd is connected to it."""
        self.qemu.stop()
        self.qemu = Qemu(self.directory, [Disk(image), Disk(self.disks[1])], paused=paused).start()
        self.until("connected", "connection")

    def noted(self, event: str, times: int = 1) -> None:
        """Wait until the journal has so many records of an event."""
        assert until(lambda: [row["event"] for row in self.json("events").rows].count(event) == times)

    def seen_file(self) -> None:
        """Wait until the journal knows which file QEMU has as the right image of disk0."""

        def has_one() -> bool:
            with closing(sqlite3.connect(f"file:{self.daemon.state_dir}/journal.db?mode=ro", uri=True)) as connection:
                return connection.execute("SELECT file_id FROM disk_latest WHERE disk = 'disk0'").fetchone() != (None,)

        assert until(has_one)

    def until(self, wanted: object, field: str) -> object:
        """Wait until a field of the domain is so, or true where ``wanted`` is None."""
        deadline_s = time.monotonic() + LOOK_TIMEOUT_S
        while True:
            shown = self.json("domain", "show", "web1").json[field]
            if shown == wanted or (wanted is None and shown):
                return shown
            assert time.monotonic() < deadline_s, shown
            time.sleep(LOOK_S)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with tempfile.TemporaryDirectory(prefix="pv") as name, guest_in(Path(name)) as guest:
        yield guest


@pytest.fixture
def guest_alone() -> Iterator[Guest]:
    """A guest on a file system of its own, where nobody else takes the number of a deleted file."""
    with tempfile.TemporaryDirectory(prefix="pv") as name, ext4(Path(name)) as place, guest_in(place) as guest:
        yield guest


@contextmanager
def guest_in(directory: Path) -> Iterator[Guest]:
    guest = Guest(directory)
    with guest.qemu, guest.daemon:
        try:
            yield guest
        finally:
            guest.qemu.stop()


def test_the_path_alone(guest: Guest):
    """Nothing else is on stdout, for $(…), with a running guest, without it, and without the daemon."""
    new = guest.moved()
    assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
    assert guest.ctl("image", "web1", "disk0", "--format").stdout == "qcow2\n"
    shown = json.loads(guest.ctl("image", "web1", "disk0", "--blockdev").stdout)
    assert shown == {"driver": "qcow2", "node-name": "disk0", "file": {"driver": "file", "filename": str(new)}}
    guest.qemu.stop()
    assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
    guest.daemon.kill()
    assert guest.ctl("image", "web1", "disk0", offline=True).stdout == f"{new}\n"


def test_blockdev_is_what_qemu_takes(guest: Guest):
    """Its own words: QEMU starts with them, on that image."""
    guest.moved()
    option = guest.ctl("image", "web1", "disk0", "--blockdev").stdout.strip()
    guest.qemu.stop()
    command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-blockdev", option,
               "-device", "virtio-blk-pci,drive=disk0", "-monitor", "stdio"]  # fmt: skip
    done = subprocess.run(command, input="info block\nquit\n", capture_output=True, text=True, timeout=60, check=True)
    assert str(guest.path("new")) in done.stdout


def test_a_disk_that_was_never_moved(guest: Guest):
    """A status of its own; a default is printed, but not one that history knows as out of date or another disk's."""
    assert (first := guest.ctl("image", "web1", "disk0")).status == 7
    assert first.stdout == ""
    assert "never moved web1 disk0" in complaint(first)
    new, old = guest.moved(), guest.disks[0]
    standard = guest.ctl("image", "web1", "disk1", "--default", guest.disks[1])
    assert (standard.status, standard.stdout) == (0, f"{guest.disks[1]}\n")
    for wrong, why in ((old, "stale"), (new, "current for web1 disk0")):
        refused = guest.ctl("image", "web1", "disk1", "--default", wrong)
        assert (refused.status, refused.stdout) == (4, "")
        assert why in complaint(refused)


def test_a_default_that_qemu_does_not_use(guest: Guest):
    """Pivotd has never moved the disk, but another client has, and QEMU shows it."""
    data, overlay = guest.disks[1], guest.path("overlay")
    root = guest.qemu.spy("query-block")[1]["inserted"]["node-name"]
    new = {"snapshot-file": str(overlay), "snapshot-node-name": "overlay", "format": "qcow2"}
    guest.qemu.spy("blockdev-snapshot-sync", **{"node-name": root, **new})
    for command in (["image", "web1", "disk1", "--default", data], ["guard", "web1", f"disk1={data}"]):
        refused = guest.ctl(*command)
        assert (refused.status, refused.stdout) == (4, "")
        assert f"QEMU uses {overlay} now" in complaint(refused)
    assert guest.ctl("image", "web1", "disk1", "--default", overlay).stdout == f"{overlay}\n"
    assert guest.ctl("guard", "web1", f"disk1={overlay}").status == 0
    overlay.rename(guest.path("renamed"))
    assert guest.ctl("image", "web1", "disk1", "--default", overlay).status == 6


@pytest.mark.parametrize("offline", [False, True])
def test_a_mistyped_domain_was_not_just_never_moved(guest: Guest, offline: bool):
    """Nobody has heard of it: status 4, also with a default."""
    if offline:
        guest.qemu.stop()
        guest.daemon.kill()
    for more in ([], ["--default", str(guest.disks[0])]):
        answer = guest.ctl("image", "web7", "disk0", *more, offline=offline)
        assert (answer.status, answer.stdout) == (4, "")
        assert "no domain web7" in complaint(answer)
    assert guest.ctl("guard", "web7", f"disk0={guest.disks[0]}", offline=offline).status == 4


def test_a_mistyped_disk_of_a_running_guest(guest: Guest):
    """QEMU runs without it."""
    answer = guest.ctl("image", "web1", "disk7")
    assert (answer.status, answer.stdout) == (4, "")
    assert "no disk disk7" in complaint(answer)


def test_every_disk_for_an_environment_file(guest: Guest):
    """Systemd reads each value as it was."""
    odd = guest.directory / 'a "$HOME" `b\\c.qcow2'
    assert guest.ctl("copy", "web1", f"disk0={odd}").status == 0
    lines = guest.ctl("image", "web1", "--all", "--default", f"disk1={guest.disks[1]}").stdout
    file = guest.directory / "env"
    file.write_text(lines)
    shell = 'set -a; . "$1"; printf "%s\\n" "$DISK0" "$DISK0_FORMAT" "$DISK1"'  # sh escapes as systemd does
    done = subprocess.run(["sh", "-c", shell, "sh", file], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(odd), "qcow2", str(guest.disks[1])]


def test_the_help_shows_such_lines(guest: Guest):
    """As they are printed for an image of that name."""
    told = re.search(r"two lines like (\S+) and\s+(\S+)\.$", guest.ctl("image", "--help").stdout, re.MULTILINE)
    assert told is not None
    lines = guest.ctl("image", "web1", "--all", *(f"--default=disk{n}={guest.disks[n]}" for n in (0, 1))).stdout
    assert lines.splitlines()[:2] == [told[1].replace("/images/web1.qcow2", str(guest.disks[0])), told[2]]


@pytest.mark.parametrize(
    ("configuration", "why"),
    [
        ('state_dir = "{state}"\nsocket = "{socket}"\n', None),
        ('state_dir = "{state}"\nsocket = "/run/other.sock"\n', "is of a pivotd at /run/other.sock"),
        ('state_dir = "{state}"\nsocket = 3\n', "socket: found 3"),
        (None, "cannot be read"),
    ],
    ids=["its own", "another daemon's", "wrong", "none"],
)
def test_without_the_daemon_no_other_journal_is_asked(guest: Guest, configuration: str | None, why: str | None):
    """Whichever this host has: it would name the image of another guest, or one that was left long ago."""
    new = guest.moved()
    guest.daemon.kill()
    guest.qemu.stop()
    file = guest.directory / "host.toml"
    if configuration is not None:
        file.write_text(configuration.format(state=guest.daemon.state_dir, socket=guest.daemon.socket))
    ask = ["--socket", str(guest.daemon.socket)]
    for words in (["image", "web1", "disk0", "--wait", "0"], ["guard", "web1", f"disk0={new}", "--wait", "0"]):
        answer = on_a_host_with(file, *ask, *words)
        assert answer.status == (0 if why is None else 3), answer
        assert why is None or (why in answer.stderr and "give --offline STATE_DIR" in answer.stderr)
        assert why is not None or words[0] == "guard" or answer.stdout == f"{new}\n"


def test_the_daemon_is_dead_and_qemu_is_not(guest: Guest):
    """It may be in the middle of a switch, whatever the journal says: nobody is certain."""
    new = guest.moved()
    guest.daemon.kill()
    for command in (["image", "web1", "disk0"], ["guard", "web1", f"disk0={new}"]):
        answer = guest.ctl(*command, "--wait", "0", offline=True)
        assert (answer.status, answer.stdout) == (6, "")
        assert "its QEMU runs" in complaint(answer)


def test_whoever_asks_while_pivotd_restarts_waits(guest: Guest):
    """Nobody can be certain in between; soon somebody is."""
    new = guest.moved()
    guest.daemon.kill()
    later = threading.Timer(1.0, guest.daemon.start)
    later.start()
    answer = guest.ctl("image", "web1", "disk0", "--wait", "30s", offline=True)
    later.join()
    assert (answer.status, answer.stdout) == (6, "")
    assert "leave out --offline" in complaint(answer)
    guest.daemon.kill()
    later = threading.Timer(1.0, guest.daemon.start)
    later.start()
    answer = guest.ctl("image", "web1", "disk0", "--wait", "30s")
    later.join()
    assert (answer.status, answer.stdout) == (0, f"{new}\n"), answer


@pytest.mark.parametrize("how", ["gone", "replaced", "unseen"])
def test_a_file_that_is_not_the_one(guest: Guest, how: str):
    """A guest cannot be started from it, so nobody is certain; with the daemon and without it."""
    new = guest.moved()
    guest.qemu.stop()
    other = create_image(guest.path("other"))
    if how == "replaced":
        other.rename(new)
    elif how == "gone":
        new.unlink()
    else:
        new.rename(guest.directory / "kept")
        new.symlink_to(new.name)  # nobody can look through a link to itself
    words = {"gone": "not there any more", "replaced": "leads to another file", "unseen": "may look at"}[how]
    online = guest.ctl("image", "web1", "disk0", "--wait", "0")
    assert (online.status, online.stdout) == (6, "")
    assert words in complaint(online)
    assert guest.json("verdict", "web1", "disk0").json["file"] == how
    guest.daemon.kill()
    assert guest.ctl("image", "web1", "disk0", offline=True).status == 6


def test_a_file_with_the_name_and_the_number_of_the_right_one(guest_alone: Guest):
    """A file system may give the number of a deleted file to the next one, such as to its copy from a backup."""
    guest = guest_alone
    new = guest.moved()
    guest.seen_file()
    guest.qemu.stop()
    number = new.stat().st_ino
    new.unlink()
    assert create_image(new).stat().st_ino == number
    for offline in (False, True):
        refused = guest.ctl("image", "web1", "disk0", "--wait", "0", offline=offline)
        assert (refused.status, refused.stdout) == (6, "")
        assert "leads to another file now" in complaint(refused)
    guest.start_on(new)
    guest.until(None, "alarms")
    assert guest.ctl("image", "web1", "disk0").status == 6


def complete(guest: Guest, pivot: str) -> None:
    """Ask for the switch of a pivot; pivotd may be killed before it answers."""
    with suppress(ClientError):
        Client(guest.daemon.socket, patience_s=0).complete(pivot)


def test_a_file_with_the_number_of_one_that_no_look_has_seen(guest_alone: Guest):
    """The journal was killed with QEMU, as the guest ran again: it has what was noted of the file before the switch."""
    guest = guest_alone
    new = guest.path("new")
    assert guest.ctl("copy", "web1", f"disk0={new}", "--no-pivot", "--id", "p").status == 0
    guest.qemu.spy_events()
    asks = threading.Thread(target=complete, args=(guest, "p"))
    asks.start()
    guest.qemu.await_event("RESUME")
    guest.daemon.kill()
    guest.qemu.kill()
    asks.join()
    assert guest.ctl("image", "web1", "disk0", "--wait", "0", offline=True).stdout == f"{new}\n"
    number = new.stat().st_ino
    shutil.copy(new, guest.path("backup"))
    new.unlink()
    assert shutil.copy(guest.path("backup"), new).stat().st_ino == number
    for offline in (True, False):
        if not offline:
            guest.daemon.start()
        refused = guest.ctl("image", "web1", "disk0", "--wait", "0", offline=offline)
        assert (refused.status, refused.stdout) == (6, "")
        assert "leads to another file now" in complaint(refused)
    guest.start_on(new)
    guest.until(None, "alarms")
    assert guest.ctl("image", "web1", "disk0").status == 6


def test_when_both_files_were_made_is_noted_before_the_switch(guest: Guest):
    """Whatever ends then, a file that gets the name and the number of one of them later is another one."""
    new, born = guest.path("new"), files.made
    if born(str(guest.disks[0])) is None:
        pytest.skip("this file system tells no times of birth")
    assert guest.ctl("copy", "web1", f"disk0={new}", "--no-pivot").status == 0
    with closing(sqlite3.connect(f"file:{guest.daemon.state_dir}/journal.db?mode=ro", uri=True)) as connection:
        noted = connection.execute("SELECT source_born, destination_born FROM pivot_disk").fetchone()
    assert noted == (born(str(guest.disks[0])), born(str(new)))


def test_an_accepted_image_is_replaced_under_its_name_while_the_guest_runs(guest: Guest):
    """Nothing else knows which file it was: QEMU shows it as long as it lives, and the journal has seen it there."""
    guest.moved()
    guest.qemu.stop()
    other = create_image(guest.path("other"))
    word = ("verdict", "accept", "web1", "disk0", other, "--format", "qcow2", "--reason", "so")
    assert guest.ctl(*word).status == 0
    guest.start_on(other)
    guest.seen_file()
    other.rename(guest.path("kept"))
    create_image(other)
    assert guest.ctl("image", "web1", "disk0", "--wait", "0").status == 6
    guest.qemu.stop()
    guest.until("unreachable", "connection")
    for offline in (False, True):
        refused = guest.ctl("image", "web1", "disk0", "--wait", "0", offline=offline)
        assert (refused.status, refused.stdout) == (6, "")
        assert "leads to another file now" in complaint(refused)
    guest.path("kept").rename(other)
    assert guest.ctl("image", "web1", "disk0").stdout == f"{other}\n"


@pytest.mark.parametrize("how", ["replaced", "link"])
@pytest.mark.thinned(2)
def test_an_accepted_image_is_another_one_before_any_guest_starts(guest: Guest, how: str):
    """The word was about the file to which the name led then: it was noted with the word."""
    new = guest.moved()
    guest.qemu.stop()
    named, other = guest.path("named"), create_image(guest.path("other"))
    if how == "link":
        named.symlink_to(new.name)
    else:
        shutil.copy(new, named)
    word = ("verdict", "accept", "web1", "disk0", named, "--format", "qcow2", "--reason", "so")
    assert guest.ctl(*word).status == 0
    for offline in (False, True):
        assert guest.ctl("image", "web1", "disk0", "--wait", "0", offline=offline).stdout == f"{named}\n"
    if how == "link":
        named.unlink()
        named.symlink_to(other.name)
    else:
        named.rename(guest.path("kept"))
        other.rename(named)
    for offline in (False, True):
        for asked in (("image", "web1", "disk0"), ("guard", "web1", f"disk0={named}")):
            refused = guest.ctl(*asked, "--wait", "0", offline=offline)
            assert (refused.status, refused.stdout) == (6, "")
            assert "leads to another file now" in complaint(refused)
    guest.start_on(named)
    guest.until(None, "alarms")
    assert guest.ctl(*word).status == 0, "a new word is about the file that is there now"
    assert guest.ctl("image", "web1", "disk0").stdout == f"{named}\n"


def test_a_guest_that_has_run_on_another_file_of_the_right_name(guest: Guest):
    """No fleet has anything to do with that, and it ends once the guest is seen to run on the right file again."""
    new = guest.moved()
    guest.seen_file()
    guest.qemu.stop()
    new.rename(guest.path("kept"))
    shutil.copy(guest.path("kept"), new)
    guest.start_on(new)
    (alarm,) = guest.until(None, "alarms")  # type: ignore[misc]
    assert f"uses another file of that name: the file {new} was replaced" in alarm
    guest.qemu.stop()
    guest.until("unreachable", "connection")
    for offline in (False, True):
        reason = ctl(*guest.where(offline=offline), "--json", "verdict", "web1", "disk0").json["reason"]
        assert "the guest ran on another file of that name" in reason
        assert "fleet" not in reason
    new.rename(guest.path("other"))
    guest.path("kept").rename(new)
    guest.start_on(new)
    guest.noted("image-seen")
    assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"


def test_the_right_image_in_another_format(guest: Guest):
    """What a guest writes to the container of a qcow2 image destroys it, and a copy would carry the container on."""
    new = guest.moved()
    guest.qemu.stop()
    guest.qemu = Qemu(guest.directory, [Disk(new, format="raw"), Disk(guest.disks[1])]).start()
    (alarm,) = guest.until(None, "alarms")  # type: ignore[misc]
    assert f"The journal names {new} as qcow2, but another QEMU process uses it as raw" in alarm
    word = ("verdict", "accept", "web1", "disk0", new, "--reason", "so")
    for asked in (("copy", "web1", f"disk0={guest.path('third')}"), word):
        refused = guest.ctl(*asked)
        assert refused.status == 4
        assert "as raw" in complaint(refused)
    guest.noted("ran-on-other-image")
    guest.qemu.stop()
    guest.until("unreachable", "connection")
    for offline in (False, True):
        refused = guest.ctl("image", "web1", "disk0", "--wait", "0", offline=offline)
        assert (refused.status, refused.stdout) == (6, "")
        assert "the guest ran on it as raw" in complaint(refused)
    guest.start_on(new)
    guest.noted("image-seen")
    assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
    assert guest.json("verdict", "--image", new).json[0]["standing"] == "current"


@pytest.mark.parametrize("how", ["throttled", "copy on read", "no format", "throttled without a format"])
@pytest.mark.thinned(2)
def test_the_right_image_below_a_filter_or_without_a_format(guest: Guest, how: str):
    """A filter is no format, and a file without one is raw: QEMU has the image that it should have."""
    image_format = "raw" if "a format" in how or how == "no format" else "qcow2"
    new = guest.path("new")
    assert guest.ctl("copy", "web1", f"disk0={new}", "--format", image_format).status == 0
    guest.qemu.stop()
    file = {"driver": "file", "filename": str(new)}
    image = {"driver": "qcow2", "file": file} if image_format == "qcow2" else file
    top = {
        "throttled": {"driver": "throttle", "throttle-group": "tg", "file": image},
        "copy on read": {"driver": "copy-on-read", "file": image},
        "no format": image,
        "throttled without a format": {"driver": "throttle", "throttle-group": "tg", "file": image},
    }[how]
    node = ["-object", "throttle-group,id=tg", "-blockdev", json.dumps({"node-name": "top", **top})]
    guest.qemu = Qemu(guest.directory, extra=[*node, "-device", "virtio-blk-pci,id=disk0,drive=top"]).start()
    guest.until("connected", "connection")
    guest.seen_file()
    shown = guest.json("verdict", "web1", "disk0").json
    assert (shown["image"], shown["format"], shown["certain"]) == (str(new), image_format, True)
    assert guest.json("domain", "show", "web1").json["alarms"] == []


def test_guard(guest: Guest):
    """The right images pass by any name; a wrong one gives one line with the right one."""
    new, (old, data) = guest.moved(), guest.disks
    guest.qemu.stop()
    link = guest.path("link")
    link.symlink_to(new.name)
    for image in (new, link):
        assert guest.ctl("guard", "web1", f"disk0={image}", f"disk1={data}").status == 0
    for offline in (False, True):
        refused = guest.ctl("guard", "web1", f"disk0={old}", f"disk1={data}", offline=offline)
        assert refused.status == 4
        assert complaint(refused) == f"web1 must start with disk0={new}, not with disk0={old}"
    assert guest.ctl("guard", "web1", f"disk1={old}").status == 4  # never moved, but this is out of date
    assert guest.ctl("guard", "web1", f"disk0={new}", f"disk0={old}").status == 2


def test_history_of_an_image(guest: Guest):
    """Also of images that only an earlier pivot knew, and by the file under another name."""
    old = guest.disks[0]
    new, overlay = guest.moved(), guest.moved("snapshot", "overlay")

    def standing(image: Path, *, offline: bool = False) -> list[str]:
        where = ["--offline", guest.daemon.state_dir] if offline else ["--socket", guest.daemon.socket]
        return [row["standing"] for row in ctl(*where, "--json", "verdict", "--image", image).json]

    for offline in (False, True):
        stand = [standing(image, offline=offline) for image in (old, new, overlay)]
        assert stand == [["stale"], ["base"], ["current"]]
    moved = guest.path("moved")
    old.rename(moved)
    assert standing(moved) == ["stale"]
    with Qemu(guest.directory, [Disk(moved)], name="other") as other:
        assert guest.ctl("domain", "add", "other", "--qmp", other.qmp).status == 0
        assert standing(moved) == ["current", "stale"]  # of a guest that pivotd has never moved
    fresh = create_image(guest.path("fresh"))
    assert standing(fresh) == []
    assert guest.ctl("verdict", "--image", fresh).status == 7


def test_a_new_file_with_the_number_of_a_deleted_one(guest_alone: Guest):
    """File systems use numbers again: the new file is not the old image."""
    guest = guest_alone
    old = guest.disks[0]
    number = old.stat().st_ino
    guest.moved()
    guest.qemu.stop()
    old.unlink()
    fresh = create_image(guest.path("fresh"))
    assert fresh.stat().st_ino == number
    assert guest.ctl("verdict", "--image", fresh).status == 7


def test_a_stale_image_that_runs(guest: Guest):
    """It is an alarm wherever somebody may look, and no pivot washes it away; a person's word settles it."""
    old, new = guest.disks[0], guest.moved()
    guest.start_on(old)
    (alarm,) = guest.until(None, "alarms")  # type: ignore[misc]
    assert f"runs on {old}, which is stale since" in alarm
    assert "wrong image" in guest.ctl("domain", "ls").stdout
    assert alarm in guest.ctl("domain", "show", "web1").stdout
    assert (
        '"event": "domain.wrong-image"' in guest.daemon.log_path.read_text()
        or alarm in guest.daemon.log_path.read_text()
    )
    guest.noted("wrong-image")
    refused = guest.ctl("copy", "web1", f"disk0={guest.path('next')}")
    assert refused.status == 4
    assert "is in doubt" in complaint(refused)
    assert guest.ctl("copy", "web1", f"disk1={guest.path('other')}").status == 0  # another disk has no doubt
    wrong = guest.ctl("verdict", "accept", "web1", "disk0", new, "--reason", "I think so")
    assert wrong.status == 4
    assert f"runs on {old} now" in complaint(wrong)
    word = guest.json("verdict", "accept", "web1", "disk0", old, "--reason", "restored from the backup")
    assert (word.json["image"], word.json["outcome"], word.json["certain"]) == (str(old), "accepted", True)
    assert "restored from the backup" in word.json["reason"]
    guest.until([], "alarms")
    assert guest.ctl("copy", "web1", f"disk0={guest.path('next')}").status == 0
    assert guest.json("verdict", "--image", old).json[0]["standing"] == "stale"


def settled_by_a_word(guest: Guest, other: Path) -> None:
    """After its QEMU has ended, both images are named wherever somebody asks, until a person has said which is right."""
    new = guest.path("new")
    guest.qemu.stop()
    guest.until("unreachable", "connection")
    for offline in (False, True):
        if offline:
            guest.daemon.kill()
        refused = guest.ctl("image", "web1", "disk0", offline=offline)
        assert (refused.status, refused.stdout) == (6, "")
        assert f"names {new}, but the guest ran on {other}" in complaint(refused)
        assert guest.ctl("guard", "web1", f"disk0={new}", "--wait", "0", offline=offline).status == 6
        assert guest.ctl("stale", "-q", offline=offline).stdout == ""
    guest.daemon.start()
    assert guest.json("verdict", "accept", "web1", "disk0", other, "--format", "qcow2", "--reason", "so").json[
        "certain"
    ]
    assert guest.ctl("image", "web1", "disk0").stdout == f"{other}\n"


@pytest.mark.long
def test_a_stale_image_on_which_the_guest_has_run(guest: Guest):
    """Its writes are there and nowhere else: no certain answer, and no name to delete, before a person has looked."""
    old, new = guest.disks[0], guest.moved()
    guest.start_on(old, paused=True)
    guest.until(None, "alarms")
    guest.qemu.stop()
    guest.until("unreachable", "connection")
    assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"  # it was not let run there
    guest.start_on(old, paused=True)
    guest.qemu.spy("cont")
    guest.noted("ran-on-other-image")
    guest.start_on(new, paused=True)
    assert guest.ctl("image", "web1", "disk0").status == 6  # whoever only looks at it has not chosen it
    guest.start_on(new)
    guest.noted("image-seen")
    assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
    guest.start_on(old)
    guest.noted("ran-on-other-image", 2)
    (found,) = guest.json("verdict", "--image", old).json
    assert found["standing"] == "unknown"
    settled_by_a_word(guest, old)


def test_images_on_which_the_guest_has_run_are_not_named_for_deletion(guest: Guest):
    """Each may have the only copy of some writes, whatever the guest runs on now; a person's word ends that."""
    old, new = guest.disks[0], guest.moved()
    link = guest.path("link")
    link.symlink_to(old.name)
    guest.start_on(link)
    guest.noted("ran-on-other-image")
    guest.start_on(create_image(guest.path("third")))
    guest.noted("ran-on-other-image", 2)
    assert guest.ctl("stale", "-q").stdout == ""
    guest.start_on(new)
    guest.noted("image-seen")
    shown = guest.ctl("stale", "-q")
    assert (shown.status, shown.stdout) == (0, "")
    (found,) = guest.json("verdict", "--image", old).json
    assert (found["standing"], "may have written to it" in found["standing_reason"]) == ("unknown", True)
    assert guest.ctl("verdict", "accept", "web1", "disk0", new, "--reason", "compared").status == 0
    assert guest.ctl("stale", "-q").stdout == f"{old}\n"


def test_a_disk_that_another_client_has_moved(guest: Guest):
    """Its job tells pivotd to look: once QEMU has ended, nobody could."""
    guest.moved()
    third = create_image(guest.path("third"))
    root = guest.qemu.spy("query-block")[0]["inserted"]["node-name"]
    file = {"driver": "file", "filename": str(third)}
    guest.qemu.spy("blockdev-add", driver="qcow2", **{"node-name": "third", "file": file})
    guest.qemu.spy("blockdev-mirror", device=root, target="third", sync="full", **{"job-id": "theirs"})
    assert until(lambda: [job["status"] for job in guest.qemu.spy("query-jobs")] == ["ready"])
    guest.qemu.spy("job-complete", id="theirs")
    guest.noted("ran-on-other-image")
    settled_by_a_word(guest, third)


@pytest.mark.long
def test_a_disk_that_another_client_has_moved_without_a_job(guest: Guest):
    """No event tells of it; whoever asks for the verdict while QEMU lives leaves it recorded."""
    guest.moved()
    overlay = guest.path("overlay")
    root = guest.qemu.spy("query-block")[0]["inserted"]["node-name"]
    new = {"snapshot-file": str(overlay), "snapshot-node-name": "overlay", "format": "qcow2"}
    guest.qemu.spy("blockdev-snapshot-sync", **{"node-name": root, **new})
    assert guest.ctl("image", "web1", "disk0").status == 6
    guest.noted("ran-on-other-image")
    settled_by_a_word(guest, overlay)


def test_an_old_image_that_nothing_keeps_in_sync_any_more(guest: Guest):
    """Its QEMU and pivotd have ended in the window of an undo: the journal alone still has that open."""
    old, new = guest.disks[0], guest.path("new")
    assert guest.ctl("copy", "web1", f"disk0={new}", "--keep-synced", "--for", "1h").status == 0
    guest.daemon.kill()
    where = ["--offline", guest.daemon.state_dir, "--json", "verdict", "--image", old]
    assert [row["standing"] for row in ctl(*where).json] == ["in sync"]
    guest.qemu.stop()
    assert [row["standing"] for row in ctl(*where).json] == ["stale"]


def test_a_guest_that_runs_and_cannot_be_asked(guest: Guest):
    """Another client has its monitor, and may move the disk: as certain as without the daemon, which is not at all."""
    new = guest.moved()
    guest.daemon.kill()
    with socket.socket(socket.AF_UNIX) as taken, taken.makefile("rw") as stream:
        taken.connect(str(guest.qemu.qmp))
        stream.readline()
        guest.daemon.start()
        for command in (["image", "web1", "disk0"], ["guard", "web1", f"disk0={new}"]):
            answer = guest.ctl(*command, "--wait", "0")
            assert (answer.status, answer.stdout) == (6, "")
            assert "its QEMU runs" in complaint(answer)
            assert "cannot tell which image" in complaint(answer)
            beside = guest.ctl(*command, "--wait", "0", offline=True)
            assert (beside.status, beside.stdout) == (6, ""), beside
            assert "leave out --offline" in complaint(beside)
        table = guest.ctl("verdict")
        assert (table.status, table.stdout.splitlines()[1].split()[:5]) == (
            6,
            ["web1", "disk0", "not", "certain", str(new)],
        )
        by_image = guest.json("verdict", "--image", new)
        assert by_image.status == 6
        assert [(row["standing"], row["certain"]) for row in by_image.json] == [("unknown", False)]
    assert guest.ctl("image", "web1", "disk0", "--wait", "60s").stdout == f"{new}\n"
    assert guest.ctl("verdict", "--image", new).status == 0
    guest.qemu.stop()
    for offline in (False, True):
        assert guest.ctl("image", "web1", "disk0", offline=offline).stdout == f"{new}\n"


def test_a_guest_that_has_just_started(guest: Guest):
    """Its supervisor would look in some seconds: whoever asks is not told of the guest before, which has ended."""
    old, new = guest.disks[0], guest.moved()
    guest.qemu.stop()
    time.sleep(LONG_BETWEEN_TRIES_S)
    guest.qemu = Qemu(guest.directory, [Disk(old), Disk(guest.disks[1])]).start()
    answers = [guest.ctl("guard", "web1", f"disk0={new}", "--wait", "0"), guest.ctl("verdict", "--image", new)]
    assert [answer.status for answer in answers] == [6, 6], answers


@pytest.mark.parametrize("offline", [False, True])
def test_a_disk_that_was_never_moved_of_a_guest_that_cannot_be_asked(guest: Guest, offline: bool):
    """Another client may have moved it: no image is certain, whether or not pivotd lives."""
    data = guest.disks[1]
    if offline:
        guest.moved()  # or the journal would not know the guest
    guest.daemon.kill()
    with socket.socket(socket.AF_UNIX) as taken, taken.makefile("rw") as stream:
        taken.connect(str(guest.qemu.qmp))
        stream.readline()
        if not offline:
            guest.daemon.start()
        for command in (["image", "web1", "disk1", "--default", data], ["guard", "web1", f"disk1={data}"]):
            answer = guest.ctl(*command, "--wait", "0", offline=offline)
            assert (answer.status, answer.stdout) == (6, ""), answer
            assert "QEMU" in complaint(answer)


@pytest.mark.long
def test_an_image_below_that_of_another_disk(guest: Guest):
    """Two layers down, or an external data file: no pivot has named it, and a guest that starts from it spoils both."""
    base, top, flat, data = (guest.path(name) for name in ("base", "top", "flat", "flat.data"))
    create_image(base)
    for below, image in ((base, guest.path("middle")), (guest.path("middle"), top)):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, image], check=True)
    create_image(flat, options=f"data_file={data}")
    guest.start_on(top)
    assert guest.ctl("domain", "add", "web2", "--qmp", guest.directory / "web2.qmp").status == 0

    def is_refused(image: Path, above: Path, *, offline: bool = False) -> bool:
        where = ["--offline", guest.daemon.state_dir] if offline else ["--socket", guest.daemon.socket]
        found = ctl(*where, "--json", "verdict", "--image", image)
        assert (found.status, [(row["standing"], row["above"]) for row in found.json]) == (0, [("base", str(above))])
        for command in (["guard", "web2", f"disk0={image}"], ["image", "web2", "disk0", "--default", image]):
            answer = guest.ctl(*command, offline=offline)
            assert (answer.status, answer.stdout) == (4, ""), answer
            assert f"it is below {above}" in complaint(answer)
        return True

    assert is_refused(base, top)
    assert guest.ctl("copy", "web1", f"disk0={guest.path('copied')}", "--sync", "top").status == 0
    assert guest.ctl("copy", "web1", f"disk1={flat}", "--reuse").status == 0
    link = guest.path("hard")
    link.hardlink_to(base)
    for image, above in ((base, guest.path("copied")), (link, guest.path("copied")), (data, flat)):
        assert is_refused(image, above)
    guest.qemu.stop()
    guest.until("unreachable", "connection")
    for image, above in ((base, guest.path("copied")), (data, flat)):
        assert is_refused(image, above)
    guest.daemon.kill()
    for image, above in ((base, guest.path("copied")), (link, guest.path("copied")), (data, flat)):
        assert is_refused(image, above, offline=True)


def test_a_word_needs_an_image_that_is_there_and_a_disk_that_was_moved(guest: Guest):
    """One line each."""
    reason = ["--reason", "so"]
    assert guest.ctl("verdict", "accept", "web1", "disk0", guest.disks[0], *reason).status == 4
    guest.moved()
    guest.qemu.stop()
    missing = guest.ctl("verdict", "accept", "web1", "disk0", guest.path("none"), *reason)
    assert (missing.status, f"no {guest.path('none')}" in complaint(missing)) == (4, True)
    other = create_image(guest.path("other"))
    unknown = guest.ctl("verdict", "accept", "web1", "disk0", other, *reason)
    assert (unknown.status, "say its format" in complaint(unknown)) == (4, True)
    assert guest.ctl("verdict", "accept", "web1", "disk0", other, *reason, "--format", "qcow2").status == 0
    assert guest.ctl("image", "web1", "disk0").stdout == f"{other}\n"
    assert guest.ctl("verdict", "accept", "web1", "disk0", other).status == 2


def test_a_layer_that_only_qemu_knows(guest: Guest):
    """The header of the image names none: QEMU was told of it at its start."""
    base, top = create_image(guest.path("told")), create_image(guest.path("above"))
    nodes = [
        {"driver": "qcow2", "node-name": "told", "file": {"driver": "file", "filename": str(base)}},
        {"driver": "qcow2", "node-name": "above", "file": {"driver": "file", "filename": str(top)}, "backing": "told"},
    ]
    extra = [word for node in nodes for word in ("-blockdev", json.dumps(node))]
    assert guest.ctl("domain", "add", "web2", "--qmp", guest.directory / "web2.qmp").status == 0
    with Qemu(guest.directory, name="web2", extra=[*extra, "-device", "virtio-blk-pci,drive=above,id=own"]):
        guest.json("disk", "ls", "web2")
        found = guest.json("verdict", "--image", base)
    (row,) = found.json
    assert (row["disk"], row["standing"], str(top) in row["above"]) == ("own", "base", True), row


def test_a_layer_below_an_image_on_which_a_guest_should_not_run(guest: Guest):
    """It writes above that layer all the same: what QEMU has counts, not the chain of the right image."""
    base, top = create_image(guest.path("base")), guest.path("top")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top], check=True)
    guest.moved()
    guest.start_on(top)
    found = guest.json("verdict", "--image", base)
    assert [(row["disk"], row["standing"]) for row in found.json] == [("disk0", "base")], found


def test_a_word_for_what_cannot_hold_the_disk(guest: Guest):
    """A slip in the name or the format: such a guest could not start, or would not see its data."""
    old, fifo = guest.disks[0], guest.directory / "fifo"
    os.mkfifo(fifo)
    raw = create_image(guest.path("raw"), image_format="raw")
    new = guest.moved()
    guest.qemu.stop()
    for image, image_format, why in (
        (guest.directory, "qcow2", "neither a regular file nor a block device"),
        (fifo, "raw", "neither a regular file nor a block device"),
        (Path("/dev/null"), "raw", "neither a regular file nor a block device"),
        (raw, "qcow2", "holds no qcow2 image"),
    ):
        words = ("verdict", "accept", "web1", "disk0", image, "--format", image_format, "--reason", "so")
        refused = guest.ctl(*words)
        assert (refused.status, why in complaint(refused)) == (4, True), refused
        assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
    assert guest.ctl("verdict", "accept", "web1", "disk0", old, "--reason", "so").status == 0


def test_a_word_for_a_disk_of_a_device_without_an_id(guest: Guest):
    """Its name is a path in QEMU's tree, with slashes."""
    image, new = create_image(guest.path("nameless")), guest.path("nameless-new")
    node = {"driver": "qcow2", "node-name": "nameless", "file": {"driver": "file", "filename": str(image)}}
    assert guest.ctl("domain", "add", "web2", "--qmp", guest.directory / "web2.qmp").status == 0
    extra = ["-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=nameless"]
    with Qemu(guest.directory, name="web2", extra=extra):
        (disk,) = (row["disk"] for row in guest.json("disk", "ls", "web2").json)
        assert disk.startswith("/machine/")
        assert guest.ctl("copy", "web2", f"{disk}={new}").status == 0
    word = guest.ctl("verdict", "accept", "web2", disk, image, "--reason", "compared")
    assert word.status == 0, word
    assert guest.ctl("image", "web2", disk).stdout == f"{image}\n"


def test_a_word_for_an_image_that_a_guest_may_use_that_cannot_be_asked(guest: Guest):
    """Else both were certain of it as soon as it had ended."""
    new = guest.moved()
    assert guest.ctl("domain", "add", "web2", "--qmp", guest.directory / "web2.qmp").status == 0
    with Qemu(guest.directory, [Disk(create_image(guest.path("mine")))], name="web2"):
        assert guest.ctl("copy", "web2", f"disk0={guest.path('yours')}").status == 0
    guest.daemon.kill()
    word = ("verdict", "accept", "web2", "disk0", new, "--format", "qcow2", "--reason", "so")
    with socket.socket(socket.AF_UNIX) as taken, taken.makefile("rw") as stream:
        taken.connect(str(guest.qemu.qmp))
        stream.readline()
        guest.daemon.start()
        refused = guest.ctl(*word)
        assert (refused.status, refused.stdout) == (4, ""), refused
        assert "whether web1 disk0 needs it" in complaint(refused), refused
    guest.qemu.stop()
    guest.until("unreachable", "connection")
    refused = guest.ctl(*word)
    assert (refused.status, "it holds the data of web1 disk0" in complaint(refused)) == (4, True), refused


def test_a_word_for_the_image_of_another_disk(guest: Guest):
    """Else both were certain of it, and two guests could start from it; once the other domain is removed, it counts."""
    old, other = guest.disks[0], guest.path("other")
    new = guest.moved()
    assert guest.ctl("copy", "web1", f"disk1={other}").status == 0
    guest.qemu.stop()
    guest.until("unreachable", "connection")
    refused = guest.ctl("verdict", "accept", "web1", "disk0", other, "--format", "qcow2", "--reason", "a slip")
    assert (refused.status, "it holds the data of web1 disk1" in complaint(refused)) == (4, True), refused
    for word in (old, new):
        assert guest.ctl("verdict", "accept", "web1", "disk0", word, "--reason", "so").status == 0
    monitor = guest.directory / "web2.qmp"
    assert guest.ctl("domain", "add", "web2", "--qmp", monitor).status == 0
    with Qemu(guest.directory, [Disk(create_image(guest.path("mine")))], name="web2"):
        assert guest.ctl("copy", "web2", f"disk0={guest.path('yours')}").status == 0
    word = ("verdict", "accept", "web2", "disk0", new, "--format", "qcow2", "--reason", "so")
    refused = guest.ctl(*word)
    assert (refused.status, "it holds the data of web1 disk0" in complaint(refused)) == (4, True), refused
    base = guest.path("yours")
    top = guest.path("top")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top], check=True)
    assert guest.ctl("verdict", "accept", "web2", "disk0", top, "--format", "qcow2", "--reason", "so").status == 0
    below = ("verdict", "accept", "web1", "disk0", base, "--format", "qcow2", "--reason", "a slip")
    refused = guest.ctl(*below)
    assert (refused.status, f"it is below {top}" in complaint(refused)) == (4, True), refused
    assert guest.ctl("domain", "rm", "web2").status == 0
    assert guest.ctl(*below).status == 0


def test_a_renamed_image(guest: Guest):
    """While the guest was off somebody renamed the file: it is the same one, and that is said."""
    new, name = guest.moved(), guest.path("renamed")
    guest.qemu.stop()
    new.rename(name)
    assert guest.ctl("guard", "web1", f"disk0={name}", "--wait", "0").status == 0
    guest.start_on(name)
    shown = guest.json("verdict", "web1", "disk0").json
    assert (shown["image"], shown["certain"]) == (str(name), True)
    assert f"{new} was renamed to {name}: it is the same file" in shown["evidence"]
    assert guest.json("domain", "show", "web1").json["alarms"] == []
    assert guest.ctl("copy", "web1", f"disk0={guest.path('next')}").status == 0


def test_images_that_no_disk_needs(guest: Guest):
    """With size and age; a name for xargs only if the file is there and nothing uses it. Nothing is deleted."""
    old = guest.disks[0]
    new = guest.moved()
    guest.moved(name="third")
    rows = {row["image"]: row for row in guest.json("stale").json}
    assert set(rows) == {str(old), str(new)}
    assert (rows[str(old)]["file"], rows[str(old)]["used_by"]) == ("there", None)
    assert rows[str(old)]["size_bytes"] > 0
    assert 0 <= rows[str(old)]["age_s"] < 600
    overlay = guest.path("clone")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(new), "-F", "qcow2", str(overlay)]
    subprocess.run(command, check=True)
    with Qemu(guest.directory, [Disk(overlay)], name="clone") as clone:
        assert guest.ctl("domain", "add", "clone", "--qmp", clone.qmp).status == 0
        assert {row["image"]: row["used_by"] for row in guest.json("stale").json}[str(new)] == "clone disk0"
        assert guest.ctl("stale", "-q").stdout == f"{old}\n"
    old.unlink()
    assert guest.ctl("domain", "rm", "clone").status == 0
    assert guest.ctl("stale", "-q").stdout == f"{new}\n"
    guest.qemu.stop()
    off = guest.ctl("stale", "-q")
    assert (off.status, off.stdout) == (6, "")  # its other disk may be based on any of them
    assert "web1 is not connected" in complaint(off)
    guest.daemon.kill()
    assert new.exists()
    assert str(new) in guest.ctl("stale", offline=True).stdout
    assert guest.ctl("stale", "-q", offline=True).status == 6


@pytest.mark.parametrize("how", ["made again", "put there"])
def test_another_file_under_the_name_of_a_stale_image(guest: Guest, how: str):
    """It is not the one that the disk has left, so its name is not printed for `rm`."""
    old, other = guest.disks[0], create_image(guest.path("other"))
    guest.moved()
    if how == "made again":
        old.unlink()
        create_image(old)
    else:
        other.rename(old)
    for offline in (False, True):
        where = ["--offline", guest.daemon.state_dir] if offline else ["--socket", guest.daemon.socket]
        assert [row["file"] for row in ctl(*where, "--json", "stale").json] == ["replaced"]
    shown = guest.ctl("stale", "-q")
    assert (shown.status, shown.stdout) == (0, "")


def test_a_stale_image_that_some_qemu_has_open(guest: Guest):
    """Not as a disk, or in a guest that pivotd does not know."""
    old = guest.disks[0]
    guest.moved()
    assert guest.ctl("stale", "-q").stdout == f"{old}\n"
    guest.qemu.spy("blockdev-add", driver="file", filename=str(old), **{"node-name": "x", "read-only": False})
    guest.qemu.spy("blockdev-add", driver="qcow2", file="x", **{"node-name": "y"})
    assert guest.ctl("stale", "-q").stdout == ""
    assert [row["used_by"] for row in guest.json("stale").json] == ["a QEMU"]


def restore(guest: Guest, backup: Path) -> None:
    """Put a copy of the journal in its place, as a backup program does."""
    for file in guest.daemon.state_dir.iterdir():
        file.unlink()
    shutil.copytree(backup, guest.daemon.state_dir, dirs_exist_ok=True)


def test_a_restored_journal(guest: Guest):
    """It may lack the latest moves, so it is not certain of anything until QEMU is seen on the image that it names."""
    new, backup = guest.moved(), guest.directory / "backup"
    guest.daemon.kill()
    shutil.copytree(guest.daemon.state_dir, backup)
    guest.daemon.start()
    guest.moved(name="third")
    guest.qemu.stop()
    guest.daemon.kill()
    restore(guest, backup)
    for offline in (True, False):
        answer = guest.ctl("image", "web1", "disk0", "--wait", "0", offline=offline)
        assert (answer.status, answer.stdout) == (6, "")
        assert "restored, copied or upgraded" in complaint(answer)
        assert guest.ctl("guard", "web1", f"disk0={new}", "--wait", "0", offline=offline).status == 6
        if offline:
            guest.daemon.start()
    guest.start_on(new)  # whoever does this knows more than the journal
    guest.until([], "alarms")
    deadline_s = time.monotonic() + LOOK_TIMEOUT_S
    while "image-seen" not in [row["event"] for row in guest.json("events").rows]:
        assert time.monotonic() < deadline_s
        time.sleep(LOOK_S)
    guest.qemu.stop()
    for _ in range(2):
        assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
        guest.daemon.kill()
        guest.daemon.start()


def test_a_person_accepts_what_a_restored_journal_names(guest: Guest):
    """Then no QEMU has to be seen."""
    new = guest.moved()
    guest.qemu.stop()
    guest.daemon.kill()
    shutil.copytree(guest.daemon.state_dir, guest.directory / "backup")
    restore(guest, guest.directory / "backup")
    guest.daemon.start()
    assert guest.ctl("image", "web1", "disk0", "--wait", "0").status == 6
    assert guest.ctl("verdict", "accept", "web1", "disk0", new, "--reason", "compared").status == 0
    assert guest.ctl("image", "web1", "disk0").stdout == f"{new}\n"
    assert "journal-moved" in [row["event"] for row in guest.json("events").rows]


def test_a_moved_directory_is_no_restored_journal(guest: Guest):
    """Renaming keeps the file."""
    new = guest.moved()
    guest.qemu.stop()
    guest.daemon.kill()
    place = guest.daemon.state_dir.rename(guest.directory / "elsewhere")
    assert ctl("--offline", place, "image", "web1", "disk0").stdout == f"{new}\n"


def test_a_renamed_image_of_a_restored_journal(guest: Guest):
    """The file is the one that the journal names, and yet the journal may lack the move after it."""
    new, name = guest.moved(), guest.path("renamed")
    guest.qemu.stop()
    guest.daemon.kill()
    shutil.copytree(guest.daemon.state_dir, guest.directory / "backup")
    restore(guest, guest.directory / "backup")
    new.rename(name)
    assert guest.ctl("guard", "web1", f"disk0={name}", "--wait", "0", offline=True).status == 6
    guest.daemon.start()
    assert guest.ctl("guard", "web1", f"disk0={name}", "--wait", "0").status == 6


def test_a_journal_without_its_name_takes_no_pivot(guest: Guest):
    """Under the running daemon: refused before anything, health and doctor say so, and no new daemon is wrong."""
    new = guest.moved()
    for path in guest.daemon.state_dir.glob("journal.db*"):
        path.unlink()
    answer = guest.ctl("copy", "web1", f"disk0={guest.path('third')}")
    assert answer.status == 4
    assert "journal.db is gone" in answer.stderr
    assert not guest.path("third").exists()
    word = guest.ctl("verdict", "accept", "web1", "disk0", str(new), "--reason", "seen")
    assert (word.status, "journal.db is gone" in word.stderr) == (4, True)
    areas = guest.json("doctor").json["areas"]
    findings = {one["check"] for area in areas for one in area["findings"] if one["seen"]}
    assert findings >= {"journal-failing", "journal-unusable"}
    guest.qemu.stop()
    guest.daemon.terminate()
    guest.daemon.start()
    assert guest.ctl("image", "web1", "disk0", "--default", str(new), "--wait", "0").stdout == f"{new}\n"
