"""Kernel packages differ in where modules are, how they are compressed, and in what is part of the kernel."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.kernel_modules import NoModuleError, load_order, unpack


def module(*depends: str) -> bytes:
    """Return as much of a module as is read here."""
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout


def package(tree: Path, files: dict[str, bytes], *, built_in: str = "", below: str = "lib") -> Path:
    """Write a kernel package: file name -> content."""
    modules = tree / below / "modules/6.12-test"
    (modules / "kernel/drivers").mkdir(parents=True)
    for name, content in files.items():
        (modules / "kernel/drivers" / name).write_bytes(content)
    (modules / "modules.builtin").write_text(built_in)
    return tree


@pytest.mark.parametrize("below", ["lib", "usr/lib"])
@pytest.mark.parametrize(
    ("suffix", "compress"), [(".ko", bytes), (".ko.xz", lzma.compress), (".ko.gz", gzip.compress), (".ko.zst", zstd)]
)
def test_a_module_is_found_wherever_it_is_and_unpacked(
    tmp_path: Path, below: str, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    """Below /lib or /usr/lib, compressed or not: what comes out is the module itself."""
    tree = package(tmp_path / "tree", {f"ata_piix{suffix}": compress(module())}, below=below)
    unpack(tree, ["ata_piix"], tmp_path)
    assert (tmp_path / "ata_piix.ko").read_bytes() == module()


def test_what_a_driver_depends_on_comes_with_it_and_loads_before(tmp_path: Path) -> None:
    """The modules themselves say what they need; dashes and underscores are the same."""
    tree = package(
        tmp_path / "tree",
        {"sd_mod.ko": module("scsi_mod"), "scsi_mod.ko": module("scsi-common"), "scsi-common.ko": module()},
    )
    unpack(tree, ["sd_mod"], tmp_path)
    assert load_order(tmp_path, ["sd_mod"]) == ("scsi_common", "scsi_mod", "sd_mod")


def test_a_built_in_driver_needs_no_module(tmp_path: Path) -> None:
    """Only what is a module is loaded."""
    built_in = "kernel/drivers/virtio/virtio_pci.ko\n"
    tree = package(tmp_path / "tree", {"virtio_blk.ko": module()}, built_in=built_in)
    unpack(tree, ["virtio_pci", "virtio_blk"], tmp_path)
    assert load_order(tmp_path, ["virtio_pci", "virtio_blk"]) == ("virtio_blk",)


def test_a_driver_that_is_nowhere_is_named(tmp_path: Path) -> None:
    """A guest without its driver would have no disk."""
    with pytest.raises(NoModuleError, match="no driver ata_piix"):
        unpack(package(tmp_path / "tree", {}), ["ata_piix"], tmp_path)


def test_an_unknown_compression_is_named(tmp_path: Path) -> None:
    """A file that would be loaded as it is, and be refused, is refused here."""
    with pytest.raises(NoModuleError, match=r"nvme\.ko\.lz4 is compressed"):
        unpack(package(tmp_path / "tree", {"nvme.ko.lz4": b""}), ["nvme"], tmp_path)
