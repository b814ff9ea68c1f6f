"""A server of a test leaves no connection behind, whenever a client has come."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from pathlib import Path

import pytest

from tests.fleet.proxy import Proxy
from tests.wire.server import FakeQemu


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("kind", ["etcd", "QEMU"])
def test_a_server_that_ends_in_the_moment_of_a_connection(kind: str, turns: int, tmp_path: Path) -> None:
    """At each turn of the event loop after a client has connected."""

    async def serve(client: socket.socket) -> None:
        if kind == "etcd":
            async with Proxy("http://127.0.0.1:1") as proxy:
                client.connect(("127.0.0.1", int(proxy.url.rpartition(":")[2])))
                await _turns()
        else:
            async with FakeQemu(tmp_path / "q") as fake:
                client.connect(fake.path)
                await _turns()

    async def _turns() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    gc.collect()  # what other tests have left is theirs
    with (
        warnings.catch_warnings(record=True) as seen,
        socket.socket(socket.AF_INET if kind == "etcd" else socket.AF_UNIX) as client,
    ):
        warnings.simplefilter("always")
        asyncio.run(serve(client))
        gc.collect()
    assert [str(one.message) for one in seen] == []
