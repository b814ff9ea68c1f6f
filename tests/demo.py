"""A running guest moves from image to image, and pivotd is killed at the worst moments: watched and checked.

``make demo`` runs it with a real QEMU, a real guest kernel and real SIGKILLs. Exits 1 if any check fails.
"""
# ruff: noqa: T201 - a demonstration speaks

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.daemon import Answer, Daemon, _program
from tests.support.guest import Guest, GuestJudge
from tests.support.guest_assets import build
from tests.support.proxy import KillAt, When
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.teller import Teller

SIZE = "256M"
ACKS_AFTER = 25
STRIKE_TIMEOUT_S = 30.0
DECISIVE = "return:job-finalize"
"""QEMU has moved the disk; pivotd does not know yet, and its journal does not say so."""


class Demo(Teller):
    """One guest, one pivotd, and the checks made on them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__()
        self.directory, self._stack = directory, stack
        self.guest = Guest(build())
        self.daemon = Daemon(directory, {"web1": directory / "web1.qmp"})
        self.qemu: Qemu
        self.judge: GuestJudge
        stack.callback(self.daemon.kill)

    def boot(self, image: Path) -> None:
        """Start the guest on this image, behind a proxy, and wait until it writes."""
        proxy = Qemu.proxy_for(self.directory, log=self.directory / "messages.jsonl")
        self.qemu = self.guest.qemu(self.directory, [Disk(image)], proxy=proxy)
        self._stack.enter_context(self.qemu)
        self.judge = self.guest.judge(self.qemu)
        before = self.judge.last_ack()
        begun_s = time.monotonic()
        self.judge.await_acks(more_than=before)
        self.tell(f"a Linux guest writes numbered blocks to {image.name}; booted in {time.monotonic() - begun_s:.1f} s")

    def copy(self, target: Path, *options: str) -> Answer:
        return self.daemon.ctl("copy", "web1", f"disk0={target}", *options)

    def verdict(self, *, offline: bool = False) -> dict[str, Any]:
        answer = self.daemon.ctl("verdict", "web1", "disk0", offline=offline)
        if not answer.json or "image" not in answer.json:
            raise RuntimeError(f"pivotctl verdict gave no verdict (status {answer.status}): {_said(answer)}")
        return dict(answer.json)

    def check_verdict(self, image: Path, *, offline: bool = False) -> dict[str, Any]:
        verdict = self.verdict(offline=offline)
        held = verdict["image"] is not None and Path(verdict["image"]) == image and verdict["certain"]
        self.check(f"the verdict is {image.name}, and certain", held, f"{verdict['outcome']}: {verdict['reason']}")
        return verdict

    def check_goes_on(self) -> None:
        before = self.judge.last_ack()
        last = self.judge.await_acks(more_than=before + ACKS_AFTER)
        self.check("the guest goes on writing", last > before, f"block {before} -> {last}")

    def check_complete(self, image: Path) -> None:
        missing = self.judge.check_image(image, "qcow2")
        claim = f"{image.name} holds every write that the guest was told is on disk"
        self.check(claim, not missing, f"last is {self.judge.last_ack()}, missing {missing or 'none'}")

    def strike(self, target: Path, pids: Callable[[], list[int]]) -> KillAt:
        """Copy, and kill these processes in the middle of the pause."""
        assert self.qemu.proxy is not None
        hook = self.qemu.proxy.on_message = KillAt(pids, When.BEFORE, DECISIVE)
        answer = self.copy(target, "--detach")
        if answer.status != 0 or not hook.struck.wait(STRIKE_TIMEOUT_S):
            raise RuntimeError(f"the copy did not come to its pause (status {answer.status}): {_said(answer)}")
        return hook


def _said(answer: Answer) -> str:
    return (answer.stderr or answer.stdout).strip() or "nothing"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain_copy(demo: Demo, source: Path, target: Path) -> None:
    demo.chapter(f"1. A copy while the guest writes: {source.name} -> {target.name}")
    demo.boot(source)
    demo.daemon.start()
    answer = demo.copy(target)
    demo.check("pivotctl copy ends with status 0", answer.status == 0, _said(answer) if answer.status else "")
    digest = _digest(source)
    verdict = demo.check_verdict(target)
    demo.check("the outcome is switched", verdict["outcome"] == "switched", verdict["outcome"])
    shown = demo.daemon.ctl("pivot", "show", str(verdict["pivot"])).json or {}
    pause_ms = shown.get("pause_ms")
    demo.check("the pause was measured, and below 500 ms", pause_ms and pause_ms < 500, f"{pause_ms} ms")
    demo.check("QEMU uses the new image", demo.qemu.root().filename == str(target))
    demo.check_goes_on()
    demo.check("the old image is untouched since the switch", _digest(source) == digest)
    files = {node["file"] for node in demo.qemu.nodes().values()}
    demo.check("no job and no node of the old image is left", not demo.qemu.jobs() and files == {str(target)})


def _kill_pivotd(demo: Demo, target: Path) -> None:
    demo.chapter(f"2. pivotd is killed in the middle of the pause: -> {target.name}")
    hook = demo.strike(target, lambda: [demo.daemon.pid])
    demo.tell("SIGKILL hit pivotd after QEMU had moved the disk and before pivotd heard of it")
    state, root = demo.qemu.run_state(), demo.qemu.root().filename
    demo.check("nobody resumed the guest behind its back", state == "paused", state)
    demo.qemu.spy_events()
    demo.daemon.start(wait=False)
    demo.qemu.await_event("RESUME")
    outage_ms = (time.monotonic() - hook.at_s) * 1000
    demo.check("the restarted pivotd made the guest run", demo.qemu.run_state() == "running")
    demo.tell(f"from the kill to the running guest: {outage_ms:.0f} ms")
    demo.daemon.await_ready()
    verdict = demo.verdict()
    demo.daemon.ctl("pivot", "wait", str(verdict["pivot"]))
    demo.check_verdict(Path(demo.qemu.root().filename))
    demo.check("QEMU still uses the image it had moved to", demo.qemu.root().filename == root == str(target))
    demo.check_goes_on()


def _kill_both_in_pause(demo: Demo, source: Path, target: Path) -> None:
    demo.chapter(f"3. pivotd and QEMU are killed in the same pause: {source.name} -> {target.name}")
    demo.strike(target, lambda: [demo.daemon.pid, demo.qemu.pid])
    demo.qemu.stop()
    demo.tell("both are dead; the journal says nothing of a switch, so it has to be the source")
    demo.check_verdict(source, offline=True)
    demo.check_complete(source)


def _next_boot(demo: Demo, right: Path, wrong: Path) -> None:
    demo.chapter("4. As if the host had died: a script starts the guest again, pivotd is still dead")
    line = f'image="$({_program("pivotctl")} --offline {demo.daemon.state_dir} image web1 disk0)"'
    demo.tell('the script says: image="$(pivotctl --offline STATE_DIR image web1 disk0)"')
    done = subprocess.run(["sh", "-c", f'{line} && echo "$image"'], capture_output=True, text=True, check=False)
    image = Path(done.stdout.strip())
    demo.check("it gets the right image", image == right, image.name or done.stderr.strip())
    refused = demo.daemon.ctl("guard", "web1", f"disk0={wrong}", offline=True)
    demo.check("pivotctl guard refuses the other one", refused.status == 4, f"status {refused.status}")
    demo.boot(image)
    demo.check_goes_on()


def _kill_both_after(demo: Demo, source: Path, target: Path) -> None:
    demo.chapter(f"5. The guest is moved, and both are killed: {source.name} -> {target.name}")
    demo.daemon.start()
    demo.daemon.ctl("pivot", "wait", str(demo.verdict()["pivot"]))
    demo.check("the restarted pivotd ends the broken pivot as kept", demo.verdict()["outcome"] == "kept")
    answer = demo.copy(target)
    demo.check("pivotctl copy ends with status 0", answer.status == 0, _said(answer) if answer.status else "")
    demo.check_goes_on()
    demo.daemon.kill()
    demo.qemu.kill()
    verdict = demo.check_verdict(target, offline=True)
    demo.check_complete(target)
    demo.check("the judge can tell: the old image lacks writes", demo.judge.check_image(source, "qcow2"))
    for line in verdict["evidence"]:
        demo.tell(f"evidence: {line}")


def main() -> int:
    """Run all chapters; return the exit status."""
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pivotd-demo-") as name, ExitStack() as stack:
        directory = Path(name)
        images = [directory / f"{letter}.qcow2" for letter in "ABCDE"]
        create_image(images[0], size=SIZE)
        demo = Demo(directory, stack)
        try:
            _plain_copy(demo, images[0], images[1])
            _kill_pivotd(demo, images[2])
            _kill_both_in_pause(demo, images[2], images[3])
            _next_boot(demo, images[2], images[3])
            _kill_both_after(demo, images[2], images[4])
        except (AssertionError, RuntimeError, OSError, TimeoutError) as error:
            demo.check("the demonstration runs to its end", held=False, seen=error)
            log = demo.daemon.log_path
            print(log.read_text(errors="replace")[-3000:] if log.exists() else "", file=sys.stderr)
    print(f"\n{f'{demo.failed} failed' if demo.failed else 'every check is ok'}; {time.monotonic() - begun_s:.0f} s")
    return 1 if demo.failed else 0


if __name__ == "__main__":
    sys.exit(main())
