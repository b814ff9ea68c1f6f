"""A socket between pivotd and libvirtd, which knows the calls that pass."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from tests.libvirt.libvirtd import Libvirtd

HEADER = struct.Struct(">IIII")
"""Length, program, version, procedure."""


class Between:
    """A socket between pivotd and libvirtd, in the directory of libvirtd's own.

    Before it passes the first call of a procedure on, it calls what ``first`` has for it; where that returns False it
    cuts. While it is not ``armed`` it only passes calls on.
    """

    def __init__(self, libvirtd: Libvirtd, first: Mapping[int, Callable[[], bool]]) -> None:
        self._path = libvirtd.directory / "run/between"
        self._libvirtd = str(libvirtd.directory / "run/libvirt-sock")
        self.first = dict(first)
        """What is called before the first call of a procedure; each once, unless it is put there again."""
        self.armed = True
        self.calls: list[int] = []
        """The procedures of the calls that were passed on."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self._path}"

    def __enter__(self) -> Self:
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for one in self._sockets:
            _cut(one)
        for thread in self._threads:
            thread.join(20)
        for one in (self._listener, *self._sockets):
            one.close()
        self._path.unlink()

    def _start(self, function: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._sockets += [client, server]
                server.connect(self._libvirtd)
                self._start(self._back, server, client)
                self._start(self._forth, client, server)

    @staticmethod
    def _back(server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        _cut(client)

    def _forth(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as calls:
            while header := calls.read(HEADER.size):
                length, _, _, procedure = HEADER.unpack(header)
                call = header + calls.read(length - HEADER.size)
                first = self.first.pop(procedure, None) if self.armed else None
                if first is not None and not first():
                    break
                self.calls.append(procedure)
                server.sendall(call)
        _cut(client)
        _cut(server)


def _cut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
