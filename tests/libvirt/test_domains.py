"""libvirt's domains in pivotd: shown beside its own, reached through libvirt alone, out of reach while libvirtd is."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.libvirt.domain import Domain
from tests.libvirt.libvirtd import Libvirtd
from tests.support.daemon import Answer, Daemon
from tests.support.qemu import Qemu, create_image

pytestmark = pytest.mark.qemu
WAIT_S = 60.0


def until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def guarding(directory: Path, libvirtd: Libvirtd) -> Daemon:
    return Daemon(directory, {}, configuration=f'[libvirt]\nuri = "{libvirtd.uri}"')


@pytest.fixture
def pivotd(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Daemon]:
    """A pivotd that is told of the libvirtd, which runs."""
    libvirtd.start()
    with guarding(tmp_path, libvirtd) as daemon:
        yield daemon


def rows(daemon: Daemon) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in daemon.ctl("domain", "ls").json}


def is_connected(daemon: Daemon) -> bool:
    return rows(daemon).get("web1", {}).get("connection") == "connected"


def test_a_domain_of_libvirt_is_there_while_it_runs(libvirtd: Libvirtd, pivotd: Daemon):
    """It comes with its start and goes with its end, and each disk has libvirt's name and both definitions."""
    domain = Domain(libvirtd, guest=False, disks=2).define()
    assert rows(pivotd) == {}
    domain.boot()
    until(lambda: is_connected(pivotd))
    row = rows(pivotd)["web1"]
    assert (row["manager"], row["origin"], row["run_state"], row["pid"]) == (
        "libvirt",
        "libvirt",
        "running",
        domain.qemu_pid(),
    )
    disks = {disk["disk"]: disk for disk in pivotd.ctl("disk", "ls", "web1").json}
    assert list(disks) == ["vda", "vdb"]
    image = str(domain.image("vdb"))
    assert disks["vdb"]["image"] == image
    assert disks["vdb"]["libvirt"] == {"live": image, "next": image, "job": "none", "persistent": True, "agree": True}
    libvirtd.ask("destroy", "web1")
    until(lambda: rows(pivotd) == {})


def test_the_version_is_that_of_the_running_qemu(libvirtd: Libvirtd, pivotd: Daemon):
    """Libvirt knows only that of its default emulator; QEMU is asked, which taints, once somebody looks at its disks."""
    domain = Domain(libvirtd, guest=False).define().boot()
    until(lambda: is_connected(pivotd))
    assert rows(pivotd)["web1"]["qemu_version"] is None
    assert "custom-monitor" not in libvirtd.said()
    spy = domain.spy()
    qemu = spy.execute("query-version")["qemu"]
    spy.close()
    shown = f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}"
    assert pivotd.ctl("domain", "show", "web1").json["qemu_version"] == shown
    assert rows(pivotd)["web1"]["qemu_version"] == shown


@pytest.mark.parametrize(
    "name",
    ["my vm", "a\nb", *(pytest.param(name, marks=pytest.mark.long) for name in ("ü", "-x", "x" * 65, "a%2Fb", ".."))],
)
@pytest.mark.thinned(2)
def test_a_domain_whose_name_is_of_no_use_is_told_with_the_reason(libvirtd: Libvirtd, pivotd: Daemon, name: str):
    """In the list, in health and where somebody asks for it; it keeps no other domain away."""
    domain = Domain(libvirtd, guest=False)
    libvirtd.ask("create", str(_named(domain, name)))
    until(lambda: name in rows(pivotd))
    row = rows(pivotd)[name]
    assert (row["connection"], row["manager"]) == ("refused", "libvirt")
    assert "is no name for pivotd: expected at most 64 of A-Z" in row["detail"]
    assert row["detail"].endswith("rename it with virsh domrename")
    for words in (("domain", "show"), ("disk", "ls")):
        answer = pivotd.ctl(*words, "--", name)
        assert (answer.status, answer.json["error"]["kind"]) == (4, "not-found"), answer
        assert row["detail"] in answer.json["error"]["message"]
    answer = pivotd.ctl("copy", "--", name, f"vda={domain.image('vda', 1)}")
    assert row["detail"] in answer.json["error"]["message"]
    libvirtd.ask("destroy", "--domain", name)
    until(lambda: rows(pivotd) == {})


def _named(domain: Domain, name: str) -> Path:
    text = domain._xml().replace("<name>web1</name>", f"<name>{name}</name>")
    file = domain.libvirtd.directory / "named.xml"
    file.write_text(text)
    return file


