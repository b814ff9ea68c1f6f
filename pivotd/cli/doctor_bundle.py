"""`pivotctl doctor --bundle`: what a support request needs, without secrets, in one new file that only its owner reads.

In: the findings, versions, configuration and units with their drop-ins, the log, what the daemon shows, the journal.
Never in: passphrases, keys, password files, command lines of QEMUs, data of images.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from pivotd import __version__, limits
from pivotd.cli import doctor_units, redaction
from pivotd.cli.complaints import UnusableFileError
from pivotd.cli.context import App
from pivotd.client.transport import Transport
from pivotd.errors import ClientError
from pivotd.host import libvirt_hooks

if TYPE_CHECKING:
    from pivotd.cli.doctor_command import Examined

FILE_BYTES_MAX = 8 << 20
"""Of each file of text: the end of it."""
LOG_LINES = 5000
DOMAINS_MAX = 100
REQUEST_S = 10.0
REQUESTS_S = 60.0
"""For all questions to the daemon together."""
WORDS = f"""\
What `pivotctl doctor --bundle` of pivotd {__version__} has gathered on this host.

Names of guests, hosts, users and images are in it, and the log. Left out are passphrases, keys, password and token
files, command lines of QEMUs and data of images; what looks like a secret elsewhere is replaced by {redaction.GONE}.
Read it before you send it: nobody knows all secrets by their looks.

"""


@contextlib.contextmanager
def new_file(path: str) -> Iterator[IO[bytes]]:
    """Create a file that only this user can read, and remove it again if it does not get whole.

    Raises: UnusableFileError: there is one of this name, or none can be made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise UnusableFileError(
            f"{path} is there already, and is not overwritten: name a new file", path=path
        ) from None
    except OSError as error:
        raise UnusableFileError.of(error) from None
    os.fchmod(descriptor, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
        try:
            yield file
            file.flush()
            os.fsync(descriptor)
        except BaseException as error:
            os.unlink(path)  # noqa: PTH108
            if isinstance(error, OSError):
                raise UnusableFileError(f"{path} cannot be written: {error.strerror}", path=path) from None
            raise


@dataclass(slots=True)
class _Bundle:
    """The archive as it grows, and a line for each thing that is in it or was left out."""

    archive: tarfile.TarFile
    names: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, text: str, what: str) -> None:
        """Add a text without its secrets; of one that is too long, its end."""
        content = redaction.clean(text).encode(errors="backslashreplace")
        cut = f", the last {FILE_BYTES_MAX >> 20} MiB of it" if len(content) > FILE_BYTES_MAX else ""
        self.add_bytes(name, content[-FILE_BYTES_MAX:], f"{what}{cut}")

    def add_bytes(self, name: str, content: bytes, what: str) -> None:
        """Add a file as it is."""
        info = tarfile.TarInfo(f"pivotd-doctor/{name}")
        info.size, info.mode, info.mtime = len(content), 0o600, int(time.time())
        self.archive.addfile(info, io.BytesIO(content))
        self.names.append(name)
        self.lines.append(f"{name}: {what}")

    def leave_out(self, name: str, why: str) -> None:
        """Say that something is not in it."""
        self.lines.append(f"{name}: LEFT OUT: {redaction.clean(' '.join(why.split()))}")

    def gather(self, name: str, what: str, make: Callable[[], str]) -> None:
        """Add what a function returns, or say why it cannot be had."""
        try:
            text = make()
        except (OSError, ValueError, ClientError, subprocess.SubprocessError) as error:
            self.leave_out(name, str(error))
        else:
            self.add(name, text, what)


def write(file: IO[bytes], app: App, examined: Examined, document: dict[str, Any]) -> list[str]:
    """Write the archive; return the names of what is in it."""
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        bundle = _Bundle(archive)
        bundle.add("doctor.json", _json(document), "what `pivotctl doctor` has found")
        bundle.gather("versions.json", "releases of everything that takes part", lambda: _json(_versions()))
        bundle.gather("host.txt", "kernel, distribution, load, mounts", _host)
        _configuration(bundle, examined)
        _units(bundle, examined)
        bundle.gather("libvirt-hooks.txt", "files below /etc/libvirt/hooks: mode, owner, sum", _hooks)
        if examined.health is not None:
            _daemon(bundle, app.socket)
        else:
            bundle.leave_out("daemon/", "the daemon was not asked, or did not answer")
        _journal(bundle, examined.journal)
        names = [*bundle.names, "contents.txt"]
        bundle.add("contents.txt", WORDS + "\n".join([*bundle.lines, "contents.txt: this list", ""]), "this list")
    return names


def _json(value: Any) -> str:
    return json.dumps(msgspec.to_builtins(value), indent=2) + "\n"


def _versions() -> dict[str, Any]:
    needed = [line.split(";")[0].split("==")[0].split(">=")[0].strip() for line in metadata.requires("pivotd") or ()]
    return {
        "pivotctl": __version__,
        "python": sys.version,
        "program": sys.executable,
        "sqlite": sqlite3.sqlite_version,
        "kernel": list(platform.uname()),
        "libraries": {name: metadata.version(name) for name in needed},
        "systemd": _first(["systemctl", "--version"]),
        "qemu": _first(["qemu-system-x86_64", "--version"]),
        "libvirt": _first(["libvirtd", "--version"]),
    }


