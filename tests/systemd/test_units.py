"""The units: valid, closely sandboxed, and with the settings that the promises rest on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pivotd import config, errors, limits

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"),
]

UNITS = Path(__file__).parents[2] / "systemd"
EXPOSURE_MAX = {"pivotd.service": 0.5, "pivotd-hooks.service": 0.8, "pivotd-metrics.service": 1.5}

EXPOSURE_WITH_FLEET_MAX = 1.1


def settings(unit: str) -> dict[str, str]:
    """Return the settings of a unit, the last value of each."""
    lines = (UNITS / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def seconds(unit: str, name: str) -> float:
    return float(settings(unit)[name].removesuffix("s"))


def exposure(path: Path) -> float:
    """Return the score that systemd gives the sandbox of a unit."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    score = re.search(rf"exposure level for {re.escape(path.name)}: ([0-9.]+)", done.stdout)
    assert score is not None
    return float(score[1])


def test_units_are_valid(tmp_path: Path) -> None:
    """There is nothing for systemd to say about them; an installed daemon is stood in for by another program."""
    units = (
        "pivotd.service",
        "pivotd.socket",
        "pivotd-hooks.service",
        "pivotd-metrics.service",
        "pivotd-metrics.timer",
    )
    for unit in units:
        text = (UNITS / unit).read_text()
        (tmp_path / unit).write_text(re.sub("/opt/pivotd/bin/pivot(d|ctl)", sys.executable, text))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / unit for unit in units)],
        check=False,
        capture_output=True,
        text=True,
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if "pivotd" in line]
    assert (done.returncode, said) == (0, [])


def test_guest_unit_is_valid(tmp_path: Path) -> None:
    """The same for vm@.service, with a guest that is defined."""
    (tmp_path / "vm@web1.service").write_text(
        (UNITS / "vm@.service").read_text().replace("/usr/local/libexec/vm-guest", sys.executable)
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "vm@web1.service"],
        check=False,
        capture_output=True,
        text=True,
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if "vm@" in line]
    assert (done.returncode, said) == (0, [])


def test_guests_do_not_depend_on_pivotd() -> None:
    """What systemd would stop, or not start, with pivotd: nothing. The daemon is up before them and ends after them."""
    unit = settings("vm@.service")
    assert not {"Requires", "Requisite", "BindsTo", "PartOf", "Upholds"} & set(unit)
    assert {"pivotd.socket", "pivotd.service"} <= set(unit["After"].split())


@pytest.mark.parametrize("unit", EXPOSURE_MAX)
def test_exposure_is_low(unit: str) -> None:
    """The score that systemd gives the sandbox is at most what is promised."""
    assert exposure(UNITS / unit) <= EXPOSURE_MAX[unit]


def with_fleet(tmp_path: Path) -> Path:
    """Return the service as it is with the drop-in for a fleet."""
    service = (UNITS / "pivotd.service").read_text()
    drop_in = (UNITS / "pivotd-fleet.conf").read_text().replace("[Service]", "")
    path = tmp_path / "pivotd.service"
    path.write_text(service.replace("[Install]", f"{drop_in}\n[Install]"))
    return path


def test_fleet_opens_the_network_and_nothing_else(tmp_path: Path) -> None:
    """The drop-in sets three settings, and systemd's score says the same: 0.5 for the network, 0.3 for its sockets."""
    assert set(settings("pivotd-fleet.conf")) == {"PrivateNetwork", "RestrictAddressFamilies", "IPAddressAllow"}
    assert settings("pivotd.service")["IPAddressDeny"] == "any"
    assert exposure(with_fleet(tmp_path)) <= EXPOSURE_WITH_FLEET_MAX


def test_clients_keep_their_uid_and_the_boot_id_is_readable() -> None:
    """Two hardening settings would break what pivotd rests on, so they must stay out."""
    assert not {"PrivateUsers", "ProcSubset"} & set(settings("pivotd.service"))


def test_dead_daemon_comes_back_at_once_and_always() -> None:
    """No delay, no limit; only a bad configuration, which another start would not mend, is left to a person."""
    unit = settings("pivotd.service")
    assert (unit["Restart"], unit["RestartSec"], unit["StartLimitIntervalSec"]) == ("always", "0", "0")
    assert unit["RestartPreventExitStatus"] == str(errors.ConfigError.exit_status)


def test_a_follower_comes_back_unless_a_person_has_to_look() -> None:
    """It is started again for ever, but for statuses that another start would only repeat."""
    unit = settings("pivotd-hooks.service")
    assert (unit["Restart"], unit["StartLimitIntervalSec"]) == ("always", "0")
    assert unit["RestartPreventExitStatus"] == f"{errors.EXIT_USAGE} {errors.EXIT_REFUSED}"
    assert seconds("pivotd-hooks.service", "TimeoutStopSec") > limits.HOOK_GRACE_S


def test_only_the_daemon_is_ever_signalled() -> None:
    """Whatever else may be in the control group survives a stop."""
    assert settings("pivotd.service")["KillMode"] == "process"


def test_stop_waits_longer_than_the_longest_pause() -> None:
    """A guest in its pause is resumed before systemd loses patience."""
    assert seconds("pivotd.service", "TimeoutStopSec") > limits.PAUSE_MS_LIMIT / 1000 + limits.COMMAND_TIMEOUT_S


def test_watchdog_does_not_fire_within_a_query() -> None:
    """A daemon that waits for one answer of QEMU is alive."""
    assert seconds("pivotd.service", "WatchdogSec") > limits.QUERY_TIMEOUT_S


def test_a_reload_is_answered_before_systemd_gives_up() -> None:
    """ExecReload= is bounded by TimeoutStartSec=."""
    assert seconds("pivotd.service", "TimeoutStartSec") > limits.RELOAD_TIMEOUT_S


def test_the_unit_allows_the_files_that_the_daemon_wants() -> None:
    """As many domains under systemd as without it."""
    assert settings("pivotd.service")["LimitNOFILE"] == str(limits.OPEN_FILES)


def test_the_journal_belongs_to_those_who_may_look() -> None:
    """They read it while the daemon is dead, and write nothing; monitors of QEMUs are for the daemon's other group."""
    unit = settings("pivotd.service")
    assert (unit["Group"], unit["SupplementaryGroups"]) == ("pivotd-ro", "pivotd")
    assert (unit["StateDirectoryMode"], unit["UMask"]) == ("0750", "0027")
    assert "-g pivotd-ro /run/pivotd" in settings("pivotd.socket")["ExecStartPre"]


def test_units_and_defaults_mean_the_same_places() -> None:
    """Socket, state directory and configuration file are where the program looks for them by itself."""
    service, listening = settings("pivotd.service"), settings("pivotd.socket")
    default = config.Config()
    assert listening["ListenStream"] == str(default.socket)
    assert f"/run/{service['RuntimeDirectory']}" == str(default.socket.parent)
    assert f"/var/lib/{service['StateDirectory']}" == str(default.state_dir)
    assert service["ExecStart"].endswith(f"--config {config.DEFAULT_PATH}")


def test_sysusers_makes_every_name_that_units_and_example_use(tmp_path: Path) -> None:
    """After systemd-sysusers the service's user and both groups of the example configuration exist."""
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed")
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", UNITS / "pivotd.sysusers"], check=True, capture_output=True
    )
    users = [line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    groups = [line.split(":")[0] for line in (tmp_path / "etc/group").read_text().splitlines()]
    unit = settings("pivotd.service")
    assert unit["User"] in users
    assert {unit["Group"], *re.findall(r'"@([\w-]+)"', (UNITS / "pivotd.toml").read_text())} <= set(groups)