def test_a_next_boot_from_another_image_is_shown(libvirtd: Libvirtd, pivotd: Daemon):
    """Root, live and next boot side by side; transient domains have no next boot and agree without one."""
    domain = Domain(libvirtd, guest=False).define().boot()
    until(lambda: is_connected(pivotd))
    definition = libvirtd.directory / "web1.xml"
    definition.write_text(libvirtd.ask("dumpxml", "--inactive", "web1").replace("vda-0", "vda-9"))
    libvirtd.ask("define", str(definition))
    (disk,) = pivotd.ctl("disk", "ls", "web1").json
    assert disk["libvirt"]["next"] == str(domain.image("vda", 9))
    assert (disk["libvirt"]["live"], disk["libvirt"]["agree"]) == (disk["image"], False)
    libvirtd.ask("undefine", "web1")
    (disk,) = pivotd.ctl("disk", "ls", "web1").json
    assert (disk["libvirt"]["next"], disk["libvirt"]["persistent"], disk["libvirt"]["agree"]) == (None, False, True)


def test_a_disk_on_the_network_is_left_to_libvirt(libvirtd: Libvirtd, pivotd: Daemon):
    """There is no file that libvirt names: nothing is compared with what QEMU uses, and a pivot is refused for that reason."""
    domain = Domain(libvirtd, guest=False).define()
    served, element = libvirtd.directory / "nbd.sock", libvirtd.directory / "nbd.xml"
    element.write_text(
        "<disk type='network' device='disk'><driver name='qemu' type='qcow2'/><source protocol='nbd'>"
        f"<host transport='unix' socket='{served}'/></source><target dev='vdn' bus='virtio'/></disk>"
    )
    libvirtd.spawn("qemu-nbd", "-k", str(served), "-t", "-e", "5", "-f", "raw", str(_image(libvirtd)))
    until(served.exists)
    libvirtd.ask("attach-device", "web1", str(element), "--config")
    domain.boot()
    until(lambda: is_connected(pivotd))
    disks = {disk["disk"]: disk for disk in pivotd.ctl("disk", "ls", "web1").json}
    assert disks["vdn"]["libvirt"] is None
    assert disks["vda"]["libvirt"]["agree"] is True
    for words in (("copy", "web1"), ("snapshot", "web1")):
        answer = pivotd.ctl(*words, f"vdn={domain.image('vdn', 1)}")
        assert (answer.status, answer.json["error"]["kind"]) == (4, "bad-request"), answer
        assert "libvirt has vdn on the network, in a storage pool" in answer.json["error"]["message"]


def _image(libvirtd: Libvirtd) -> Path:
    image = libvirtd.directory / "images/served.qcow2"
    create_image(image, size="4M")
    return image


@pytest.mark.long
def test_nobody_forgets_or_adds_a_domain_of_libvirt(libvirtd: Libvirtd, pivotd: Daemon):
    """Its name is taken, and it goes only when libvirt says so."""
    domain = Domain(libvirtd, guest=False).define().boot()
    until(lambda: is_connected(pivotd))
    for answer in (
        pivotd.ctl("domain", "rm", "web1"),
        pivotd.ctl("domain", "add", "web1", "--qmp", f"{domain._monitor}"),
    ):
        assert (answer.status, answer.json["error"]["kind"]) == (4, "conflict")
        assert "domain web1 is libvirt's" in answer.json["error"]["message"]


def _refused(answer: Answer) -> bool:
    error = answer.json["error"]
    return answer.status == 4 and error["kind"] == "unsupported-qemu" and "under [libvirt]" in error["message"]


def test_a_monitor_of_libvirts_guest_makes_no_domain(libvirtd: Libvirtd, tmp_path: Path):
    """Neither by `domain add`, nor by the configuration, nor found by itself; libvirt need not be configured."""
    libvirtd.start()
    domain = Domain(libvirtd, guest=False).define().boot()
    monitor = domain._monitor
    found = Daemon(tmp_path, {"named": monitor}, configuration=f'discover = ["{tmp_path}/*.qmp"]')
    (tmp_path / "found.qmp").symlink_to(domain.own_monitor())
    # `discover` stands above the first table, where TOML wants it.
    text = (tmp_path / "pivotd.toml").read_text().splitlines()
    (tmp_path / "pivotd.toml").write_text("\n".join([text[-1], *text[:-1], ""]))
    with found as daemon:
        until(lambda: rows(daemon)["named"]["connection"] == "refused")
        assert "a domain of libvirt, which would not learn of a switch" in rows(daemon)["named"]["detail"]
        until(lambda: rows(daemon).get("found", {}).get("connection") == "refused")
        assert "the monitor that libvirt itself needs" in rows(daemon)["found"]["detail"]
        answer = daemon.ctl("copy", "named", f"virtio-disk0={tmp_path / 'new.qcow2'}")
        assert answer.status in {3, 4}
        assert "of libvirt" in answer.json["error"]["message"]
    with Daemon(tmp_path, {}) as daemon:
        for name, path in (("second", monitor), ("own", domain.own_monitor())):
            assert _refused(daemon.ctl("domain", "add", name, "--qmp", str(path)))
        assert rows(daemon) == {}


