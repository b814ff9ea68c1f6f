"""What runs on the host that loses its power: pivot after pivot under a guest that writes; after the cut, the judgement.

Words on the first serial port, one per line:

    READY                     everything runs, the first pivot may begin
    SAW event                 QEMU has shown it: STOP, RESUME, or the status of a mirror
    PIVOT id outcome          a pivot has closed
    REPORT json               after the cut: everything that the judge outside needs
    FAILED why

The guest's own words (ACK) go to the second serial port, past this program.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon
from tests.support.qemu import Disk, Qemu, create_image
from tests.support.qmp_spy import Spy
from tests.support.tiny_guest import CPU, read_slots

IMAGES = Path("/images")
STATE = Path("/var/lib/pivotd/state")
RUN = Path("/run/web1")
FIRMWARE = "/opt/tiny_guest-{disks}.bin"
GUEST_SERIAL = "/dev/ttyS1"
SLOW_S = 300.0
"""Two QEMUs, one inside the other, both without hardware virtualization."""
MAX_PAUSE_MS = 60_000
DAEMON = [sys.executable, "-m", "pivotd.daemon"]
CTL = [sys.executable, "-m", "pivotd.cli.main"]

_speaking = threading.Lock()


def say(line: str) -> None:
    """Write one line to the console at once and whole."""
    with _speaking:
        os.write(1, f"{line}\n".encode())


def kernel_words() -> dict[str, str]:
    """Return the words of the kernel's command line that are ours."""
    words = Path("/proc/cmdline").read_text().split()
    return dict(word.removeprefix("pivotd.").split("=", 1) for word in words if word.startswith("pivotd."))


# -- before the cut -----------------------------------------------------------------------------------------------


def run(disks: int) -> None:
    """Start everything, then move the disks on and on until the power goes."""
    names = [f"disk{index}" for index in range(disks)]
    first = {name: create_image(IMAGES / f"{name}-0.qcow2") for name in names}
    extra = ["-cpu", CPU, "-bios", FIRMWARE.format(disks=disks)]
    extra += ["-chardev", f"serial,id=serial,path={GUEST_SERIAL}", "-serial", "chardev:serial"]
    extra += [
        "-chardev",
        f"socket,id=watch,path={RUN}/watch.qmp,server=on,wait=off",
        "-mon",
        "chardev=watch,mode=control",
    ]
    drives = [Disk(image, bus="ide", cache="writeback") for image in first.values()]
    with (
        Qemu(RUN, drives, machine="pc", memory_mib=16, extra=extra) as qemu,
        daemon({"web1": qemu.qmp}) as pivotd,
    ):
        threading.Thread(target=watch, args=(RUN / "watch.qmp",), daemon=True).start()
        say("READY")
        before = first
        for number in itertools.count(1):
            after = {name: IMAGES / f"{name}-{number}.qcow2" for name in names}
            outcome = move(pivotd, after)
            # As an operator would: the image that does not count any more is removed as soon as that is told.
            loser, before = (before, after) if outcome == "switched" else (after, before)
            for image in loser.values():
                image.unlink(missing_ok=True)


def watch(path: Path) -> None:
    """Say each event that tells how far a pivot is."""
    spy = Spy(path, timeout_s=SLOW_S)
    while True:
        event = spy.next_event()
        data = event.get("data", {})
        if event["event"] in {"STOP", "RESUME"}:
            say(f"SAW {event['event']}")
        elif event["event"] == "JOB_STATUS_CHANGE":
            say(f"SAW {data['id'].rpartition('-')[2]}:{data['status']}")


