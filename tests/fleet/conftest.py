"""A real etcd for each module that asks for one, and pivotd's side of it; each test runs with every release at hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pivotd.config import Fleet
from pivotd.fleet.store import EtcdFleet
from tests.conftest import QemuFactory
from tests.fleet.certificates import Certificates
from tests.fleet.etcd import Cluster
from tests.fleet.etcds import CHOSEN, missing, trees
from tests.support.qemu import Disk, Qemu, create_image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs etcd where there is none."""
    why = missing()
    for item in items:
        if why is not None and "tests/fleet" in str(item.path):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(
    scope="session", autouse=True, params=[None, *trees()], ids=lambda tree: tree.name if tree else "installed"
)
def etcd_release(request: pytest.FixtureRequest) -> Iterator[None]:
    """The etcd that the rig starts."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param is None:
            patch.delenv(CHOSEN, raising=False)
        else:
            patch.setenv(CHOSEN, str(request.param))
        yield


Settings = Callable[..., EtcdFleet]


@pytest_asyncio.fixture
async def fleet_of() -> AsyncIterator[Settings]:
    """Return what makes a fleet of endpoints and further settings."""
    made: list[EtcdFleet] = []

    def make(*endpoints: str, **settings: object) -> EtcdFleet:
        fleet = EtcdFleet(Fleet(endpoints, **{"host": "h1", **settings}))  # type: ignore[arg-type]
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.close()


@contextmanager
def served(request: pytest.FixtureRequest, directory: Path, size: int = 3, **options: Any) -> Iterator[Cluster]:
    """Run a cluster for some tests; its data stays if one of them fails."""
    failed = request.session.testsfailed
    with Cluster(directory, size, **options) as cluster:
        try:
            yield cluster
        finally:
            cluster.keeps_data = request.session.testsfailed > failed


@pytest.fixture(scope="module")
def cluster(
    etcd_release: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Return three nodes that nothing happens to."""
    with served(request, tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def fragile(
    etcd_release: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Return three nodes that a test may kill."""
    with served(request, tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def qemu(qemu_factory: QemuFactory, tmp_path: Path) -> Qemu:
    """Return a QEMU without a guest; its one disk is on a.qcow2."""
    return qemu_factory([Disk(create_image(tmp_path / "a.qcow2"))])


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))
