"""tp-libvirt's tests of blockcommit, blockpull and disk snapshots (autotest), against the real daemon and pivotctl."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ported_cases.fixture import content, lay_chain, mostly_long, overlay, written_chain
from tests.ported_cases.test_tp_libvirt import KEPT, REFUSED, Bench, stack
from tests.support.qemu import create_image

__all__ = ["stack"]

pytestmark = pytest.mark.qemu

FILLED_MIB = 32
NAMES = ("base.qcow2", "one.qcow2", "two.qcow2", "top.qcow2")
NAMES_OF_OVERLAYS = ["with space, comma.qcow2", "a:b=c.qcow2", "{json:}%20'\".qcow2", "ümlaut-磁盘.qcow2"]
COMMANDS = {
    "commit": (("commit", "web1", "disk0"), 0, "switched"),
    "inner": (("commit", "web1", "disk0", "--top", "two.qcow2"), 3, "merged"),
    "pull": (("pull", "web1", "disk0"), 3, "merged"),
}
"""Each with the layer that is the image afterwards, and the outcome."""


class Layers(Bench):
    """A bench whose disk0 has a chain of layers with relative names."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.images = lay_chain(*(directory / name for name in NAMES), relative=True)
        self.before = content(self.images[-1], beyond_mib=FILLED_MIB)

    def slowly(self, command: str, *options: str) -> str:
        """Start a command that takes for ever, and return the pivot's id."""
        answer = self.daemon.ctl(*COMMANDS[command][0], "--bandwidth", "1", "--detach", *options)
        assert answer.status == 0, answer
        return str(answer.json["id"])

    def assert_layers(self, *images: Path) -> None:
        """`disk ls`, the images themselves and the verdict agree on the chain, which holds everything."""
        names = [str(image) for image in reversed(images)]
        (shown,) = self.daemon.ctl("disk", "ls", "web1").json
        assert [shown["image"], *shown["backing_chain"]] == names
        assert written_chain(images[-1]) == [str(image.resolve()) for image in reversed(images)]
        self.assert_right(images[-1])
        assert content(images[-1], beyond_mib=FILLED_MIB) == self.before


@pytest.fixture
def layers(tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Layers:
    layers = Layers(tmp_path)
    layers.start(stack, layers.images[-1])
    stack.enter_context(layers.daemon)
    monkeypatch.chdir(tmp_path)
    return layers


# -- virsh_blockcommit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "outcome", "left"),
    [
        pytest.param((), "switched", (0,), marks=pytest.mark.long),
        pytest.param(("--base", "two.qcow2"), "switched", (0, 1, 2), marks=pytest.mark.long),
        pytest.param(("--top", "two.qcow2"), "merged", (0, 3), marks=pytest.mark.long),
        pytest.param(("--top", "two.qcow2", "--base", "one.qcow2"), "merged", (0, 1, 3), marks=pytest.mark.long),
        (("--top", "one.qcow2"), "merged", (0, 2, 3)),
    ],
    ids=["active", "shallow", "inner", "inner shallow", "lower"],
)
def test_blockcommit(layers: Layers, options: tuple[str, ...], outcome: str, left: tuple[int, ...]):
    """Active, shallow and inner; names are relative to where pivotctl is, and stay relative in the images."""
    answer = layers.daemon.ctl("commit", "web1", "disk0", *options)
    assert (answer.status, answer.json["outcome"]) == (0, outcome), answer
    layers.assert_layers(*(layers.images[index] for index in left))


@pytest.mark.long
def test_blockcommit_abort_and_again(layers: Layers):
    """Aborted at ready, then made, then made again: kept, switched, and nothing left to commit."""
    answer = layers.daemon.ctl("commit", "web1", "disk0", "--no-pivot")
    assert answer.status == 0, answer
    for command in ("commit", "pull"):
        assert layers.daemon.ctl(command, "web1", "disk0").status == REFUSED
    assert layers.daemon.ctl("pivot", "cancel", answer.json["id"]).status == 0
    assert layers.daemon.ctl("pivot", "wait", answer.json["id"]).status == KEPT
    assert layers.daemon.ctl("commit", "web1", "disk0").status == 0
    for command in ("commit", "pull"):
        answer = layers.daemon.ctl(command, "web1", "disk0")
        assert answer.status == REFUSED
        assert "stands alone" in answer.json["error"]["message"]
    layers.assert_layers(layers.images[0])


@pytest.mark.long
def test_what_cannot_be_committed(layers: Layers):
    """One line that names what is wrong, status 4, nothing recorded."""
    for arguments, words in (
        (("commit", "web1", "disk0", "--base", "old.qcow2"), "not in the chain"),
        (("commit", "web1", "disk0", "--top", "nowhere.qcow2"), "not in the chain"),
        (("commit", "web1", "disk0", "--top", "one.qcow2", "--base", "two.qcow2"), "not below"),
        (("commit", "web1", "disk0", "--top", "one.qcow2", "--base", "one.qcow2"), "not below"),
        (("pull", "web1", "disk0", "--base", "old.qcow2"), "not in the chain"),
        (("pull", "web1", "disk0", "--base", "top.qcow2"), "nothing to pull"),
        (("commit", "web1", "disk7"), "disk7"),
        (("snapshot", "web1", "disk0=top.qcow2"), "present image"),
        (("snapshot", "web1", "disk0=one.qcow2"), "present image"),
        (("snapshot", "web1", "disk0=nowhere/over.qcow2"), "does not exist"),
    ):
        answer = layers.daemon.ctl(*arguments)
        assert answer.status == REFUSED, (arguments, answer)
        message = answer.json["error"]["message"]
        assert words in message, (arguments, message)
        assert "\n" not in message
    assert layers.daemon.ctl("pivot", "ls").json == []
    layers.assert_layers(*layers.images)


