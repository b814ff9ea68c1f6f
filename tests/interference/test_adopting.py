"""Block jobs that somebody else has started, adopted as pivots: with all guarantees, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pivotd.core.pivot import Outcome, Phase
from pivotd.core.request import Kind, Target
from pivotd.engine.driver import Driver
from pivotd.engine.inbox import Cancel
from pivotd.errors import BadRequestError, ConflictError, DiskBusyError, NotFoundError
from tests.ported_cases.fixture import Bed
from tests.support.qemu import Disk, create_image
from tests.support.waiting import until

pytestmark = pytest.mark.qemu

MANUAL = {"auto-finalize": False, "auto-dismiss": False}


def mirror(bed: Bed, image: Path, node: str = "theirs-node", **options: Any) -> None:
    """Start a mirror of disk0 as another tool would."""
    create_image(image)
    file = {"driver": "file", "filename": str(image)}
    bed.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": node, "file": file})
    arguments = {"job-id": "theirs", "device": "src0", "target": node, "sync": "full", **MANUAL}
    bed.qemu.spy("blockdev-mirror", arguments | options)


async def adopt(bed: Bed, image: Path | None = None, *, job: str | None = None, **options: Any) -> Driver:
    disk = "disk0" if job is None else ""
    target = Target(disk, "" if image is None else str(image), None if image is None else "qcow2", job=job)
    return await bed.engine.start(Kind.COPY, "web1", target, adopted=True, **options)


def loose_mirror(bed: Bed) -> None:
    """Start a mirror between two images that no disk uses."""
    for name in ("from", "to"):
        file = {"driver": "file", "filename": str(bed.image(f"{name}.qcow2", fill="28M"))}
        bed.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file})
    bed.qemu.spy("blockdev-mirror", {"job-id": "loose", "device": "from", "target": "to", "sync": "full", **MANUAL})


@pytest.mark.parametrize("speed", [0, 1], ids=["ready", "copying"])
async def test_a_mirror_is_adopted_and_switched(bed: Bed, speed: int):
    """Whether it copies still or is ready: switched in one pause, every write in the new image, nothing left."""
    await bed.guest(bed.image(fill="28M"))
    mirror(bed, bed.target(), speed=speed)
    driver = await adopt(bed, bed.target())
    if speed:
        await bed.until(driver, lambda pivot: pivot.phase is Phase.COPYING)
        bed.qemu.spy("block-job-set-speed", device="theirs", speed=0)
    pivot = await bed.engine.closed(driver)
    bed.assert_switched(pivot)
    assert len(pivot.pauses) == 1
    bed.assert_holds_all(pivot)


async def test_a_mirror_is_adopted_by_the_id_of_its_job(bed: Bed):
    """The disk is the one that the job works on."""
    await bed.guest(bed.image(fill="28M"), bed.image("second.qcow2"))
    mirror(bed, bed.target())
    pivot = await bed.engine.closed(await adopt(bed, bed.target(), job="theirs"))
    assert [disk.disk for disk in pivot.disks] == ["disk0"]
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)


async def test_a_job_id_that_leads_to_no_pivot(bed: Bed):
    """Unknown; on no disk; on a disk that is named too; of a pivot of pivotd's own: one line each, nothing recorded."""
    await bed.domain(bed.image(fill="28M"), bed.image("second.qcow2", fill="28M"))
    mirror(bed, bed.target(), speed=1)
    loose_mirror(bed)
    own = await bed.engine.copy("web1", {"disk1": bed.target("own.qcow2")}, bandwidth_bytes_per_s=1)
    await bed.until(own, lambda pivot: pivot.phase is Phase.COPYING)
    before = bed.engine.journal.last_seq
    job = own.pivot.disks[0].job
    with pytest.raises(NotFoundError, match=f"no block job mine; its block jobs are: {job}, loose, theirs"):
        await adopt(bed, bed.target(), job="mine")
    with pytest.raises(ConflictError, match="job loose cannot be adopted: it does not work on the image of a disk"):
        await adopt(bed, bed.target(), job="loose")
    with pytest.raises(DiskBusyError, match=f"belongs to the open pivot {own.pivot.id}"):
        await adopt(bed, bed.target(), job=job)
    twice = (Target("disk0", str(bed.target()), "qcow2"), Target("", str(bed.target()), "qcow2", job="theirs"))
    with pytest.raises(BadRequestError, match="disk0 is named twice"):
        await bed.engine.start(Kind.COPY, "web1", *twice, adopted=True)
    assert bed.engine.journal.last_seq == before
    own.state.inbox.post(Cancel(own.pivot.requested_by))
    await bed.engine.closed(own)


async def test_an_active_commit_is_adopted(bed: Bed):
    """The base becomes the image."""
    base = bed.image("base.qcow2")
    top = create_image(bed.directory / "top.qcow2", options=f"backing_file={base},backing_fmt=qcow2")
    await bed.guest(Disk(top, bus="ide"))
    bed.qemu.spy("block-commit", {"job-id": "theirs", "device": "src0", **MANUAL})
    pivot = await bed.engine.closed(await adopt(bed))
    assert (pivot.kind, pivot.outcome) == (Kind.COMMIT, Outcome.SWITCHED), pivot.error
    assert bed.qemu.root().filename == str(base)
    assert bed.qemu.jobs() == {}
    bed.assert_holds_all(pivot)


