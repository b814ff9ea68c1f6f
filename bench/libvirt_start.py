"""What the hook adds to the start of a libvirtd with many running domains, and how long a repair takes.

python -m bench.libvirt_start [--domains 100] [--rounds 7]

Real QEMUs without a guest, started by a private libvirtd. Libvirtd is killed and started again, in turn without the
hook and with it: until it answers, and until it has reconnected to every domain (its hooks run for each). The hook's
own time and processor time are those of its one process that looks at all status files.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tests.libvirt.domain import PIVOT_POINTS, Domain
from tests.libvirt.libvirtd import Libvirtd, missing


def milliseconds(values: list[float]) -> str:
    """Return the median and the extremes of times in seconds."""
    return f"{statistics.median(values) * 1000:6.0f} ms  ({min(values) * 1000:.0f} to {max(values) * 1000:.0f})"


def without(libvirtd: Libvirtd) -> None:
    """Remove every hook."""
    hooks = libvirtd.directory / "etc/hooks"
    shutil.rmtree(hooks)
    hooks.mkdir()


def repair_alone(libvirtd: Libvirtd) -> None:
    """Install the hook without the part that looks at each start of a domain."""
    libvirtd.install_hook()
    shutil.rmtree(libvirtd.directory / "etc/hooks/qemu.d")


def somebodys(libvirtd: Libvirtd) -> None:
    """Install a program for domains that does nothing: libvirt runs it for each when it reconnects."""
    without(libvirtd)
    program = libvirtd.directory / "etc/hooks/qemu"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)


SETTINGS: dict[str, Callable[[Libvirtd], None]] = {
    "no hook": without,
    "install-hooks": repair_alone,
    "the same --starts": Libvirtd.install_hook,
    "an empty qemu hook": somebodys,
}


def start(libvirtd: Libvirtd, names: list[str]) -> tuple[float, float, float]:
    """Return the seconds until libvirtd answers, until every domain's monitor does, and of processor time till then."""
    begun_s = time.monotonic()
    libvirtd.start(shim=False)
    answers_s = time.monotonic() - begun_s
    session = libvirtd.virsh_session()
    for name in names:
        session.send(f"domblkinfo {name} vda")
    session.end()
    reconnected_s = time.monotonic() - begun_s
    # Its own, and that of the hooks that it has waited for.
    ticks = Path(f"/proc/{libvirtd.pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return answers_s, reconnected_s, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def own_time(libvirtd: Libvirtd, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds that a look at all status files takes, and those of processor time: that of a dry run."""
    wall_s, cpu_s = [], []
    for _ in range(rounds):
        before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        libvirtd.dry_run()
        wall_s.append(time.monotonic() - begun_s)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return wall_s, cpu_s


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description="Measure the hook beside a libvirtd without it.")
    parser.add_argument("--domains", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if (why := missing()) is not None:
        print(f"skipped: {why}")
        return
    with Libvirtd() as libvirtd:
        libvirtd.start()
        domains = [
            Domain(libvirtd, name=f"d{number}", guest=False, second_monitor=False, size="1M").define()
            for number in range(options.domains)
        ]
        for domain in domains:
            libvirtd.ask("start", domain.name, "--paused")
        names = [domain.name for domain in domains]
        times: dict[str, list[tuple[float, float, float]]] = {setting: [] for setting in SETTINGS}
        for _ in range(options.rounds):
            for setting, prepare in SETTINGS.items():
                libvirtd.kill()
                prepare(libvirtd)
                times[setting].append(start(libvirtd, names))
        print(f"{options.domains} running domains, {options.rounds} starts of each:")
        for setting, found in times.items():
            for what, values in zip(
                ("answers", "all reconnected", "processor time"), zip(*found, strict=True), strict=True
            ):
                print(f"{setting:20} {what:16} {milliseconds(list(values))}")
        libvirtd.kill()
        libvirtd.install_hook()
        wall_s, cpu_s = own_time(libvirtd, options.rounds)
        print(f"the hook's look at all: {milliseconds(wall_s)}, processor {milliseconds(cpu_s)}")
    repairs(options.rounds)


def repairs(rounds: int) -> None:
    """Print how long the repair of a pivot takes whose job libvirtd has dismissed: file and job."""
    took_ms = []
    with Libvirtd() as libvirtd:
        for _ in range(rounds):
            libvirtd.clear()
            libvirtd.install_hook()
            libvirtd.start()
            domain = Domain(libvirtd, guest=False).define().boot()
            domain.copy()
            domain.die_in_pivot(PIVOT_POINTS["K5"])
            libvirtd.start()
            took_ms += [float(found) for found in re.findall(r"; ([\d.]+) ms\)", libvirtd.hook_said())]
    print(f"a repair of file and job: {took_ms} ms")


if __name__ == "__main__":
    main()
