"""Real daemons, real QEMUs, and many requests at once."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pivotd.core.overwritten import Overwritten
from pivotd.core.pivot import Pivot, PivotDisk, Record
from pivotd.core.request import Requester
from pivotd.core.standing import ImageFound
from pivotd.core.verdict import Verdict
from tests.api.conftest import Answer, Connection
from tests.engine.conftest import engine
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

__all__ = ["engine"]
WAIT_S = 50
WHO = Requester(0, 0, 1)


class NoHistory:
    """A journal in which no request id is known and no disk is in doubt."""

    async def known(self, _pivot: str) -> None:
        return None

    async def moved(self, _image: str) -> list[tuple[Pivot, PivotDisk]]:
        return []

    async def records(self, _pivot: str) -> list[Record]:
        return []

    async def doubts(self, _domain: str, *, ask_fleet: bool) -> tuple[dict[str, Verdict], bool]:
        return {}, True

    async def latest(self, _domain: str | None, _disk: str | None = None) -> list[tuple[Pivot, PivotDisk]]:
        return []

    async def overwritten(self) -> dict[tuple[str, str], Overwritten]:
        return {}

    async def had(self, _image: str) -> list[tuple[Pivot, PivotDisk]]:
        return []

    async def standings(self, _image: str) -> list[ImageFound]:
        return []


class Host:
    """A daemon without domains, QEMUs on request, and its API; short paths, as sockets need."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self._images = 0

    def qemu(self, name: str, disks: int = 1, *, second: str | None = None) -> Qemu:
        """Start a QEMU; ``second``: the name of a second monitor for pivotd."""
        images = [Disk(create_image(self.directory / f"{name}-{number}.qcow2")) for number in range(disks)]
        extra = ["-qmp", f"unix:{self.directory}/{second}.qmp,server=on,wait=off"] if second else []
        return self._stack.enter_context(Qemu(self.directory, images, name=name, extra=extra))

    def start(self, domains: dict[str, Path] | None = None, configuration: str = "", **limits: float) -> Daemon:
        """Start a daemon; ``limits``: those of pivotd.limits that are others there."""
        tables = [f"[domains.{name}]\nqmp = {json.dumps(str(path))}" for name, path in (domains or {}).items()]
        program = "import pivotd.limits as known; known.__dict__.update({}); import pivotd.daemon; pivotd.daemon.main()"
        command = [sys.executable, "-c", program.format(limits)] if limits else None
        self.daemon = Daemon(self.directory, {}, configuration="\n".join([configuration, *tables]), command=command)
        return self._stack.enter_context(self.daemon)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = Connection(self.daemon.socket)
        try:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, None if body is None else json.dumps(body).encode(), named)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def add(self, name: str, qmp: Path | str) -> Answer:
        return self.call("POST", "/v1/domains", {"name": name, "qmp": str(qmp)})

    def image(self) -> Path:
        """Return a path that no image has yet."""
        self._images += 1
        return self.directory / f"new{self._images}.qcow2"

    def copy(self, domain: str, image: Path | str, disk: str = "disk0", *, key: str = "", **options: Any) -> Answer:
        """Ask for a copy; ``options`` are fields of the body, but ``format``, which is the disk's."""
        disks = [{"disk": disk, "image": str(image), "format": options.pop("format", None)}]
        headers = {"Idempotency_Key": key} if key else {}
        return self.call("POST", f"/v1/domains/{domain}/copy", {"disks": disks, **options}, **headers)

    def closed(self, pivot: str) -> dict[str, Any]:
        found = self.call("GET", f"/v1/pivots/{pivot}/wait?timeout_s={WAIT_S}").json
        assert found["phase"] == "closed", found
        return dict(found)

    def domains(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.call("GET", "/v1/domains").json}

    def health(self) -> dict[str, Any]:
        return dict(self.call("GET", "/v1/health").json)

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.daemon.pid}/task").iterdir()))


def at_once(calls: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """Return the answers of calls that are made side by side."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [done.result() for done in [pool.submit(call) for call in calls]]


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="pa") as name, ExitStack() as stack:
        yield Host(Path(name), stack)
