"""Pivots for tests: a plain one, and any one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from pivotd.core.pivot import Accepted, FleetStage, Identity, Image, Outcome, Pause, Phase, Pivot, PivotDisk
from pivotd.core.request import CopyMode, CopyOptions, Kind, Manager, Requester, Sync


def make_pivot(number: int, *, disk: str | None = None, domain: str = "web1", images: str = "/images") -> Pivot:
    def image(side: str) -> Image:
        return Image(f"{images}/{side}{number}.qcow2", "qcow2", f"{side}{number}", "8:1")

    name = disk or f"disk{number}"
    return Pivot(
        id=f"P{number:04}",
        request_id=f"request-{number}",
        domain=domain,
        qmp=f"/run/{domain}.qmp",
        kind=Kind.COPY,
        phase=Phase.PREPARING,
        requested_by=Requester(1000, 1000, 4711),
        options=CopyOptions(),
        disks=(PivotDisk(name, 0, f"/qdev/{name}", 1 << 30, image("source"), image("destination"), f"job{number}"),),
        created_at="2026-11-23T09:00:00.123456Z",
        identity=Identity("boot", 4242, 99, "nonce"),
    )


# No name in Linux or QEMU holds a NUL.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
NUMBER = st.integers(0, 2**63 - 1)


def optional(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str | None]:
    return st.none() | strategy


IMAGES = st.builds(Image, TEXT, TEXT, TEXT, optional(TEXT), optional(TEXT))
DISKS = st.builds(
    PivotDisk,
    disk=TEXT,
    index=st.just(0),
    qdev=TEXT,
    size_bytes=NUMBER,
    source=IMAGES,
    destination=IMAGES,
    job=TEXT,
    top=optional(IMAGES),
    base=optional(IMAGES),
    between=st.lists(TEXT, max_size=3).map(tuple),
    cache_direct=st.booleans(),
    outcome=st.none() | st.sampled_from(Outcome),
    accepted=st.none() | st.builds(Accepted, TEXT, TEXT, TEXT, NUMBER, TEXT),
)
OPTIONS = st.builds(
    CopyOptions,
    st.sampled_from(Sync),
    st.booleans(),
    NUMBER,
    NUMBER,
    NUMBER,
    st.sampled_from(CopyMode),
    st.booleans(),
)
PIVOTS = st.builds(
    Pivot,
    id=TEXT,
    request_id=TEXT,
    domain=TEXT,
    qmp=TEXT,
    kind=st.sampled_from(Kind),
    manager=st.sampled_from(Manager),
    asking=st.booleans(),
    fleet=st.sampled_from(FleetStage),
    fleet_epoch=NUMBER,
    phase=st.sampled_from(Phase),
    requested_by=st.builds(Requester, NUMBER, NUMBER, NUMBER),
    options=OPTIONS,
    disks=st.lists(DISKS, min_size=1, max_size=3, unique_by=lambda disk: disk.disk).map(
        lambda disks: tuple(replace(disk, index=index) for index, disk in enumerate(disks))
    ),
    created_at=TEXT,
    identity=st.builds(Identity, TEXT, NUMBER, st.none() | NUMBER, TEXT),
    revision=NUMBER,
    undo_of=optional(TEXT),
    hold=st.booleans(),
    attempt=NUMBER,
    run_state_before=optional(TEXT),
    owes_resume=st.booleans(),
    pausing_since=optional(TEXT),
    error=optional(TEXT),
    pauses=st.lists(st.builds(Pause, NUMBER, st.floats(0, 1e6), TEXT), max_size=3).map(tuple),
    decided_at=optional(TEXT),
    closed_at=optional(TEXT),
)
