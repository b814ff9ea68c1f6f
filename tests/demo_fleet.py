"""A host is lost in the middle of a pause, and another one starts its guest from the right image: watched and checked.

``make demo-fleet`` runs it with a real etcd of three nodes, two pivotd with journals of their own that play two hosts, and a
real guest on images that both can reach. Exits 1 if any check fails.
"""
# ruff: noqa: T201 - a demonstration speaks

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.fleet.etcd import Cluster
from tests.fleet.etcds import missing
from tests.fleet.hosts import FleetHost
from tests.fleet.wires import Message, Place, Wires
from tests.support.daemon import _program
from tests.support.guest import Guest, GuestJudge, LostWritesError, serial_log
from tests.support.guest_assets import build
from tests.support.qemu import Disk, create_image
from tests.support.teller import Teller
from tests.support.waiting import until

SIZE = "256M"
ACKS_AFTER = 25
NAME = "web1"
PREFIX = "/demo/"


class FleetDemo(Teller):
    """Two hosts, three nodes of etcd, one guest, and the checks made on them."""

    def __init__(self, directory: Path, stack: ExitStack, cluster: Cluster) -> None:
        super().__init__()
        self.directory, self.cluster, self._stack = directory, cluster, stack
        self.guest = Guest(build())
        fleet = {"prefix": PREFIX, "on_silence": "wait"}
        wires = [stack.enter_context(Wires(cluster.urls)) for _ in range(2)]
        self.lost = FleetHost(directory / "1", "host1", wires[0], fleet, {})
        self.other = FleetHost(directory / "2", "host2", wires[1], fleet, {})
        serial_log(self.other.directory, NAME).symlink_to(serial_log(self.lost.directory, NAME))
        self.judge: GuestJudge
        for host in (self.lost, self.other):
            stack.callback(host.daemon.kill)
            stack.callback(host.kill_qemu)
            host.daemon.start()

    def boot(self, host: FleetHost, image: Path) -> None:
        """Start the guest on a host, and wait until it writes. Raises: LostWritesError: it found less than it was told."""
        host.qemu = self.guest.qemu(host.directory, [Disk(image)]).start()
        self.judge = self.guest.judge(host.qemu)
        before = self.judge.last_ack()
        begun_s = time.monotonic()
        self.judge.await_acks(more_than=before)
        self.tell(
            f"a Linux guest on {host.name} writes numbered blocks to {image.name}; booted in {time.monotonic() - begun_s:.1f} s"
        )

    def say(self, *words: str) -> tuple[int, Any]:
        """Type a command of the fleet on host2; return its status and answer."""
        command = [str(_program("pivotctl")), "--json", "fleet", "--config", str(self.other.config), *words]
        begun_s = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.tell(f"host2$ pivotctl fleet {' '.join(words)}    ({(time.monotonic() - begun_s) * 1000:.0f} ms)")
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr.strip()

    def check_verdict(self, image: Path) -> None:
        status, said = self.say("verdict", NAME, "disk0")
        held = status == 0 and said["certain"] and said["image"] == str(image)
        self.check(f"the fleet names {image.name}, and is certain", held, said["reason"] if status == 0 else said)

    def check_goes_on(self) -> None:
        before = self.judge.last_ack()
        last = self.judge.await_acks(more_than=before + ACKS_AFTER)
        self.check("the guest goes on writing", last > before, f"block {before} -> {last}")

    def check_complete(self, image: Path) -> None:
        lacks = self.judge.check_image(image, "qcow2")
        claim = f"{image.name} holds every write that the guest was told is on disk"
        self.check(claim, not lacks, f"last is {self.judge.last_ack()}, missing {lacks or 'none'}")

    def copy(self, host: FleetHost, target: Path) -> None:
        answer = host.daemon.ctl("copy", NAME, f"disk0={target}")
        self.check("pivotctl copy ends with status 0", answer.status == 0, answer.stderr.strip())


def _moved(demo: FleetDemo, source: Path, target: Path) -> None:
    demo.chapter(f"1. A copy on host1 while the guest writes, and etcd learns of it: {source.name} -> {target.name}")
    demo.boot(demo.lost, source)
    demo.copy(demo.lost, target)
    demo.check_verdict(target)
    demo.check_goes_on()


