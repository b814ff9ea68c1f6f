"""Commands that ask pivotd several questions for one answer, and what else happens between these."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from pivotd.cli.context import App, Form
from pivotd.cli.evacuate_places import Places
from pivotd.cli.evacuate_plan import BY_DEFAULT
from pivotd.cli.evacuate_planner import Planner
from pivotd.cli.right_images import right_images
from pivotd.cli.stale_command import stale
from pivotd.client import Client
from tests.cli.test_images import Guest, guest
from tests.support.qemu import Disk, Qemu, create_image

__all__ = ["guest"]
pytestmark = pytest.mark.qemu
WAIT_S = 120.0
OPTIONS = {"sync": "full", "image_options": None, **BY_DEFAULT}


def after(monkeypatch: pytest.MonkeyPatch, question: str, happens: Callable[[], object]) -> None:
    """Let something happen, once, right after pivotd has answered a question to it."""
    ask, due = getattr(Client, question), [happens]

    def then_it_happens(client: Client, *facts: Any, **more: Any) -> Any:
        found = ask(client, *facts, **more)
        if due:
            due.pop()()
        return found

    monkeypatch.setattr(Client, question, then_it_happens)


def ended(guest: Guest) -> None:
    guest.qemu.stop()
    guest.until("unreachable", "connection")


def test_both_disks_are_moved_while_pivotd_is_asked_for_them(guest: Guest, monkeypatch: pytest.MonkeyPatch):
    """Of a disk that was never moved, and whose guest is off, pivotd is asked by itself."""
    new = guest.moved()
    ended(guest)

    def the_guest_runs() -> None:
        guest.start_on(new)
        images = [f"{disk}={guest.path(disk)}" for disk in ("disk0", "disk1")]
        assert guest.ctl("copy", "web1", *images).status == 0
        ended(guest)

    after(monkeypatch, "verdicts", the_guest_runs)
    found = right_images(App(str(guest.daemon.socket)), "web1", ["disk0", "disk1"], WAIT_S)
    shown = {disk: (one.image, one.certain) for disk, one in found.items()}
    assert shown == {disk: (str(guest.path(disk)), True) for disk in ("disk0", "disk1")}


def test_a_guest_that_gets_an_image_on_a_stale_one_while_it_is_asked_for(guest: Guest, monkeypatch: pytest.MonkeyPatch):
    """Its QEMU has shown another chain, and has ended since: no lock tells of what is below a person's word."""
    old = guest.disks[0]
    guest.moved()

    def it_ends() -> None:
        ended(guest)
        over = guest.path("over")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", old, over], check=True)
        answer = guest.ctl("verdict", "accept", "web1", "disk0", over, "--reason", "so", "--format", "qcow2")
        assert answer.status == 0, answer

    after(monkeypatch, "disks", it_ends)
    answer = CliRunner().invoke(stale, [], obj=App(str(guest.daemon.socket), form=Form.NAME))
    assert (answer.exception, str(old) in answer.stdout) == (None, False)


def test_a_domain_that_is_removed_while_an_evacuation_looks_at_all(guest: Guest, monkeypatch: pytest.MonkeyPatch):
    """Its disk stays in the old place, which pivotd knows."""
    place = guest.directory / "place"
    place.mkdir()
    with Qemu(guest.directory, [Disk(create_image(place / "a.qcow2"))], name="web2") as qemu:
        assert guest.ctl("domain", "add", "web2", "--qmp", qemu.qmp).status == 0
        assert guest.ctl("copy", "web2", f"disk0={place}/b.qcow2").status == 0
        after(monkeypatch, "domains", lambda: guest.ctl("domain", "rm", "web2"))
        client = Client(str(guest.daemon.socket))
        (guest.directory / "to").mkdir()
        places = Places([str(place)], str(guest.directory / "to"))
        plan = Planner(client, places, [], name="x", image_format=None, options=OPTIONS).plan()
        assert [(one.domain, one.image) for one in plan.left] == [("web2", str(place / "b.qcow2"))]
