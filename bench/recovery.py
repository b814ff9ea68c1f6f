"""How long a guest stays paused when pivotd is killed in its pause and started again at once.

python -m bench.recovery [--domains 1] [--rounds 10]

Every domain is brought into its pause (jobs pending, nothing finalized) by a proxy that holds back ``job-finalize``.
Then pivotd gets SIGKILL, its monitors are put in place of the proxies, and it is started again. Measured is the time
from the kill to QEMU's own RESUME event, for each guest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from bench.pause import Client
from tests.support.daemon import Daemon
from tests.support.proxy import Cut, Direction, Message, Proxy, When
from tests.support.qemu import Disk, Qemu, create_image

HELD_TIMEOUT_S = 120.0
RESUME_TIMEOUT_S = 60.0


class Hold:
    """A hook that keeps ``job-finalize`` from QEMU until it is told to cut the connection there."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.cut = threading.Event()

    def __call__(self, direction: Direction, index: int, message: Message, when: When) -> None:
        """Wait at the first ``job-finalize``."""
        if message.label == "command:job-finalize" and when is When.BEFORE and not self.cut.is_set():
            self.held.set()
            self.cut.wait(HELD_TIMEOUT_S)
            raise Cut


class Domain:
    """One QEMU behind a proxy, reached by a link that can be pointed at QEMU itself."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name, self.hold = name, Hold()
        self.link = directory / f"{name}.link"
        self.proxy = Proxy(directory / f"{name}.qmp", directory / f"{name}.real.qmp", on_message=self.hold)
        self.image = directory / f"{name}.old"
        self.target = directory / f"{name}.new"
        create_image(self.image)
        self.qemu = Qemu(directory, [Disk(self.image)], name=name, proxy=self.proxy, memory_mib=16)
        self.link.symlink_to(self.proxy.listen_path)

    def release(self) -> None:
        """Cut the proxy and let the next client reach QEMU."""
        self.hold.cut.set()
        aside = self.link.with_suffix(".swap")
        aside.symlink_to(self.proxy.qemu_path)
        aside.rename(self.link)

    def resumed_at_s(self) -> float:
        """Return the wall clock of QEMU's RESUME event."""
        stamp = self.qemu.await_event("RESUME", timeout_s=RESUME_TIMEOUT_S)["timestamp"]
        return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


def measure(count: int) -> list[float]:
    """Return the milliseconds from the kill to the running guest, one for each domain."""
    with tempfile.TemporaryDirectory(prefix="pb", dir="/var/tmp") as name, ExitStack() as stack:
        directory = Path(name)
        domains = [Domain(directory, f"d{number}") for number in range(count)]
        for domain in domains:
            stack.enter_context(domain.qemu)
        daemon = Daemon(directory, {domain.name: domain.link for domain in domains})
        stack.callback(daemon.kill)
        daemon.start()
        client = Client(daemon.socket)
        for domain in domains:
            body = {"disks": [{"disk": "disk0", "image": str(domain.target)}], "max_pause_ms": 60_000}
            answer = client("POST", f"/v1/domains/{domain.name}/copy", body)
            assert "id" in answer, answer
        for domain in domains:
            assert domain.hold.held.wait(HELD_TIMEOUT_S), f"{domain.name} did not come to its pause"
            domain.qemu.spy_events()
        killed_at_s = time.time()
        daemon.kill()
        for domain in domains:
            domain.release()
        daemon.start(wait=False)
        return [(domain.resumed_at_s() - killed_at_s) * 1000 for domain in domains]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how long guests wait for a killed pivotd.")
    parser.add_argument("--domains", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    medians, worst = [], []
    for _ in range(options.rounds):
        waits_ms = measure(options.domains)
        medians.append(statistics.median(waits_ms))
        worst.append(max(waits_ms))
    print(f"{options.domains} domain(s), {options.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    median_ms, last_ms = statistics.median(medians), statistics.median(worst)
    print(f"kill to running guest: median {median_ms:.0f} ms; the last guest {last_ms:.0f} ms")


if __name__ == "__main__":
    main()
