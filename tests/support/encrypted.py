"""Encrypted images, as a person makes them who asks again where QEMU finds the processor too busy."""

from __future__ import annotations

import subprocess
from pathlib import Path

BUSY = "accurate CPU usage"
"""QEMU 7.2 measures the processor to encrypt, and gives up where that is busy."""
TRIES_MAX = 40


def encrypted_image(path: Path, secret: str, size: str = "64M") -> Path:
    """Create a qcow2 encrypted with LUKS; ``secret``: how QEMU gets the passphrase, ``file=PATH`` or ``data=TEXT``."""
    for _ in range(TRIES_MAX):
        made = subprocess.run(
            ["qemu-img", "create", "-q", "--object", f"secret,id=s,{secret}", "-f", "qcow2",
             "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", str(path), size],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if BUSY not in made.stderr:
            break
    assert made.returncode == 0, made.stderr
    return path