def test_a_copied_command_line_makes_no_guest_of_libvirt(tmp_path: Path):
    """Whoever starts QEMU as libvirt did, with its name for the monitor, keeps a guest of his own."""
    mine = ["-chardev", f"socket,id=charmonitor,path={tmp_path}/mine.sock,server=on,wait=off"]
    with Qemu(tmp_path, [], extra=mine) as qemu, Daemon(tmp_path, {"web1": qemu.qmp}) as daemon:
        until(lambda: rows(daemon)["web1"]["connection"] == "connected")


def test_libvirtd_may_end_and_come_back(libvirtd: Libvirtd, pivotd: Daemon):
    """Meanwhile the domain is unreachable, with the reason; it is not forgotten, and comes back by itself."""
    Domain(libvirtd, guest=False).define().boot()
    until(lambda: is_connected(pivotd))
    libvirtd.kill()
    until(lambda: rows(pivotd)["web1"]["connection"] == "unreachable")
    until(lambda: "no libvirt daemon listens" in rows(pivotd)["web1"]["detail"])
    libvirtd.start()
    until(lambda: rows(pivotd)["web1"]["connection"] == "connected")


@pytest.mark.long
def test_a_libvirtd_that_hangs_holds_up_nothing_else(libvirtd: Libvirtd, pivotd: Daemon):
    """The answers come in time, and it has its domain again as soon as libvirtd goes on."""
    Domain(libvirtd, guest=False).define().boot()
    until(lambda: is_connected(pivotd))
    assert libvirtd.pid is not None
    subprocess.run(["kill", "-STOP", str(libvirtd.pid)], check=True)
    try:
        began_s = time.monotonic()
        row = rows(pivotd)["web1"]
        assert row["connection"] == "unreachable"
        assert "libvirt has not answered" in row["detail"]
        assert time.monotonic() - began_s < 9.0
        began_s = time.monotonic()
        assert pivotd.ctl("pivot", "ls").status == 0
        assert time.monotonic() - began_s < 4.0
    finally:
        subprocess.run(["kill", "-CONT", str(libvirtd.pid)], check=True)
    until(lambda: rows(pivotd)["web1"]["connection"] == "connected")


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("qemu+unix:///system?socket=/nowhere/libvirt-sock", "no libvirt daemon listens: start libvirtd.socket"),
        ("qemu:///system?mode=bogus", "mode"),
    ],
)
def test_the_check_of_a_configuration_connects(tmp_path: Path, uri: str, why: str):
    """One line says what is wrong, with the status of what cannot be reached."""
    config = tmp_path / "pivotd.toml"
    config.write_text(f'state_dir = "{tmp_path}"\n[libvirt]\nuri = "{uri}"\n')
    done = subprocess.run(
        [Path(sys.executable).parent / "pivotd", "--config", config, "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert why in done.stderr


@pytest.mark.long
def test_the_check_passes_where_libvirt_answers(libvirtd: Libvirtd, pivotd: Daemon):
    """The same configuration with which the daemon runs."""
    command = [Path(sys.executable).parent / "pivotd", "--config", pivotd.directory / "pivotd.toml", "--check"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.long
def test_the_check_gives_up_a_libvirtd_that_hangs(libvirtd: Libvirtd, tmp_path: Path):
    """One line says so; whoever starts the service with a check is not kept for ever."""
    libvirtd.start()
    config = tmp_path / "pivotd.toml"
    config.write_text(f'state_dir = "{tmp_path}"\n[libvirt]\nuri = "{libvirtd.uri}"\n')
    assert libvirtd.pid is not None
    subprocess.run(["kill", "-STOP", str(libvirtd.pid)], check=True)
    try:
        done = subprocess.run(
            [Path(sys.executable).parent / "pivotd", "--config", config, "--check"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        subprocess.run(["kill", "-CONT", str(libvirtd.pid)], check=True)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "libvirt has not answered a connection" in done.stderr
