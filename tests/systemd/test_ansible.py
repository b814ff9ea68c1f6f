"""The role in contrib/ansible: what it writes, and a host in a container that it sets up."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from pivotd import config
from tests.support.waiting import until
from tests.systemd.container import Container
from tests.systemd.host import REPOSITORY, Host, install_guest
from tests.systemd.package import build

ANSIBLE = REPOSITORY / "contrib/ansible"
ROLE = ANSIBLE / "roles/pivotd"
DEFAULTS: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
FLEET = {"endpoints": ["https://etcd1:2379"], "host": "h1", "timeout_ms": 500, "on_silence": "wait"}


def rendered(template: str, **variables: Any) -> str:
    """Return what the role would write."""
    # Ansible's own settings of Jinja2, and its filter.
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters["to_json"] = lambda value, ensure_ascii=True: json.dumps(value, ensure_ascii=ensure_ascii)
    return environment.from_string((ROLE / "templates" / template).read_text()).render(DEFAULTS | variables)


def loaded(tmp_path: Path, **variables: Any) -> config.Config:
    """Return what pivotd reads from both files of the role."""
    place = tmp_path / "pivotd.toml.d"
    place.mkdir()
    main = tmp_path / "pivotd.toml"
    main.write_text("")
    variables = {"pivotd_operators": [], "pivotd_readers": []} | variables
    for template in ("reloaded.toml.j2", "restarted.toml.j2"):
        (place / template.removesuffix(".j2")).write_text(rendered(template, **variables))
    return config.load(main)


def test_the_defaults_of_the_role_are_a_configuration(tmp_path: Path) -> None:
    """Only what the role says itself differs from pivotd's own defaults."""
    found = loaded(tmp_path)
    assert found.discover == ("/run/qemu/*.qmp",)
    assert (found.pause, found.libvirt, found.fleet) == (config.PauseLimits(), config.Libvirt(), config.Fleet())
    assert 'operators = ["@pivotd"]' in rendered("reloaded.toml.j2")


def test_every_variable_arrives(tmp_path: Path) -> None:
    """Names and paths with characters that TOML or JSON quote are what they were."""
    found = loaded(
        tmp_path,
        pivotd_operators=["root"],
        pivotd_discover=[],
        pivotd_domains={"web1": '/run/a "b" \\é.qmp', "db.1": "/run/db.qmp"},
        pivotd_pause={"max_ms": 300, "attempts": 2},
        pivotd_log={"level": "debug"},
        pivotd_libvirt_uri="qemu:///system",
        pivotd_fleet=FLEET,
    )
    assert found.access.operators.names == ("root",)
    assert found.discover == ()
    assert found.domains == {"web1": Path('/run/a "b" \\é.qmp'), "db.1": Path("/run/db.qmp")}
    assert (found.pause.max_ms, found.pause.attempts, found.log.level) == (300, 2, "debug")
    assert found.libvirt.uri == "qemu:///system"
    assert (found.fleet.endpoints, found.fleet.host) == (("https://etcd1:2379",), "h1")
    assert (found.fleet.timeout_ms, found.fleet.on_silence.value) == (500, "wait")


def test_the_drop_in_for_a_fleet_is_that_of_the_unit(tmp_path: Path) -> None:
    """The role opens what systemd/pivotd-fleet.conf opens."""
    ours = (REPOSITORY / "systemd/pivotd-fleet.conf").read_text().splitlines()
    settings = [line for line in ours if line and not line.startswith("#")]
    assert rendered("fleet.conf.j2").splitlines()[1:] == settings


def test_the_role_is_sound_yaml() -> None:
    """Each file can be read, and each task has a name."""
    for path in ANSIBLE.rglob("*.yml"):
        read = yaml.safe_load(path.read_text())
        if path.parent.name in {"tasks", "handlers"}:
            tasks = [inner for task in read for inner in (task, *task.get("block", []))]
            assert [task for task in tasks if "name" not in task] == []


def test_every_variable_of_the_role_is_used_and_has_a_default() -> None:
    """None is mistyped on one side."""
    text = "".join(path.read_text() for path in [*ROLE.glob("tasks/*.yml"), *ROLE.glob("templates/*")])
    own = {"pivotd_copied", "pivotd_program", "pivotd_acls", "pivotd_doctor", "pivotd_validate"}
    assert set(re.findall(r"\bpivotd_\w+", text)) == set(DEFAULTS) | own


