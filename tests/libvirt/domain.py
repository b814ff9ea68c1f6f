"""A domain of a private libvirtd: the test guest on several disks, what libvirt believes of it, and what QEMU has."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from xml.sax.saxutils import escape

from tests.libvirt.libvirtd import Libvirtd, Point, end_process
from tests.support.guest import AWAIT_TIMEOUT_S, KERNEL_OPTIONS, MEMORY_MIB, GuestJudge, end_torn_line
from tests.support.guest_assets import build
from tests.support.qemu import create_image
from tests.support.qmp_spy import Spy

PIVOT_POINTS = {
    "K0": Point("before", "command", '"job-complete"'),
    "K1": Point("after", "command", '"job-complete"'),
    "K2": Point("after", "command", '"job-complete"', delay_ms=300),
    "K3": Point("before", "command", '"job-dismiss"'),
    "K4": Point("after", "command", '"job-dismiss"', delay_ms=300),
    "K5": Point("after", "rename", "/run/libvirt/qemu/web1.xml", since='"job-dismiss"'),
    "K5b": Point("after", "command", '"blockdev-del"', since='"job-dismiss"', delay_ms=300),
    "K5c": Point("after", "command", '"blockdev-del"', since='"job-dismiss"', count=2, delay_ms=300),
    "K6": Point("before", "rename", "/etc/libvirt/qemu/web1.xml", since='"job-dismiss"'),
    "K7": Point("after", "rename", "/etc/libvirt/qemu/web1.xml", since='"job-dismiss"'),
}
"""Where libvirtd may die in the pivot of a copy of web1, in the order of its steps."""
ABORT_POINTS = {
    "K0": Point("before", "command", '"block-job-cancel"'),
    "K1": Point("after", "command", '"block-job-cancel"'),
    "K2": Point("after", "command", '"block-job-cancel"', delay_ms=300),
    **{name: point for name, point in PIVOT_POINTS.items() if name in {"K3", "K4", "K5", "K5b", "K6", "K7"}},
}
"""The same in its abort."""
SNAPSHOT_POINTS = {
    "begun": Point("after", "command", '"blockdev-add"'),
    "made": Point("before", "command", '"transaction"'),
    "put": Point("after", "command", '"transaction"', delay_ms=300),
    "live": Point("after", "rename", "/run/libvirt/qemu/web1.xml", since='"transaction"'),
    "next": Point("after", "rename", "/etc/libvirt/qemu/web1.xml", since='"transaction"'),
}
"""The same in a snapshot: the overlay is begun, made, under the disk; that is saved of the running guest, and of the next."""

_XML = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>{boot}
  </os>
  <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>{disks}{devices}
    <serial type='file'><source path='{serial}' append='on'/></serial>
    <memballoon model='none'/>
  </devices>{monitor}
</domain>
"""
_DISK = """
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='{image}'/><target dev='{target}' bus='virtio'/><serial>disk{number}</serial>
    </disk>"""
_BOOT = """
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline>"""
_MONITOR = """
  <qemu:commandline>
    <qemu:arg value='-chardev'/><qemu:arg value='socket,id=second,path={path},server=on,wait=off'/>
    <qemu:arg value='-mon'/><qemu:arg value='chardev=second,mode=control'/>
  </qemu:commandline>"""


@dataclass(frozen=True, slots=True)
class Belief:
    """What libvirt says of one disk: file names without their directory, None where it names none.

    ``state`` is that of the domain ("running", "paused", "shut off"); ``mirror`` the ``ready`` of a mirror in the live
    definition: "yes", "pivot", "abort", "" while it copies; None without a mirror.
    """

    state: str
    live: str | None
    next_boot: str | None
    mirror: str | None


