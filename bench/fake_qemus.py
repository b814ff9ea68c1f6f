"""Some monitors served by one process: the tests' model of QEMU behind a real QMP socket for each domain.

python -m bench.fake_qemus DIRECTORY FIRST COUNT [--pivots]

A thousand real QEMUs would need more memory than most hosts have. With ``--pivots`` each domain, from the number FIRST
on, is in the pause of the pivot ``pivot_of(number)``, its job pending. Prints ``ready``, then ``connected`` and
``resumed`` with the time of the monotonic clock at which the last of these domains had a client, or ran again;
``ready`` also with a process for each domain, which listens at its monitor: to pivotd, one process is one QEMU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

from pivotd.core import names
from tests.model.qemu import Qemu, RefusedError
from tests.model.storage import Storage

GREETING = b'{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0},"package":""},"capabilities":[]}}\r\n'
DESCRIPTORS_PER_DOMAIN = 2
DESCRIPTORS_BESIDE = 64
BY_HAND = {"auto-finalize": False, "auto-dismiss": False}
STAMP = {"seconds": 1, "microseconds": 2}


def monitor_of(directory: Path, number: int) -> Path:
    """Return the socket of a domain."""
    return directory / f"q{number}"


def pivot_of(number: int) -> str:
    """Return the id of the pivot that a domain is in: a ULID of its own."""
    return f"01K{number:023d}"


def images_of(directory: Path, number: int) -> tuple[Path, Path]:
    """Return source and destination."""
    return directory / f"old{number}", directory / f"new{number}"


def in_its_pause(directory: Path, number: int) -> Qemu:
    """Return a QEMU as it is when pivotd dies right before ``job-finalize``."""
    qemu, pivot = _running(directory, number), pivot_of(number)
    file, node, job = names.file_node(pivot, 0), names.destination_node(pivot, 0), names.mirror_job(pivot, 0)
    new = str(images_of(directory, number)[1])
    qemu.storage.create(new)
    for name, arguments in (
        ("object-add", {"id": names.nonce_object(pivot)}),
        ("blockdev-add", {"node-name": file, "driver": "file", "filename": new}),
        ("blockdev-add", {"node-name": node, "driver": "qcow2", "file": file}),
        (
            "blockdev-mirror",
            {"job-id": job, "device": "src0", "target": node, "sync": "full", **BY_HAND},
        ),
        ("stop", {}),
        ("job-complete", {"id": job}),
    ):  # fmt: skip
        qemu.execute(name, arguments)
        qemu.settle()
    qemu.events.clear()
    return qemu


def _running(directory: Path, number: int) -> Qemu:
    qemu = Qemu(Storage())
    qemu.attach("disk0", "src0", str(images_of(directory, number)[0]))
    return qemu


class Progress:
    """Says when the last domain has reached something."""

    def __init__(self, numbers: range) -> None:
        self._left = {"connected": set(numbers), "resumed": set(numbers)}

    def reached(self, what: str, number: int) -> None:
        """Note one domain."""
        left = self._left[what]
        if number in left:
            left.discard(number)
            if not left:
                print(what, time.monotonic(), flush=True)


class Monitor(asyncio.Protocol):
    """One client of one domain."""

    def __init__(self, qemu: Qemu, number: int, progress: Progress) -> None:
        self._qemu, self._number, self._progress = qemu, number, progress
        self._text = ""
        self._decoder = json.JSONDecoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        self._text = (self._text + data.decode()).lstrip()
        said = []
        while self._text:
            try:
                command, end = self._decoder.raw_decode(self._text)
            except ValueError:
                break
            self._text = self._text[end:].lstrip()
            said += self._run(command)
        self._transport.write("".join(json.dumps(message) + "\r\n" for message in said).encode())

    def _run(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        name = command["execute"]
        if name == "qmp_capabilities":
            self._progress.reached("connected", self._number)
            reply: dict[str, Any] = {"return": {}}
        else:
            try:
                reply = {"return": self._qemu.execute(name, command.get("arguments"))}
            except RefusedError as error:
                reply = {"error": {"class": "GenericError", "desc": str(error)}}
            self._qemu.settle()
        if name == "cont":
            self._progress.reached("resumed", self._number)
        events, self._qemu.events = self._qemu.events, []
        told: list[dict[str, Any]] = [
            {"event": event, "data": {"id": job, "status": status} if job else {}, "timestamp": STAMP}
            for event, job, status in events
        ]
        return [*told, ({"id": command["id"]} if "id" in command else {}) | reply]


async def serve(directory: Path, numbers: range, *, pivots: bool) -> None:
    """Serve until killed."""
    loop, progress, lives = asyncio.get_running_loop(), Progress(numbers), os.pipe()
    pids = []
    for number in numbers:
        qemu = (in_its_pause if pivots else _running)(directory, number)
        server = await loop.create_unix_server(
            lambda qemu=qemu, number=number: Monitor(qemu, number, progress), str(monitor_of(directory, number))
        )  # type: ignore[misc]
        pids.append(_listener(server.sockets[0].fileno(), lives))
    print("ready", time.monotonic(), *pids, flush=True)
    await asyncio.Event().wait()


def _listener(monitor: int, lives: tuple[int, int]) -> int:
    """Return a process that listens at a socket which another one serves, and lives as long; ``lives``: a pipe.

    The last one to call listen() is what SO_PEERCRED tells. Source: the kernel's net/unix, unix_listen().
    """
    listens, begun = os.pipe()
    if (pid := os.fork()) == 0:
        with socket.socket(fileno=monitor) as listener:
            listener.listen()
            os.close(lives[1])
            os.write(begun, b".")
            os.read(lives[0], 1)
        os._exit(0)
    os.read(listens, 1)
    os.close(listens)
    os.close(begun)
    return pid


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the monitors of many model QEMUs.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--pivots", action="store_true")
    options = parser.parse_args()
    wanted = options.count * DESCRIPTORS_PER_DOMAIN + DESCRIPTORS_BESIDE
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < wanted:
        sys.exit(f"{options.count} domains need {wanted} open files, the limit is {most}: raise it with ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    numbers = range(options.first, options.first + options.count)
    asyncio.run(serve(options.directory, numbers, pivots=options.pivots))


if __name__ == "__main__":
    main()
