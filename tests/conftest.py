"""Fixtures that every room may use: a real QEMU and a real guest, gone when the test ends."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import settings

from tests.support.guest import Guest
from tests.support.guest_assets import GuestAssets, build
from tests.support.qemu import Disk, Qemu
from tests.support.tiny_guest import TinyGuest

_CLONE_NEWNS = 0x20000
_MS_SLAVE_OF_ALL = 1 << 19 | 1 << 14
LONG = os.environ.get("PIVOTD_LONG") == "1"

# The same examples in every run, and nothing remembered from the last one.
settings.register_profile("fixed", derandomize=True, database=None)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a mount namespace of its own: what a killed test has mounted is gone with it, and nobody else sees it.

    Not without root; the tests that mount something are skipped then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(config, "workerinput") and os.geteuid() == 0 and libc.unshare(_CLONE_NEWNS) == 0:
        libc.mount(None, b"/", None, _MS_SLAVE_OF_ALL, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is too long for every run, unless it is asked for; of a test that is thinned(n), one case of n stays."""
    skip = pytest.mark.skip(reason="long: set PIVOTD_LONG=1, or `make test-long`")
    cases: Counter[str] = Counter()
    for item in items if not LONG else ():
        left_out = item.get_closest_marker("long") is not None
        if not left_out and (thinned := item.get_closest_marker("thinned")) is not None:
            test = item.nodeid.partition("[")[0]
            left_out = cases[test] % thinned.args[0] != 0
            cases[test] += 1
        if left_out:
            item.add_marker(skip)


class QemuFactory(Protocol):
    """Starts a QEMU in the test's directory; ``options`` are those of Qemu, ``expect`` that of Guest.qemu."""

    def __call__(
        self, disks: Sequence[Disk] = (), *, guest: Guest | TinyGuest | None = None, **options: Any
    ) -> Qemu: ...


@pytest.fixture
def qemu_factory(tmp_path: Path) -> Iterator[QemuFactory]:
    with ExitStack() as stack:

        def start(disks: Sequence[Disk] = (), *, guest: Guest | TinyGuest | None = None, **options: Any) -> Qemu:
            directory = options.pop("directory", tmp_path)
            qemu = guest.qemu(directory, disks, **options) if guest else Qemu(directory, disks, **options)
            return stack.enter_context(qemu)

        yield start


@pytest.fixture(scope="session")
def guest_assets() -> GuestAssets:
    return build()
