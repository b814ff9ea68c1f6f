"""Why qemu-storage-daemon is refused: nothing holds its clients between the switch and the record of it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pivotd.errors import UnsupportedQemuError
from pivotd.qmp.session import Session
from tests.support.qemu import create_image, popen_tied
from tests.support.qmp_spy import Spy

pytestmark = pytest.mark.qemu

TIMEOUT_S = 90.0
HELD_S = 1.0


class Client:
    """Writes block after block over NBD and counts what was acknowledged."""

    def __init__(self, uri: str) -> None:
        self.acknowledged = 0
        self._process = subprocess.Popen(
            ["qemu-io", "-f", "raw", uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            while True:
                number = self.acknowledged + 1
                self._process.stdin.write(f"write -P {number % 255 + 1} {number % 4096 * 4096} 4k\n")
                while "wrote" not in (line := self._process.stdout.readline()):
                    if not line or "failed" in line:
                        return
                self.acknowledged = number
        except (OSError, ValueError):
            return

    def at_rest(self) -> int:
        """Return how many were acknowledged, once what was on its way has come back and nothing more comes."""
        counts = [-1, self.acknowledged]
        deadline_s = time.monotonic() + TIMEOUT_S
        while counts[-1] != counts[-2]:
            assert time.monotonic() < deadline_s, "nothing holds it"
            time.sleep(HELD_S)
            counts.append(self.acknowledged)
        return counts[-1]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def storage_daemon(tmp_path: Path) -> Iterator[Spy]:
    """A qemu-storage-daemon with the nodes ``old`` and ``new``, of which old is exported."""
    arguments = ["qemu-storage-daemon"]
    for name, monitor in (("old", "m"), ("new", "n")):
        create_image(tmp_path / name, image_format="raw", size="16M")
        arguments += ["--chardev", f"socket,id={monitor},path={tmp_path}/{monitor},server=on,wait=off"]
        arguments += ["--monitor", f"chardev={monitor}"]
        arguments += ["--blockdev", f"raw,node-name={name},file.driver=file,file.filename={tmp_path / name}"]
    arguments += ["--nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd"]
    arguments += ["--export", "nbd,id=e,node-name=old,name=disk,writable=on"]
    process = popen_tied(arguments, tmp_path / "said", tmp_path)
    spy = until(lambda: connect(tmp_path / "m"))
    yield spy
    spy.close()
    process.kill()
    process.wait()


def connect(path: Path) -> Spy | None:
    try:
        return Spy(path)
    except OSError:
        return None


def until(look: Callable[[], Spy | bool | None]) -> Spy:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (found := look()):
        assert time.monotonic() < deadline_s, "in vain"
        time.sleep(0.002)
    return found  # type: ignore[return-value]


def status(spy: Spy) -> str:
    return str(spy.execute("query-jobs", {})[0]["status"])


@pytest.mark.usefixtures("storage_daemon")
async def test_a_storage_daemon_is_refused(tmp_path: Path):
    """By the command that it does not have."""
    session = await Session.connect(str(tmp_path / "n"))
    with pytest.raises(UnsupportedQemuError, match="qemu-storage-daemon"):
        await session.run_state()
    await session.close()


def test_a_client_writes_to_the_new_image_as_soon_as_the_job_is_finalized(storage_daemon: Spy, tmp_path: Path):
    """Held while pending, with both images equal; then acknowledged writes are on the new one alone, without a record."""
    client = Client(f"nbd+unix:///disk?socket={tmp_path}/nbd")
    try:
        until(lambda: client.acknowledged > 10)
        mirror = {"job-id": "j", "device": "old", "target": "new", "sync": "full"}
        storage_daemon.execute("blockdev-mirror", mirror | {"auto-finalize": False, "auto-dismiss": False})
        until(lambda: status(storage_daemon) == "ready")
        storage_daemon.execute("job-complete", {"id": "j"})
        until(lambda: status(storage_daemon) == "pending")
        held = client.at_rest()
        old = (tmp_path / "old").read_bytes()
        assert old == (tmp_path / "new").read_bytes()
        storage_daemon.execute("job-finalize", {"id": "j"})
        until(lambda: client.acknowledged > held)
        until(lambda: (tmp_path / "new").read_bytes() != old)
        assert (tmp_path / "old").read_bytes() == old
    finally:
        client.close()
