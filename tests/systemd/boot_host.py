"""A host that starts its guest by vm@.service, as docs/next-boot.md says, and that crashes and boots again.

The guest writes numbered sectors to two disks (tests/support/tiny_guest.py); each life of it begins at higher numbers.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.qmp_spy import Spy
from tests.support.tiny_guest import CPU, SECTOR_BYTES, SLOTS, TinyGuest, TinyJudge, lost, raw_slots
from tests.support.waiting import WAIT_S, until
from tests.systemd.container import Container
from tests.systemd.host import DISKS, NEXT_BOOT, commands, install

UNIT = "vm@web1"
PIVOTCTL = "/usr/local/bin/pivotctl"
LIFE_NUMBERS = 1 << 20
"""More than a guest writes in one life."""
STATIC_BYTES, STATIC_STEP_BYTES, STATIC_AT_BYTES = 8 << 20, 128 << 10, 64 << 10
"""What the images held before the guest wrote: this pattern, and between the guest's sectors it stays."""
PATTERN = b"\xcd" * SECTOR_BYTES
CONF = f"""
VM_DISKS="disk0=/srv/images/old0.qcow2 disk1='/srv/images/old1.qcow2'"
VM_DEVICE=ide-hd,bus=ide.0,unit={{n}}
VM_OPTIONS="-machine pc -accel tcg -m 16 -display none -cpu {CPU} -bios /srv/guest/tiny_guest.bin \\
 -chardev file,id=serial,path=/srv/guest/serial,append=on -serial chardev:serial"
VM_STOP_S=1
"""
PIDS_OF_A_BOOT = 1000
"""All boots of a container are one to pivotd: systemd-nspawn mounts a boot id over the kernel's, but the service has a /proc
of its own. A QEMU of an earlier boot is certainly gone only if no process has its pid, so each boot has pids of its own."""
AWAY = "[Unit]\nConditionPathExists=/none\n"


def install_guest(container: Container, shared: Path | None) -> None:
    """Do what docs/install.md and docs/next-boot.md say, as far as it is done before the boot."""
    install(container, shared)
    container.prepare("rm /etc/tmpfiles.d/qemu.conf /etc/systemd/system/qemu-web1.service /etc/pivotd/pivotd.toml.d/*")
    lines = commands("A unit for each guest", NEXT_BOOT).splitlines()
    container.prepare(
        "cd /srv/source\n" + "\n".join(line for line in lines if line.startswith(("install", "systemd-sy")))
    )
    (container.root / "etc/vm/web1.conf").write_text(CONF)
    container.prepare("mkdir /srv/guest; chown -R vm:vm /srv/images /srv/guest; chmod 0750 /srv/images")


