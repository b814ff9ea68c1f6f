"""One power cut: boot the host, let it pivot, kill it at a chosen instant, boot again, judge.

Killing the outer QEMU loses the page cache of the host inside, and what its disk held back: that disk is a qcow2 overlay
in which every block is new, and QEMU keeps the map of new blocks in memory until the host flushes its disk. So a write
that was not flushed is lost even if it had left the host's page cache.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.powercut.world import World
from tests.support.qemu import default_binary, popen_tied
from tests.support.tiny_guest import last_ack, lost

BOOT_TIMEOUT_S = 400.0
POINT_TIMEOUT_S = 300.0
CHECK_TIMEOUT_S = 400.0
MEMORY_MIB = 640
KERNEL_OPTIONS = (
    "console=ttyS0 quiet loglevel=1 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on panic=-1"
)
POINTS = (
    "0c:created", "0m:created", "0m:ready", "STOP", "0m:pending", "last:pending", "0m:concluded", "last:concluded",
    "RESUME", "0m:null", "PIVOT",
)  # fmt: skip
"""Where the clock of a cut starts. 0c creates the first disk's image, 0m is its mirror, ``last`` the last disk's."""
DELAYS_MS = (0.0, 20.0, 400.0)
"""A cut comes up to so long after its point; which of these holds is part of the choice."""


@dataclass(frozen=True, slots=True)
class Plan:
    """When to cut: ``delay_ms`` after the ``nth`` time that ``point`` is seen."""

    seed: int
    disks: int
    point: str
    nth: int
    delay_ms: float

    @classmethod
    def of(cls, seed: int) -> Plan:
        """Return the plan that a seed stands for."""
        chance = random.Random(seed)
        disks = chance.choice((1, 2))
        delay_ms = round(chance.uniform(0, chance.choice(DELAYS_MS)), 1)
        return cls(seed, disks, chance.choice(POINTS), chance.choice((1, 1, 2)), delay_ms)

    @property
    def word(self) -> str:
        """Return the line of the host that starts the clock."""
        if self.point == "PIVOT":
            return "PIVOT "
        return "SAW " + self.point.replace("last", f"{self.disks - 1}m")

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.disks} disks, {self.delay_ms} ms after {self.point} #{self.nth}"


@dataclass
class Result:
    """What one cut showed. ``problems`` is empty when every promise was kept."""

    plan: Plan
    problems: list[str] = field(default_factory=list)
    last_ack: int = -1
    phase: str = ""
    verdict: str = ""
    seconds: float = 0.0

    def row(self) -> str:
        """Return one row of the table."""
        state = "; ".join(self.problems) or "ok"
        plan = self.plan
        return (
            f"{plan.seed:>6} {plan.disks} {plan.point:>12} #{plan.nth} +{plan.delay_ms:>6} ms  {self.phase:>10} "
            f"{self.verdict:>9} {self.last_ack:>6} acks {self.seconds:>5.0f} s  {state}"
        )


class Host:
    """One boot of the outer guest; its disk stays when it ends."""

    def __init__(self, directory: Path, world: World, disk: Path, mode: str, disks: int) -> None:
        self.guest_serial = directory / f"{mode}.guest"
        self.console_path = directory / f"{mode}.console"
        self._said = b""
        words = f"pivotd.mode={mode} pivotd.disks={disks} pivotd.modules={','.join(world.modules)}"
        read_end, write_end = os.pipe()
        command = [
            *default_binary(), "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(MEMORY_MIB),
            "-machine", "q35", "-nodefaults", "-no-reboot", "-display", "none",
            "-kernel", str(world.kernel), "-initrd", str(world.initramfs), "-append", f"{KERNEL_OPTIONS} {words}",
            "-drive", f"if=none,id=root,file={disk},format=qcow2,cache=writeback", "-device", "virtio-blk-pci,drive=root",
            "-chardev", f"file,id=console,path=/dev/fd/{write_end}", "-serial", "chardev:console",
            "-chardev", f"file,id=guest,path={self.guest_serial}", "-serial", "chardev:guest",
        ]  # fmt: skip
        self._process = popen_tied(command, directory / f"{mode}.qemu", directory, pass_fds=[write_end])
        os.close(write_end)
        self._read_end = read_end

    def await_line(self, start: str, *, times: int = 1, timeout_s: float) -> str:
        """Wait for the nth line that begins so, and return it. Raises: AssertionError with the end of the console."""
        deadline_s = time.monotonic() + timeout_s
        wanted = re.compile(rb"^" + re.escape(start.encode()) + rb"(.*?)\r*\n", re.MULTILINE)
        while True:
            found = list(wanted.finditer(self._said))
            if len(found) >= times:
                return found[times - 1][0].decode(errors="replace").strip()
            assert b"FAILED" not in self._said, self._said[-3000:].decode(errors="replace")
            left_s = deadline_s - time.monotonic()
            ready = select.select([self._read_end], [], [], max(0.0, left_s))[0]
            data = os.read(self._read_end, 1 << 16) if ready else b""
            assert data, f"no {start!r} #{times}: {self._said[-3000:].decode(errors='replace')}"
            self._said += data

    def cut(self) -> None:
        """Take the power away."""
        self._process.kill()
        self._process.wait()
        while data := os.read(self._read_end, 1 << 16):
            self._said += data
        os.close(self._read_end)
        self.console_path.write_bytes(self._said)


def run_cut(plan: Plan, world: World, *, keep: Callable[[Path], None] | None = None) -> Result:
    """Make one cut and judge it."""
    started_s = time.monotonic()
    result = Result(plan)
    directory = Path(tempfile.mkdtemp(prefix="pvcut"))
    try:
        try:
            _cut_and_check(plan, world, directory, result)
        except (AssertionError, subprocess.SubprocessError) as error:
            result.problems.append(f"no judgement: {error}")
        if result.problems and keep is not None:
            keep(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    result.seconds = time.monotonic() - started_s
    return result


def _cut_and_check(plan: Plan, world: World, directory: Path, result: Result) -> None:
    disk = directory / "host.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(world.root), str(disk)], check=True
    )
    host = Host(directory, world, disk, "run", plan.disks)
    try:
        host.await_line("READY", timeout_s=BOOT_TIMEOUT_S)
        host.await_line(plan.word, times=plan.nth, timeout_s=POINT_TIMEOUT_S)
        time.sleep(plan.delay_ms / 1000)
    finally:
        host.cut()
    acknowledged = host.guest_serial.read_bytes()
    result.last_ack = last_ack(acknowledged)
    again = Host(directory, world, disk, "check", plan.disks)
    try:
        report = json.loads(again.await_line("REPORT ", timeout_s=CHECK_TIMEOUT_S).removeprefix("REPORT "))
    finally:
        again.cut()
    (directory / "report.json").write_text(json.dumps(report, indent=1))
    if b"ERR" in acknowledged:
        result.problems.append("the guest saw an I/O error")
    judge(plan, report, result)


def judge(plan: Plan, report: dict[str, Any], result: Result) -> None:
    """Add every broken promise to the result."""
    problems = result.problems
    if report["integrity"] != "ok":
        problems.append(f"journal: {report['integrity']}")
    if not isinstance(report["offline"], list) or not isinstance(report["pivots"], list):
        problems.append(f"no verdict: {report['offline']} {report['pivots']}")
        return
    pivots = report["pivots"]
    newest = pivots[0] if pivots else None
    result.phase = newest["phase"] if newest else "none"
    named = {f"disk{index}": f"/images/disk{index}-0.qcow2" for index in range(plan.disks)}
    named |= {verdict["disk"]: verdict["image"] for verdict in report["offline"]}
    result.verdict = ",".join(sorted({str(verdict["outcome"]) for verdict in report["offline"]})) or "none"
    for name, image in named.items():
        _judge_image(name, Path(image).name, report["images"], result)
    recovered = {verdict["disk"]: verdict["image"] for verdict in report["recovered"]}
    if any(recovered.get(verdict["disk"]) != verdict["image"] for verdict in report["offline"]):
        problems.append(f"the recovery changed its mind: {named} became {recovered}")
    if report["open"]:
        problems.append(f"pivots are left open: {report['open']}")
    if Counter(v["outcome"] for v in report["offline"])["unknown"]:
        problems.append("a verdict is unknown")
    # A destination exists as an image once its mirror runs; before that it may be half created.
    begun = newest is not None and newest["phase"] in {"ready", "pausing", "decided"}
    for moved in newest["disks"] if newest is not None and begun else []:
        for side in ("source", "destination"):
            _check_clean(Path(moved[side]).name, report["images"], problems)


def _judge_image(name: str, file: str, images: dict[str, Any], result: Result) -> None:
    if file not in images:
        result.problems.append(f"{name}: the verdict names {file}, which does not exist")
        return
    _check_clean(file, images, result.problems)
    slots = images[file]["slots"]
    if slots is None:
        result.problems.append(f"{name}: {file} cannot be read: {images[file]['said']}")
        return
    missing = lost(slots, result.last_ack) if result.last_ack >= 0 else []
    if missing:
        result.problems.append(f"{name}: {file} lacks flushed numbers {missing[:8]} (of {len(missing)})")


def _check_clean(file: str, images: dict[str, Any], problems: list[str]) -> None:
    """Leaked clusters (status 3) are no damage; anything else is."""
    image = images.get(file)
    if image is not None and image["status"] not in {0, 3}:
        problems.append(f"{file} is damaged: {image['said']}")