VARIABLES = {
    "pivotd_hosts": "localhost",
    "ansible_connection": "local",
    "ansible_python_interpreter": "/usr/bin/python3",
    "ansible_become": False,
    "pivotd_package": "/srv/pivotd_1.0.deb",
    "pivotd_members": {"pivotd": ["alice"], "pivotd-ro": ["qemuuser"]},
    "pivotd_qemu_user": "qemuuser",
    "pivotd_image_directories": ["/srv/images"],
    "pivotd_pause": {"max_ms": 300},
}


class AnsibleHost(Host):
    """A host that the role has set up."""

    pivotctl = "/usr/bin/pivotctl"
    first_commands = ()


def play(container: Container, *options: str, **variables: Any) -> tuple[dict[str, int], str]:
    """Run the role in the container; return its counts and all that it says."""
    given = json.dumps(VARIABLES | variables)
    environment = ["env", "ANSIBLE_LOCALHOST_WARNING=0", "ANSIBLE_NOCOLOR=1", "LC_ALL=C.UTF-8", "HOME=/root"]
    command = ["ansible-playbook", "-i", "localhost,", "-e", given, *options, "/srv/ansible/site.yml"]
    done = container.run(*environment, *command, check=False, timeout_s=600)
    said = done.stdout + done.stderr
    counts = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", said.rpartition("PLAY RECAP")[2])}
    assert counts, said
    return counts, said


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    if os.geteuid() != 0 or os.environ.get("PIVOTD_CHROOT"):
        pytest.skip("booting a container needs root, and is not done in a chroot")
    if shutil.which("systemd-nspawn") is None or shutil.which("ansible-playbook") is None:
        pytest.skip("systemd-nspawn or ansible-playbook is not installed (Debian: systemd-container, ansible-core)")
    with Container(Path("/")) as made:
        made.prepare("useradd --system qemuuser; useradd --system alice")
        build(made, "1.0")
        shutil.copytree(ANSIBLE, made.root / "srv/ansible")
        install_guest(made)
        made.boot()
        yield made


@pytest.mark.long
@pytest.mark.systemd
@pytest.mark.qemu
@pytest.mark.timeout(2400)
def test_the_role_sets_a_host_up_and_keeps_it_so(container: Container) -> None:
    """Check mode changes nothing; then a guest moves; a second run changes nothing; wrong values change nothing."""
    counts, said = play(container, "--check")
    assert (counts["failed"], counts["changed"] > 0) == (0, True), said
    assert not (container.inside / "opt/pivotd").exists()

    counts, said = play(container)
    assert counts["failed"] == 0, said
    host = AnsibleHost(container)
    pivot = host.closed(host.copy())
    assert (pivot["outcome"], host.verdicts()) == ("switched", host.images())
    assert host.ctl("domain", "ls", user="alice")[0] == 0
    container.run("head", "-c1", "/srv/images/new1-0.qcow2", user="pivotd")

    for options in ((), ("--check",)):
        counts, said = play(container, *options)
        assert (counts["failed"], counts["changed"]) == (0, 0), said

    daemon = host.main_pid()
    counts, said = play(container, "--check", "--diff", pivotd_domains={"web2": "/run/other/web2.qmp"})
    assert (counts["failed"], "+[domains." in said) == (0, True), said
    assert "web2" not in str(host.ctl("domain", "ls"))
    counts, said = play(container, pivotd_domains={"web2": "/run/other/web2.qmp"})
    assert (counts["failed"], "web2" in str(host.ctl("domain", "ls"))) == (0, True), said
    assert host.main_pid() == daemon

    for wrong, key in (
        ({"pivotd_pause": {"max_ms": 0}}, "pause.max_ms"),
        ({"pivotd_operators": ["@nobody-has"]}, "access"),
    ):
        counts, said = play(container, **wrong)
        assert counts["failed"] == 1, said
        assert key in said
    assert host.main_pid() == daemon
    assert until(lambda: host.domain()["connection"] == "connected")
    assert host.is_untouched()
    host.spy.close()
