#!/usr/bin/python3 -I
"""What vm@.service does for one guest: find its images, check them, start QEMU on them, shut the guest down.

    vm-guest images|guard|run|stop NAME

The environment has the definition of the guest (see vm.conf) and, but for ``images``, what ``images`` has written. The
exit status of ``images`` and ``guard`` is that of pivotctl.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PIVOTCTL = "/opt/pivotd/bin/pivotctl"
QEMU = "qemu-system-x86_64"
RUN = Path("/run/vm")
MONITORS = Path("/run/qemu")
QUIT_S = 30.0
"""For QEMU to write what it holds, and to end."""


class GuestError(Exception):
    """One line for a person, and the exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def first_images() -> dict[str, str]:
    """Return the image that each disk was created with. Raises: GuestError."""
    found: dict[str, str] = {}
    try:
        words = shlex.split(os.environ.get("VM_DISKS", ""))
    except ValueError as error:
        raise GuestError(f"VM_DISKS: {error}; write DISK=IMAGE, with quotes around blanks") from None
    for word in words:
        disk, separator, image = word.partition("=")
        if not (disk and separator and image) or disk in found:
            raise GuestError(f"VM_DISKS: {word}: write DISK=IMAGE, each disk once, like disk0=/images/web1.qcow2")
        found[disk] = image
    if not found:
        raise GuestError("VM_DISKS names no disk; write it into /etc/vm/NAME.conf, like disk0=/images/web1.qcow2")
    return found


def current_images() -> dict[str, tuple[str, str]]:
    """Return image and format of each disk, as written by write_images(). Raises: GuestError."""
    found = {}
    for disk in first_images():
        name = re.sub(r"[^A-Z0-9]", "_", disk.upper())
        name = f"_{name}" if name[:1].isdigit() else name
        image, image_format = os.environ.get(name), os.environ.get(f"{name}_FORMAT")
        if not (image and image_format):
            raise GuestError(f"{RUN} has no image for {disk}: run `vm-guest images` first")
        found[disk] = (image, image_format)
    return found


def write_images(name: str) -> int:
    """Ask pivotctl for the images and write them to /run/vm/NAME.env: the whole file, or none and its exit status."""
    target = RUN / f"{name}.env"
    target.unlink(missing_ok=True)
    defaults = [f"--default={disk}={image}" for disk, image in first_images().items()]
    options = ["--all", f"--default-format={os.environ.get('VM_FORMAT', 'qcow2')}", *defaults]
    done = subprocess.run([PIVOTCTL, "image", *options, "--", name], stdout=subprocess.PIPE, check=False)
    if done.returncode == 0:
        new = target.with_name(f".{target.name}.{os.getpid()}")
        new.write_bytes(done.stdout)
        new.rename(target)
    return done.returncode


def guard(name: str) -> int:
    """Return 0 if these are the images to start the guest with; else pivotctl says on one line which are."""
    images = [f"{disk}={image}" for disk, (image, _) in current_images().items()]
    return subprocess.run([PIVOTCTL, "guard", "--", name, *images], check=False).returncode


def command(name: str) -> list[str]:
    """Return the command that starts QEMU: a monitor for pivotd alone, one for people, one for stop()."""
    words = [QEMU, "-name", f"guest={name}", "-no-user-config", "-nodefaults"]
    for monitor, path in (("pivotd", MONITORS / f"{name}.qmp"), ("people", RUN / f"{name}.qmp"), ("stop", _stop(name))):
        words += ["-chardev", f"socket,id={monitor},path={path},server=on,wait=off"]
        words += ["-mon", f"chardev={monitor},mode=control"]
    device = os.environ.get("VM_DEVICE", "virtio-blk-pci")
    for number, (disk, (image, image_format)) in enumerate(current_images().items()):
        escaped = image.replace(",", ",,")
        words += ["-drive", f"if=none,id=drive-{disk},file={escaped},format={image_format},cache=none,discard=unmap"]
        words += ["-device", f"{device.replace('{n}', str(number))},id={disk},drive=drive-{disk}"]
    return words + shlex.split(os.environ.get("VM_OPTIONS", ""))


def run(name: str) -> int:
    """Become QEMU."""
    words = command(name)
    try:
        os.execvp(words[0], words)
    except OSError as error:
        raise GuestError(f"{words[0]} cannot be started: {error.strerror}", 1) from None


def stop(name: str) -> int:
    """Press the guest's power button and wait until QEMU has ended; after VM_STOP_S seconds, tell QEMU to end."""
    patience_s = float(os.environ.get("VM_STOP_S", "60"))
    with socket.socket(socket.AF_UNIX) as monitor:
        try:
            monitor.connect(str(_stop(name)))
        except OSError:
            return 0  # there is no QEMU; were there one, systemd would send it SIGTERM now, which is `quit`
        with contextlib.suppress(OSError):
            monitor.sendall(_words("qmp_capabilities", "system_powerdown"))
            if not _ends(monitor, patience_s):
                print(f"{name}: still running {patience_s:g} s after its power button was pressed: QEMU is told to end")
                monitor.sendall(_words("quit"))
                _ends(monitor, QUIT_S)
    return 0


def _words(*commands: str) -> bytes:
    return b"".join(json.dumps({"execute": one}).encode() + b"\n" for one in commands)


def _ends(monitor: socket.socket, timeout_s: float) -> bool:
    """Return whether QEMU closes its monitor, as it does when it ends, within so many seconds."""
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        monitor.settimeout(left_s)
        try:
            if not monitor.recv(1 << 16):
                return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True
    return False


def _stop(name: str) -> Path:
    return RUN / f"{name}.stop"


DOES: dict[str, Callable[[str], int]] = {"images": write_images, "guard": guard, "run": run, "stop": stop}


def main() -> int:
    """Do one thing for one guest; return the exit status."""
    if len(sys.argv) != 3 or sys.argv[1] not in DOES:
        print("usage: vm-guest images|guard|run|stop NAME", file=sys.stderr)
        return 2
    try:
        return DOES[sys.argv[1]](sys.argv[2])
    except (GuestError, OSError) as error:
        print(f"vm-guest: {sys.argv[2]}: {error}", file=sys.stderr)
        return error.status if isinstance(error, GuestError) else 1


if __name__ == "__main__":
    sys.exit(main())
