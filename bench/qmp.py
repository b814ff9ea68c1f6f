"""A QEMU whose disks can be mirrored again and again, for the benches.

with Bed.started(disks=4) as bed:
    jobs = bed.mirror("m0")      # all READY, auto-finalize and auto-dismiss off
    ...                          # whatever is measured switches the disks through bed.monitor
    bed.clean_up(jobs)           # dismiss the jobs, drop the images that lost
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.guest import Guest
from tests.support.qemu import CACHES, Disk, Qemu, Root, create_image

CATCH_UP_TIMEOUT_S = 30.0
DIRTY_STEP_MIB = 64


@dataclass(frozen=True)
class Bed:
    """One QEMU with full qcow2 disks, disk0, disk1…; without a guest it runs its firmware and nothing else.

    ``qemu.spy`` is our own monitor; those at ``monitor`` and ``qemu.qmp`` are free for what is measured.
    ``copy_mode`` is how mirrors copy, here and in the copies that are to be compared with them.
    """

    qemu: Qemu
    monitor: Path
    size_mib: int
    cache: str
    copy_mode: str

    @classmethod
    @contextmanager
    def started(
        cls, *, disks: int = 1, size_mib: int = 64, cached: bool = False, guest: Guest | None = None
    ) -> Iterator[Bed]:
        """Start one in a new directory on a file system that does O_DIRECT, with the guest up; end it afterwards."""
        with tempfile.TemporaryDirectory(prefix="pivot-bench-", dir="/var/tmp") as name:
            directory, cache = Path(name), "writeback" if cached else "none"
            given = [Disk(_full(directory / f"source{index}.qcow2", size_mib), cache=cache) for index in range(disks)]
            monitor = directory / "monitor.qmp"
            port = [
                "-chardev",
                f"socket,id=free,path={monitor},server=on,wait=off",
                "-mon",
                "chardev=free,mode=control",
            ]
            make = guest.qemu if guest is not None else Qemu
            with make(directory, given, extra=port) as qemu:
                if guest is not None:
                    guest.judge(qemu).await_ready()
                yield cls(qemu, monitor, size_mib, cache, "write-blocking" if guest is not None else "background")

    @property
    def roots(self) -> dict[str, Root]:
        """What is under each disk now."""
        return {f"disk{index}": self.qemu.root(f"disk{index}") for index in range(len(self.qemu.disks))}

    def mirror(self, name: str) -> list[str]:
        """Create a destination for each disk and start a mirror to it; return the job ids once they are READY."""
        cache, jobs = CACHES[self.cache], []
        for disk, root in self.roots.items():
            job = f"{name}-{disk}"
            image = create_image(self.qemu.directory / f"{job}.qcow2", size=f"{self.size_mib}M")
            file = {"driver": "file", "filename": str(image), "cache": cache}
            self.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": f"{job}-node", "cache": cache, "file": file})
            options = {"job-id": job, "device": root.node, "target": f"{job}-node", "copy-mode": self.copy_mode}
            flags = {"auto-finalize": False, "auto-dismiss": False}
            self.qemu.spy("blockdev-mirror", {**options, **flags, "sync": "full"})
            self.qemu.await_event("JOB_STATUS_CHANGE", id=job, status="ready")
            jobs.append(job)
        return jobs

    def dirty(self, mib: int) -> None:
        """Write so much through the device of disk0, unflushed, and wait until every mirror has it too."""
        path = "/machine/peripheral/disk0/virtio-backend"
        for place in range(0, mib, DIRTY_STEP_MIB):
            line = f'qemu-io -d {path} "write -q -P 0x5a {place}M {min(DIRTY_STEP_MIB, mib - place)}M"'
            self.qemu.spy("human-monitor-command", {"command-line": line})
        deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
        while any(job["len"] != job["offset"] for job in self.qemu.spy("query-block-jobs")):
            if time.monotonic() > deadline:
                raise RuntimeError("the mirror does not catch up")
            time.sleep(0.02)

    def clean_up(self, jobs: list[str], before: Mapping[str, Root]) -> None:
        """Dismiss concluded jobs and drop the images that the disks were on before. Raises: as moved()."""
        for job in jobs:
            self.qemu.spy("job-dismiss", id=job)
        self.moved(before)
        for root in before.values():
            self.qemu.spy("blockdev-del", node_name=root.node)

    def moved(self, before: Mapping[str, Root]) -> None:
        """Remove the files of the images that the disks were on before. Raises: RuntimeError: one still is."""
        now = self.roots
        for disk, root in before.items():
            if now[disk].filename == root.filename:
                raise RuntimeError(f"{disk} did not switch: it is still on {root.filename}")
            Path(root.filename).unlink()
        self.qemu.spy_events()


def _full(image: Path, size_mib: int) -> Path:
    """Create an image that is written from end to end."""
    create_image(image, size=f"{size_mib}M")
    steps = [f"write -P 0xa5 {at}M {min(DIRTY_STEP_MIB, size_mib - at)}M" for at in range(0, size_mib, DIRTY_STEP_MIB)]
    fill = [word for step in steps for word in ("-c", step)]
    subprocess.run(["qemu-io", "-n", "-f", "qcow2", *fill, str(image)], check=True, stdout=subprocess.DEVNULL)
    return image
