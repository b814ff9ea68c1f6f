"""A host in a container: pivotd installed as docs/install.md says, a QEMU of another user, people of three kinds."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.qmp_spy import Spy
from tests.support.waiting import WAIT_S, until
from tests.systemd.container import Container, wait_for_exit

REPOSITORY = Path(__file__).parents[2]
INSTALL = REPOSITORY / "docs" / "install.md"
NEXT_BOOT = REPOSITORY / "docs" / "next-boot.md"
TRIES_MAX = 20
INSTALL_TIMEOUT_S = 300.0
SOURCES = ("pivotd", "migrations", "systemd", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")
DISKS = 2
DATA = "8M"

PEOPLE = """
useradd --system qemuuser
useradd --system --groups pivotd alice
useradd --system --groups pivotd-ro bob
useradd --system mallory
"""
QEMU_UNIT = """
[Unit]
After=systemd-tmpfiles-setup.service
[Service]
User=qemuuser
UMask=0007
ExecStart=/usr/bin/qemu-system-x86_64 -accel tcg -M q35 -m 64 -display none -nodefaults -no-user-config -name web1 \
 -chardev socket,id=pivotd,path=/run/qemu/web1.qmp,server=on,wait=off -mon chardev=pivotd,mode=control \
 -chardev socket,id=spy,path=/run/qemu/web1.spy,server=on,wait=off -mon chardev=spy,mode=control \
 {disks}
