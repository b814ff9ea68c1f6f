"""Names of etcd's nodes are looked up in threads: one that cannot start keeps no later look from an answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pivotd.fleet.addresses import Addresses


async def test_a_host_without_threads_is_no_answer_and_the_next_look_gets_one():
    """Whoever asked after that would have waited for a thread that was never there."""
    addresses = Addresses("localhost", 2379)
    threading.stack_size(1 << 47)  # more than an address space has: no thread can start
    try:
        with pytest.raises(OSError, match="this host gives pivotd no thread"):
            await addresses.get()
    finally:
        threading.stack_size(0)
    async with asyncio.timeout(60):
        assert await addresses.get()
