"""etcd's clients beside each other, and what a fleet costs: a transaction, a command, a listing.

python -m bench.fleet [--rounds 300] [--domains 10000] [--more DIRECTORY]

A real etcd of three nodes on loopback, asked at a node that does not lead. Each client runs in a process of its own:
one transaction that compares a revision and writes 300 bytes, with a read between. Clients that are not installed are
left out; `pip install --target DIRECTORY aetcd httpx aiohttp` and --more make them known. Import time is the best of
five processes, with asyncio and pivotd's core there before.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pivotd.config import Fleet
from pivotd.core.fleet import FleetView
from tests.fleet.etcd import Cluster
from tests.fleet.etcds import missing
from tests.fleet.views import announced, claimed, published

KEY = "bench"
VALUE = "x" * 300
IMPORTS_MEASURED = 5
Post = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


def text(plain: str) -> str:
    """Return a text as etcd's gateway has it."""
    return base64.b64encode(plain.encode()).decode()


async def by_gateway(post: Post) -> tuple[Callable[[], Awaitable[int]], Callable[[int], Awaitable[bool]]]:
    """Return what reads the revision and what writes if it is so, by HTTP and JSON."""

    async def read() -> int:
        found = (await post("/v3/kv/range", {"key": text(KEY)})).get("kvs")
        return int(found[0]["mod_revision"]) if found else 0

    async def write(revision: int) -> bool:
        compare = {"key": text(KEY), "target": "MOD", "modRevision": str(revision)}
        put = {"requestPut": {"key": text(KEY), "value": text(VALUE)}}
        return bool((await post("/v3/kv/txn", {"compare": [compare], "success": [put]})).get("succeeded"))

    return read, write


async def aetcd(url: str) -> tuple[Any, Any]:
    import aetcd as library  # noqa: PLC0415

    client = library.Client(*url.removeprefix("http://").split(":"))
    await client.connect()
    parts = client.transactions

    async def read() -> int:
        found = await client.get(KEY.encode())
        return found.mod_revision if found else 0

    async def write(revision: int) -> bool:
        compare, put = parts.mod(KEY.encode()) == revision, parts.put(KEY.encode(), VALUE.encode())
        return (await client.transaction(compare=[compare], success=[put], failure=[]))[0]

    return read, write


async def httpx(url: str) -> tuple[Any, Any]:
    import httpx as library  # noqa: PLC0415

    client = library.AsyncClient()

    async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return (await client.post(url + path, json=body)).json()

    return await by_gateway(post)


async def aiohttp(url: str) -> tuple[Any, Any]:
    import aiohttp as library  # noqa: PLC0415

    client = library.ClientSession()

    async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with client.post(url + path, json=body) as answer:
            return await answer.json()

    return await by_gateway(post)


async def pivotd(url: str) -> tuple[Any, Any]:
    from pivotd.fleet.gateway import Gateway  # noqa: PLC0415 - its import is measured, as those below

    gateway = Gateway(Fleet((url,)))

    async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return (await gateway.call(path, body, 60.0)).document

    return await by_gateway(post)


CLIENTS = {"pivotd": pivotd, "aetcd": aetcd, "aiohttp": aiohttp, "httpx": httpx}


async def measure(name: str, url: str, rounds: int) -> dict[str, float]:
    """Measure one client in this process."""
    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    read, write = await CLIENTS[name](url)
    import_ms = (time.perf_counter() - began) * 1000
    times: list[float] = []
    revision, processor_s = await read(), time.process_time()
    for _ in range(rounds):
        began = time.perf_counter()
        written = await write(revision)
        times.append((time.perf_counter() - began) * 1000)
        assert written
        revision = await read()
    return {
        "import_ms": import_ms,
        "median_ms": statistics.median(times),
        "p90_ms": sorted(times)[rounds * 9 // 10],
        "processor_ms": (time.process_time() - processor_s) * 1000 / rounds,
        "memory_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib) / 1024,
    }


def clients(url: str, rounds: int, more: str | None) -> None:
    """Print a line for each client."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), more]))}
    for name in CLIENTS:
        found = []
        for number in range(IMPORTS_MEASURED):
            command = [sys.executable, "-m", "bench.fleet", "--client", name, url, str(rounds if number == 0 else 1)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                break
            found.append(json.loads(done.stdout))
        if not found:
            print(f"{name:8} not installed: {done.stderr.strip().splitlines()[-1]}")
            continue
        one = found[0]
        print(
            f"{name:8} import {min(each['import_ms'] for each in found):4.0f} ms, memory {one['memory_mib']:3.0f} MiB, "
            f"transaction median {one['median_ms']:.2f} ms, p90 {one['p90_ms']:.2f} ms, "
            f"processor time {one['processor_ms']:.2f} ms for it and a read"
        )


async def fill(urls: tuple[str, ...], domains: int) -> float:
    """Write domains of two disks each; return the seconds that it took."""
    from pivotd.fleet.store import EtcdFleet  # noqa: PLC0415 - not in the processes that measure clients

    fleet, turn = EtcdFleet(Fleet(urls, host="h1")), asyncio.Semaphore(32)

    async def write(name: str) -> None:
        async with turn:
            view = FleetView(name)
            await fleet.write(view, published(announced(claimed(view), "01A", "disk0", "disk1")), 60.0)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(domains):
            group.create_task(write(f"d{number:05}"))
    fleet.close()
    return time.monotonic() - began


def commands(urls: tuple[str, ...], rounds: int = 9) -> None:
    """Print the times of whole commands, and of a Python that does nothing."""
    base = [sys.executable, "-m", "pivotd.cli.main", "fleet", "--endpoints", ",".join(urls), "--host", "h2"]
    fleet = (["verdict", "d00001", "disk0"], ["take", "d{}", "--fenced"], ["status"], ["verdict"], ["ls"])
    rows = [("python -c pass", [sys.executable, "-c", "pass"])]
    rows += [("pivotctl fleet " + " ".join(words).format("…"), [*base, *words]) for words in fleet]
    for said, words in rows:
        times, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
        for number in range(rounds):
            command = [word.format(f"{number:05}") for word in words]
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append((time.perf_counter() - began) * 1000)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"{said:37} best {min(times):5.0f} ms, median {statistics.median(times):5.0f} ms, "
            f"processor time {1000 * processor_s / rounds:4.0f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--domains", type=int, default=10_000)
    parser.add_argument("--more", metavar="DIRECTORY")
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        name, url, rounds = options.client
        print(json.dumps(asyncio.run(measure(name, url, int(rounds)))), flush=True)
        os._exit(0)  # without waiting for what a client may have left open
    if why := missing():
        sys.exit(f"bench: {why}")
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory)) as cluster:
        print(f"load of this machine: {os.getloadavg()[0]:.1f}")
        clients(cluster.followers()[0].url, options.rounds, options.more)
        taken_s = asyncio.run(fill(cluster.urls, options.domains))
        print(f"{options.domains} domains of two disks written in {taken_s:.0f} s")
        commands(cluster.urls)


if __name__ == "__main__":
    main()