# -- block_operation_after_lifecycle, blockpull -------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_after_a_restart_of_the_service(layers: Layers, command: str):
    """The daemon killed while it merges: the new one knows the pivot, and brings it to its end."""
    pivot = layers.slowly(command)
    layers.qemu.await_event("JOB_STATUS_CHANGE", status="running")
    layers.daemon.kill()
    layers.daemon.start()
    answer = layers.wait(pivot)
    _, index, outcome = COMMANDS[command]
    assert (answer.status, answer.json["outcome"]) == (0, outcome), answer
    images = layers.images
    layers.assert_layers(*([images[0], images[3]] if command == "inner" else [images[index]]))


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_after_destroy_and_start(layers: Layers, stack: ExitStack, command: str):
    """QEMU killed while it merges: kept, the chain is whole, and the next guest on it merges at once."""
    pivot = layers.slowly(command)
    layers.qemu.await_event("JOB_STATUS_CHANGE", status="running")
    layers.qemu.kill()
    assert layers.daemon.ctl("pivot", "wait", pivot).status == KEPT
    assert layers.daemon.ctl("verdict", "web1", "disk0").json["image"] == str(layers.images[-1])
    assert written_chain(layers.images[-1]) == [str(image) for image in reversed(layers.images)]
    assert layers.judge.missing(layers.images[-1], "qcow2") == []
    (layers.directory / "web1.serial").unlink()
    layers.start(stack, layers.images[-1])
    while layers.daemon.ctl("domain", "show", "web1").json["connection"] != "connected":
        pass
    arguments, index, _ = COMMANDS[command]
    answer = layers.daemon.ctl(*arguments)
    assert answer.status == 0, answer
    images = layers.images
    layers.assert_layers(*([images[0], images[3]] if command == "inner" else [images[index]]))


# -- commit_pull_copy_event ---------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_events_come_once_and_in_order(layers: Layers, command: str):
    """The outcome's event and each on the way to it, once, in order."""
    arguments, _, outcome = COMMANDS[command]
    assert layers.daemon.ctl(*arguments).status == 0
    rows = [json.loads(line) for line in layers.daemon.ctl("events").stdout.splitlines()]
    events = [row["event"] for row in rows if row["pivot"]]
    wanted = ["accepted", "copying", "ready", "pausing", outcome, "resumed", "closed"]
    # A loaded machine may need more than one try: those are records of their own.
    assert list(dict.fromkeys(event for event in events if event in wanted)) == wanted
    assert events.count("ready") == events.count(outcome) == events.count("closed") == 1


# -- snapshot_disk_only, revert names -----------------------------------------------------------------------------


@pytest.mark.long
def test_snapshot_and_back_again_and_again(layers: Layers):
    """Each overlay by its name; after a commit its file is there still, is refused as an overlay, and left as it is."""
    names = [layers.new(f"snap{number}.qcow2") for number in range(2)]
    for name in names:
        assert layers.daemon.ctl("snapshot", "web1", f"disk0={name.name}").status == 0
    answer = layers.daemon.ctl("commit", "web1", "disk0", "--base", str(layers.images[-1]))
    assert answer.status == 0, answer
    stale = names[1].read_bytes()
    answer = layers.daemon.ctl("snapshot", "web1", f"disk0={names[1]}")
    assert answer.status == REFUSED
    assert "exists already" in answer.json["error"]["message"]
    assert names[1].read_bytes() == stale
    names[1].unlink()
    assert layers.daemon.ctl("snapshot", "web1", f"disk0={names[1]}").status == 0
    layers.assert_layers(*layers.images, names[1])


@pytest.mark.parametrize("name", mostly_long(NAMES_OF_OVERLAYS, NAMES_OF_OVERLAYS[1]))
def test_names_of_overlays(layers: Layers, name: str):
    """Names that mean something to QEMU or a shell elsewhere are names here: on, one more over it, both committed into it."""
    first = layers.new(name)
    assert layers.daemon.ctl("snapshot", "web1", f"disk0={first}").status == 0
    assert layers.daemon.ctl("snapshot", "web1", f"disk0={layers.new('last.qcow2')}").status == 0
    answer = layers.daemon.ctl("commit", "web1", "disk0", "--base", name)
    assert answer.status == 0, answer
    answer = layers.daemon.ctl("pull", "web1", "disk0", "--base", "one.qcow2")
    assert answer.status == 0, answer
    layers.assert_layers(*layers.images[:2], first)


@pytest.mark.long
def test_an_overlay_that_is_a_dangling_link(layers: Layers):
    """The file that the link leads to is made, and the image above names the link."""
    layers.new("link.qcow2").symlink_to(layers.new("real.qcow2"))
    answer = layers.daemon.ctl("snapshot", "web1", "disk0=link.qcow2")
    assert answer.status == 0, answer
    assert layers.new("real.qcow2").is_file()
    layers.assert_layers(*layers.images, layers.new("link.qcow2"))


@pytest.mark.long
def test_the_image_of_another_overlay_as_base(layers: Layers):
    """An image outside the chain that shares its base is none of its layers; committing under it is the person's matter."""
    other = overlay(layers.new("other.qcow2"), layers.images[2])
    assert layers.daemon.ctl("commit", "web1", "disk0", "--base", str(other)).status == REFUSED
    create_image(layers.new("unrelated.qcow2"))
    assert layers.daemon.ctl("commit", "web1", "disk0", "--top", "unrelated.qcow2").status == REFUSED
    layers.assert_layers(*layers.images)
