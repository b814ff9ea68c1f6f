"""The Debian package on a booted host: installed as docs/install.md says, upgraded, taken back, removed, purged.

One boot serves all tests of a release, which follow each other as the life of a host does.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pivotd.journal import schema
from tests.support.waiting import until
from tests.systemd.container import Container
from tests.systemd.host import REPOSITORY, Host, commands, install_guest
from tests.systemd.package import BUILD_TIMEOUT_S, EPOCH, add_schema, build, pack, repack

pytestmark = [pytest.mark.systemd, pytest.mark.qemu, pytest.mark.timeout(1500)]

TRIXIE = Path(os.environ.get("PIVOTD_TRIXIE", REPOSITORY / ".cache" / "trixie"))
VERSION = "1.0"
OLD_COMMIT = "777c8f1c13cf"
"""The last one with schema 9: from before there were packages, and before copies of the journal were kept."""
OLD_SCHEMA = 9
JOURNAL = "/var/lib/pivotd/journal.db"
TREES = [pytest.param(Path("/"), id="host"), pytest.param(TRIXIE, id="trixie", marks=pytest.mark.long)]
LIBRARIES_MIN = 10


class PackageHost(Host):
    """A host on which pivotd was installed from its package."""

    pivotctl = "/usr/bin/pivotctl"
    first_commands = ()

    def __init__(self, container: Container, deb: Path, page: str) -> None:
        self.container, self.deb = container, deb
        self.said = self.install(deb)
        for line in page.splitlines():
            if not line.startswith(("apt-get", "pivotctl")):
                container.run("sh", "-euc", line.replace("QEMU_USER", "qemuuser").replace("DIRECTORY", "/srv/images"))
        super().__init__(container)

    def install(self, deb: Path) -> str:
        """Install a package, of whatever version, without the network."""
        name = f"/{deb.relative_to(self.container.root)}"
        options = ["--yes", "--no-install-recommends", "--allow-downgrades", "-o", "Dpkg::Options::=--force-confold"]
        done = self.container.run("apt-get", "install", *options, name, timeout_s=600)
        return done.stdout + done.stderr

    def outside(self, path: str) -> Path:
        """Return a path of the container as it is seen from here, once it is booted."""
        return self.container.inside / path.lstrip("/")

    def move(self) -> None:
        """Move both disks, and compare what QEMU has with the verdicts."""
        pivot = self.closed(self.copy())
        assert pivot["outcome"] == "switched", pivot
        assert self.verdicts() == self.images()


@contextmanager
def prepared(tree: Path) -> Iterator[Container]:
    """Yield a Debian with the people of the page and a guest, not booted yet."""
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    if os.environ.get("PIVOTD_CHROOT"):
        pytest.skip("no container boots in a chroot: on its host, `pytest tests/systemd` boots this tree")
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("systemd-nspawn is not installed (Debian: systemd-container)")
    if not (tree / "usr/lib/systemd/systemd").exists():
        pytest.skip(f"{tree} has no systemd; for Debian 13: make trixie")
    with Container(tree) as container:
        container.prepare("command -v setfacl || apt-get install -y acl", timeout_s=300)
        container.prepare("useradd --system qemuuser; useradd --system NAME")
        install_guest(container)
        yield container


@pytest.fixture(scope="module", params=TREES)
def host(request: pytest.FixtureRequest) -> Iterator[PackageHost]:
    with prepared(request.param) as container:
        deb = build(container, VERSION)
        container.boot()
        booted = PackageHost(container, deb, commands("With the package"))
        yield booted
        booted.spy.close()


def test_an_installed_package_moves_the_disks_of_a_guest(host: PackageHost) -> None:
    """After the commands of the page: the daemon of the package runs in its sandbox, and an operator moves disks."""
    assert host.ctl("domain", "ls", user="NAME")[0] == 0
    assert "/opt/pivotd/bin/pivotd" in host.container.property_of("pivotd", "ExecStart")
    assert host.container.property_of("pivotd.socket", "UnitFileState") == "enabled"
    assert host.container.property_of("pivotd", "UnitFileState") == "enabled"
    assert host.container.property_of("pivotd-hooks", "UnitFileState") == "disabled"
    host.move()
    assert host.is_untouched()


def test_the_daemon_may_read_the_images(host: PackageHost) -> None:
    """By the command of the page, those that were there and those that QEMU has made since."""
    for image in ("old0.qcow2", "new1-0.qcow2"):
        host.container.run("head", "-c1", f"/srv/images/{image}", user="pivotd")


def test_modules_are_compiled(host: PackageHost) -> None:
    """Each start would compile them again, in front of a paused guest: the sandbox cannot keep what it compiles."""
    check = (
        "import importlib.util as u, pathlib, sys; from importlib._bootstrap_external import _validate_timestamp_pyc as v\n"
        "found = [*pathlib.Path('/opt/pivotd/lib').rglob('pivotd/**/*.py')]\n"
        "assert len(found) > 100\n"
        "for p in found:\n"
        "    v(pathlib.Path(u.cache_from_source(p)).read_bytes(), int(p.stat().st_mtime), p.stat().st_size, p.name, {})\n"
    )
    host.container.run("/opt/pivotd/bin/python", "-c", check)


def normal(pin: str) -> str:
    """Return NAME==VERSION as the package index spells the name."""
    name, _, version = pin.partition("==")
    return f"{re.sub('[-_.]+', '-', name).lower()}=={version}"


def test_every_library_has_the_pinned_version(host: PackageHost) -> None:
    """The package holds pivotd, libraries of requirements.txt, and nothing else."""
    pinned = {normal(line) for line in (REPOSITORY / "requirements.txt").read_text().split()}
    place = next(host.outside("/opt/pivotd/lib").glob("python3*/site-packages"))
    names = (path.name.removesuffix(".dist-info").replace("-", "==") for path in place.glob("*.dist-info"))
    held = {normal(name) for name in names if not name.startswith("pivotd==")}
    assert held <= pinned
    assert len(held) > LIBRARIES_MIN


@pytest.mark.long
def test_lintian_has_nothing_to_say(host: PackageHost) -> None:
    """Beyond what debian/pivotd.lintian-overrides gives reasons for."""
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    ours = "uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball"  # as the tests pack it
    options = ["--allow-root", "--fail-on=warning", "--tag-display-limit=0", f"--suppress-tags={ours}"]
    command = ["lintian", *options, host.deb]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.long
def test_an_upgrade_in_the_middle_of_a_copy_loses_nothing(host: PackageHost) -> None:
    """The copy goes on in QEMU while the package is replaced, and the next daemon switches."""
    pivot = host.copy("--bandwidth", "16K")
    assert until(lambda: host.phase(pivot) == "copying")
    before = host.main_pid()
    host.install(repack(host.deb, "1.1"))
    assert host.main_pid() not in {0, before}
    assert host.phase(pivot) == "copying"
    host.full_speed()
    assert host.closed(pivot)["outcome"] == "switched"
    assert host.verdicts() == host.images()
    assert host.is_untouched()


@pytest.mark.long
def test_own_settings_and_the_lack_of_a_hook_survive_an_upgrade(host: PackageHost) -> None:
    """Of the files in /etc, those that are not changed are replaced without a question."""
    host.container.run(host.pivotctl, "libvirt", "install-hooks", "--remove")
    said = host.install(repack(host.deb, "1.2"))
    assert "Configuration file" not in said
    assert not host.outside("/etc/libvirt/hooks/daemon.d/pivotd").exists()
    assert host.outside("/etc/pivotd/pivotd.toml.d/qemu.toml").exists()


def going_back(host: PackageHost, version: int) -> list[str]:
    """Return the commands of the page that take the place of the newer journal."""
    lines = commands("Going back").replace("schema-N", f"schema-{version}").splitlines()
    return [line for line in lines if not line.startswith("apt-get")]


@pytest.mark.long
def test_the_way_back_from_a_newer_schema(host: PackageHost) -> None:
    """The older daemon names the copy; after the commands of the page, verdicts are certain where QEMU confirms them."""
    host.install(repack(host.deb, "2.0", add_schema))
    assert host.verdicts() == host.images()
    copy = f"{JOURNAL}.schema-{schema.SCHEMA_VERSION}"
    assert host.outside(copy).exists()
    log = ["journalctl", "--no-pager", "-o", "cat", "-u", "pivotd"]
    assert until(lambda: f"{copy} is as it was before" in host.container.run(*log).stdout)
    host.install(repack(host.deb, "1.3"))
    status, said = host.ctl("domain", "ls")
    assert status != 0
    assert f"was written by a newer pivotd (schema {schema.SCHEMA_VERSION + 1}" in str(said)
    assert f"or go back to {copy} (docs/install.md): it ends at 20" in str(said)
    host.container.run("sh", "-euc", "\n".join(going_back(host, schema.SCHEMA_VERSION)))
    assert until(lambda: host.domain()["connection"] == "connected")
    assert until(lambda: [row["certain"] for row in host.ctl("verdict", "web1")[1]] == [True, True])
    assert host.verdicts() == host.images()
    host.move()
    assert host.is_untouched()


@pytest.mark.long
@pytest.mark.parametrize("tree", TREES)
def test_an_older_release_is_upgraded_with_its_journal(tree: Path, tmp_path: Path) -> None:
    """A pivot of a pivotd of schema 9 is there after the upgrade, certain, and the journal of then is beside it."""
    known = subprocess.run(["git", "cat-file", "-e", OLD_COMMIT], cwd=REPOSITORY, check=False, capture_output=True)
    if known.returncode != 0:
        pytest.skip(f"the history of this checkout does not reach back to {OLD_COMMIT}")
    with prepared(tree) as container:
        older, newer = build(container, "0.9", OLD_COMMIT), build(container, VERSION)
        container.boot()
        host = PackageHost(container, older, commands("With the package"))
        host.move()
        moved = host.images()
        host.install(newer)
        assert host.verdicts() == host.images() == moved
        assert until(lambda: [row["certain"] for row in host.ctl("verdict", "web1")[1]] == [True, True])
        # SQLite would follow the link in /proc to a path of this host.
        copy = tmp_path / "copy.db"
        copy.write_bytes(host.outside(f"{JOURNAL}.schema-{OLD_SCHEMA}").read_bytes())
        with closing(sqlite3.connect(f"file:{copy}?mode=ro&immutable=1", uri=True)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (OLD_SCHEMA,)
            assert connection.execute("SELECT outcome FROM pivot_disk").fetchall() == [("switched",)] * 2
        host.move()
        assert host.is_untouched()
        host.spy.close()


@pytest.mark.long
def test_two_builds_are_the_same_to_the_byte(tmp_path: Path) -> None:
    """In another directory, at another time: a package can be checked by building it again."""
    with prepared(Path("/")) as container:
        builds = []
        for place in ("srv/first", "srv/another/place"):
            source = container.root / place
            source.mkdir(parents=True)
            pack(source)
            environment = {"DEB_VERSION": VERSION, "SOURCE_DATE_EPOCH": EPOCH}
            container.prepare(f"cd /{place} && debian/build.sh", timeout_s=BUILD_TIMEOUT_S, **environment)
            builds.append(next((source / "dist").glob("*.deb")).read_bytes())
        assert builds[0] == builds[1]


def test_a_removed_package_leaves_the_journal_and_the_guest(host: PackageHost) -> None:
    """Socket, service and program are gone; the guest runs on. A purge takes the configuration, and says what stays."""
    images = host.images()
    host.container.run("apt-get", "remove", "--yes", "pivotd")
    assert host.run_state() == "running"
    assert host.is_untouched()
    assert host.container.property_of("pivotd.socket", "LoadState") == "not-found"
    assert host.container.property_of("pivotd", "LoadState") == "not-found"
    assert not host.outside("/opt/pivotd").exists()
    assert not host.outside("/run/pivotd/pivotd.sock").exists()
    assert host.outside("/etc/pivotd/pivotd.toml").exists()
    for own in ("/etc/pivotd/pivotd.toml.d/qemu.toml", "/etc/tmpfiles.d/pivotd.conf"):
        host.outside(own).unlink()
    said = host.container.run("dpkg", "--purge", "pivotd").stdout
    assert "/var/lib/pivotd stays" in said
    assert host.outside(JOURNAL).exists()
    assert not host.outside("/etc/pivotd").exists()
    assert not host.outside("/etc/libvirt/hooks/pivotd-libvirt-hook.py").exists()
    assert host.images() == images
    left = host.container.run("find", "/etc", "/usr", "-name", "*pivotd*").stdout.split()
    assert [path for path in left if "/site-packages/" not in path] == []
