"""QEMU's names of images, each as QEMU 7.2 and 11.1 show it, in one spelling that says everything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pivotd.core.image_names import Description, describe, of_own_node, options, with_backing

FILE = {"driver": "file", "filename": "/a.img"}
PART = {"driver": "raw", "offset": 512, "size": 1024, "file": FILE}


def of(node: Any) -> Description:
    return describe("json:" + json.dumps(node), "/cwd")


def text(node: Any) -> str:
    return "json:" + json.dumps(node, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    "node",
    [
        {"driver": "raw", "file": FILE},
        {"driver": "qcow2", "file": FILE},
        {"driver": "qcow2", "file": {"driver": "raw", "file": FILE}},
        {"driver": "qcow2", "backing": None, "file": FILE},
        {"driver": "qcow2", "encrypt.key-secret": "s", "file": FILE},
        {"driver": "qcow2", "file": {"driver": "throttle", "throttle-group": "g", "file": FILE}},
        {"driver": "qcow2", "file": {"driver": "blkdebug", "inject-error.0.event": "read_aio", "image": FILE}},
        {"driver": "copy-on-read", "file": {"driver": "qcow2", "file": FILE}},
        {"driver": "raw", "file": {"driver": "preallocate", "file": {"filename": "/a.img"}}},
    ],
)
def test_a_plain_name_says_everything(node: Any):
    """Throttling, injected faults and the like show the same data; passphrases have to be given anyway."""
    assert of(node) == Description("/a.img", "/a.img")


def test_a_part_of_a_file_is_not_the_file():
    """Of any two parts, each has a name of its own, and relative paths have become absolute."""
    assert of(PART) == Description(text(PART), "/a.img", 512, 1024)
    assert of({"driver": "throttle", "file": PART}).text == text(PART)
    relative = {"driver": "raw", "offset": 512, "file": {"driver": "file", "filename": "b.img"}}
    absolute = {**relative, "file": {"driver": "file", "filename": "/cwd/b.img"}}
    assert of(relative) == Description(text(absolute), "/cwd/b.img", 512, None)
    inside = {"driver": "raw", "offset": 256, "size": 128, "file": PART}
    assert (of(inside).offset, of(inside).size_bytes) == (768, 128)
    typed = {**PART, "offset": "512", "size": "1K"}
    assert of(typed) == of(PART), "QEMU repeats the words of -drive"
    assert of({"driver": "raw", "offset": 0, "size": 1024, "file": FILE}) == of(
        {"driver": "raw", "size": 1024, "file": FILE}
    )
    container = {"driver": "qcow2", "file": PART}
    assert of(container) == Description(text(container), "/a.img", 512, 1024)


def test_pivotd_s_own_end_of_a_longer_image_is_no_part():
    """It opens a raw image that is longer than the disk only as far as the disk goes."""
    name = text({"driver": "raw", "size": 1024, "file": FILE})
    assert describe(of_own_node(name, "p01K9ABCDEFGHJKMNPQRSTV0001-0")).text == "/a.img"
    assert of_own_node(name, "src0") == name
    assert of_own_node(name[:20], "p01K9ABCDEFGHJKMNPQRSTV0001-0") == name[:20], "QEMU cuts long descriptions off"
    assert of_own_node(text(PART), "p01K9ABCDEFGHJKMNPQRSTV0001-0") == text(PART)


@pytest.mark.parametrize(
    "name",
    [
        "a.img", text({"driver": "qcow2", "file": {"driver": "file", "filename": "a.img"}}), "/dev/fdset/7", "/dev/fd/5", "/proc/self/fd/5", "/var/tmp/vl.XM1FZ3", "null-co://", "fat:rw:/dir",
        "blkverify:/a:/b", "json:{", "json:[]", "json:{}", 'json:{"driver": 1}',
        text({"driver": "raw", "file": {"driver": "null-co", "size": 512}}),
        text({"driver": "raw", "file": {"driver": "vvfat", "dir": "/d"}}),
        text({"driver": "quorum", "children": [FILE, FILE]}),
        text({"driver": "qcow2", "file": {"driver": "file", "filename": "/dev/fdset/7"}}),
    ],
)  # fmt: skip
def test_no_name_leads_to_the_data(name: str):
    assert describe(name).fleeting


def test_addresses():
    """NBD addresses come in one spelling; certificates, which an address cannot say, stay in the description."""
    server = {"driver": "nbd", "export": "e", "server.host": "h", "server.port": "10809", "server.type": "inet"}
    assert of({"driver": "raw", "file": server}) == Description("nbd://h:10809/e", export="nbd://h:10809/e")
    tls = {"driver": "raw", "file": {**server, "tls-creds": "t"}}
    assert of(tls) == Description(text(tls), export="nbd://h:10809/e")
    part = {"driver": "raw", "size": 512, "file": server}
    assert of(part) == Description(text(part), None, 0, 512, None, "nbd://h:10809/e")
    for name in ("http://h/a.img", "rbd:pool/a", "blkdebug::rbd:pool/a"):
        assert describe(name) == Description(name.removeprefix("blkdebug::"))
    rbd = {"driver": "raw", "file": {"driver": "rbd", "pool": "p", "image": "i"}}
    assert of(rbd) == Description(text(rbd), is_elsewhere=True)


def test_a_name_that_says_what_is_below():
    """It is its own image with the backing image of that name; described again, the image itself counts."""
    name = with_backing("/top", text(PART), "qcow2", "raw")
    assert options(name) == {"driver": "qcow2", "file": {"filename": "/top"}, "backing": PART}
    assert describe(name) == Description("/top", "/top")
    assert options(with_backing("/top", None, "qcow2", "")) == {
        "driver": "qcow2", "file": {"filename": "/top"}, "backing": None,
    }  # fmt: skip
    nbd = options(with_backing("/top", "nbd://h:1/e", "qcow2", "raw"))
    assert nbd is not None
    assert nbd["backing"]["file"]["driver"] == "nbd"
