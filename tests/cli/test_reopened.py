"""Another client exchanges the file below a node of QEMU: the node keeps its name, and has other data."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pivotd.client import Client
from tests.cli.ctl import complaint
from tests.cli.test_images import Guest, guest
from tests.support.qemu import create_image
from tests.support.waiting import until

__all__ = ["guest"]
pytestmark = [pytest.mark.qemu]


def exchange(guest: Guest, node: str, image: Path) -> None:
    """Put an image below a format node."""
    guest.qemu.spy("blockdev-add", driver="file", filename=str(image), **{"node-name": "exchanged"})
    reopened = {"driver": "qcow2", "node-name": node, "file": "exchanged", "read-only": False}
    guest.qemu.spy("blockdev-reopen", options=[reopened])


def test_the_file_of_the_right_image(guest: Guest):
    """QEMU writes to another one: an alarm, and no certain image, also after its end."""
    new, copied = guest.moved(), guest.path("copied")
    subprocess.run(["qemu-img", "convert", "-U", "-O", "qcow2", new, copied], check=True)
    exchange(guest, guest.qemu.root().node, copied)
    answer = guest.ctl("image", "web1", "disk0", "--wait", "0")
    assert (answer.status, answer.stdout, f"the same QEMU process uses {copied}" in complaint(answer)) == (6, "", True)
    guest.noted("ran-on-other-image")
    guest.qemu.stop()
    answer = guest.ctl("image", "web1", "disk0", "--wait", "0")
    assert (answer.status, f"but the guest ran on {copied}" in complaint(answer)) == (6, True), answer


def test_the_file_of_a_destination_at_ready(guest: Guest):
    """The copy went to the other one: the pivot waits, and says why, until it is cancelled."""
    new, copied = guest.path("new"), guest.path("copied")
    assert guest.ctl("copy", "web1", f"disk0={new}", "--no-pivot", "--id", "p").status == 0
    node = next(name for name in guest.qemu.nodes() if name.startswith("p") and name.endswith("-0"))
    exchange(guest, node, create_image(copied))
    Client(str(guest.daemon.socket)).complete("p")
    why = f"another client has put another file below node {node}, which is to be {new}: cancel this pivot"
    assert until(lambda: why in guest.ctl("pivot", "show", "p").stdout)
    assert guest.ctl("pivot", "cancel", "p").status == 0
    assert guest.ctl("image", "web1", "disk0", "--default", guest.disks[0]).stdout == f"{guest.disks[0]}\n"
    assert guest.qemu.run_state() == "running"
