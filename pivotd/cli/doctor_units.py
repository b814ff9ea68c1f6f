"""`pivotctl doctor`: the units of pivotd, their drop-ins and their sandbox, as systemd has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pivotd import limits
from pivotd.client import DoctorArea, DoctorFinding, checks
from pivotd.client.checks import found

SERVICE, SOCKET, HOOKS = "pivotd.service", "pivotd.socket", "pivotd-hooks.service"
UNITS = (SERVICE, SOCKET, HOOKS)
PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,StatusText,UnitFileState,ConditionResult,NeedDaemonReload,"
    "FragmentPath,DropInPaths,MainPID,NRestarts,ExecMainStartTimestampMonotonic,ExecStart,User,WatchdogUSec,"
    "Restart,RestartUSec,StartLimitIntervalUSec,KillMode,PrivateUsers,ProcSubset,NoNewPrivileges,ProtectSystem,"
    "CapabilityBoundingSet,PrivateNetwork,RestrictAddressFamilies"
)
RUNNING = Path("/run/systemd/system")
DROP_INS = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
HOUR_S = 3600
OFF = frozenset({"", "0", "infinity", "[not set]"})
RESTART = "`systemctl daemon-reload`, then `systemctl restart pivotd`"
Shown = dict[str, str]


@dataclass(frozen=True, slots=True)
class Units:
    """What systemd has of each unit that is loaded, by name; ``why``: why nobody could ask it. No units: no systemd."""

    shown: Mapping[str, Shown]
    why: str | None = None

    @property
    def main_pid(self) -> int:
        """The daemon of the unit, 0 if it does not run."""
        text = self.shown.get(SERVICE, {}).get("MainPID", "0")
        return int(text) if text.isdecimal() else 0

    @property
    def config(self) -> Path | None:
        """The configuration that the unit starts the daemon with, None if that is not told."""
        words = self.shown.get(SERVICE, {}).get("ExecStart", "").split()
        after = words[words.index("--config") + 1 :] if "--config" in words else []
        return Path(after[0]) if after and after[0].startswith("/") else None


def ask() -> Units:
    """Ask systemd; this changes nothing and needs no privilege."""
    if not RUNNING.is_dir() or shutil.which("systemctl") is None:
        return Units({})
    command = ["systemctl", "show", "--no-pager", f"--property={PROPERTIES}", "--", *UNITS]
    try:
        done = subprocess.run(  # noqa: S603 - systemd's own program, with constants
            command, capture_output=True, text=True, timeout=limits.DOCTOR_COMMAND_S, check=False, env=plain()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Units({}, f"systemctl does not answer: {error}")
    if done.returncode:
        return Units({}, " ".join(f"systemctl: {done.stderr}".split()))
    rows = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in done.stdout.split("\n\n")]
    return Units({row["Id"]: row for row in rows if row.get("LoadState") in {"loaded", "masked"}})


def plain() -> dict[str, str]:
    """Return an environment in which programs of systemd say the same everywhere."""
    return {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}


def look(units: Units, by: str, *, fleet: bool) -> DoctorArea | None:
    """Return what is wrong with the units, None if systemd does not run pivotd. ``fleet``: [fleet] is configured."""
    made = checks.of_area("units")
    if units.why is not None:
        return DoctorArea("units", by, "", (), (checks.unseen(made, None, units.why, "`systemctl status`"),))
    if not units.shown:
        return None
    findings = [one for name, unit in units.shown.items() for one in _of_unit(name, unit)]
    service = units.shown.get(SERVICE)
    if service is not None:
        findings += [*_promises(service), *_sandbox(service), *(_network(service) if fleet else ())]
    drop_ins = [path for unit in units.shown.values() for path in unit["DropInPaths"].split()]
    notes = tuple(f"drop-in {path}" for path in drop_ins)
    return DoctorArea("units", by, ", ".join(units.shown), made, tuple(findings), notes)


def _of_unit(name: str, unit: Shown) -> Iterator[DoctorFinding]:
    if unit["LoadState"] == "masked":
        return  # somebody has decided so
    active, wanted = unit["ActiveState"], unit["UnitFileState"]
    unmet = name == HOOKS and (unit["ConditionResult"] == "no" or wanted != "enabled")
    if active != "active" and not unmet:
        state = f"it is {active} ({unit['SubState']}{_because(unit)})"
        remedy = f"`systemctl status {name}` says why; `systemctl start {name}`"
        severity = checks.WARNING if name == HOOKS else None
        yield found("unit-inactive", name, state, remedy, severity=severity)
    if wanted == "disabled" and name != HOOKS:
        what = "it is disabled: after a boot nobody resumes guests or says which image is right"
        yield found("unit-disabled", name, what, f"`systemctl enable {name}`")
    if unit["NeedDaemonReload"] == "yes" or _unread(name, unit):
        what = "its file or a drop-in has changed, and systemd still has the old one"
        yield found("unit-reload-needed", name, what, RESTART)
    elif name == SERVICE and active == "active":
        for path in (unit["FragmentPath"], *unit["DropInPaths"].split()):
            if _is_newer(path, unit):
                what = f"{path} is newer than the running daemon, which has the settings of its start"
                yield found("unit-restart-needed", name, what, "`systemctl restart pivotd`: no guest notices")
    restarts, age_s = unit.get("NRestarts", "0"), _age_s(unit)
    if name == SERVICE and restarts not in {"", "0"} and age_s is not None and age_s < HOUR_S:
        what = f"systemd has restarted it {restarts} times, the last time {age_s / 60:.0f} min ago"
        yield found("unit-restarts", name, what, "`journalctl -u pivotd` says why each one ended")


def _unread(name: str, unit: Shown) -> list[Path]:
    """Return drop-ins that systemd has not read: systemd 252 itself does not notice the first one of a unit."""
    known = {os.path.basename(path) for path in unit["DropInPaths"].split()}  # noqa: PTH119
    found = [path for place in DROP_INS for path in Path(place, f"{name}.d").glob("*.conf")]
    return [path for path in found if path.name not in known and path.resolve() != Path(os.devnull)]


def _because(unit: Shown) -> str:
    result = unit.get("Result", "")
    said = f": {unit['StatusText']}" if unit.get("StatusText") else ""
    return f", {result}{said}" if result not in {"", "success"} else said


def _age_s(unit: Shown) -> float | None:
    """Return how long the daemon runs. Source: org.freedesktop.systemd1(5), microseconds of CLOCK_MONOTONIC."""
    started = unit.get("ExecMainStartTimestampMonotonic", "0")
    return time.monotonic() - int(started) / 1e6 if started.isdecimal() and started != "0" else None


def _is_newer(path: str, unit: Shown) -> bool:
    age_s = _age_s(unit)
    try:
        return age_s is not None and Path(path).stat().st_mtime > time.time() - age_s
    except OSError:
        return False


def _promises(unit: Shown) -> Iterator[DoctorFinding]:
    """What docs/install.md asks to leave as it is."""
    late = "a guest that is paused when pivotd dies waits for its next start"
    shipped = "remove that line from the drop-in: `systemctl edit pivotd`"
    for name, wanted, why in (
        ("Restart", {"always"}, late),
        ("RestartUSec", {"0", "0us"}, late),
        ("StartLimitIntervalUSec", {"0", "0us"}, f"systemd gives up after some restarts: {late}"),
        ("KillMode", {"process"}, "more than the daemon itself is ended with it"),
    ):
        if unit[name] not in wanted:
            yield found("unit-promise", SERVICE, f"{name}={unit[name]}: {why}", shipped)
    if unit["WatchdogUSec"] in OFF:
        what = "it has no watchdog: a daemon that hangs is not restarted"
        yield found("unit-watchdog", SERVICE, what, "WatchdogSec=10s in a drop-in")


def _sandbox(unit: Shown) -> Iterator[DoctorFinding]:
    if unit["PrivateUsers"] not in {"", "no"}:
        what = f"PrivateUsers={unit['PrivateUsers']}: every client has uid 65534 for pivotd, so nobody may do anything"
        yield found("unit-blind", SERVICE, what, "PrivateUsers=no in a drop-in, then restart")
    if unit["ProcSubset"] == "pid":
        what = "ProcSubset=pid: pivotd does not see the boot id, by which it tells one QEMU from another"
        yield found("unit-blind", SERVICE, what, "ProcSubset=all in a drop-in, then restart")
    weak = [f"{name}={unit[name]}" for name, strong in _STRONG if unit[name] not in strong]
    weak += ["User=root"] if unit["User"] in {"", "root"} else []
    weak += ["CapabilityBoundingSet= not empty"] if unit["CapabilityBoundingSet"] else []
    if weak:
        what = f"{', '.join(weak)}: pivotd needs no such right"
        yield found("unit-sandbox", SERVICE, what, "keep the settings of the unit that pivotd comes with")


_STRONG = (("NoNewPrivileges", {"yes"}), ("ProtectSystem", {"strict"}))


def _network(unit: Shown) -> Iterator[DoctorFinding]:
    closed = unit["PrivateNetwork"] == "yes"
    families = unit["RestrictAddressFamilies"].split()
    if closed or (families and not {"AF_INET", "AF_INET6"}.intersection(families)):
        what = "[fleet] is configured, and the sandbox has no network"
        yield found("unit-network", SERVICE, what, "install systemd/pivotd-fleet.conf as a drop-in: docs/fleet.md")
