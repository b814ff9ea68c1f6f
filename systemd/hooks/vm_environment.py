#!/usr/bin/python3
"""Name the right images in the environment file of a guest's unit, after each pivot.

    vm_environment.py DIRECTORY

rewrites DIRECTORY/DOMAIN.env, which the unit of the guest reads with EnvironmentFile=. For a disk `disk0` that was
switched, it sets DISK0=/path and DISK0_FORMAT=qcow2, under the names of `pivotctl image --all`; every other line stays
as it is. A domain without a file is left alone.

The file is replaced at once: whatever dies, it is the old one or the new one.
"""

import json
import os
import re
import sys
from pathlib import Path


def quoted(value: str) -> str:
    """Return a value as systemd reads it in an EnvironmentFile=."""
    if re.fullmatch(r"[\w/.:@%+=,-]+", value, re.ASCII):
        return value
    return '"' + re.sub(r'(["\\$`])', r"\\\1", value) + '"'


def variable(disk: str) -> str:
    """Return the name that `pivotctl image --all` gives to the disk's variable."""
    name = re.sub(r"[^A-Z0-9]", "_", disk.upper())
    return f"_{name}" if name[:1].isdigit() else name


def rewritten(text: str, values: dict[str, str]) -> str:
    """Return the text with these variables set, each where it was, or at the end."""
    left = {name: f"{name}={quoted(value)}" for name, value in values.items()}
    lines = []
    for line in text.removesuffix("\n").split("\n") if text else ():
        name = line.partition("=")[0].strip()
        if name not in values:
            lines.append(line)
        elif name in left:
            lines.append(left.pop(name))
    return "".join(f"{line}\n" for line in [*lines, *left.values()])


def replace(path: Path, text: str) -> None:
    """Replace a file durably; it keeps its mode and its owner."""
    before = path.stat()
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        os.fchmod(file.fileno(), before.st_mode & 0o7777)
        if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


def main() -> None:
    """Read the pivot and rewrite the file of its domain."""
    pivot = json.load(sys.stdin)
    # A link to the file stays a link.
    path = (Path(sys.argv[1]) / f"{pivot['domain']}.env").resolve()
    values: dict[str, str] = {}
    for disk in pivot["disks"]:
        if disk["outcome"] == "unknown":
            print(f"{pivot['domain']}: nobody knows the right image of {disk['disk']}, {path} keeps the one it names")
        elif disk["outcome"] in {"switched", "accepted"}:
            name = variable(disk["disk"])
            values |= {name: disk["image"], f"{name}_FORMAT": disk["format"]}
    if values and path.exists():
        try:
            replace(path, rewritten(path.read_text("utf-8", "surrogateescape"), values))
        except OSError as error:
            sys.exit(f"{path}: {error.strerror}")
        print(f"{path}: set {' '.join(values)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: vm_environment.py DIRECTORY")
    main()
