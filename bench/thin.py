"""How pivotd copies disks that are mostly holes, beside `qemu-img convert` and a bare mirror of the same QEMU.

python -m bench.thin [--rounds 3] [--only 1T] [--limit-s 20]

The three take turns on the same image, and each ratio is that of one round: pivotd to the better of the other two.
pivotd's time is from the request to READY; the mirror begins on an image that is there. With the mirror alone, the
times of copying are compared: pivotd's from its record ``copying``, which follows the start of the job by some
milliseconds. The mirror is given up after ``--limit-s``, once. While a mirror runs, a second monitor asks for the
guest's run state every few milliseconds: the longest answer is how long QEMU's main loop was held. The time in which
QEMU's main thread waited for a processor is taken off: it says something about the machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.pause import Client
from tests.support.daemon import Daemon
from tests.support.qemu import CACHES, Disk, Qemu, create_image
from tests.support.qemus import qemus
from tests.support.qmp_spy import Spy

MIB, TIB = 1 << 20, 1 << 40
ISLANDS = 128
"""Pieces of data, of 1 MiB each, at equal distances."""
PING_S = 0.003
LONG_S = 600.0


@dataclass(frozen=True)
class Scene:
    """One source: its format, its size, and how much data it has."""

    name: str
    format: str
    size_bytes: int
    full: bool = False

    def make(self, path: Path) -> Path:
        """Create the source."""
        create_image(path, image_format=self.format, size=str(self.size_bytes))
        pieces = self.size_bytes // (64 * MIB) if self.full else ISLANDS
        length = 64 * MIB if self.full else MIB
        for first in range(0, pieces, 64):
            places = (self.size_bytes // pieces * at // MIB * MIB for at in range(first, min(first + 64, pieces)))
            steps = [word for place in places for word in ("-c", f"write -q -P 0xa5 {place} {length}")]
            subprocess.run(["qemu-io", "-n", "-f", self.format, *steps, str(path)], check=True)
        return path


SCENES = (
    Scene("qcow2, 1 TiB", "qcow2", TIB),
    Scene("qcow2, 16 TiB", "qcow2", 16 * TIB),
    Scene("qcow2, 60 TiB", "qcow2", 60 * TIB),
    Scene("raw with holes, 8 TiB", "raw", 8 * TIB),
    Scene("4 GiB of data, qcow2", "qcow2", 4 << 30, full=True),
)


@dataclass(frozen=True)
class Run:
    """One copy: how long it took (infinite: given up), what it takes on disk, how long QEMU did not answer."""

    took_s: float
    bytes: int
    held_ms: float = 0.0
    copied_s: float = 0.0
    """For a mirror: the time without the creation of the image, of pivotd's from the record ``copying`` to READY."""


class Ping(threading.Thread):
    """Asks QEMU something that needs no work, again and again; ``held_s`` is the longest wait for the answer."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(daemon=True)
        self.held_s = 0.0
        self._times = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._spy = Spy(path, timeout_s=LONG_S)
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(PING_S):
            began_s = time.monotonic() - self._waited_s()
            self._spy.execute("query-status")
            self.held_s = max(self.held_s, time.monotonic() - self._waited_s() - began_s)

    def end(self) -> float:
        """Stop asking; return the longest wait in milliseconds."""
        self._done.set()
        self.join()
        self._spy.close()
        return self.held_s * 1e3

    def _waited_s(self) -> float:
        """Return for how long QEMU's main thread has waited for a processor so far."""
        return int(self._times.read_text().split()[1]) / 1e9


@contextmanager
def started(directory: Path, source: Path, scene: Scene, binary: Sequence[str]) -> Iterator[tuple[Qemu, Path]]:
    """Start QEMU with the source and a third monitor; end it in good order, so that its tables are written."""
    monitor = directory / "ping.qmp"
    port = ["-chardev", f"socket,id=ping,path={monitor},server=on,wait=off", "-mon", "chardev=ping,mode=control"]
    with Qemu(directory, [Disk(source, scene.format)], binary=binary, paused=True, extra=port) as qemu:
        yield qemu, monitor
        qemu.kill(15)
        qemu.wait(LONG_S)


def convert(directory: Path, source: Path, scene: Scene, binary: Sequence[str], _limit_s: float) -> Run:
    """Let qemu-img of the same version copy the image."""
    tool = [word.replace("qemu-system-x86_64", "qemu-img") for word in binary]
    tool = tool[: next(at for at, word in enumerate(tool) if word.endswith("qemu-img")) + 1]
    new = directory / "converted"
    began_s = time.monotonic()
    cache = ["-t", "none", "-T", "none"]
    subprocess.run([*tool, "convert", *cache, "-f", scene.format, "-O", scene.format, source, new], check=True)
    return Run(time.monotonic() - began_s, _taken(new))


