"""A switch that can be taken back, by the real pivotctl with the real daemon and a real QEMU."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Bench
from tests.cli.ctl import complaint, ctl

pytestmark = pytest.mark.qemu


def test_keep_synced_and_undo(bench: Bench) -> None:
    """The copy says how to return; the undo returns; asked again it is the same pivot; the new image is stale then."""
    old, new = bench.qemu.root("disk0").filename, bench.image()
    answer = bench.ctl("copy", "web1", f"disk0={new}", "--keep-synced", "--for", "1h", "--id", "there")
    assert answer.status == 0
    assert "pivotctl pivot undo " in answer.stdout
    pivot = bench.json("pivot", "show", "there").json
    assert pivot["undo_until"] is not None
    assert pivot["disks"][0]["stale"] == []
    shown = bench.ctl("pivot", "show", "there").stdout
    assert "can be undone" in shown
    assert "waits for   the old images are kept in sync" in shown
    back = bench.json("pivot", "undo", "there")
    assert (back.status, back.json["outcome"], back.json["undo_of"]) == (0, "switched", pivot["id"])
    assert bench.json("pivot", "undo", "there").json == back.json
    assert bench.qemu.root("disk0").filename == old
    assert back.json["disks"][0]["stale"] == [str(new)]
    assert bench.json("verdict", "web1", "disk0").json["image"] == old
    released = bench.ctl(
        "pivot", "release", "there"
    )  # nobody is told that the old image, the right one, is out of date
    assert (released.status, f"pivot {back.json['id']} takes it back" in complaint(released)) == (4, True)


def test_no_request_id_of_a_client_stands_in_the_way_of_an_undo(bench: Bench) -> None:
    """Whatever ids clients have used, the undo takes that pivot back, also once it is asked for again."""
    old = bench.qemu.root("disk0").filename
    bench.ctl("copy", "web1", f"disk0={bench.image()}", "--keep-synced", "--id", "there-again")
    pivot = bench.json("pivot", "show", "there-again").json["id"]
    for request_id in (f"undo-{pivot}", "undo-there-again"):
        other = bench.json("copy", "web1", f"disk1={bench.image()}", "--id", request_id)
        assert (other.status, other.json["undo_of"]) == (0, None)
    back = bench.json("pivot", "undo", "there-again")
    assert (back.status, back.json["outcome"], back.json["undo_of"]) == (0, "switched", pivot)
    assert back.json["request_id"] == back.json["id"]
    assert bench.qemu.root("disk0").filename == old
    assert bench.json("pivot", "undo", pivot).json == back.json


def test_release(bench: Bench) -> None:
    """The window is closed, the old image is stale, a second time is no error, and an undo is refused."""
    old = bench.qemu.root("disk0").filename
    bench.ctl("copy", "web1", f"disk0={bench.image()}", "--keep-synced", "--id", "let-go")
    assert "not kept in sync any more" in bench.ctl("pivot", "release", "let-go").stdout
    shown = bench.json("pivot", "wait", "let-go").json
    assert (shown["undo_until"], shown["disks"][0]["stale"]) == (None, [old])
    assert old in bench.ctl("pivot", "show", "let-go").stdout
    assert bench.ctl("pivot", "release", "let-go").status == 0
    refused = bench.ctl("pivot", "undo", "let-go")
    assert refused.status == 4
    assert "no open undo window" in complaint(refused)


def test_the_window_outlives_the_daemon(bench: Bench) -> None:
    """Killed and started again: the window is open still, and the undo returns."""
    old = bench.qemu.root("disk0").filename
    bench.ctl("copy", "web1", f"disk0={bench.image()}", "--keep-synced", "--id", "lives")
    bench.restart()
    assert bench.json("pivot", "undo", "lives").json["outcome"] == "switched"
    assert bench.qemu.root("disk0").filename == old


def test_a_pivot_without_window_has_no_undo(bench: Bench) -> None:
    """Status 4 and what to do instead."""
    bench.ctl("copy", "web1", f"disk0={bench.image()}", "--id", "plain")
    for verb in ("undo", "release"):
        refused = bench.ctl("pivot", verb, "plain")
        assert (refused.status, "undo window" in complaint(refused)) == (4, True)


def test_for_needs_keep_synced() -> None:
    """--for alone says nothing."""
    answer = ctl("copy", "web1", "disk0=/new", "--for", "1h")
    assert (answer.status, "--keep-synced" in complaint(answer)) == (2, True)


@pytest.mark.parametrize("length", ["0", "soon", "31d", "0.5s"])
def test_lengths_of_windows(length: str) -> None:
    """No window of nothing, of half a second, or for ever."""
    assert ctl("copy", "web1", "disk0=/new", "--keep-synced", "--for", length).status == 2


def test_disk_ls_shows_the_whole_chain_with_formats(bench: Bench) -> None:
    """An overlay and what is below it."""
    below = bench.qemu.root("disk1").filename
    overlay = bench.image()
    assert bench.ctl("snapshot", "web1", f"disk1={overlay}").status == 0
    row = next(row for row in bench.json("disk", "ls", "web1").json if row["disk"] == "disk1")
    assert (row["backing_chain"], row["backing_formats"]) == ([below], ["qcow2"])
    assert f"{below} (qcow2)" in bench.ctl("disk", "ls", "web1").stdout
