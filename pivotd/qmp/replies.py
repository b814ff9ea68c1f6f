"""Queries to QEMU that are not about disks: the guest, jobs of any kind, objects, a migration, monitors.

Shapes: QEMU QAPI reference, query-status, query-version, query-jobs, query-migrate, query-chardev, query-blockstats.
"""

from __future__ import annotations

from typing import Any

from pivotd.core.observation import JobSeen
from pivotd.qmp.question import asks, of

MIGRATING = frozenset({"setup", "active", "device", "pre-switchover", "postcopy-active", "wait-unplug"})


@asks("query-status")
def run_state(answer: Any) -> str:
    """Return the guest's run state."""
    return of(str, answer["status"])


@asks("query-version")
def version(answer: Any) -> tuple[int, int, int]:
    """Return QEMU's version: major, minor, micro."""
    qemu = answer["qemu"]
    return of(int, qemu["major"]), of(int, qemu["minor"]), of(int, qemu["micro"])


@asks("query-jobs")
def jobs(answer: Any) -> dict[str, JobSeen]:
    """Return every job by its id, without the facts of query-block-jobs."""
    return {
        of(str, job["id"]): JobSeen(of(str, job["status"]), of(str, job["error"]) if "error" in job else None)
        for job in of(list, answer)
    }


@asks("query-blockstats")
def writes(answer: Any) -> dict[str, tuple[int, int]]:
    """Return the bytes and the number of writes so far, by QOM path."""
    return {
        of(str, entry["qdev"]): (of(int, entry["stats"]["wr_bytes"]), of(int, entry["stats"]["wr_operations"]))
        for entry in of(list, answer)
        if entry.get("qdev")
    }


@asks("query-blockstats", **{"query-nodes": True})
def highest_writes(answer: Any) -> dict[str, int]:
    """Return where the highest write through each node has ended since it was opened, in bytes; 0: there was none."""
    return {
        of(str, entry["node-name"]): of(int, entry["stats"]["wr_highest_offset"])
        for entry in of(list, answer)
        if "node-name" in entry
    }


@asks("qom-list", path="/objects")
def object_names(answer: Any) -> frozenset[str]:
    """Return the names of the objects that clients have added."""
    return frozenset(of(str, item["name"]) for item in of(list, answer))


@asks("query-migrate")
def migrating(answer: Any) -> bool:
    """Return whether a migration is in progress; without a status there never was one."""
    return of(str, of(dict, answer).get("status", "none")) in MIGRATING


@asks("query-migrate")
def given_up(answer: Any) -> bool:
    """Return whether the last migration has failed or was cancelled."""
    return of(dict, answer).get("status") in {"failed", "cancelled"}


@asks("query-migrate-capabilities")
def may_run_there_first(answer: Any) -> bool:
    """Return whether a migration may let the guest run on the other host before it is through here (post-copy)."""
    beforehand = {"postcopy-ram", "x-colo"}
    return any(of(bool, entry["state"]) for entry in of(list, answer) if entry["capability"] in beforehand)


@asks("query-chardev")
def open_chardevs(answer: Any) -> list[str]:
    """Return the labels of the character devices in use; these include other monitors."""
    return sorted(of(str, entry["label"]) for entry in of(list, answer) if of(bool, entry["frontend-open"]))
