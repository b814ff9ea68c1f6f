"""The fleet as the daemon has it."""

from __future__ import annotations

import subprocess
import sys

from pivotd.config import Fleet
from pivotd.fleet import connect
from tests.fleet.etcd import Cluster
from tests.fleet.test_messages import LONG_S, ready
from tests.fleet.views import announced, claimed, published


async def test_it_reads_and_writes(cluster: Cluster) -> None:
    """Both go through to etcd."""
    fleet = connect(Fleet(cluster.urls, host="h1"))
    view = await ready(await fleet.store(), claimed, announced)
    after = await fleet.write(view, published(view), LONG_S)
    assert await fleet.read(view.domain, LONG_S) == after
    fleet.close()


def test_a_start_imports_no_client() -> None:
    """With a fleet that was not asked yet, neither the HTTP parser nor the rest of the client is there."""
    code = (
        "import sys, pivotd.fleet, pivotd.config;"
        "pivotd.fleet.connect(pivotd.config.Fleet(('http://127.0.0.1:1',)));"
        "print(*(name for name in ('httptools', 'msgspec', 'pivotd.fleet.store') if name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
