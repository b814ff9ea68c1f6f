"""Adding, finding and forgetting domains: one monitor has one owner, however many ask at once and whatever they call it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.app.conftest import Host, at_once
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.waiting import until

pytestmark = pytest.mark.qemu
ROUNDS = 5


def test_the_same_domain_twice_at_once_is_no_error(host: Host):
    """Whoever comes second finds what the first has added."""
    qemu = host.qemu("web1")
    host.start()
    for number in range(ROUNDS):
        name = f"d{number}"
        answers = at_once([partial(host.add, name, qemu.qmp)] * 3)
        assert [answer.status for answer in answers] == [201] * 3, [answer.body for answer in answers]
        assert host.call("DELETE", f"/v1/domains/{name}").status == 204


def test_what_is_no_monitor_has_one_status_for_each_verb(host: Host):
    """It can be added, since QEMU may come; nothing else is possible, and each answer says why."""
    host.start()
    (host.directory / "file").touch()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(host.directory / "full"))
        listener.listen(0)
        first.connect(str(host.directory / "full"))
        for name, why in (("file", "is no socket"), ("full", "does not take connections: other clients are waiting")):
            added = host.add(name, host.directory / name)
            assert (added.status, added.json["connection"]) == (201, "unreachable")
            assert why in added.json["detail"]
            copied = host.copy(name, host.image())
            for answer in (copied, host.call("GET", f"/v1/domains/{name}/disks")):
                assert (answer.status, answer.json["kind"]) == (503, "domain-unreachable")
                assert why in answer.json["detail"]


def same_path(qemu: Qemu, directory: Path) -> Path:
    return qemu.qmp


def with_dots(qemu: Qemu, directory: Path) -> Path:
    return Path(f"{directory}/../{directory.name}/{qemu.qmp.name}")


def by_symbolic_link(qemu: Qemu, directory: Path) -> Path:
    return _other(directory, qemu, os.symlink)


def by_hard_link(qemu: Qemu, directory: Path) -> Path:
    return _other(directory, qemu, os.link)


def _other(directory: Path, qemu: Qemu, link: Callable[[Path, Path], None]) -> Path:
    path = directory / "other.sock"
    if not path.exists():
        link(qemu.qmp, path)
    return path


SPELLINGS = [same_path, with_dots, by_symbolic_link, by_hard_link]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_two_names_for_one_monitor_at_once(host: Host, spelling: Callable[[Qemu, Path], Path]):
    """One gets it, the other hears whose it is."""
    qemu = host.qemu("web1")
    host.start()
    other = spelling(qemu, host.directory)
    for _ in range(ROUNDS):
        answers = at_once([lambda: host.add("a", qemu.qmp), lambda: host.add("b", other)])
        assert sorted(answer.status for answer in answers) == [201, 409], [answer.body for answer in answers]
        (name,) = host.domains()
        assert f"belongs to domain {name}" in next(a for a in answers if a.status == 409).json["detail"]
        assert host.call("DELETE", f"/v1/domains/{name}").status == 204


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_monitor_of_the_configuration_has_an_owner(host: Host, spelling: Callable[[Qemu, Path], Path]):
    """Also where it is called otherwise there."""
    qemu = host.qemu("web1")
    host.start({"web1": qemu.qmp})
    answer = host.add("other", spelling(qemu, host.directory))
    assert (answer.status, list(host.domains())) == (409, ["web1"]), answer.body


def test_a_name_is_free_again_after_an_add_that_was_refused(host: Host):
    """What is refused leaves nothing behind."""
    one, two = host.qemu("web1"), host.qemu("web2")
    host.start({"web1": one.qmp})
    assert host.add("other", one.qmp).status == 409
    assert host.add("other", two.qmp).status == 201


def test_adding_while_discovery_finds_the_same_socket(host: Host):
    """The domain has one owner, whichever of them was first."""
    pattern = json.dumps(str(host.directory / "*.found"))
    host.start(configuration=f"discover = [{pattern}]")
    qemu = host.qemu("web1")
    socket = host.directory / "web9.found"
    os.link(qemu.qmp, socket)
    answers = [host.add("a", qemu.qmp), host.add("b", socket)]
    assert len(host.domains()) == 1, [answer.body for answer in answers]


def test_two_configured_names_for_one_monitor(host: Host):
    """The second is left out, and health says so; pivotd starts, for the sake of the others."""
    qemu, other = host.qemu("web1"), host.qemu("web2")
    link = by_symbolic_link(qemu, host.directory)
    host.start({"a": qemu.qmp, "b": link, "c": other.qmp})
    assert list(host.domains()) == ["a", "c"]
    (skipped,) = host.health()["domains"]["skipped"]
    assert skipped["qmp"] == str(link)
    assert "belongs to a" in skipped["reason"]


def test_a_domain_that_was_left_out_can_be_removed(host: Host):
    """Added at run time, and then somebody has written its monitor into the configuration under another name."""
    qemu = host.qemu("web1")
    host.start()
    assert host.add("b", qemu.qmp).status == 201
    host.daemon.kill()
    host.start({"a": qemu.qmp})
    assert list(host.domains()) == ["a"]
    assert len(host.health()["domains"]["skipped"]) == 1
    assert host.call("DELETE", "/v1/domains/b").status == 204
    assert host.health()["domains"]["skipped"] == []
    assert host.call("DELETE", "/v1/domains/b").status == 404


BAD_NAMES = [b"line\nbreak", b"a%2Fb", b"no-utf8-\xff", b".hidden", b"-dash", b"two words", b"x" * 65]


def test_a_socket_whose_name_is_no_domain_name_is_skipped_and_said_once(host: Host):
    """The same rule as for names that are added; the good one beside them is found."""
    qemu = host.qemu("web1")
    for name in BAD_NAMES:
        os.link(os.fsencode(qemu.qmp), os.fsencode(host.directory) + b"/" + name + b".found")
    os.link(host.qemu("web2").qmp, host.directory / "good.found")
    pattern = json.dumps(str(host.directory / "*.found"))
    hidden = json.dumps(str(host.directory / ".*.found"))
    host.start(configuration=f"discover = [{pattern}, {hidden}]")
    assert list(host.domains()) == ["good"]
    skipped = host.health()["domains"]["skipped"]
    assert len(skipped) == len(BAD_NAMES), skipped
    assert all("is no domain name" in row["reason"] for row in skipped)
    host.daemon.terminate()
    lines = host.daemon.log_path.read_text(errors="replace").splitlines()
    assert sum("domain.skipped" in line for line in lines) == len(BAD_NAMES), lines


def test_a_socket_below_a_directory_that_is_not_utf8_is_skipped(host: Host):
    """A pivot records the path of its monitor."""
    directory = host.directory / os.fsdecode(b"od\xff")
    directory.mkdir()
    os.link(host.qemu("web1").qmp, directory / "web1.qmp")
    host.start(configuration=f"discover = [{json.dumps(str(host.directory / '*' / '*.qmp'))}]")
    assert host.domains() == {}
    (skipped,) = host.health()["domains"]["skipped"]
    assert (r"od\udcff/web1.qmp" in skipped["qmp"], "is not UTF-8" in skipped["reason"]) == (True, True), skipped


def test_one_name_for_two_monitors_at_once(host: Host):
    """One gets the name, the other hears that it exists."""
    monitors = [host.qemu("web1").qmp, host.qemu("web2").qmp]
    host.start()
    for _ in range(ROUNDS):
        answers = at_once([partial(host.add, "a", path) for path in monitors])
        assert sorted(answer.status for answer in answers) == [201, 409], [answer.body for answer in answers]
        assert host.call("DELETE", "/v1/domains/a").status == 204


def test_an_image_below_a_directory_that_is_not_utf8(host: Host):
    """QEMU names it by its working directory; the journal cannot, and says so before anything has begun."""
    directory = host.directory / os.fsdecode(b"od\xff")
    directory.mkdir()
    disk = Disk(create_image(directory / "old.qcow2"), relative=True)
    with Qemu(host.directory, [disk], name="web1") as qemu:
        host.start({"web1": qemu.qmp})
        refused = host.copy("web1", host.image())
        assert refused.status == 400, refused.body
        assert r"od\udcff/old.qcow2 is not UTF-8, and cannot be recorded: start the guest" in refused.json["detail"]
        assert host.call("GET", "/v1/pivots").json == []


# -- one QEMU with two monitors --------------------------------------------------------------------------------------


def connections(host: Host) -> dict[str, str]:
    return {name: row["connection"] for name, row in host.domains().items()}


def settled(host: Host, **wanted: str) -> bool:
    return until(lambda: connections(host) == wanted)


@pytest.mark.long
def test_two_configured_monitors_of_one_qemu(host: Host):
    """The second one is refused with the name of the first, also once the guest was started again: no pivot begins."""
    qemu = host.qemu("a", second="b")
    host.start({"a": qemu.qmp, "b": host.directory / "b.qmp"})
    for _ in range(2):
        assert settled(host, a="connected", b="refused"), host.domains()
        why = host.domains()["b"]["detail"]
        assert f"leads to the QEMU of domain a (process {qemu.pid})" in why
        copied = host.copy("b", host.image())
        assert (copied.status, why in copied.json["detail"]) == (503, True), copied.body
        qemu.stop()
        assert settled(host, a="unreachable", b="unreachable")
        qemu = host.qemu("a", second="b")
    host.daemon.terminate()
    skipped = [line for line in host.daemon.log_path.read_text().splitlines() if "domain.skipped" in line]
    assert skipped
    assert all("leads to the QEMU of domain a" in line for line in skipped), skipped


def test_a_verdict_on_the_disk_of_a_refused_name(host: Host):
    """It is not certain while its QEMU runs, which is asked as another domain, and says so; then the journal's counts."""
    qemu = host.qemu("a", second="b")
    monitors = {"a": qemu.qmp, "b": host.directory / "b.qmp"}
    host.start({"b": monitors["b"]})
    host.closed(host.copy("b", new := host.image()).json["id"])
    host.daemon.kill()
    host.start(monitors)
    assert settled(host, a="connected", b="refused"), host.domains()
    (found,) = host.call("GET", "/v1/verdicts?domain=b").json
    assert (found["certain"], found["image"]) == (False, str(new))
    assert f"a QEMU listens at {monitors['b']}" in found["reason"] or "its QEMU runs" in found["reason"], found
    assert "leads to the QEMU of domain a" in found["reason"], found
    qemu.stop()
    assert until(lambda: host.call("GET", "/v1/verdicts?domain=b").json[0]["certain"])


