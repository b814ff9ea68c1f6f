"""What is known of a qcow2 file that is there: whether anything was ever written to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pivotd.host.qcow2 import is_blank
from tests.support.encrypted import encrypted_image
from tests.support.qemu import create_image

from .test_destinations import overlay

EMPTY = ["", "compat=0.10", "cluster_size=2M", "extended_l2=on,compression_type=zstd", "lazy_refcounts=on"]


@pytest.mark.parametrize("options", EMPTY)
@pytest.mark.parametrize("written", [None, "write -P 5 0 512", "write -P 5 9T 512", "write -z 9T 64k"])
def test_one_allocated_cluster_is_enough(tmp_path: Path, options: str, written: str | None):
    """Wherever it is, and if it is marked as zeroes: it may hold a place."""
    image = create_image(tmp_path / "image", size="10T", options=options)
    if written is not None:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", written, str(image)], check=True, stdout=subprocess.DEVNULL)
    assert is_blank(str(image)) is (written is None)


@pytest.mark.parametrize("options", ["preallocation=metadata", "preallocation=full", "data_file=DATA"])
def test_an_image_that_has_its_place_elsewhere_or_before_is_not_blank(tmp_path: Path, options: str):
    """Preallocated clusters of an encrypted image are no zeroes; an external file may hold anything."""
    image = create_image(tmp_path / "image", options=options.replace("DATA", str(tmp_path / "data")))
    assert not is_blank(str(image))


def test_an_encrypted_image_can_be_blank(tmp_path: Path):
    """What is not allocated is not decrypted."""
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse")
    encrypted_image(tmp_path / "image", f"file={secret}")
    assert is_blank(str(tmp_path / "image"))


def test_what_is_no_whole_qcow2_file_is_not_blank(tmp_path: Path):
    """An overlay, a raw image, a torn file, none at all, and one that says that it was not closed."""
    base = create_image(tmp_path / "base")
    assert is_blank(str(base))
    assert not is_blank(str(overlay(tmp_path / "top", str(base))))
    assert not is_blank(str(create_image(tmp_path / "raw", image_format="raw")))
    (tmp_path / "torn").write_bytes(base.read_bytes()[:100])
    assert not is_blank(str(tmp_path / "torn"))
    (tmp_path / "cut").write_bytes(base.read_bytes()[: 3 << 16])
    assert not is_blank(str(tmp_path / "cut"))
    (tmp_path / "dirty").write_bytes(base.read_bytes()[:79] + b"\x01" + base.read_bytes()[80:])
    assert not is_blank(str(tmp_path / "dirty"))
    assert not is_blank(str(tmp_path / "none"))
    assert not is_blank(str(tmp_path))