def move(pivotd: Daemon, targets: dict[str, Path]) -> str:
    """Copy the disks to new images, and return the outcome once the pivot is closed."""
    body = {
        "disks": [{"disk": name, "image": str(path)} for name, path in targets.items()],
        "max_pause_ms": MAX_PAUSE_MS,
    }
    deadline_s = time.monotonic() + SLOW_S
    while True:
        try:
            pivot = call(pivotd.socket, "POST", "/v1/domains/web1/copy", body)
            break
        except RuntimeError as error:  # on a busy host, the disk of this one takes seconds for a look
            if "does not answer: try again" not in str(error) or time.monotonic() > deadline_s:
                raise
    while pivot["phase"] != "closed":
        pivot = call(pivotd.socket, "GET", f"/v1/pivots/{pivot['id']}/wait?timeout_s=60")
    say(f"PIVOT {pivot['id']} {pivot['outcome']}")
    return str(pivot["outcome"])


def call(path: Path, method: str, url: str, body: Any = None) -> Any:
    """Ask the daemon. Raises: RuntimeError: it said no."""
    connection = http.client.HTTPConnection("localhost", timeout=SLOW_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(SLOW_S)
    connection.sock.connect(str(path))
    try:
        connection.request(method, url, body and json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        document = json.loads(answer.read() or b"null")
    finally:
        connection.close()
    if answer.status >= 400:
        raise RuntimeError(f"{method} {url}: {answer.status} {document}")
    return document


@contextlib.contextmanager
def daemon(domains: dict[str, Path]) -> Iterator[Daemon]:
    """Run pivotd with its journal on the disk, everything else in memory."""
    found = Daemon(RUN, domains, command=DAEMON)
    found.state_dir.rmdir()
    STATE.mkdir(parents=True, exist_ok=True)
    found.state_dir.symlink_to(STATE)
    try:
        found.start(wait=False)
        found.await_ready(timeout_s=SLOW_S)
        yield found
    finally:
        found.kill()


# -- after the cut ------------------------------------------------------------------------------------------------


def check() -> None:
    """Say what is on the disk after the cut: the verdict of the journal alone, then that of a recovering pivotd."""
    report: dict[str, Any] = {"files": sorted(path.name for path in IMAGES.iterdir())}
    report["offline"] = ctl("--offline", str(STATE), "verdict")
    report["pivots"] = ctl("--offline", str(STATE), "pivot", "ls")
    report["integrity"] = integrity()
    report["images"] = {path.name: judged(path) for path in IMAGES.iterdir()}
    with daemon({"web1": RUN / "nobody.qmp"}) as pivotd:
        for pivot in call(pivotd.socket, "GET", "/v1/pivots?open=true"):
            call(pivotd.socket, "GET", f"/v1/pivots/{pivot['id']}/wait?timeout_s=60")
        report["recovered"] = call(pivotd.socket, "GET", "/v1/verdicts")
        report["open"] = [pivot["id"] for pivot in call(pivotd.socket, "GET", "/v1/pivots?open=true")]
    say(f"REPORT {json.dumps(report)}")


def ctl(*arguments: str) -> Any:
    """Return the answer of pivotctl, or what went wrong."""
    done = subprocess.run([*CTL, "--json", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"status": done.returncode, "stderr": done.stderr[-500:], "stdout": done.stdout[-2000:]}
    return json.loads(done.stdout)


def integrity() -> str:
    """Return SQLite's word on a copy of the journal, which keeps the original for pivotd."""
    if not (STATE / "journal.db").exists():
        return "absent"
    copy = RUN / "copy"
    shutil.copytree(STATE, copy)
    connection = sqlite3.connect(copy / "journal.db")
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


def judged(path: Path) -> dict[str, Any]:
    """Return what qemu-img says of an image, and the number in each slot."""
    checked = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", str(path)], capture_output=True, text=True, check=False
    )
    try:
        slots = read_slots(path, "qcow2")
    except subprocess.CalledProcessError:
        slots = None
    said = (checked.stdout + checked.stderr)[-300:]
    return {"status": checked.returncode, "said": said, "slots": slots, "bytes": path.stat().st_size}


def main() -> None:
    """Do what the kernel's command line asks for."""
    words = kernel_words()
    RUN.mkdir(parents=True, exist_ok=True)
    if words["mode"] == "run":
        run(int(words["disks"]))
    else:
        check()


if __name__ == "__main__":
    main()
