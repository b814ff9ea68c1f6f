"""`pivotctl doctor --bundle`: what a support request needs is in it, no secret is, and no file is overwritten."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pivotd.cli import redaction
from pivotd.core.pivot import Image, Pivot
from pivotd.journal.journal import Journal
from tests.cli.ctl import complaint, ctl
from tests.journal.samples import make_pivot
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

SECRET = "hunter2-Qx7"
"""Stands in every place in which a secret can: it must be nowhere in a bundle."""


def with_secrets(pivot: Pivot) -> Pivot:
    """Return a pivot whose images are named by an address with a password, and by QEMU's own description."""
    (disk,) = pivot.disks
    described = json.dumps({"driver": "https", "url": "https://h/x", "password": SECRET})
    source = Image(f"https://bob:{SECRET}@storage.example/disk.qcow2", "qcow2", "n1")
    return replace(pivot, disks=(replace(disk, source=source, destination=Image(f"json:{described}", "raw", "n2")),))


@pytest.fixture(scope="module")
def bundle() -> Iterator[tuple[Path, dict[str, bytes]]]:
    """A bundle of a host with secrets in its configuration and in its journal."""
    with tempfile.TemporaryDirectory(prefix="pb") as name:
        directory = Path(name)
        more = f"# the proxy is http://alice:{SECRET}@proxy:3128\n# password = {SECRET}\n"
        daemon = Daemon(directory, {"web1": directory / "web1.qmp"}, configuration=more)
        (directory / "pivotd.toml.d").mkdir()
        (directory / "pivotd.toml.d" / "etcd-password").write_text(f"{SECRET}\n")

        async def fill() -> None:
            journal = Journal.open(daemon.state_dir)
            await journal.accept(with_secrets(make_pivot(1, domain="gone")), {"token": SECRET, "note": "kept"})
            await journal.close()

        asyncio.run(fill())
        file = directory / "bundle.tar.gz"
        with Qemu(directory, [Disk(create_image(directory / "web1.qcow2"))]), daemon:
            command = ("--json", "doctor", "--config", directory / "pivotd.toml", "--bundle", file)
            answer = ctl("--socket", daemon.socket, *command)
        assert answer.status in {0, 8}, answer
        with tarfile.open(file) as archive:
            held = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
            assert {member.mode for member in archive.getmembers()} == {0o600}
        assert sorted(f"pivotd-doctor/{one}" for one in answer.json["contents"]) == sorted(held)
        yield file, {name.removeprefix("pivotd-doctor/"): content for name, content in held.items()}


@pytest.mark.qemu
def test_what_is_in_it(bundle: tuple[Path, dict[str, bytes]]):
    """The findings, versions, configuration, what the daemon shows, the journal; and a list that says what each is."""
    _, held = bundle
    wanted = {"doctor.json", "versions.json", "host.txt", "journal.db", "contents.txt", "daemon/health.json"}
    assert wanted | {"daemon/domains.json", "daemon/disks-web1.json", "daemon/verdicts.json"} <= held.keys()
    assert [name for name in held if name.startswith("configuration/")]
    assert json.loads(held["doctor.json"])["checks"]["guest-paused"] == "ok"
    assert json.loads(held["versions.json"])["libraries"]["structlog"]
    told = held["contents.txt"].decode()
    assert all(f"\n{name}: " in told for name in held)
    assert "units/: LEFT OUT: " in told or "units/cat.txt" in held


@pytest.mark.qemu
def test_no_secret_is_in_it(bundle: tuple[Path, dict[str, bytes]]):
    """Neither in a file, nor in a page of the journal that is not used any more."""
    _, held = bundle
    for name, content in held.items():
        assert SECRET.encode() not in content, name
    assert b"etcd-password (no drop-in): LEFT OUT: " in held["contents.txt"]
    (configuration,) = [content for name, content in held.items() if name.startswith("configuration/")]
    assert b"http://REMOVED@proxy:3128" in configuration


@pytest.mark.qemu
def test_the_journal_in_it(bundle: tuple[Path, dict[str, bytes]], tmp_path: Path):
    """It can be read as a journal; only what was secret is replaced."""
    (tmp_path / "copy.db").write_bytes(bundle[1]["journal.db"])
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        (source, destination) = copy.execute(
            "SELECT source_filename, destination_filename FROM pivot_disk WHERE pivot = 'P0001'"
        ).fetchone()
        (facts,) = copy.execute("SELECT facts FROM record WHERE event = 'accepted'").fetchone()
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert source == "https://REMOVED@storage.example/disk.qcow2"
    assert json.loads(destination.removeprefix("json:"))["password"] == "REMOVED"
    assert json.loads(facts).items() >= {"token": "REMOVED", "note": "kept"}.items()
    assert ctl("--offline", tmp_path / "copy.db", "pivot", "ls").status == 0


@pytest.mark.qemu
def test_only_its_owner_reads_it(bundle: tuple[Path, dict[str, bytes]]):
    """Whatever the umask is."""
    assert stat.S_IMODE(bundle[0].stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str):
    """A name that is taken, also by a link that leads nowhere, is one line and status 4, before anything is looked at."""
    place = tmp_path / "taken.tar.gz"
    match kind:
        case "file":
            place.write_text("mine")
        case "link":
            place.symlink_to(tmp_path / "elsewhere")
        case "directory":
            place.mkdir()
    answer = ctl("--offline", tmp_path, "doctor", "--bundle", place)
    assert answer.status == 4
    assert "is not overwritten" in complaint(answer)
    assert not (tmp_path / "elsewhere").exists()
    assert kind != "file" or place.read_text() == "mine"


