"""Whether a journal is the file that its daemon left: a restored copy may lack the latest moves."""

from __future__ import annotations

from pathlib import Path

from pivotd.host.birth import born


def identity(path: Path) -> str:
    """Return what tells this file from a copy of it: its number and when it was made. Raises: OSError."""
    return f"{path.stat().st_ino} {born(str(path)) or ''}"


def is_same(known: str, now: str) -> bool:
    """Return whether two identities may be one file; a file system without times of birth tells the number only."""
    known_number, _, known_born = known.partition(" ")
    number, _, made = now.partition(" ")
    return known_number == number and (known_born == made or not (known_born and made))
