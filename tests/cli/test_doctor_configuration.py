"""What `pivotctl doctor` says of libvirt's hook and of key files: real files, each wrong in its own way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd.cli import doctor_configuration, doctor_text
from pivotd.client import DoctorFinding
from pivotd.config import Config, Libvirt
from pivotd.core import qemu_faults
from pivotd.host import libvirt_hooks

OF_LIBVIRT = Config(libvirt=Libvirt("qemu:///system"))


def hook(root: Path) -> list[tuple[str, str | None]]:
    area = doctor_configuration.hook(OF_LIBVIRT, "test", root)
    assert area is not None
    return [(one.what.split(":")[0].split(",")[0], one.subject) for one in area.findings]


def _change(path: Path) -> None:
    path.write_text("#!/bin/sh\n# pivotd-libvirt-hook\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda path: path.unlink(), "it is missing"),
        (_change, "it is that of another version"),
        (lambda path: path.chmod(0o644), "it is not executable"),
    ],
)
def test_libvirts_hook(tmp_path: Path, harm: Callable[[Path], None], what: str):
    """Installed it is sound; each way in which it does not work is told, with the file."""
    libvirt_hooks.install(tmp_path, starts=False)
    assert hook(tmp_path) == []
    program = tmp_path / libvirt_hooks.HOOKS / "daemon.d" / "pivotd"
    harm(program)
    assert hook(tmp_path) == [(what, str(program))]


def test_no_hook_where_no_libvirt_is_configured(tmp_path: Path):
    """Nor for the libvirt of a session, which looks for hooks elsewhere."""
    assert doctor_configuration.hook(Config(), "test", tmp_path) is None
    session = Config(libvirt=Libvirt("qemu:///session"))
    assert doctor_configuration.hook(session, "test", tmp_path) is None


def secrets(tmp_path: Path, mode: int | None) -> list[DoctorFinding]:
    password = tmp_path / "password"
    if mode is not None:
        password.write_text("x")
        password.chmod(mode)
    config = tmp_path / "pivotd.toml"
    fleet = f'host = "h1"\nuser = "u"\npassword_file = "{password}"\nendpoints = ["https://e:2379"]\n'
    config.write_text(f"[fleet]\n{fleet}")
    return list(doctor_configuration.read(config, "test", needed=True).area.findings)


def test_a_password_file(tmp_path: Path):
    """Everybody's eyes on it are an error, the group's are not; one that is missing is told before etcd refuses."""
    assert secrets(tmp_path, 0o640) == []
    assert [one.check for one in secrets(tmp_path, 0o644)] == ["secret-open"]
    (tmp_path / "password").unlink()
    assert [one.check for one in secrets(tmp_path, None)] == ["config-wrong"]


def test_faults_of_qemu():
    """Older releases have all of them, the newest none; what the tests run is not called untested."""
    assert len(qemu_faults.faults((6, 2, 0))) == 3
    assert qemu_faults.faults((7, 2, 22)) == qemu_faults.faults((6, 2, 0))
    assert qemu_faults.faults((10, 0, 2)) == []
    assert [qemu_faults.untested(version) for version in ((6, 2, 0), (7, 2, 0), (11, 1, 3))] == [True, False, False]


def test_a_file_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason of a file that cannot be read begins with its name, as the finding does."""
    area = doctor_configuration.read(tmp_path / "none.toml", "pivotctl", needed=True).area
    doctor_text.show([area], area.findings, [])
    assert f"\n    {tmp_path}/none.toml: cannot be read: No such file or directory\n" in capsys.readouterr().out
