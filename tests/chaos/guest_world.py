"""A real guest that is quick to start again, and a pivotd that is started again at once, as systemd does it.

Booting takes seconds. So a guest boots once for each number of disks, its state is saved before it has read anything of
its disks, and each later life continues from there on whatever images there are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.image_check import root_path
from tests.chaos.process import try_call
from tests.support.daemon import Daemon
from tests.support.guest import Guest, GuestJudge
from tests.support.guest_assets import GuestAssets
from tests.support.qemu import Disk, Qemu, create_image

BOOT_TIMEOUT_S = 120.0
ACK_TIMEOUT_S = 60.0
POLL_S = 0.005
BANDWIDTH = 10 << 30


class GuestWorld:
    """One domain with a writing guest. ``images`` are what its disks use, or will use in the next life."""

    def __init__(self, directory: Path, assets: GuestAssets, disks: int) -> None:
        self.directory = directory
        self.names = [f"disk{index}" for index in range(disks)]
        self.images = [create_image(directory / f"{name}-0.qcow2") for name in self.names]
        self.guest = Guest(assets, hold=True)
        self.qemu: Qemu
        self.judge: GuestJudge
        self._state = directory / "booted.state"

    def boot(self) -> float:
        """Boot, save the state, and let the guest go; return the seconds it took."""
        started_s = time.monotonic()
        with self.guest.qemu(self.directory, self._disks()) as qemu:
            self.guest.judge(qemu).await_ready(timeout_s=BOOT_TIMEOUT_S)
            qemu.spy("migrate-set-parameters", {"max-bandwidth": BANDWIDTH})
            qemu.spy("migrate", {"uri": f"exec:cat > {self._state}"})
            qemu.await_event("STOP", timeout_s=BOOT_TIMEOUT_S)
            self._await_migrated(qemu)
        self.start()
        return time.monotonic() - started_s

    def start(self) -> float:
        """Continue the saved state on the present images until every disk is written; return the seconds it took."""
        started_s = time.monotonic()
        proxy = Qemu.proxy_for(self.directory, log=self.transcript)
        incoming = ["-incoming", f"exec:cat {self._state}"]
        self.qemu = self.guest.qemu(self.directory, self._disks(), extra=incoming, proxy=proxy).start()
        self.judge = self.guest.judge(self.qemu)
        before = self.acks()
        self._await_migrated(self.qemu)
        self.guest.release(self.qemu)
        self.await_acks(before)
        return time.monotonic() - started_s

    def stop(self) -> None:
        """End the present life."""
        self.qemu.stop()

    @property
    def transcript(self) -> Path:
        """Every message of pivotd's monitor."""
        return self.directory / "messages.jsonl"

    def acks(self) -> dict[str, int]:
        """Return the last acknowledged number of each disk."""
        return {name: self.judge.last_ack(name) for name in self.names}

    def await_acks(self, before: dict[str, int]) -> None:
        """Wait until every disk has a later acknowledged write."""
        for name, number in before.items():
            self.judge.await_acks(name, more_than=number, timeout_s=ACK_TIMEOUT_S)

    def roots(self) -> dict[str, str]:
        """Return the image that QEMU uses for each disk."""
        return {name: root_path(self.qemu, name) for name in self.names}

    def chains(self) -> dict[str, list[str]]:
        """Return the layers of each disk's present image, the active one first."""
        return {name: chain_of(image) for name, image in zip(self.names, self.images, strict=True)}

    def sweep(self) -> None:
        """Delete the images that no disk has in its chain any more."""
        used = {Path(layer) for chain in self.chains().values() for layer in chain}
        for image in set(self.directory.glob("disk*-*.qcow2")) - used:
            image.unlink()

    def missing(self, images: dict[str, str]) -> dict[str, list[int]]:
        """Return the acknowledged numbers that images lack, by image; QEMU must have ended."""
        found = {image: self.judge.check_image(Path(image), "qcow2", name) for name, image in images.items()}
        return {image: numbers for image, numbers in found.items() if numbers}

    def keep(self, target: Path) -> None:
        """Copy everything that tells what happened."""
        shutil.copytree(
            self.directory, target, ignore=shutil.ignore_patterns("*.qmp", "*.sock", "*.release", "*.state")
        )

    def _disks(self) -> list[Disk]:
        return [Disk(image) for image in self.images]

    @staticmethod
    def _await_migrated(qemu: Qemu) -> None:
        deadline_s = time.monotonic() + BOOT_TIMEOUT_S
        while qemu.spy("query-migrate").get("status") != "completed" or qemu.run_state() == "inmigrate":
            assert time.monotonic() < deadline_s, f"migration: {qemu.spy('query-migrate')}"
            time.sleep(POLL_S)


def chain_of(image: Path) -> list[str]:
    """Return the file names of an image and of all that it is backed by."""
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", str(image)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [str(layer["filename"]) for layer in json.loads(shown)]


class Restarter:
    """Keeps a pivotd running: each end is followed by a start, with no delay."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.starts = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="restarter", daemon=True)

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.daemon.start()
        self.starts = 1
        self._thread.start()

    def kill(self) -> None:
        """SIGKILL the present process."""
        self.daemon.kill()

    def freeze(self, seconds: float) -> None:
        """Stop the present process for a while."""
        freeze(self.daemon.pid, seconds)

    def stop(self) -> None:
        """End it for good."""
        self._stopping = True
        self.daemon.kill()
        if self._thread.ident is not None:
            self._thread.join(30)

    def _run(self) -> None:
        while True:
            self.daemon.wait()
            if self._stopping:
                return
            self.daemon.start(wait=False)
            self.starts += 1


def freeze(pid: int, seconds: float) -> None:
    """SIGSTOP a child, and SIGCONT after so many seconds."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


class Requester:
    """A client that asks for one pivot, and again with the same id until it has an answer."""

    def __init__(
        self, daemon: Daemon, request_id: str, kind: str, disks: Sequence[dict[str, str]], **options: Any
    ) -> None:
        self.answer: Any = None
        self._daemon, self._request_id = daemon, request_id
        self._path, self._body = f"/v1/domains/web1/{kind}", {"disks": disks, **options}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requester", daemon=True)
        self._thread.start()

    def abandon(self) -> None:
        """Stop asking, without a wait for a pivotd that may hang."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop asking, and wait until no request is under way."""
        self.abandon()
        self._thread.join(60)

    def await_answer(self, timeout_s: float) -> Any:
        """Return the pivot or the error that was answered, None if there was no answer in time."""
        self._thread.join(timeout_s)
        return self.answer

    def _run(self) -> None:
        while self.answer is None and not self._stopping.is_set():
            self.answer = try_call(
                self._daemon, "POST", self._path, self._body, **{"Idempotency-Key": self._request_id}
            )
            if self.answer is not None and "phase" not in self.answer and self._again(self.answer):
                self.answer = None
            self._stopping.wait(POLL_S)

    @staticmethod
    def _again(answer: Any) -> bool:
        """Return whether the refusal passes by itself: QEMU has not been reached yet."""
        return answer.get("kind", answer.get("error", {}).get("kind")) in {"domain-unreachable", "qmp-unknown"}


def longest(events: Sequence[dict[str, Any]]) -> float:
    """Return the milliseconds of the longest time between STOP and RESUME among QEMU's events."""
    stopped = None
    worst = 0.0
    for event in events:
        at = event["timestamp"]["seconds"] * 1000 + event["timestamp"]["microseconds"] / 1000
        if event["event"] == "STOP":
            stopped = at
        elif event["event"] == "RESUME" and stopped is not None:
            worst, stopped = max(worst, at - stopped), None
    return worst