class Domain:
    """One domain with the disks vda, vdb…, whose images are ``images/NAME-vda-0.qcow2`` and so on.

    ``second_monitor``: QEMU gets a monitor that is not libvirt's, at ``<name>.qmp`` of the directory. ``guest=False``:
    nothing boots, QEMU is there at once. ``devices``: the XML of more devices.
    ``pivotds_monitor``: QEMU gets another monitor, for pivotd.
    """

    def __init__(
        self,
        libvirtd: Libvirtd,
        *,
        name: str = "web1",
        disks: int = 1,
        guest: bool = True,
        second_monitor: bool = True,
        rate_per_s: int = 0,
        size: str = "64M",
        devices: str = "",
        pivotds_monitor: bool = False,
    ) -> None:
        self.libvirtd, self.name, self.guest = libvirtd, name, guest
        self.targets = [f"vd{letter}" for letter in "abcdefgh"[:disks]]
        self.serial = libvirtd.directory / f"{name}.serial"
        self.judge = GuestJudge(self.serial)
        self._monitor = libvirtd.directory / f"{name}.qmp" if second_monitor else None
        self._rate_per_s, self._devices, self._pivotds_monitor = rate_per_s, devices, pivotds_monitor
        for target in self.targets:
            create_image(self.image(target), size=size)

    # --- its life

    def define(self) -> Self:
        """Tell libvirt of the domain."""
        xml = self.libvirtd.directory / f"{self.name}.xml"
        xml.write_text(self._xml())
        self.libvirtd.ask("define", str(xml))
        return self

    def boot(self) -> Self:
        """Start the domain and wait for the first writes of its guest."""
        end_torn_line(self.serial)
        self.libvirtd.ask("start", self.name)
        if self.guest:
            for number in range(len(self.targets)):
                self.judge.await_acks(f"disk{number}", more_than=3, timeout_s=AWAIT_TIMEOUT_S)
        return self

    def qemu_pid(self) -> int:
        """Return the process id of the domain's QEMU, as libvirt has noted it."""
        return int((self.libvirtd.directory / f"run/qemu/{self.name}.pid").read_text())

    def kill_qemu(self) -> None:
        """SIGKILL the domain's QEMU, if there is one, and return when it is gone."""
        if (self.libvirtd.directory / f"run/qemu/{self.name}.pid").exists():
            end_process(self.qemu_pid())

    def writes_go_on(self) -> bool:
        """Tell whether the guest gets further writes acknowledged, on every disk."""
        try:
            for number in range(len(self.targets) if self.guest else 0):
                disk = f"disk{number}"
                self.judge.await_acks(disk, more_than=self.judge.last_ack(disk) + 3)
        except TimeoutError:
            return False
        return True

    # --- its images

    def image(self, target: str = "vda", number: int = 0) -> Path:
        """Return the path of an image of a disk; 0 is the one that it was made with."""
        return self.libvirtd.directory / "images" / f"{self.name}-{target}-{number}.qcow2"

    def copy(self, target: str = "vda", number: int = 1, *options: str) -> Path:
        """Let libvirt copy a disk to its image of that number, return when that is ready to be pivoted to."""
        destination = self.image(target, number)
        arguments = ("--dest", str(destination), "--format", "qcow2", "--transient-job", "--wait", *options)
        self.libvirtd.ask("blockcopy", self.name, target, *arguments)
        return destination

    def snapshot(self, target: str = "vda", number: int = 1) -> Path:
        """Let libvirt put an empty overlay on top of a disk, its image of that number; return it."""
        overlay = self.image(target, number)
        others = (f"--diskspec={other},snapshot=no" for other in self.targets if other != target)
        self.libvirtd.ask(
            "snapshot-create-as", self.name, "--disk-only", "--no-metadata", "--atomic",
            f"--diskspec={target},file={overlay}", *others,
        )  # fmt: skip
        return overlay

    def commit(self, target: str = "vda", *options: str) -> None:
        """Let libvirt commit the uppermost layer of a disk, return when that is ready to be pivoted."""
        self.libvirtd.ask("blockcommit", self.name, target, "--active", "--wait", *options)

    def missing(self, image: Path, target: str = "vda") -> list[int]:
        """Return the acknowledged numbers that an image lacks; the guest has to stand still, or QEMU to be gone."""
        return self.judge.check_image(image, "qcow2", f"disk{self.targets.index(target)}")

    def complete(self, target: str = "vda") -> list[str]:
        """Return the names of those images of a disk that hold every acknowledged write; QEMU has to be gone."""
        images = sorted(self.image().parent.glob(f"{self.name}-{target}-*"))
        return [image.name for image in images if image.stat().st_size and not self.missing(image, target)]

    # --- what libvirt believes, what QEMU has

    def agrees(self, target: str = "vda") -> bool:
        """Tell whether libvirt's live and next definition name the image that QEMU has, with no job left over."""
        believed = self.believe(target)
        return believed.live == believed.next_boot == self.root(target) and believed.mirror is None

    def is_healthy(self, target: str = "vda", number: int = 7) -> bool:
        """Tell whether all that is asked of a domain after a repair goes well: new move, and boot from its image."""
        assert self.agrees(target)
        assert self.writes_go_on()
        destination = self.copy(target, number)
        self.libvirtd.ask("blockjob", self.name, target, "--pivot")
        assert self.agrees(target)
        assert self.root(target) == destination.name
        assert self.writes_go_on()
        self.libvirtd.ask("destroy", self.name)
        if self.guest:
            assert destination.name in self.complete(target)
        self.boot()
        return self.root(target) == destination.name and self.writes_go_on()

    def believe(self, target: str = "vda") -> Belief:
        """Ask libvirt for one disk: live, next boot, mirror."""
        state = self.libvirtd.virsh("domstate", self.name).stdout.strip()
        live, next_boot = self._disk_of(target), self._disk_of(target, "--inactive")
        mirror = live.find("mirror") if live is not None else None
        ready = None if mirror is None else mirror.get("ready", "")
        return Belief(state, _file_of(live), _file_of(next_boot), ready)

    def root(self, target: str = "vda", *, monitor: Spy | None = None) -> str:
        """Return the file name of a disk's image in QEMU; asks the second monitor or the one that is given."""
        asked = monitor or self.spy()
        try:
            device = self._device(target)
            blocks = [block for block in asked.execute("query-block") if block.get("qdev", "").endswith(device)]
            return Path(blocks[0]["inserted"]["image"]["filename"]).name
        finally:
            if monitor is None:
                asked.close()

    def _device(self, target: str) -> str:
        """Return how QEMU's name of a disk's device ends."""
        return f"/virtio-disk{self.targets.index(target)}/virtio-backend"

    def spy(self) -> Spy:
        """Connect to the second monitor."""
        assert self._monitor is not None, "the domain was made without a second monitor"
        return Spy(self._monitor)

    def own_monitor(self) -> Path:
        """Return the path of libvirt's own monitor; it takes one connection, so only while libvirtd is dead."""
        (path,) = (self.libvirtd.directory / "lib/qemu").glob(f"domain-*-{self.name}/monitor.sock")
        return path

    def own_spy(self) -> Spy:
        """Connect to libvirt's own monitor, while libvirtd is dead."""
        return Spy(self.own_monitor())

    def status_file(self) -> Path:
        """Return libvirt's file about the running domain."""
        return self.libvirtd.directory / f"run/qemu/{self.name}.xml"

    def config_file(self) -> Path:
        """Return libvirt's file about the domain's next boot."""
        return self.libvirtd.directory / f"etc/qemu/{self.name}.xml"

    # --- killing libvirtd in its pivot

    def die_in(self, arguments: Sequence[str], point: Point) -> str:
        """Let virsh ask for something in which libvirtd dies at the point; return what virsh said."""
        virsh = self.libvirtd.virsh_session()
        self.libvirtd.kill_at(point)
        virsh.send(" ".join(arguments))
        self.libvirtd.await_death()
        return virsh.end()

    def die_in_pivot(self, point: Point, target: str = "vda") -> str:
        """Let libvirtd die at a point of the pivot of a copy that is ready."""
        return self.die_in(("blockjob", self.name, target, "--pivot"), point)

    def _disk_of(self, target: str, *options: str) -> ET.Element | None:
        done = self.libvirtd.virsh("dumpxml", self.name, *options)
        if done.returncode:
            return None
        for disk in ET.fromstring(done.stdout).iterfind("devices/disk"):
            found = disk.find("target")
            if found is not None and found.get("dev") == target:
                return disk
        return None

    def _xml(self) -> str:
        disks = "".join(
            _DISK.format(image=escape(str(self.image(target))), target=target, number=number)
            for number, target in enumerate(self.targets)
        )
        boot = self._boot() if self.guest else ""
        monitor = _MONITOR.format(path=self._monitor) if self._monitor else ""
        if self._pivotds_monitor:
            own = _MONITOR.format(path=self.libvirtd.directory / f"{self.name}.own").replace("second", "pivotd")
            monitor = monitor.replace("\n  </qemu:commandline>", "") + own.replace("\n  <qemu:commandline>", "")
        return _XML.format(
            name=self.name, memory=MEMORY_MIB if self.guest else 16, boot=boot, disks=disks, serial=self.serial,
            emulator=shutil.which("qemu-system-x86_64"), monitor=monitor, devices=self._devices,
        )  # fmt: skip

    def _boot(self) -> str:
        assets = build()
        words: dict[str, Any] = {
            "disks": ",".join(f"disk{number}" for number in range(len(self.targets))),
            "modules": ",".join(assets.modules["virtio-blk"]), "rate": self._rate_per_s,
        }  # fmt: skip
        cmdline = " ".join([KERNEL_OPTIONS, *(f"pivotd.{key}={value}" for key, value in words.items())])
        return _BOOT.format(kernel=assets.kernel, initrd=assets.initramfs, cmdline=escape(cmdline))


def _file_of(disk: ET.Element | None) -> str | None:
    source = disk.find("source") if disk is not None else None
    name = source.get("file") if source is not None else None
    return Path(name).name if name else None
