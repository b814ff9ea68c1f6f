"""`pivotctl doctor`: configuration, drop-ins, key files and libvirt's hook, as this user sees them."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pivotd import limits
from pivotd.client import DoctorArea, DoctorFinding
from pivotd.client.checks import found, unseen
from pivotd.config import Config, Fleet, load
from pivotd.errors import ConfigError
from pivotd.host import libvirt_hooks
from pivotd.host.threads import in_thread

T = TypeVar("T")
MADE = ("config-wrong", "config-ignored", "config-writable")
NO_DROP_IN = ("~", ".bak", ".orig", ".rej", ".disabled", ".example", ".dpkg-dist", ".dpkg-old", ".dpkg-new", ".rpmnew")
"""Ends of names under which files are left on purpose."""
SESSION = "/session"
AS_ROOT = "run it as root"


@dataclass(frozen=True, slots=True)
class Read:
    """The configuration, None if there is none that can be used, and what is wrong with its files."""

    config: Config | None
    area: DoctorArea


def within(path: Path, function: Callable[[], T]) -> T:
    """Return what a look at files gives. Raises: TimeoutError: their storage hangs. Whatever it raises."""
    return asyncio.run(in_thread(limits.FILE_TIMEOUT_S, function, paths=[str(path)]))


def read(path: Path, by: str, *, needed: bool) -> Read:
    """Read the configuration as the daemon would. ``needed``: it is wrong if there is none."""
    try:
        return within(path, lambda: _read(path, by, needed=needed))
    except TimeoutError as error:
        why = unseen((*MADE, "secret-open"), str(path), str(error), "mend the storage below it")
        return Read(None, DoctorArea("configuration", by, str(path), (), (why,)))


def _read(path: Path, by: str, *, needed: bool) -> Read:
    if not needed and not path.exists():
        return Read(None, DoctorArea("configuration", by, f"no {path}", ()))
    findings: list[DoctorFinding] = []
    made: tuple[str, ...] = MADE
    config, files = None, [path]
    try:
        config = load(path)
    except ConfigError as error:
        if isinstance(error.__cause__, PermissionError):
            findings.append(unseen((*MADE, "secret-open"), str(path), error.message, AS_ROOT))
        else:
            remedy = f"correct it, then `pivotd --config {path} --check`"
            findings.append(found("config-wrong", str(error.fields.get("file", path)), error.message, remedy))
    else:
        files = list(config.files)
        findings += _secrets(config.fleet)
        made = (*MADE, "secret-open") if config.fleet.endpoints else MADE
    findings += [*_ignored(path), *_writable(path, files)]
    return Read(config, DoctorArea("configuration", by, ", ".join(map(str, files)), made, tuple(findings)))


def _ignored(path: Path) -> Iterator[DoctorFinding]:
    directory = path.with_name(path.name + ".d")
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return  # there are none, or load() has said it
    for entry in entries:
        if entry.suffix != ".toml" and not entry.name.startswith(".") and not entry.name.endswith(NO_DROP_IN):
            what = "it is not read: the name of a drop-in ends with .toml"
            yield found("config-ignored", str(entry), what, f"`mv {entry} {entry}.toml`, or move it away")


def _writable(path: Path, files: Iterable[Path]) -> Iterator[DoctorFinding]:
    """Yield what somebody else than root, or than the user of a pivotd of one's own, can change."""
    directory = path.with_name(path.name + ".d")
    for place in (path.parent, *([directory] if directory.is_dir() else []), *files):
        try:
            seen = place.stat()
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                yield unseen(("config-writable",), str(place), f"{place}: {error.strerror}", AS_ROOT)
            continue
        mode = stat.S_IMODE(seen.st_mode)
        sticky = bool(mode & stat.S_ISVTX) and place.is_dir()
        others = bool(mode & stat.S_IWOTH) or (bool(mode & stat.S_IWGRP) and seen.st_gid != 0)
        if (others and not sticky) or seen.st_uid not in {0, os.geteuid()}:
            what = (
                f"owner uid {seen.st_uid}, gid {seen.st_gid}, mode {mode:04o}: who can write it decides who may do what"
            )
            yield found("config-writable", str(place), what, f"`chown root:root {place}; chmod go-w {place}`")


def _secrets(fleet: Fleet) -> Iterator[DoctorFinding]:
    for path in (fleet.key, fleet.password_file):
        if path is None:
            continue
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except PermissionError as error:
            yield unseen(("secret-open",), str(path), f"{path}: {error.strerror}", AS_ROOT)
        except OSError as error:
            remedy = "put the file there, or correct [fleet]"
            yield found("config-wrong", str(path), f"{path}: {error.strerror}", remedy)
        else:
            if mode & 0o007:
                what = f"mode {mode:04o}: everybody on this host can use it"
                yield found("secret-open", str(path), what, f"`chgrp pivotd {path}; chmod 0640 {path}`")


def hook(config: Config, by: str, root: Path = Path("/")) -> DoctorArea | None:
    """Return whether the hook for libvirt is in place, None where no libvirt of the system is configured."""
    uri = config.libvirt.uri
    if uri is None or SESSION in uri:
        return None
    place = root / libvirt_hooks.HOOKS
    made = ("libvirt-hook",)
    try:
        findings = within(place, lambda: list(_hook(root)))
    except TimeoutError as error:
        findings = [unseen(made, str(place), str(error), "mend the storage below it")]
    return DoctorArea("libvirt", by, str(place), made, tuple(findings))


def _hook(root: Path) -> Iterator[DoctorFinding]:
    remedy = "`pivotctl libvirt install-hooks && systemctl reload libvirtd`"
    without = "a libvirtd that is killed at the worst moment can leave a guest paused until it is there"
    for path, (content, mode) in libvirt_hooks.files(root, starts=False).items():
        try:
            is_ours, is_runnable = path.read_bytes() == content, not mode & 0o100 or os.access(path, os.X_OK)
        except FileNotFoundError:
            yield found("libvirt-hook", str(path), f"it is missing: {without}", remedy)
        except OSError as error:
            yield unseen(("libvirt-hook",), str(path), f"{path}: {error.strerror}", AS_ROOT)
        else:
            if not is_ours:
                yield found("libvirt-hook", str(path), "it is that of another version, or was changed", remedy)
            elif not is_runnable:
                yield found("libvirt-hook", str(path), "it is not executable, so libvirt skips it", remedy)
