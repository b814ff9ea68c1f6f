"""Addresses of NBD exports, normalised to QEMU's spelling, so that two names of one export compare equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

SCHEMES = ("nbd://", "nbd+unix://")
PORT_DEFAULT = 10809
NAME_LENGTH_MAX = 4096


@dataclass(frozen=True, slots=True)
class Export:
    """One export of one server: a Unix socket (``path``), or ``host`` and ``port``."""

    name: str
    path: str | None = None
    host: str | None = None
    port: int = PORT_DEFAULT

    @property
    def uri(self) -> str:
        """The normalised address of this export."""
        name = quote(self.name)
        if self.path is not None:
            return f"nbd+unix:///{name}?socket={quote(self.path)}"
        host = f"[{self.host}]" if ":" in (self.host or "") else self.host
        return f"nbd://{host}:{self.port}/{name}"

    @property
    def options(self) -> dict[str, Any]:
        """The arguments for blockdev-add. Source: QEMU QAPI reference, BlockdevOptionsNbd."""
        if self.path is not None:
            server = {"type": "unix", "path": self.path}
        else:
            server = {"type": "inet", "host": str(self.host), "port": str(self.port)}
        return {"driver": "nbd", "server": server, "export": self.name}


def is_uri(name: str) -> bool:
    """Return whether an image name is an NBD address."""
    return name.startswith(SCHEMES)


def is_unix(name: str) -> bool:
    """Return whether an image name is an export on a Unix socket."""
    return name.startswith("nbd+unix://")


def parse(uri: str) -> Export:
    """Return the export that ``nbd://HOST:PORT/EXPORT`` or ``nbd+unix:///EXPORT?socket=PATH`` names.

    Raises: ValueError, whose text says what is wrong with the address.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{uri} is no NBD address: {error}") from None
    name = unquote(parts.path.removeprefix("/"))
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if len(name.encode()) > NAME_LENGTH_MAX or parts.fragment or parts.username is not None:
        raise ValueError(f"{uri} is no NBD address: it has parts that pivotd does not know")
    if parts.scheme == "nbd+unix":
        path = query.pop("socket", "")
        if host or query or not path.startswith("/"):
            raise ValueError(f"{uri}: expected nbd+unix:///EXPORT?socket=/PATH, and nothing else")
        return Export(name, path=path)
    if parts.scheme != "nbd" or not host or query:
        raise ValueError(f"{uri}: expected nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=/PATH")
    return Export(name, host=host, port=PORT_DEFAULT if port is None else port)


def canonical(uri: str) -> str | None:
    """Return the normalised spelling of an NBD address, None for anything else."""
    try:
        return parse(uri).uri if is_uri(uri) else None
    except ValueError:
        return None


def of_node(node: Mapping[str, Any]) -> str | None:
    """Return the address of an ``nbd`` node as QEMU describes it in ``json:``, nested or with dotted keys.

    None for another driver or another kind of server. Raises: ValueError, TypeError: the description is malformed.
    """
    if node.get("driver") != "nbd":
        return None
    nested = node.get("server")
    server = nested if isinstance(nested, dict) else {}
    found = {key: server.get(key, node.get(f"server.{key}")) for key in ("path", "host", "port")}
    name = str(node.get("export", ""))
    if found["path"] is not None:
        return Export(name, path=str(found["path"])).uri
    if found["host"] is not None:
        return Export(name, host=str(found["host"]), port=int(found["port"] or PORT_DEFAULT)).uri
    return None