class BootHost:
    """The host; boot() and crash() as often as wanted. ``lives`` counts the boots of the guest."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.lives = 0
        self.moves = 0
        self.spy: Spy
        self.judge = TinyJudge(container.root / "srv/guest/serial")

    # -- life of the host

    def boot(self) -> None:
        """Boot; what is enabled starts by itself."""
        self.new_life()
        self.container.boot(first_pid=self.lives * PIDS_OF_A_BOOT)

    def new_life(self) -> None:
        """Let the next start of the guest begin at numbers that none before has written."""
        guest = TinyGuest(disks=DISKS, first=self.lives * LIFE_NUMBERS)
        guest.firmware(self.container.root / "srv/guest")
        self.lives += 1

    def first_start(self) -> None:
        """Start pivotd and the guest for the first time, as documented, and let both start at each boot."""
        for page in (commands("4. Units"), commands("A unit for each guest", NEXT_BOOT)):
            for line in page.splitlines():
                if line.startswith(("systemctl", "systemd-tmpfiles", "pivotctl")):
                    self.container.run("sh", "-c", f"PATH=/usr/local/bin:$PATH {line}")
        units = ["pivotd.socket", "pivotd.service", f"{UNIT}.service"]
        self.container.run("systemctl", "add-wants", "test.target", *units)
        self.await_guest()

    def crash(self) -> None:
        """Everything in the host dies."""
        self.spy.close()
        self.container.crash()

    def pivotd_is_away(self, *, away: bool) -> None:
        """Decide, before a boot or after it, whether pivotd can start."""
        for unit in ("pivotd.service", "pivotd.socket"):
            drop_in = self.container.root / f"etc/systemd/system/{unit}.d/away.conf"
            if away:
                drop_in.parent.mkdir(exist_ok=True)
                drop_in.write_text(AWAY)
            else:
                drop_in.unlink(missing_ok=True)

    def start_pivotd(self) -> None:
        """Start what was away."""
        self.pivotd_is_away(away=False)
        self.container.run("systemctl", "daemon-reload")
        self.container.run("systemctl", "start", "pivotd.socket", "pivotd")

    # -- the guest

    def await_guest(self) -> None:
        """Wait until the unit is active, and until the guest has written every slot in this life."""
        until(lambda: self.container.property_of(UNIT, "ActiveState") in {"active", "failed"})
        assert self.container.property_of(UNIT, "ActiveState") == "active", self.said()
        assert until(self._connects), self.said()
        self.judge.await_acks(more_than=(self.lives - 1) * LIFE_NUMBERS + SLOTS, timeout_s=WAIT_S)

    def _connects(self) -> bool:
        """Connect to the monitor for people; at first its socket is missing, or is that of a QEMU that has died."""
        try:
            self.spy = Spy(self.container.inside / "run/vm/web1.qmp")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def said(self) -> str:
        """Return what the unit has said."""
        return self.container.run("journalctl", "--no-pager", "-o", "cat", "-u", UNIT, check=False).stdout

    def images(self) -> dict[str, str]:
        """Return the image of every disk that QEMU uses."""
        rows = {row["qdev"]: row["inserted"]["file"] for row in self.spy.execute("query-block") if row.get("qdev")}
        return {name: file for name in self.disks() for qdev, file in rows.items() if name in qdev.split("/")}

    @staticmethod
    def disks() -> list[str]:
        return [f"disk{index}" for index in range(DISKS)]

    # -- pivotd

    def ctl(self, *arguments: str, user: str | None = None) -> Any:
        """Run pivotctl; return its status and its answer, or its complaint."""
        done = self.container.run(PIVOTCTL, "--json", *arguments, user=user, check=False)
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            return done.returncode, done.stdout + done.stderr

    def targets(self, verb: str) -> dict[str, str]:
        """Return a new image for each disk."""
        self.moves += 1
        return {name: f"/srv/images/{verb}{self.moves}-{name}.qcow2" for name in self.disks()}

    def move(self, verb: str, targets: dict[str, str]) -> subprocess.Popen[str]:
        """Ask for a pivot and do not wait."""
        return self.container.start(PIVOTCTL, verb, "web1", *(f"{disk}={image}" for disk, image in targets.items()))

    def await_connected(self) -> dict[str, Any]:
        """Wait until pivotd is connected to the guest and has no open pivot; return what it shows of the domain."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = self.ctl("domain", "show", "web1")
            return found[0] == 0 and found[1]["connection"] == "connected" and not found[1]["open_pivots"]

        assert until(look), found
        shown: dict[str, Any] = found[1]
        return shown

    # -- the judge

    def missing(self, image: str) -> list[int] | str:
        """Return the acknowledged numbers of the last life that an image lacks, or in words what else is wrong with it.

        The guest must not run. Empty: every write that the guest was told is flushed is there.
        """
        raw = self.container.root / "srv/guest/raw"
        convert = f"qemu-img convert -U -f qcow2 -O raw {image} /srv/guest/raw"
        try:
            self.container.prepare(convert)
            with raw.open("rb") as file:
                for at in range(STATIC_AT_BYTES, STATIC_BYTES, STATIC_STEP_BYTES):
                    file.seek(at)
                    if file.read(SECTOR_BYTES) != PATTERN:
                        return f"at {at} is not what was there before the guest wrote"
            return lost(raw_slots(raw), self.judge.last_ack())
        except AssertionError as error:
            return f"cannot be read: {error}"
        finally:
            with contextlib.suppress(FileNotFoundError):
                raw.unlink()