async def test_a_cancelled_adoption_leaves_their_node_and_image(bed: Bed):
    """The job goes, as was asked for; what pivotd has not opened it does not close."""
    await bed.guest(bed.image(fill="28M"))
    mirror(bed, bed.target())
    driver = await adopt(bed, bed.target(), pivot=False)
    await bed.engine.resting(driver)
    pivot = await bed.cancel(driver)
    bed.assert_kept(pivot)
    assert "theirs-node" in bed.qemu.nodes()
    bed.assert_holds_all(pivot)


async def test_a_wrong_name_of_the_image_is_put_right_by_the_graph(bed: Bed):
    """Of two images that QEMU has open the wrong one was named: the journal names the one that QEMU shows."""
    await bed.guest(bed.image(fill="28M"))
    wrong = bed.image("wrong.qcow2")
    file = {"driver": "file", "filename": str(wrong)}
    bed.qemu.spy("blockdev-add", {"driver": "qcow2", "node-name": "other", "file": file})
    mirror(bed, bed.target())
    pivot = await bed.engine.closed(await adopt(bed, wrong))
    assert pivot.disks[0].destination.filename == str(bed.target())
    bed.assert_switched(pivot)
    bed.assert_holds_all(pivot)


async def replaced(bed: Bed, node: str, speed: int) -> Driver:
    """Adopt a job and let somebody start another one to another image under its name, before pivotd sees that."""
    await bed.guest(bed.image(fill="28M"))
    mirror(bed, bed.target(), speed=1)
    driver = await adopt(bed, bed.target())
    await bed.until(driver, lambda pivot: pivot.phase is Phase.COPYING)
    # pivotd is in this process, and does not run until all of this is done.
    bed.qemu.spy("job-cancel", id="theirs")
    assert until(lambda: bed.qemu.jobs()["theirs"]["status"] == "concluded")
    bed.qemu.spy("job-dismiss", id="theirs")
    bed.qemu.spy("blockdev-del", {"node-name": "theirs-node"})
    mirror(bed, bed.directory / "others.qcow2", node, speed=speed)
    return driver


async def test_another_job_under_the_same_name_is_not_the_pivots(bed: Bed):
    """The adopted job ended and somebody started one to another image: kept, and that one is left alone."""
    driver = await replaced(bed, "others-node", 1)
    pivot = await bed.engine.closed(driver)
    assert (pivot.outcome, pivot.disks[0].job) == (Outcome.KEPT, "theirs")
    assert bed.qemu.jobs()["theirs"]["status"] == "running"
    bed.qemu.spy("block-job-cancel", device="theirs")
    bed.assert_holds_all(pivot)


async def test_another_job_under_the_same_names_is_recorded_with_its_own_image(bed: Bed):
    """QEMU shows no difference to the adopted one, whose node had the same name, until the switch: then that counts."""
    pivot = await bed.engine.closed(await replaced(bed, "theirs-node", 0))
    assert pivot.outcome == Outcome.SWITCHED
    assert pivot.disks[0].destination.filename == str(bed.directory / "others.qcow2") == bed.qemu.root().filename
    bed.assert_holds_all(pivot)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"auto-finalize": True}, "auto-finalize"),
        ({"auto-dismiss": True}, "auto-dismiss"),
        ({"job-id": "j" * 65}, "characters"),
    ],
)
async def test_a_job_that_cannot_be_adopted(bed: Bed, options: dict[str, Any], reason: str):
    """Refused with the reason, nothing recorded, the job as it was."""
    await bed.domain(bed.image(fill="28M"))
    mirror(bed, bed.target(), speed=1, **options)
    before = bed.engine.journal.last_seq
    with pytest.raises(ConflictError, match=reason):
        await adopt(bed, bed.target())
    with pytest.raises(ConflictError, match=reason):
        await adopt(bed, bed.target(), job=options.get("job-id", "theirs"))
    assert bed.engine.journal.last_seq == before
    assert [job["status"] for job in bed.qemu.jobs().values()] == ["running"]


async def test_a_mirror_to_an_image_without_bitmaps_is_refused(bed: Bed):
    """A raw image would lose them."""
    await bed.domain(bed.image(fill="28M"))
    bed.qemu.spy("block-dirty-bitmap-add", node="src0", name="backup", persistent=True)
    raw = create_image(bed.directory / "new.raw", image_format="raw")
    file = {"driver": "file", "filename": str(raw)}
    bed.qemu.spy("blockdev-add", {"driver": "raw", "node-name": "theirs-node", "file": file})
    arguments = {"job-id": "theirs", "device": "src0", "target": "theirs-node", "sync": "full", **MANUAL}
    bed.qemu.spy("blockdev-mirror", arguments)
    with pytest.raises(BadRequestError, match="dirty bitmaps"):
        await bed.engine.start(Kind.COPY, "web1", Target("disk0", str(raw), "raw"), adopted=True)
    assert bed.engine.journal.last_seq == 0


async def test_what_is_asked_for_wrongly(bed: Bed):
    """No job; no image named; an image that QEMU has not opened."""
    await bed.domain(bed.image(fill="28M"))
    with pytest.raises(NotFoundError, match="nothing to adopt"):
        await adopt(bed, bed.target())
    mirror(bed, bed.target(), speed=1)
    with pytest.raises(BadRequestError, match="name it"):
        await adopt(bed)
    with pytest.raises(BadRequestError, match="not opened"):
        await adopt(bed, bed.image("another.qcow2"))
