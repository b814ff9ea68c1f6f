"""Two guests on two parts of one file: two images, and neither is the file."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlencode

import pytest

from pivotd.cli.image_command import blockdev
from pivotd.cli.right_images import same_image
from tests.chaos.process import call
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu

pytestmark = pytest.mark.qemu
MIB = 1 << 20


def test_parts_of_one_file_are_told_apart():
    """Verdicts, guard and the options for -blockdev name the part, and neither guest is called wrong."""
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        directory = Path(name)
        whole = directory / "whole.img"
        whole.write_bytes(b"A" * MIB + b"B" * MIB)
        guests = [Qemu(directory, [part(whole, place)], name=letter, paused=True) for place, letter in enumerate("ab")]
        with guests[0], guests[1], Daemon(directory, {one.name: one.qmp for one in guests}) as daemon:
            images = [kept(daemon, one.name, directory) for one in guests]
            for place, image in enumerate(images):
                opened = directory / f"{place}.raw"
                subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", image, str(opened)], check=True)
                assert opened.read_bytes() == b"AB"[place : place + 1] * MIB
            assert same_image(images[0], images[0])
            assert not same_image(images[0], images[1])
            assert not same_image(images[0], str(whole))
            for domain in call(daemon, "GET", "/v1/domains"):
                assert domain["alarms"] == []
            found = call(daemon, "GET", f"/v1/images?{urlencode({'image': images[0]})}")
            assert [(one["domain"], one["standing"]) for one in found] == [("a", "current")]
    options = blockdev("disk0", images[0], "raw")
    assert (options["node-name"], options["size"], options["file"]["filename"]) == ("disk0", MIB, str(whole))


def kept(daemon: Daemon, domain: str, directory: Path) -> str:
    """Let a copy end on its source; return the image of the verdict, which is certain."""
    disk = {"disk": "disk0", "image": f"{directory}/{domain}.qcow2", "format": "qcow2"}
    pivot = call(daemon, "POST", f"/v1/domains/{domain}/copy", {"disks": [disk], "pivot": False})["id"]
    call(daemon, "POST", f"/v1/pivots/{pivot}/cancel")
    while call(daemon, "GET", f"/v1/pivots/{pivot}/wait?timeout_s=20")["phase"] != "closed":
        pass
    (verdict,) = call(daemon, "GET", f"/v1/verdicts?domain={domain}")
    assert (verdict["outcome"], verdict["certain"]) == ("kept", True)
    return str(verdict["image"])


def part(path: Path, place: int) -> Disk:
    """Return a disk on one MiB of a file, which it shares."""
    file = {"driver": "file", "filename": str(path), "locking": "off"}
    return Disk(path, "raw", node={"offset": place * MIB, "size": MIB, "file": file})
