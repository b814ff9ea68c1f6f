"""A private libvirtd for each test; one place and one probe of QEMU's capabilities for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.libvirtd import Libvirtd, missing, trees


@pytest.fixture(scope="session", params=[None, *trees()], ids=lambda tree: tree.name if tree else "installed")
def libvirt_place(request: pytest.FixtureRequest) -> Iterator[Libvirtd]:
    """Where libvirtds of one release run one after the other."""
    if (why := missing()) is not None:
        pytest.skip(why)
    tree: Path | None = request.param
    with Libvirtd(tree) as libvirtd:
        yield libvirtd


@pytest.fixture
def libvirtd(libvirt_place: Libvirtd) -> Iterator[Libvirtd]:
    """A libvirtd without domains and hooks, not yet started; all that it starts ends with the test."""
    libvirt_place.clear()
    yield libvirt_place
    print(libvirt_place.said()[-3000:])  # noqa: T201 - pytest shows it beside a failure
    libvirt_place.clear()
