#!/usr/bin/python3
"""Name the right images in the configuration of a Proxmox VE guest, after each pivot.

    proxmox_qm.py [STORAGE=DIRECTORY]...

runs `qm set VMID --scsi0 VOLUME,OPTIONS` for each disk that was switched, with the options that the disk has already.
The VMID is the name of the domain if that is a number, otherwise that of the one guest with this name. An image below
DIRECTORY becomes a volume of STORAGE (`local=/var/lib/vz/images`), any other image stays an absolute path.

The change must wait for the next start of the guest. Where disks may be hotplugged, `qm set` would unplug the disk from
the running guest instead: then this hook fails, and says how to forbid that.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

HOTPLUG_DEFAULT = "network,disk,usb"


def qm(*arguments: str) -> str:
    """Return what qm prints; its failure is the failure of this hook."""
    try:
        done = subprocess.run(["qm", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        sys.exit(f"qm: {error.strerror}")
    if done.returncode:
        sys.exit(f"qm {' '.join(arguments)}: exit status {done.returncode}")
    return done.stdout


def vmid_of(domain: str) -> str | None:
    """Return the guest's number, None if Proxmox has no such guest."""
    rows = [line.split() for line in qm("list").splitlines()[1:]]
    found = [row[0] for row in rows if row and domain in (row[:1] if domain.isdecimal() else row[1:2])]
    if len(found) > 1:
        sys.exit(f"{domain} is the name of several guests: {' '.join(found)}")
    return found[0] if found else None


def volume(image: str, storages: list[str]) -> str:
    """Return the image as Proxmox names it."""
    for storage in storages:
        name, _, directory = storage.partition("=")
        if Path(image).is_relative_to(directory):
            return f"{name}:{Path(image).relative_to(directory)}"
    return image


def drive(before: str, disk: dict[str, str], storages: list[str]) -> str:
    """Return the new value of a drive: the volume, then the options that it has already."""
    first = volume(disk["image"], storages)
    kept = [part for part in before.split(",")[1:] if not part.startswith("format=")]
    return ",".join([first, *([f"format={disk['format']}"] if first.startswith("/") else []), *kept])


def may_unplug(vmid: str, config: dict[str, str]) -> bool:
    """Return whether `qm set` would change the running guest."""
    allowed = config.get("hotplug", HOTPLUG_DEFAULT)
    allowed = HOTPLUG_DEFAULT if allowed == "1" else allowed
    return "disk" in re.split(r"[,; ]+", allowed) and "running" in qm("status", vmid)


def main(storages: list[str]) -> None:
    """Read the pivot and set the drives of its guest."""
    pivot = json.load(sys.stdin)
    domain = pivot["domain"]
    for disk in pivot["disks"]:
        if disk["outcome"] == "unknown":
            print(f"{domain}: nobody knows the right image of {disk['disk']}, its configuration stays as it is")
    switched = [disk for disk in pivot["disks"] if disk["outcome"] in {"switched", "accepted"}]
    vmid = vmid_of(domain) if switched else None
    if vmid is None:
        return
    config = dict(line.split(": ", 1) for line in qm("config", vmid).splitlines() if ": " in line)
    if may_unplug(vmid, config):
        sys.exit(
            f"`qm set` would unplug disks of the running guest {vmid}; forbid it with "
            f"`qm set {vmid} --hotplug network,usb`, and the change waits for its next start"
        )
    missing = [disk["disk"] for disk in switched if disk["disk"] not in config]
    if missing:
        sys.exit(f"the configuration of guest {vmid} has no {' '.join(missing)}")
    arguments = [
        word for disk in switched for word in (f"--{disk['disk']}", drive(config[disk["disk"]], disk, storages))
    ]
    qm("set", vmid, *arguments)


if __name__ == "__main__":
    if not all("=/" in argument for argument in sys.argv[1:]):
        sys.exit("usage: proxmox_qm.py [STORAGE=DIRECTORY]...")
    main(sys.argv[1:])
