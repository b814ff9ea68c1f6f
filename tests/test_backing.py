"""The images below an image, read from headers that qemu-img wrote."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pivotd.host.backing import BlindError, needed


def create(path: Path, *options: str) -> str:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "1M"], check=True, cwd=path.parent)
    return str(path)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_chain_of_names(tmp_path: Path, compat: str):
    """Relative to the image that names them, as ``json:``, absolute, in the order of the chain; both versions."""
    (tmp_path / "below").mkdir()
    raw = tmp_path / "below" / "raw"
    raw.write_bytes(bytes(1 << 20))
    base = create(tmp_path / "below" / "base", "-o", f"compat={compat}", "-F", "raw", "-b", "raw")
    middle = create(tmp_path / "middle", "-o", f"compat={compat}", "-F", "qcow2", "-b", "below/base")
    described = f'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{middle}"}}}}'
    top = create(tmp_path / "top", "-o", f"compat={compat}", "-F", "qcow2", "-b", described)
    assert needed(top, "qcow2") == [middle, base, str(raw)]
    assert needed(top, None) == [middle, base, str(raw)]


def test_a_data_file_is_needed(tmp_path: Path):
    """The guest's data is in it. A relative name starts where QEMU runs, which nobody knows of a guest that is off."""
    image = create(tmp_path / "image", "-o", f"data_file={tmp_path / 'data'}")
    assert needed(image, "qcow2") == [str(tmp_path / "data")]
    here = create(tmp_path / "here", "-o", "data_file=relative")
    assert needed(here, "qcow2") == [str(tmp_path / "relative"), "/relative"]


def test_what_a_header_says_leads_to_no_loop_and_no_error(tmp_path: Path):
    """In a circle, into nothing, behind the end of the file, or nothing at all."""
    one, two = tmp_path / "one", tmp_path / "two"
    create(two)
    create(one, "-F", "qcow2", "-b", str(two))
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(one), str(two)], check=True)
    assert needed(str(one), "qcow2") == [str(two), str(one)]
    two.unlink()
    assert needed(str(one), "qcow2") == [str(two)]
    whole = one.read_bytes()
    one.write_bytes(whole[:8] + b"\xff" * 8 + whole[16:])
    assert needed(str(one), "qcow2") == []
    for length in (0, 3, 20, 70, 103):
        one.write_bytes(whole[:length])
        assert needed(str(one), "qcow2") == []


def test_a_raw_image_has_nothing_below_whatever_a_guest_writes_into_it(tmp_path: Path):
    """A guest can write a qcow2 header into its raw disk."""
    image = create(tmp_path / "image", "-u", "-F", "raw", "-b", "/etc/passwd")
    assert needed(image, "raw") == []


def test_storage_that_is_no_file_has_nothing_below():
    """A node of a network protocol, by its name alone and below raw; a qcow2 image there cannot be read."""
    rbd = '{"driver": "rbd", "pool": "p", "image": "i"}'
    assert needed(f"json:{rbd}", "rbd") == []
    assert needed(f'json:{{"driver": "raw", "offset": 512, "file": {rbd}}}', "raw") == []
    with pytest.raises(BlindError, match="cannot read what is below"):
        needed(f'json:{{"driver": "qcow2", "file": {rbd}}}', "qcow2")


def test_an_image_of_another_format_is_not_called_alone(tmp_path: Path):
    """Pivotd reads qcow2 only."""
    with pytest.raises(BlindError, match="cannot read what is below"):
        needed(str(tmp_path / "image"), "vmdk")
