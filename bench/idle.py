"""What pivotd costs a host on which nothing happens: processor time and memory with many domains connected.

python -m bench.idle [--domains 200] [--seconds 20]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.pause import Client
from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image

CONNECTED_TIMEOUT_S = 60.0


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used. Source: proc(5), fields 14 and 15 of /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in megabytes."""
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure an idle pivotd with many domains.")
    parser.add_argument("--domains", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pb", dir="/var/tmp") as name, ExitStack() as stack:
        directory = Path(name)
        monitors = {}
        for number in range(options.domains):
            domain = f"d{number}"
            disk = Disk(create_image(directory / f"{domain}.qcow2"))
            # Not started: their firmware would take the processor that is measured.
            qemu = stack.enter_context(Qemu(directory, [disk], name=domain, paused=True, memory_mib=16))
            monitors[domain] = qemu.qmp
        daemon = stack.enter_context(Daemon(directory, monitors))
        deadline_s = time.monotonic() + CONNECTED_TIMEOUT_S
        client = Client(daemon.socket)
        while any(domain["connection"] != "connected" for domain in client("GET", "/v1/domains")):
            assert time.monotonic() < deadline_s, "not every domain was connected in time"
        before_s, began_s = cpu_s(daemon.pid), time.monotonic()
        time.sleep(options.seconds)
        percent = 100 * (cpu_s(daemon.pid) - before_s) / (time.monotonic() - began_s)
        print(f"{options.domains} domains: {percent:.2f} % of a core, {resident_mb(daemon.pid):.0f} MB resident")


if __name__ == "__main__":
    main()
