"""The person's side: pivotctl adopts somebody's mirror and changes the bandwidth of a pivot."""

from __future__ import annotations

import re
import time

import pytest

from tests.cli.ctl import ctl
from tests.outside.test_tp_libvirt import Bench, bench, stack
from tests.support.qemu import create_image

__all__ = ["bench", "stack"]

pytestmark = pytest.mark.qemu


def test_pivot_adopt(bench: Bench):
    """Refused without --sync; with it switched, and the verdict is certain before and after all is dead."""
    file = {"driver": "file", "filename": str(create_image(bench.new()))}
    bench.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "n", "file": file})
    flags = {"auto-finalize": False, "auto-dismiss": False}
    bench.qemu.spy("blockdev-mirror", {"job-id": "theirs", "device": "src0", "target": "n", "sync": "full", **flags})
    assert bench.daemon.ctl("disk", "ls", "web1").json[0]["job"] == "theirs"
    command = ("pivot", "adopt", "web1", f"disk0={bench.new()}")
    assert bench.daemon.ctl(*command).status == 2
    answer = bench.daemon.ctl(*command, "--sync", "full")
    assert answer.status == 0, answer
    bench.assert_right(bench.new())


def test_pivot_show_tells_the_rates_while_it_copies(bench: Bench):
    """What the guest writes and what the destination takes; of a closed pivot nothing is measured."""
    show = ("--socket", bench.daemon.socket, "pivot", "show", bench.slow())
    deadline = time.monotonic() + 30
    while "the destination takes" not in (said := ctl(*show).stdout):
        assert time.monotonic() < deadline, said
    assert re.search(r"^  copied +\d.* of .* %\)$", said, re.MULTILINE), said
    assert re.search(
        r"^  rates +the guest writes [\d.]+ \w+/s\n +the destination takes [\d.]+ \w+/s$", said, re.MULTILINE
    )
    bench.hurry()
    assert bench.wait("slow").status == 0
    assert "rates" not in ctl(*show).stdout


def test_pivot_set(bench: Bench):
    """The new bandwidth is journalled, and QEMU keeps to it; of a closed pivot there is nothing to change."""
    pivot = bench.slow()
    answer = bench.daemon.ctl("pivot", "set", pivot, "--bandwidth", "0")
    assert answer.status == 0, answer
    assert answer.json["options"]["bandwidth_bytes_per_s"] == 0
    assert bench.daemon.ctl("pivot", "wait", pivot).status == 0
    assert bench.daemon.ctl("pivot", "set", pivot, "--bandwidth", "1M").status == 4
    bench.assert_right(bench.new())