def test_a_place_that_cannot_be_written(tmp_path: Path):
    """One line, status 4, and no half a file."""
    answer = ctl("--offline", tmp_path, "doctor", "--bundle", tmp_path / "none" / "b.tar.gz")
    assert (answer.status, "none/b.tar.gz" in complaint(answer)) == (4, True)
    assert list(tmp_path.iterdir()) == []


def test_without_a_daemon(tmp_path: Path):
    """A dead host gives a bundle too; what is missing is named."""
    file = tmp_path / "b.tar.gz"
    config = tmp_path / "pivotd.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\n')
    answer = ctl("--socket", tmp_path / "none", "doctor", "--config", config, "--bundle", file)
    assert answer.status == 8
    with tarfile.open(file) as archive:
        told = archive.extractfile("pivotd-doctor/contents.txt").read().decode()  # type: ignore[union-attr]
    assert "daemon/: LEFT OUT: " in told
    assert "journal.db: LEFT OUT: " in told


CASES = [
    ("nbd://user:pa:ss@host:10809/x", "nbd://REMOVED@host:10809/x"),
    ("https://u:p@ss/w@h/x and https://h/y", "https://REMOVED@h/x and https://h/y"),
    ("nbd+unix:///x?socket=/run/a@b.sock", "nbd+unix://REMOVED@b.sock"),
    ('{"password": "a b", "x": 1}', '{"password": "REMOVED", "x": 1}'),
    (r"{\"db-password\": \"a b\", \"x\": 1}", r"{\"db-password\": \"REMOVED\", \"x\": 1}"),
    ('{"token": 123456, "x": 1}', '{"token": "REMOVED", "x": 1}'),
    ('{"secret": null, "key": "/etc/key.pem"}', '{"secret": null, "key": "/etc/key.pem"}'),
    ('password_file = "/etc/pivotd/etcd-password"', 'password_file = "/etc/pivotd/etcd-password"'),
    ("Environment=ETCD_TOKEN=abcdef PATH=/bin", "Environment=ETCD_TOKEN=REMOVED PATH=/bin"),
    ('Environment="ETCD_PASSWORD=abc def" "PATH=/bin"', 'Environment="ETCD_PASSWORD=REMOVED" "PATH=/bin"'),
    ("password: correct horse battery\nuser: bob", "password: REMOVED\nuser: bob"),
    ("a_token=abc b_secret=def c=1", "a_token=REMOVED b_secret=REMOVED c=1"),
    ('{\n "token": 1234567,\n "x": 1}', '{\n "token": "REMOVED",\n "x": 1\n}'),
    (r'{"password": "a\"b", "x": 1}', '{"password": "REMOVED", "x": 1}'),
    ("--passphrase=abcdef --other=1", "--passphrase=REMOVED --other=1"),
    ("Authorization: Bearer abcdefghij", "Authorization: REMOVED"),
    ("SetCredential=key:abc def\nUser=pivotd", "SetCredential=key:REMOVED\nUser=pivotd"),
    ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\nend", "REMOVED\nend"),
    ("rbd:pool/x:id=admin:key=AQBd==", "rbd:pool/x:id=admin:key=REMOVED"),
    (
        "PGPASSWORD=abc SSHPASS=def apikey=ghi authToken1=jkl",
        "PGPASSWORD=REMOVED SSHPASS=REMOVED apikey=REMOVED authToken1=REMOVED",
    ),
    (
        "x --password abc --db-token 'd e' --key /etc/key --secret --y",
        "x --password REMOVED --db-token 'REMOVED' --key /etc/key --secret --y",
    ),
    (
        '{"token": ["abc", {"a": "]"}], "auth": {"pw": "x}"}, "y": [1]}',
        '{"token": "REMOVED", "auth": "REMOVED", "y": [1]}',
    ),
    (r'"{\"keys\": 1, \"key\": {\"a\": \"b}\"}, \"z\": 2}"', r'"{\"keys\": 1, \"key\": \"REMOVED\", \"z\": 2}"'),
    ('{"key": [], "secret": {}, "z": 1}', '{"key": "REMOVED", "secret": "REMOVED", "z": 1}'),
    ("LoadCredential=etcd-password:/etc/pivotd/etcd", "LoadCredential=etcd-password:/etc/pivotd/etcd"),
    ("password = '''\nabc\n'''\nx = 1", 'password = "REMOVED"\nx = 1'),
    ('token = """abc"""\nkey = ["abc"]\nx = 1', 'token = "REMOVED"\nkey = "REMOVED"\nx = 1'),
    ("-object secret,id=s0,data=abc,format=raw -x", "-object secret,REMOVED -x"),
    ("monkey = banana; keyboard: us; idempotency", "monkey = banana; keyboard: us; idempotency"),
    ("web1 disk0: /images/a@b.qcow2", "web1 disk0: /images/a@b.qcow2"),
]


@pytest.mark.parametrize(("text", "wanted"), CASES)
def test_what_counts_as_a_secret(text: str, wanted: str):
    """Passwords in addresses, values whose names say so, keys in PEM form; not the path of a file that has one."""
    assert redaction.clean(text) == wanted
    assert redaction.clean(wanted) == wanted, "cleaning twice is cleaning once"


def test_cleaning_is_quick():
    """A long text, also one that has what a pattern starts with again and again, takes no more than seconds."""
    text = "\n".join(f'{{"at": "2026", "facts": {{"image": "/images/{n}.qcow2"}}}}' for n in range(20_000))
    assert len(redaction.clean(text + "://" * 20_000 + 'password="' * 2_000)) >= len(text)
    for pattern in ("a-", "x://", "a.", "key", "=", "key=[", "key=['", "key='''", "--key a", "-----BEGIN A-----"):
        redaction.clean(pattern * 20_000)
