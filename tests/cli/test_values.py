"""Values on the command line mean what a person means by them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from pivotd.cli.complaints import UsageError
from pivotd.cli.values import (
    MILLISECONDS,
    AbsolutePath,
    Bandwidth,
    DiskImage,
    Granularity,
    Name,
    OutputPath,
    absolute,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1000", 1000),
        ("10M", 10 << 20),
        ("1G", 1 << 30),
        ("1.5K", 1536),
        ("2MiB/s", 2 << 20),
        ("3g", 3 << 30),
    ],
)
def test_bandwidth(text: str, expected: int) -> None:
    """A bandwidth is bytes per second with suffixes in powers of 1024."""
    assert Bandwidth().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "10 20", "99999999999G", "1e9", "٣"])
def test_bad_bandwidth(text: str) -> None:
    """Anything else, and what QEMU cannot count, is refused."""
    with pytest.raises(click.UsageError):
        Bandwidth().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"), [("512", 512), ("0.5K", 512), ("64k", 65536), ("1MiB", 1 << 20), ("64M", 64 << 20)]
)
def test_granularity(text: str, expected: int) -> None:
    """A granularity is a power of two of bytes."""
    assert Granularity().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "0", "256", "1000", "3M", "128M", "1G", "-512", "512.5", "1M/s", "one"])
def test_bad_granularity(text: str) -> None:
    """What QEMU does not take is refused at the command line."""
    with pytest.raises(click.UsageError):
        Granularity().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"), [("500", 500), ("500ms", 500), ("1s", 1000), ("0.25s", 250), ("1min", 60_000)]
)
def test_milliseconds(text: str, expected: int) -> None:
    """A length of time is milliseconds unless a unit follows."""
    assert MILLISECONDS.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "s", "-5", "0.5", "1h", "500 MS"])
def test_bad_milliseconds(text: str) -> None:
    """Other units and fractions of a millisecond are refused."""
    with pytest.raises(click.UsageError):
        MILLISECONDS.convert(text, None, None)


def test_disk_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ``=`` separates disk and image, and the image becomes absolute."""
    monkeypatch.chdir(tmp_path)
    assert DiskImage().convert("disk0=./a=b.raw", None, None) == ("disk0", str(tmp_path / "a=b.raw"))


@pytest.mark.parametrize("text", ["disk0", "disk0=", "=a.raw", "="])
def test_bad_disk_image(text: str) -> None:
    """Both sides of DISK=IMAGE are needed."""
    with pytest.raises(click.UsageError):
        DiskImage().convert(text, None, None)


@pytest.mark.parametrize("kind", [Name(), AbsolutePath()])
def test_empty(kind: click.ParamType[str]) -> None:
    """An empty name or path is a mistake of a script, not a request."""
    with pytest.raises(click.UsageError):
        kind.convert("", None, None)


def test_parent_of_a_link(tmp_path: Path) -> None:
    """``link/../x`` means the file that the kernel would open, not the one that the text suggests."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert absolute(f"{tmp_path}/link/../x.raw") == str((tmp_path / "far").resolve() / "x.raw")


def test_link_to_an_image(tmp_path: Path) -> None:
    """A link to an image keeps its own name."""
    (tmp_path / "link.raw").symlink_to(tmp_path / "image.raw")
    assert absolute(f"{tmp_path}/link.raw") == f"{tmp_path}/link.raw"


def test_what_is_written_is_not_stdout() -> None:
    """Of these commands none writes to stdout for ``-``, and none makes a file of that name by mistake."""
    with pytest.raises(click.BadParameter, match="not stdout: give another name"):
        OutputPath().convert("-", None, None)
    assert OutputPath().convert("./-", None, None) == str(Path.cwd() / "-")


def test_working_directory_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in a directory that was removed is refused; an absolute one does not need the directory."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="absolute path"):
        absolute("x.raw")
    assert absolute("/images/x.raw") == "/images/x.raw"
    assert absolute("/images/../x.raw") == "/x.raw"
