"""A libvirt of one user, not of the system: pivotd finds its files where libvirt has them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.libvirt.libvirtd import end_process, missing
from tests.support.qemu import create_image

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]
USER = "nobody"
WAIT_S = 60.0
DOMAIN = """
<domain type='qemu'><name>web1</name><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os><devices>
<emulator>{emulator}</emulator><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{image}'/><target dev='vda' bus='virtio'/></disk></devices></domain>
"""
LOOK = """
import asyncio, os, sys
from pivotd.libvirt.domain_session import LibvirtSession
from pivotd.libvirt.line import Line
def everywhere():
    print("the whole host is written", flush=True)
    os._exit(1)
os.sync = everywhere
async def look(uri):
    line = Line("web1")
    session = await LibvirtSession.open(uri, "web1", line)
    facts = await session.intent_facts()
    print(session.pid, facts["uuid"] in facts.get("status_file", ""), flush=True)
    os._exit(0)
asyncio.run(look(sys.argv[1]))
"""
"""What a pivotd does before its pause, as this user: find the QEMU, and make the definition durable."""


class Session(NamedTuple):
    """A user's libvirtd with a running domain: its environment, its directory of sockets, and the pid of QEMU."""

    environment: dict[str, str]
    run: Path
    qemu: int


@pytest.fixture(params=[True, False], ids=["runtime directory", "none"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """One of a user without a password entry's home; it ends with its domain."""
    if (why := missing()) is not None:
        pytest.skip(why)
    directory = Path(tempfile.mkdtemp(prefix="lvs"))  # short: it is part of paths of sockets
    uid = pwd.getpwnam(USER).pw_uid
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory / "home")}
    run = directory / "home/.cache/libvirt"
    if request.param:
        environment["XDG_RUNTIME_DIR"], run = str(directory / "run"), directory / "run/libvirt"
    image = create_image(directory / "vda.qcow2")
    for name in ("home", "run"):
        (directory / name).mkdir(mode=0o700)
    for path in (directory, *directory.iterdir()):
        os.chown(path, uid, -1)
    definition = directory / "web1.xml"
    definition.write_text(DOMAIN.format(emulator=shutil.which("qemu-system-x86_64"), image=image))
    libvirtd = subprocess.Popen(
        [*as_user(), "libvirtd", "--timeout", "120"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    virsh = ["virsh", "-q", "-c", f"qemu+unix:///session?socket={run}/libvirt-sock"]
    try:
        deadline_s = time.monotonic() + WAIT_S
        while subprocess.run([*virsh, "define", definition], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline_s, "libvirtd does not answer"
            time.sleep(0.05)
        subprocess.run([*virsh, "start", "web1"], check=True, capture_output=True)
        yield Session(environment, run, int((run / "qemu/run/web1.pid").read_text()))
        subprocess.run([*virsh, "destroy", "web1"], check=True, capture_output=True)
    finally:
        libvirtd.kill()
        libvirtd.wait()
        with suppress(OSError):  # libvirtd starts it, and leaves it
            end_process(int((run / "virtlogd.pid").read_text()), signal.SIGTERM)
        shutil.rmtree(directory)


def as_user() -> list[str]:
    return ["setpriv", "--reuid", USER, "--regid", "nogroup", "--clear-groups"]


@pytest.mark.thinned(2)
def test_the_files_of_a_users_libvirt_are_found(session: Session):
    """By the plain address, and by its socket, in the environment of that user."""
    for uri in ("qemu:///session", f"qemu+unix:///session?socket={session.run}/libvirt-sock"):
        done = subprocess.run(
            [*as_user(), sys.executable, "-c", LOOK, uri], env=session.environment, capture_output=True, text=True,
            check=False, timeout=60, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert (done.stdout, done.returncode) == (f"{session.qemu} True\n", 0), done


@pytest.mark.thinned(2)
def test_a_libvirt_of_another_user_is_found_by_its_socket(session: Session):
    """The definitions are in that user's home, by the table of users; where they are not, everything is written."""
    uri = f"qemu+unix:///session?socket={session.run}/libvirt-sock"
    done = subprocess.run(
        [sys.executable, "-c", LOOK, uri], capture_output=True, text=True, check=False, timeout=60,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("the whole host is written\n", 1), done
