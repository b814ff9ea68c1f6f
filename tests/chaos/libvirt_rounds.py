"""The same question asked of libvirt: `virsh blockcopy --pivot` under a writing guest, libvirtd killed on the way.

    make chaos-libvirt ROUNDS=20 SEED=7

libvirtd is killed at a random instant, in one half of the rounds of the whole operation, in the other of its last step,
the pivot of a copy that is ready; in every second round of each QEMU is killed up to three seconds later. libvirtd is
started again and asked which image the domain has: that one must hold the guest's last acknowledged write.
"""

# ruff: noqa: T201 - a campaign speaks

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from tests.chaos.libvirt_host import Libvirtd, kill_qemu, missing
from tests.support.guest import KERNEL_OPTIONS, MEMORY_MIB, GuestJudge, serial_log
from tests.support.guest_assets import GuestAssets, build
from tests.support.qemu import create_image
from tests.support.seeds import drawn

ACK_TIMEOUT_S = 90.0
OPERATION_TIMEOUT_S = 90.0
QEMU_LATER_MAX_S = 3.0
DOMAIN = "web1"

XML = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline>
  </os>
  <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='{image}'/><target dev='vda' bus='virtio'/><serial>disk0</serial>
    </disk>
    <serial type='file'><source path='{serial}' append='on'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""


@dataclass(frozen=True, slots=True)
class LibvirtRound:
    """``at_s``: from the start of virsh to the kill of libvirtd. ``qemu_after_s`` None: QEMU is left alive.

    ``pivot_only``: virsh pivots a copy that is ready.
    """

    pivot_only: bool
    at_s: float
    qemu_after_s: float | None

    def __str__(self) -> str:
        later = "QEMU left alive" if self.qemu_after_s is None else f"QEMU killed {self.qemu_after_s:.3f} s later"
        what = "the pivot" if self.pivot_only else "the copy"
        return f"libvirtd killed at {self.at_s * 1000:.1f} ms of {what}, {later}"


class LibvirtWorld:
    """A fresh domain for each round."""

    def __init__(self, directory: Path, assets: GuestAssets, libvirtd: Libvirtd) -> None:
        self.directory, self.libvirtd = directory, libvirtd
        self._assets = assets
        self.source = directory / "old.qcow2"
        self.destination = directory / "new.qcow2"
        self._qemu: int | None = None

    def boot(self) -> GuestJudge:
        """Define the domain, boot it, and wait for its first writes."""
        for image in (self.source, self.destination):
            image.unlink(missing_ok=True)
        log = serial_log(self.directory, DOMAIN)
        log.unlink(missing_ok=True)
        create_image(self.source)
        xml = self.directory / "domain.xml"
        modules = ",".join(self._assets.modules["virtio-blk"])
        words = f"{KERNEL_OPTIONS} pivotd.disks=disk0 pivotd.modules={modules}"
        xml.write_text(
            XML.format(
                name=DOMAIN, memory=MEMORY_MIB, kernel=self._assets.kernel, initrd=self._assets.initramfs,
                cmdline=escape(words), emulator=shutil.which("qemu-system-x86_64"), image=self.source, serial=log,
            )
        )  # fmt: skip
        for arguments in (("define", str(xml)), ("start", DOMAIN)):
            done = self.libvirtd.virsh(*arguments)
            assert done.returncode == 0, done.stderr
        self._qemu = self.libvirtd.qemu_pid(DOMAIN)
        judge = GuestJudge(log)
        judge.await_acks(more_than=5, timeout_s=ACK_TIMEOUT_S)
        return judge

    def measure(self, *, pivot_only: bool) -> float:
        """Return the seconds that the operation takes with nobody killed; it must end on the destination."""
        judge = self.boot()
        arguments = self._operation(pivot_only=pivot_only)
        started_s = time.monotonic()
        done = self.libvirtd.virsh(*arguments)
        took_s = time.monotonic() - started_s
        assert done.returncode == 0, done.stderr
        assert self.libvirtd.source(DOMAIN, inactive=True) == str(self.destination)
        judge.await_acks(more_than=judge.last_ack() + 3, timeout_s=ACK_TIMEOUT_S)
        self.clear()
        # The judge must be able to fail: the image that was left behind lacks what came after.
        assert judge.check_image(self.destination, "qcow2") == []
        assert judge.check_image(self.source, "qcow2") != []
        return took_s

    def _operation(self, *, pivot_only: bool) -> tuple[str, ...]:
        """Return the arguments of virsh that move the disk, after all that comes before them."""
        copy = ("blockcopy", DOMAIN, "vda", "--dest", str(self.destination), "--format", "qcow2", "--wait",
                "--transient-job")  # fmt: skip
        if not pivot_only:
            return (*copy, "--pivot")
        done = self.libvirtd.virsh(*copy)
        assert done.returncode == 0, done.stderr
        return ("blockjob", DOMAIN, "vda", "--pivot")

    def play(self, planned: LibvirtRound) -> tuple[str, str]:
        """Play one round; return one word for what came of it, and the facts."""
        judge = self.boot()
        assert self._qemu is not None
        virsh = self.libvirtd.start_virsh(*self._operation(pivot_only=planned.pivot_only))
        time.sleep(planned.at_s)
        self.libvirtd.kill()
        virsh.wait(OPERATION_TIMEOUT_S)
        if planned.qemu_after_s is not None:
            time.sleep(planned.qemu_after_s)
            kill_qemu(self._qemu)
        else:
            judge.await_acks(more_than=judge.last_ack() + 3, timeout_s=ACK_TIMEOUT_S)
        self.libvirtd.start()
        state = self.libvirtd.virsh("domstate", DOMAIN).stdout.strip()
        live = self.libvirtd.source(DOMAIN, inactive=False)
        named = self.libvirtd.source(DOMAIN, inactive=True)
        self.clear()
        holds = [image.name for image in (self.source, self.destination) if self._complete(judge, image)]
        facts = f"state {state!r}, live {_name(live)}, next boot {_name(named)}, complete: {', '.join(holds) or 'none'}"
        if named is None:
            return "no answer", facts
        return "right" if Path(named).name in holds else "WRONG", facts

    def clear(self) -> None:
        """End the domain, whatever libvirt thinks of it, and forget it."""
        if self._qemu is not None:
            kill_qemu(self._qemu)
            self._qemu = None
        self.libvirtd.virsh("destroy", DOMAIN)
        self.libvirtd.virsh("undefine", DOMAIN)

    @staticmethod
    def _complete(judge: GuestJudge, image: Path) -> bool:
        return image.exists() and image.stat().st_size > 0 and not judge.check_image(image, "qcow2")