def _lost(demo: FleetDemo, source: Path, target: Path) -> None:
    demo.chapter(
        f"2. host1 is lost in the middle of a pause, and a node of etcd with it: {source.name} -> {target.name}"
    )
    struck = demo.lost.wires.arm(Message.PUBLISH, Place.BEFORE)
    demo.lost.daemon.ctl("copy", NAME, f"disk0={target}", "--detach")
    if not struck.reached.wait(60):
        raise TimeoutError("the copy did not come to its end")
    qemu = demo.lost.qemu
    assert qemu is not None
    state, root = qemu.run_state(), qemu.root().filename
    demo.check("the guest is paused, and QEMU has moved the disk", state == "paused" and root == str(target), state)
    demo.lost.daemon.kill()
    demo.lost.kill_qemu()
    demo.cluster.leader().kill()
    demo.lost.wires.go_on()
    demo.tell(
        "SIGKILL hit pivotd, QEMU and the leader of etcd before etcd had heard of the switch; the journal is out of reach"
    )
    demo.check_verdict(source)
    demo.check_complete(source)


def _taken(demo: FleetDemo, right: Path) -> None:
    demo.chapter("3. An operator has fenced host1, and starts the guest on host2")
    status, said = demo.say("take", NAME)
    demo.check("without the word that host1 is fenced, it is refused", status == 2)
    status, said = demo.say("take", NAME, "--fenced")
    image = Path(said[0]["image"]) if status == 0 else Path("none")
    demo.check(f"the answer is {right.name}, and the guest belongs to host2", image == right, said if status else "")
    told = demo.judge.last_ack()
    try:
        demo.boot(demo.other, image)
        demo.check("the guest finds its last write", held=True, seen=f"block {told}, and goes on from there")
    except LostWritesError as error:
        demo.check("the guest finds its last write", held=False, seen=error)
    demo.check_goes_on()


def _back(demo: FleetDemo, target: Path) -> None:
    demo.chapter("4. host1 comes back with its journal")
    demo.lost.daemon.start()

    def closed() -> bool:
        return all(one["phase"] == "closed" for one in demo.lost.daemon.ctl("pivot", "ls").json)

    demo.check("the restarted pivotd ends its broken pivot", until(closed))
    shown = demo.lost.daemon.ctl("pivot", "ls").json[0]
    demo.check(
        "it knows that the guest is not its own any more",
        "belongs to host host2" in str(shown["error"]) and "left paused" not in str(shown["error"]),
        shown["error"],
    )
    shown = demo.lost.daemon.ctl("image", NAME, "disk0")
    demo.check("its own `pivotctl image` names no image", shown.status == 6, f"status {shown.status}")
    demo.copy(demo.other, target)
    demo.check_verdict(target)
    demo.check_goes_on()
    demo.other.daemon.kill()
    demo.other.kill_qemu()
    demo.check_complete(target)


def main() -> int:
    """Run all chapters; return the exit status."""
    if (why := missing()) is not None:
        print(f"skipped: {why}")
        return 0
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pivotd-demo-") as name, ExitStack() as stack:
        directory = Path(name)
        images = [create_image(directory / "A.qcow2", size=SIZE), *(directory / f"{letter}.qcow2" for letter in "BCD")]
        cluster = stack.enter_context(Cluster(directory / "etcd"))
        demo = FleetDemo(directory, stack, cluster)
        demo.tell(f"three nodes of etcd at {', '.join(cluster.urls)}; pivotd on host1 and host2, on_silence = wait")
        try:
            _moved(demo, images[0], images[1])
            _lost(demo, images[1], images[2])
            _taken(demo, images[1])
            _back(demo, images[3])
        except (AssertionError, RuntimeError, OSError, TimeoutError) as error:
            demo.check("the demonstration runs to its end", held=False, seen=error)
            for host in (demo.lost, demo.other):
                print(host.daemon.log_path.read_text(errors="replace")[-3000:], file=sys.stderr)
    print(f"\n{f'{demo.failed} failed' if demo.failed else 'every check is ok'}; {time.monotonic() - begun_s:.0f} s")
    return 1 if demo.failed else 0


if __name__ == "__main__":
    sys.exit(main())