def mirror(directory: Path, source: Path, scene: Scene, binary: Sequence[str], limit_s: float) -> Run:
    """Start `blockdev-mirror` with sync=full into an image made before, as the manual has it."""
    new = create_image(directory / "mirrored", image_format=scene.format, size=str(scene.size_bytes))
    common = {"cache": CACHES["none"], "discard": "unmap"}
    file = {"driver": "file", "filename": str(new), **common}
    with started(directory, source, scene, binary) as (qemu, monitor):
        qemu.spy("blockdev-add", {"driver": scene.format, "node-name": "new", "file": file, **common})
        ping = Ping(monitor, qemu.pid)
        ping.start()
        began_s = time.monotonic()
        qemu.spy("blockdev-mirror", job_id="bare", device="src0", target="new", sync="full")
        try:
            qemu.await_event("BLOCK_JOB_READY", timeout_s=limit_s)
            took_s = time.monotonic() - began_s
        except TimeoutError:
            took_s = math.inf
        held_ms = ping.end()
        qemu.spy("block-job-cancel", device="bare", force=True)
        qemu.await_event("JOB_STATUS_CHANGE", status="null", timeout_s=LONG_S)
    return Run(took_s, _taken(new), held_ms, took_s)


def pivotd(directory: Path, source: Path, scene: Scene, binary: Sequence[str], _limit_s: float) -> Run:
    """Let pivotd copy the disk up to READY."""
    new = directory / "new"
    with started(directory, source, scene, binary) as (qemu, monitor):
        ping = Ping(monitor, qemu.pid)
        with Daemon(directory, {"bench": qemu.qmp}) as daemon:
            client = Client(daemon.socket)
            ping.start()
            began_s = time.monotonic()
            disks = [{"disk": "disk0", "image": str(new), "format": scene.format}]
            pivot = client("POST", "/v1/domains/bench/copy", {"disks": disks, "pivot": False})
            if "id" not in pivot:
                raise RuntimeError(f"the copy was refused: {pivot}")
            while pivot["phase"] != "ready":
                pivot = client("GET", f"/v1/pivots/{pivot['id']}/wait?timeout_s=100")
                if pivot["phase"] == "closed":
                    raise RuntimeError(f"the copy ended: {pivot['error']}")
            took_s = time.monotonic() - began_s
            held_ms = ping.end()
            records = client("GET", f"/v1/pivots/{pivot['id']}")["records"]
            begun, ready = (
                next(one["at"] for one in records if one["phase"] == phase) for phase in ("copying", "ready")
            )
            copied_s = (datetime.fromisoformat(ready) - datetime.fromisoformat(begun)).total_seconds()
            client("POST", f"/v1/pivots/{pivot['id']}/cancel")
            client("GET", f"/v1/pivots/{pivot['id']}/wait?timeout_s=100")
    return Run(took_s, _taken(new), held_ms, copied_s)


def _taken(image: Path) -> int:
    return image.stat().st_blocks * 512


WAYS: tuple[Callable[[Path, Path, Scene, Sequence[str], float], Run], ...] = (convert, mirror, pivotd)


def measure(scene: Scene, source: Path, binary: Sequence[str], rounds: int, limit_s: float) -> dict[str, list[Run]]:
    """Return the runs of each way, round by round; a mirror that was given up is not tried again."""
    runs: dict[str, list[Run]] = {way.__name__: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            done = runs[way.__name__]
            if done and done[-1].took_s == math.inf:
                done.append(done[-1])
                continue
            with tempfile.TemporaryDirectory(prefix="thin-", dir=source.parent) as name:
                done.append(way(Path(name), source, scene, binary, limit_s))
    return runs


def summary(scene: Scene, source: Path, runs: dict[str, list[Run]]) -> str:
    """Return one row of a table."""
    rounds = list(zip(*(runs[way.__name__] for way in WAYS), strict=True))
    ratio = statistics.median(ours.took_s / min(tool.took_s, bare.took_s) for tool, bare, ours in rounds)
    to_bare = statistics.median(ours.copied_s / bare.copied_s for _, bare, ours in rounds)

    def cell(way: Callable[..., Any]) -> str:
        took_s = statistics.median(run.took_s for run in runs[way.__name__])
        room = statistics.median(run.bytes for run in runs[way.__name__])
        return f"{'not ready' if took_s == math.inf else f'{took_s:.2f} s'}, {room / MIB:.0f} MiB"

    more = statistics.median(run.bytes for run in runs["pivotd"]) / _taken(source) - 1
    held = [[run.held_ms for run in runs[way.__name__]] for way in (mirror, pivotd)]
    shown = [f"{statistics.median(ms):.0f}, {max(ms):.0f} ms" for ms in held]
    return (
        f"{scene.name} | {' | '.join(map(cell, WAYS))} | {ratio:.2f}, copying to the mirror's {to_bare:.2f} | "
        f"{more:+.2%} | {' | '.join(shown)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure copies of thin disks beside qemu-img and a bare mirror.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="scenes whose name holds this")
    parser.add_argument("--version", default="", help="QEMUs whose version begins so")
    parser.add_argument("--limit-s", type=float, default=20.0)
    options = parser.parse_args()
    print("QEMU | source | qemu-img convert | bare mirror | pivotd | time | room | loop held: mirror's | pivotd's")
    with tempfile.TemporaryDirectory(prefix="pivot-thin-", dir="/var/tmp") as name:
        for scene in (scene for scene in SCENES if options.only in scene.name):
            source = scene.make(Path(name) / "source")
            for version, binary in qemus().items():
                if version.startswith(options.version):
                    runs = measure(scene, source, binary, options.rounds, options.limit_s)
                    print(f"{version} | {summary(scene, source, runs)}", flush=True)
            source.unlink()


if __name__ == "__main__":
    main()