[Install]
WantedBy=test.target
"""
DISK = (
    "-blockdev driver=file,node-name=file{0},filename=/srv/images/old{0}.qcow2,cache.direct=off"
    " -blockdev driver=qcow2,node-name=src{0},file=file{0} -device virtio-blk-pci,id=disk{0},drive=src{0}"
)


def commands(heading: str, page: Path = INSTALL) -> str:
    """Return the shell commands of one section of a page, but for those that reach a package archive."""
    section = page.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return "".join(line + "\n" for line in "".join(blocks).splitlines() if not line.startswith("apt-get"))


def install_program(container: Container, source: str, shared: Path | None) -> None:
    """Install as documented, once: processes that test side by side find it in ``shared``, under a lock."""
    script = f"cd {source}\n" + commands("1. The program")
    if shared is None:
        container.prepare(script, PIP_CONSTRAINT="requirements.txt", timeout_s=INSTALL_TIMEOUT_S)
        return
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            container.prepare(script, PIP_CONSTRAINT="requirements.txt", timeout_s=INSTALL_TIMEOUT_S)
            subprocess.run(["cp", "-a", container.root / "opt/pivotd", shared], check=True)
            return
    subprocess.run(["cp", "-a", shared, container.root / "opt/pivotd"], check=True)
    container.prepare(script.splitlines()[-1])


def install(container: Container, shared: Path | None) -> None:
    """Do what docs/install.md says, as far as it is done before the boot."""
    source = "/srv/source"
    (container.root / source.lstrip("/")).mkdir(parents=True)
    for name in SOURCES:
        subprocess.run(["cp", "-r", REPOSITORY / name, f"{container.root}{source}"], check=True)
    install_program(container, source, shared)
    container.prepare(f"cd {source}\n" + commands("2. User and groups"))
    container.prepare(f"cd {source}\n" + commands("3. Configuration"))
    units = commands("4. Units").splitlines()
    container.prepare(f"cd {source}\n" + "\n".join(line for line in units if line.startswith("install ")))
    container.prepare(PEOPLE)
    etc = container.root / "etc"
    (etc / "pivotd/pivotd.toml.d").mkdir()
    (etc / "pivotd/pivotd.toml.d/test.toml").write_text('discover = ["/run/qemu/*.qmp"]\n')
    (etc / "tmpfiles.d/qemu.conf").write_text("d /run/qemu 2770 qemuuser pivotd\n")
    install_guest(container)


def install_guest(container: Container) -> None:
    """Make the images and the unit of the guest web1."""
    images = container.root / "srv/images"
    images.mkdir()
    for index in range(DISKS):
        image = f"/srv/images/old{index}.qcow2"
        container.prepare(f"qemu-img create -q -f qcow2 {image} 64M; qemu-io -f qcow2 -c 'write -q 0 {DATA}' {image}")
    container.prepare("chown -R qemuuser /srv/images")
    disks = " ".join(DISK.format(index) for index in range(DISKS))
    (container.root / "etc/systemd/system/qemu-web1.service").write_text(QEMU_UNIT.format(disks=disks))


class Host:
    """The booted host. ``spy`` is the test's own monitor of the domain web1."""

    pivotctl = "/usr/local/bin/pivotctl"
    first_commands: Sequence[str] = [line for line in commands("4. Units").splitlines() if line.startswith("systemctl")]

    def __init__(self, container: Container) -> None:
        self.container = container
        self.copies = 0
        container.run("systemctl", "start", "qemu-web1")
        for line in self.first_commands:
            container.run(*line.split())
        spy = container.inside / "run/qemu/web1.spy"
        assert until(spy.is_socket), "QEMU does not start"
        self.spy = Spy(spy)
        self.qemu_pid = int(container.property_of("qemu-web1", "MainPID"))
        assert until(lambda: self.domain()["connection"] == "connected"), self.domain()

    # -- pivotd

    def main_pid(self) -> int:
        """Return the daemon's process number inside."""
        return int(self.container.property_of("pivotd", "MainPID"))

    def restarts(self) -> int:
        """Return how often systemd has restarted the daemon by itself."""
        return int(self.container.property_of("pivotd", "NRestarts"))

    def ctl(self, *arguments: str, user: str | None = None) -> Any:
        """Run pivotctl in the container; return its status and its answer."""
        done = self.container.run(self.pivotctl, "--json", *arguments, user=user, check=False)
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            return done.returncode, done.stdout + done.stderr

    def domain(self) -> Any:
        """Return what pivotd knows of the domain."""
        status, answer = self.ctl("domain", "ls")
        found = [row for row in answer if row["name"] == "web1"] if status == 0 else []
        return found[0] if found else {"connection": str(answer)}

    def copy(self, *options: str) -> str:
        """Ask for a copy of every disk to new images and do not wait; return the pivot."""
        done = self.container.run(*self._copy_command(*options))
        return str(json.loads(done.stdout)["id"])

    def _copy_command(self, *options: str) -> list[str]:
        self.copies += 1
        disks = [f"disk{index}=/srv/images/new{self.copies}-{index}.qcow2" for index in range(DISKS)]
        return [self.pivotctl, "--json", "copy", "--detach", *options, "web1", *disks]

    def phase(self, pivot: str) -> str:
        """Return the phase of a pivot, or why it is not known."""
        status, answer = self.ctl("pivot", "show", pivot)
        return str(answer["phase"]) if status == 0 else str(answer)

    def full_speed(self) -> None:
        """Lift the limit of every mirror."""
        for job in self.spy.execute("query-block-jobs"):
            self.spy.execute("block-job-set-speed", {"device": job["device"], "speed": 0})

    def closed(self, pivot: str) -> Any:
        """Wait until a pivot is closed and return it."""
        found: list[Any] = []

        def look() -> bool:
            status, answer = self.ctl("pivot", "show", pivot)
            found[:] = [answer]
            return status == 0 and answer["phase"] == "closed"

        assert until(look), found
        return found[0]

    # -- QEMU

    def run_state(self) -> str:
        """Ask QEMU."""
        return str(self.spy.execute("query-status")["status"])

    def images(self) -> list[str]:
        """Return the image of every disk that QEMU uses."""
        rows = {row["qdev"]: row["inserted"]["file"] for row in self.spy.execute("query-block") if row.get("qdev")}
        return [rows[f"/machine/peripheral/disk{index}/virtio-backend"] for index in range(DISKS)]

    def verdicts(self) -> list[str]:
        """Return the image of every disk that the journal names, once they are certain: pivotd may have just begun."""
        assert until(lambda: self.ctl("verdict", "web1")[0] == 0), self.ctl("verdict", "web1")
        _, answer = self.ctl("verdict", "web1")
        return [verdict["image"] for verdict in answer]

    def is_untouched(self) -> bool:
        """Return whether QEMU is the process that it was at first."""
        return int(self.container.property_of("qemu-web1", "MainPID")) == self.qemu_pid

    def strike_in_the_pause(self, number: int) -> float:
        """Copy, and send pivotd a signal right when the guest stops; return the time of that.

        The pause takes milliseconds: where the guest runs again already, another copy is made.
        """
        for _ in range(TRIES_MAX):
            daemon = self.container.host_pid(self.main_pid())
            self.spy.events()
            asking = self.container.start(*self._copy_command())
            self.spy.await_event("STOP", timeout_s=WAIT_S)
            os.kill(daemon, number)
            struck_s = time.monotonic()
            if number == signal.SIGKILL:
                wait_for_exit(daemon, WAIT_S)
            met = not any(event["event"] == "RESUME" for event in self.spy.events())
            if not met and number == signal.SIGSTOP:
                os.kill(daemon, signal.SIGCONT)
            said, _ = asking.communicate(timeout=WAIT_S)
            self.pivot = str(json.loads(said)["id"])
            if met:
                return struck_s
            self.closed(self.pivot)
        raise AssertionError("no pause was met")

    pivot = ""
    """The pivot of the last pause that was met."""
