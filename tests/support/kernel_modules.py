"""The modules of a kernel package: where a distribution puts them, how it packs them, and in which order they load."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

_DEPENDS = re.compile(rb"\bdepends=([\w,-]*)\0")
"""In the section .modinfo of every module."""


class NoModuleError(Exception):
    """A driver is neither a module nor part of the kernel, or its file cannot be unpacked."""


def unpack(tree: Path, drivers: Iterable[str], target: Path) -> None:
    """Copy these drivers of an unpacked kernel package, and what they depend on, to ``target/NAME.ko``, not compressed.

    Drivers that are part of the kernel have no file and get none.

    Raises: NoModuleError.
    """
    directories = [*tree.glob("lib/modules/*"), *tree.glob("usr/lib/modules/*")]
    files = {_name(path): path for directory in directories for path in directory.glob("kernel/**/*.ko*")}
    built_in = {_name(Path(line)) for path in directories for line in _lines(path / "modules.builtin")}
    wanted, taken = list(drivers), set[str]()
    while wanted:
        name = wanted.pop()
        if name in taken or name in built_in:
            continue
        if name not in files:
            raise NoModuleError(f"the kernel has no driver {name}, neither as a module nor built in")
        taken.add(name)
        module = target / f"{name}.ko"
        module.write_bytes(_content(files[name]))
        wanted += _depends(module)


def load_order(directory: Path, drivers: Iterable[str]) -> tuple[str, ...]:
    """Return which of the modules in ``directory`` to load for these drivers, each before those that depend on it."""
    order: dict[str, None] = {}

    def load(name: str) -> None:
        module = directory / f"{name}.ko"
        if name not in order and module.exists():
            for other in _depends(module):
                load(other)
            order[name] = None

    for driver in drivers:
        load(driver)
    return tuple(order)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _name(path: Path) -> str:
    """Return a module's name as the kernel spells it: files may have dashes for its underscores."""
    return path.name.partition(".ko")[0].replace("-", "_")


def _depends(module: Path) -> list[str]:
    found = _DEPENDS.search(module.read_bytes())
    return [name.decode().replace("-", "_") for name in found[1].split(b",") if name] if found else []


def _zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        raise NoModuleError("the kernel's modules are compressed with zstd: install the package zstd")
    return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout


_UNPACK: Mapping[str, Callable[[bytes], bytes]] = {
    ".ko": bytes, ".xz": lzma.decompress, ".gz": gzip.decompress, ".zst": _zstd,
}  # fmt: skip


def _content(path: Path) -> bytes:
    if path.suffix not in _UNPACK:
        raise NoModuleError(f"{path.name} is compressed in a way that is not known here")
    return _UNPACK[path.suffix](path.read_bytes())