def _name(image: str | None) -> str:
    return Path(image).name if image else "none"


def campaign(count: int, seed: int) -> Counter[str]:
    """Run so many rounds; return how often each word came."""
    rng = random.Random(seed)
    words: Counter[str] = Counter()
    assets = build()
    with tempfile.TemporaryDirectory(prefix="lv") as name, ExitStack() as stack:
        directory = Path(name)
        libvirtd = Libvirtd(directory)
        stack.callback(libvirtd.kill)
        libvirtd.start()
        world = LibvirtWorld(directory, assets, libvirtd)
        stack.callback(world.clear)
        took_s = {pivot_only: world.measure(pivot_only=pivot_only) for pivot_only in (False, True)}
        print(f"undisturbed: copy {took_s[False] * 1000:.0f} ms, pivot alone {took_s[True] * 1000:.0f} ms", flush=True)
        for number in range(count):
            pivot_only, kills_qemu = bool(number % 2), bool(number // 2 % 2)
            later = rng.uniform(0, QEMU_LATER_MAX_S) if kills_qemu else None
            planned = LibvirtRound(pivot_only, rng.uniform(0, took_s[pivot_only] * 1.1), later)
            word, facts = world.play(planned)
            kind = f"{'pivot' if pivot_only else 'copy'}, QEMU {'killed' if kills_qemu else 'alive'}"
            words[f"{kind}: {word}"] += 1
            print(f"round {number}: {planned}: {word} ({facts})", flush=True)
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and print its figures; how libvirt does is no error of ours."""
    parser = argparse.ArgumentParser(description="Kill libvirtd in the middle of blockcopy --pivot.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="0 takes PIVOTD_SEED, or one at random")
    options = parser.parse_args(arguments)
    if (why := missing()) is not None:
        print(f"skipped: {why}")
        return 0
    seed = drawn(options.seed)
    started_s = time.monotonic()
    words = campaign(options.rounds, seed)
    for word, times in sorted(words.items()):
        print(f"{word:32}{times:>5}")
    wrong = sum(times for word, times in words.items() if word.endswith("WRONG"))
    print(f"libvirt: {wrong} of {options.rounds} rounds end with an image without an acknowledged write; seed {seed}")
    print(f"{time.monotonic() - started_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
