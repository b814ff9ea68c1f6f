"""Values on the command line: DISK=IMAGE, paths made absolute, bytes per second, milliseconds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pivotd import limits
from pivotd.cli.complaints import UsageError
from pivotd.core import nbd

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])
SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
UNITS_MS: dict[str, float] = {"": 1, "ms": 1, "s": 1000, "m": 60_000, "min": 60_000}
UNITS_S: dict[str, float] = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_NUMBER = re.compile(r"(\d{1,19}(?:\.\d{1,6})?)\s*([a-zA-Z/]*)", re.ASCII)


class Name(click.ParamType[str]):
    """A domain, disk, event or file: any text that is not empty."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        if not value:
            self.fail("must not be empty", param, ctx)
        return str(value)


class Number(click.ParamType[int]):
    """A whole number from one to another."""

    name = "number"

    def __init__(self, least: int, largest: int) -> None:
        self.least, self.largest = least, largest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        text = str(value)
        if not (text.isascii() and text.isdecimal() and self.least <= int(text[:20]) <= self.largest):
            upto = "or more" if self.largest == limits.SEQ_MAX else f"to {self.largest}"
            self.fail(f"{text!r}: give a whole number, {self.least} {upto}", param, ctx)
        return int(text)


class AbsolutePath(click.ParamType[str]):
    """A path as the daemon must see it: the daemon has another working directory."""

    name = "path"

    def shell_complete(self, _ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Leave it to the shell."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - only where a shell asks

        return [CompletionItem(incomplete, type="file")]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the absolute path."""
        if not value:
            self.fail("must not be empty", param, ctx)
        return absolute(str(value))


class OutputPath(AbsolutePath):
    """What a command writes; it does not write to stdout, which other commands mean by ``-``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the absolute path."""
        if value == "-":
            self.fail("- would be a file of that name, not stdout: give another name, or ./-", param, ctx)
        return super().convert(value, param, ctx)


class DiskImage(click.ParamType[tuple[str, str]]):
    """DISK=IMAGE; the first ``=`` separates. A directory keeps its final slash."""

    name = "disk=image"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return the disk and the absolute path of the image."""
        if isinstance(value, tuple):
            return value
        disk, separator, image = str(value).partition("=")
        if not (disk and separator and image):
            self.fail(f"{value!r} is not DISK=IMAGE, like disk0=/images/new.qcow2", param, ctx)
        if nbd.is_uri(image) or image.startswith("json:"):
            return disk, image
        # A name that can only be a directory says so to the daemon, which may not be able to look.
        only_directory = os.path.basename(image) in {"", ".", ".."}  # noqa: PTH119
        return disk, f"{absolute(image).rstrip('/')}/" if only_directory else absolute(image)


class AnyImage(AbsolutePath):
    """An image as the daemon must see it: a path, or an NBD address or QEMU's description, which stay as they are."""

    name = "image"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the absolute path or the address."""
        as_it_is = nbd.is_uri(str(value)) or str(value).startswith("json:")
        return str(value) if as_it_is else super().convert(value, param, ctx)


class Bandwidth(click.ParamType[int]):
    """Bytes per second with K, M, G or T for powers of 1024; 0 means unlimited."""

    name = "bytes/s"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes per second."""
        number, unit = _split(str(value))
        suffix = re.sub(r"(iB|B)?(/s)?$", "", unit, flags=re.IGNORECASE).upper()
        if number is None or suffix not in SUFFIXES:
            self.fail(f"{value!r} is no bandwidth: give bytes per second, like 10M or 1G", param, ctx)
        result = int(number * SUFFIXES[suffix])
        if result >= 1 << 63:
            self.fail(f"{value!r} is more than QEMU can count", param, ctx)
        return result


class Granularity(click.ParamType[int]):
    """Bytes with K or M for powers of 1024: a power of two that QEMU takes as the granularity of a copy."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        from pivotd.core import request  # noqa: PLC0415 - 5 ms, and asked for rarely

        number, unit = _split(str(value))
        suffix = re.sub(r"(iB|B)?$", "", unit, flags=re.IGNORECASE).upper()
        result = number * SUFFIXES[suffix] if number is not None and suffix in SUFFIXES else 0
        if not request.is_granularity(result):
            self.fail(f"{value!r} is no granularity: give a power of two from 512 to 64M, like 64K or 1M", param, ctx)
        return int(result)


class Length(click.ParamType[int]):
    """A length of time as a whole number of one unit; given as a plain number, or with a unit of ``units``."""

    name = "time"

    def __init__(self, units: dict[str, float], whole: str, like: str, most: int | None = None) -> None:
        self.units, self.whole, self.like, self.most = units, whole, like, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the length in the unit."""
        number, unit = _split(str(value))
        if number is None or unit not in self.units:
            self.fail(f"{value!r} is no length of time: give {self.whole}, or {self.like}", param, ctx)
        result = number * self.units[unit]
        if result != int(result):
            self.fail(f"{value!r} is no whole number of {self.whole}", param, ctx)
        if self.most is not None and not 1 <= result <= self.most:
            self.fail(f"{value!r}: give 1s to {self.most // int(UNITS_S['d'])}d", param, ctx)
        return int(result)


FORMAT = click.Choice(("qcow2", "raw"))
WAIT = Length(UNITS_S, "seconds", "10s or 2m")
MILLISECONDS = Length(UNITS_MS, "milliseconds", "500ms or 1s")
SECONDS = Length(UNITS_S, "seconds", "90s, 30m, 1h or 2d", limits.KEEP_SYNCED_S_MAX)


def absolute(path: str) -> str:
    """Return the path from the root, meaning the same file. Raises: UsageError.

    A symbolic link to the image is kept, because QEMU gets the name of the link. ``..`` after a link to a directory
    does not lead where the text says, so links are followed only then.
    """
    try:
        full = Path(path) if Path(path).is_absolute() else Path.cwd() / path
    except OSError:
        raise UsageError(f"{path} is relative, and the working directory is gone: give an absolute path") from None
    if ".." not in full.parts:
        return str(full)
    return str(full.resolve() if full.name == ".." else full.parent.resolve() / full.name)


def _split(text: str) -> tuple[float | None, str]:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None, ""
    number = found[1]
    return (float(number) if "." in number else int(number)), found[2]


def local_word(function: F) -> F:
    """Add the option to do without the fleet's word."""
    said = "If etcd does not answer, take this host's word alone: you know that no other has had the guest since."
    return click.option("--local", is_flag=True, help=said)(function)