def test_a_second_monitor_of_a_known_qemu_is_not_added(host: Host):
    """Whoever asks hears whose it is, and nothing is recorded; once the first domain is gone, it can be added."""
    qemu = host.qemu("a", second="b")
    host.start()
    assert host.add("a", qemu.qmp).json["connection"] == "connected"
    refused = host.add("b", host.directory / "b.qmp")
    assert (refused.status, refused.json["domain"]) == (409, "a"), refused.body
    assert "a QEMU is one domain: use a, or remove one of the two" in refused.json["detail"]
    assert host.call("DELETE", "/v1/domains/a").status == 204
    assert host.add("b", host.directory / "b.qmp").json["connection"] == "connected"


@pytest.mark.long
def test_a_discovered_second_monitor_of_a_known_qemu(host: Host):
    """It is refused as long as the other domain is there, and then connected by itself."""
    qemu = host.qemu("a", second="b")
    host.start(configuration=f"discover = [{json.dumps(str(host.directory / 'b.qmp'))}]")
    assert settled(host, b="connected"), host.domains()
    (host.directory / "b.qmp").rename(host.directory / "b.other")
    host.daemon.kill()
    host.start(configuration=f"discover = [{json.dumps(str(host.directory / 'b.qmp'))}]")
    assert host.add("a", qemu.qmp).json["connection"] == "connected"
    (host.directory / "b.other").rename(host.directory / "b.qmp")
    assert settled(host, a="connected", b="refused"), host.domains()
    assert host.call("DELETE", "/v1/domains/a").status == 204
    assert settled(host, b="connected"), host.domains()


def test_the_domain_with_an_open_pivot_has_the_qemu(host: Host):
    """Also if the other one is first in the configuration by now, and its own monitor is taken: it ends its pivot."""
    qemu = host.qemu("b", second="a")
    host.start({"b": qemu.qmp})
    pivot = host.copy("b", host.image(), pivot=False).json["id"]
    host.daemon.kill()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(qemu.qmp))
        assert client.recv(1)
        host.start({"a": host.directory / "a.qmp", "b": qemu.qmp})
        assert settled(host, a="refused", b="unreachable"), host.domains()
    assert settled(host, a="refused", b="connected"), host.domains()
    assert until(lambda: host.call("GET", f"/v1/pivots/{pivot}").json["phase"] == "ready")
    assert host.call("POST", f"/v1/pivots/{pivot}/complete").status == 202
    assert host.closed(pivot)["outcome"] == "switched"
    assert settled(host, a="refused", b="connected"), host.domains()
