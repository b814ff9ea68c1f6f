"""Debian packages for the tests: this checkout's, an older release's, and one with another schema of the journal."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.systemd.container import Container
from tests.systemd.host import REPOSITORY, SOURCES

EPOCH = "1764500000"
BUILD_TIMEOUT_S = 900.0
CACHE = REPOSITORY / ".cache" / "deb"
CACHED_MAX = 8
PACKAGING = ("debian", "systemd")
TO_PACK = (*SOURCES, "debian", "docs", "CHANGELOG.md", "Makefile")
NEW_STEP = """

@migrations()
def m999_later(db: Database) -> None:
    db.execute("CREATE TABLE later (what TEXT) STRICT")
    db.execute("PRAGMA user_version = {version}")
"""


def build(container: Container, version: str, commit: str | None = None) -> Path:
    """Return the package of this checkout, or of an older commit with today's packaging, in a tree that is not booted.

    It is built in that tree, unless the same files were built for that release before.
    """
    source = container.root / "srv/source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    if commit is not None:
        archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, check=True, capture_output=True).stdout
        subprocess.run(["tar", "--extract", f"--directory={source}"], input=archive, check=True)
    pack(source, TO_PACK if commit is None else PACKAGING)
    # An image of a container forbids that packages start services.
    container.prepare("rm -f /usr/sbin/policy-rc.d")
    CACHE.mkdir(parents=True, exist_ok=True)
    cached = CACHE / f"{version}-{_key(source, container.root / 'etc/os-release')}.deb"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cached.exists():
            environment = {"DEB_VERSION": version, "SOURCE_DATE_EPOCH": EPOCH, "DPKG_DEB_COMPRESSOR_TYPE": "none"}
            container.prepare("cd /srv/source && debian/build.sh", timeout_s=BUILD_TIMEOUT_S, **environment)
            (built,) = (source / "dist").glob("*.deb")
            for old in sorted(CACHE.glob("*.deb"), key=lambda path: path.stat().st_mtime)[: -CACHED_MAX + 1]:
                old.unlink()
            shutil.copyfile(built, cached.with_suffix(".new"))
            cached.with_suffix(".new").rename(cached)
        package = container.root / f"srv/pivotd_{version}.deb"
        shutil.copyfile(cached, package)
    return package


def pack(source: Path, names: Sequence[str] = TO_PACK) -> None:
    """Copy files of this checkout, but for what Python has compiled beside them."""
    for name in names:
        subprocess.run(["cp", "-rT", REPOSITORY / name, source / name], check=True)
    for compiled in list(source.rglob("__pycache__")):
        shutil.rmtree(compiled)


def _key(source: Path, release: Path) -> str:
    """Return a name for everything that a package is made of."""
    digest = hashlib.sha256(release.read_bytes())
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(source)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def repack(deb: Path, version: str, change: Callable[[Path], None] = lambda _: None) -> Path:
    """Return a package of another version, with changes to its files."""
    tree = deb.with_name("repacked")
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", f"Version: {version}", control.read_text()))
    change(tree)
    made = deb.with_name(f"pivotd_{version}.deb")
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, made], check=True, capture_output=True)
    shutil.rmtree(tree)
    return made


def add_schema(tree: Path) -> None:
    """Add a step to the schema of the journal."""
    (package,) = tree.glob("opt/pivotd/lib/python3*/site-packages/pivotd")
    schema, steps = package / "journal/schema.py", package / "migrations/migrations.py"
    found = re.search(r"(?m)^SCHEMA_VERSION = (\d+)$", schema.read_text())
    assert found is not None
    version = int(found[1]) + 1
    schema.write_text(schema.read_text().replace(found[0], f"SCHEMA_VERSION = {version}"))
    steps.write_text(steps.read_text() + NEW_STEP.format(version=version))