def _first(command: list[str]) -> str | None:
    """Return the first line that a program says, None if it cannot be asked."""
    try:
        said = _run(command)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(said.splitlines()), None)


def _run(command: list[str]) -> str:
    done = subprocess.run(  # noqa: S603 - constants of ours
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limits.DOCTOR_COMMAND_S, check=False,
        env=doctor_units.plain(),
    )  # fmt: skip
    return (done.stdout + done.stderr).decode(errors="backslashreplace")


def _host() -> str:
    parts = []
    for name in ("/etc/os-release", "/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/self/mountinfo"):
        with contextlib.suppress(OSError):
            parts.append(f"== {name}\n{Path(name).read_text(errors='backslashreplace')}")
    return "\n".join(parts)


def _hooks() -> str:
    place = Path("/") / libvirt_hooks.HOOKS
    lines = []
    for path in sorted(place.rglob("*")):
        seen = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "-"
        lines.append(f"{seen.st_mode & 0o7777:04o} {seen.st_uid}:{seen.st_gid} {digest} {path}")
    return "\n".join([*lines, ""]) if lines else f"there is no {place}\n"


def _configuration(bundle: _Bundle, examined: Examined) -> None:
    path = examined.config_path
    directory = path.with_name(path.name + ".d")
    files = [path]
    with contextlib.suppress(OSError):
        files += sorted(entry for entry in directory.iterdir() if entry.is_file())
    for file in files:
        name = f"configuration/{str(file).lstrip('/').replace('/', '_')}"
        if file != path and file.suffix != ".toml":
            bundle.leave_out(f"{name} (no drop-in)", "pivotd does not read it, and it may be a file with a password")
            continue
        bundle.gather(name, str(file), lambda file=file: file.read_text(errors="backslashreplace"))  # type: ignore[misc]


def _units(bundle: _Bundle, examined: Examined) -> None:
    if not examined.units.shown:
        bundle.leave_out("units/", examined.units.why or "systemd does not run pivotd here, or was not asked")
        return
    names = list(examined.units.shown)
    options = ["--no-pager", "--full"]
    bundle.gather("units/cat.txt", "units and drop-ins", lambda: _run(["systemctl", "cat", *options, *names]))
    bundle.gather(
        "units/show.txt", "all that systemd has of them", lambda: _run(["systemctl", "show", *options, *names])
    )
    status = ["systemctl", "status", "--lines=0", *options, *names]
    bundle.gather("units/status.txt", "their state", lambda: _run(status))
    wanted = [f"--unit={name}" for name in names]
    log = ["journalctl", "--no-pager", "--output=short-iso-precise", f"--lines={LOG_LINES}", *wanted]
    bundle.gather("log.txt", f"up to {LOG_LINES} lines of their log", lambda: _run(log))


def _daemon(bundle: _Bundle, socket: str) -> None:
    """Add what the daemon answers to a reader."""
    deadline, transport = time.monotonic() + REQUESTS_S, Transport(socket)

    def get(target: str) -> Any:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise ValueError(f"the daemon took more than {REQUESTS_S:.0f} s for what was asked before")
        return transport.request("GET", target, timeout_s=min(REQUEST_S, left_s))

    for name, target in (
        ("health", "/v1/health"),
        ("domains", "/v1/domains"),
        ("open-pivots", "/v1/pivots?open=true"),
        ("pivots", "/v1/pivots"),
        ("verdicts", "/v1/verdicts"),
        ("journal", "/v1/journal"),
    ):
        bundle.gather(f"daemon/{name}.json", f"GET {target}", lambda target=target: _json(get(target)))  # type: ignore[misc]
    with contextlib.suppress(ClientError, ValueError):
        for row in get("/v1/domains")[:DOMAINS_MAX]:
            target = f"/v1/domains/{quote(row['name'], safe='')}/disks"
            name = f"daemon/disks-{row['name']}.json"
            bundle.gather(name, f"GET {target}", lambda target=target: _json(get(target)))  # type: ignore[misc]


def _journal(bundle: _Bundle, place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="pivotd-") as directory:
        command = [sys.executable, "-P", "-m", "pivotd.cli.journal_copy", str(place), directory]
        try:
            done = subprocess.run(command, capture_output=True, timeout=limits.DOCTOR_JOURNAL_S, check=False)  # noqa: S603
            what = str(json.loads(done.stdout)) if done.returncode == 0 else "a daemon waited for it, and went first"
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            what = str(error)
        made = [path for path in map(Path(directory).joinpath, ("journal.db", "records.jsonl")) if path.exists()]
        for path in made:
            bundle.add_bytes(path.name, path.read_bytes(), what)
        if not made:
            bundle.leave_out("journal.db", what)
    with contextlib.suppress(OSError):
        for path in sorted(place.glob("archive-*.db")):
            bundle.leave_out(path.name, "archives are long over; add it by hand if it is asked for")
