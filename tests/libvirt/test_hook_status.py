"""What the hook reads from libvirt's status files, what it decides, and what it writes into them."""

from __future__ import annotations

import difflib

import pytest

from pivotd.libvirt_hook import (
    LOST,
    Job,
    NotUnderstoodError,
    Repair,
    Seen,
    decide,
    may_have_jobs,
    read_status,
    with_job_ending,
)
from tests.libvirt.status_text import DEVICE, NAME, status_text

FORGOTTEN = "type='file' job=''"
"""The mirror as libvirt 9.0 leaves it while it ends a job, and cannot read it any more."""
DONE = {"id": NAME, "status": "concluded"}
FAILED = {"id": NAME, "status": "concluded", "error": "No space left on device"}
GOES_ON = {"id": NAME, "status": "ready"}


def job_of(**options: str) -> Job:
    (job,) = read_status(status_text(**options).encode()).jobs
    return job


def changed(before: str, after: bytes) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.decode().splitlines())
    return [line[2:].strip() for line in lines if line.startswith("+ ")]


@pytest.mark.parametrize("kind", ["copy", "active-commit"])
def test_a_job_is_read_with_its_disk_and_its_nodes(kind: str) -> None:
    """The disk that the job names, its path in QEMU, and the nodes before and after a pivot."""
    status = read_status(status_text(kind=kind, pid=99).encode())
    assert (status.domain, status.pid, status.monitor) == ("web1", 99, "/monitor.sock")
    assert [(job.name, job.kind, job.disk, job.device) for job in status.jobs] == [(NAME, kind, "vda", DEVICE)]
    assert [(job.source, job.target, job.known) for job in status.jobs] == [("old", "new", True)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no XML"),
        (status_text()[:-40], "no XML"),
        ("<domain/>", "no status file"),
        (status_text().replace("pid='4711'", "pid=''"), "no status file"),
        (status_text().replace("type='unix'", "type='pty'"), "no Unix socket"),
        (status_text(state="dreaming"), "unknown state 'dreaming'"),
        (status_text(mirror="type='file' job='rebase'"), "belongs to the job 'rebase'"),
        (status_text().replace("<qom ", "<path "), "does not name the nodes of vda"),
        (status_text(target="old"), "does not name the nodes of vda"),
        (
            status_text().replace("type='format' name='new'", "type='format'").replace("new-storage", ""),
            "does not name",
        ),
    ],
)
def test_what_is_not_understood_is_said(text: str, why: str) -> None:
    """Nothing is guessed from a file that is not as libvirt writes it."""
    with pytest.raises(NotUnderstoodError, match=why):
        read_status(text.encode())


def test_a_commit_may_be_between_the_storages_of_its_images() -> None:
    """Libvirt 12 names those nodes, and the disk has the format nodes all the same; other nodes are not understood."""
    text = status_text(kind="active-commit").replace("<base node='new'", "<base node='new-storage'")
    (job,) = read_status(text.replace("<top node='old'", "<top node='old-storage'").encode()).jobs
    assert (job.source, job.target) == ("old", "new")
    with pytest.raises(NotUnderstoodError, match="is not between the images of vda"):
        read_status(text.replace("<top node='old'", "<top node='other'").encode())


def test_a_job_without_a_mirror_is_no_job_of_a_disk() -> None:
    """A migration copies disks too; nothing pivots there."""
    text = status_text().replace("<mirror ", "<other ").replace("</mirror>", "</other>")
    assert read_status(text.encode()).jobs == ()


def test_a_file_without_such_jobs_is_not_even_parsed() -> None:
    """The quick look finds both kinds, however they are quoted, and nothing else."""
    assert may_have_jobs(status_text().encode())
    assert may_have_jobs(status_text(kind="active-commit").encode())
    assert may_have_jobs(status_text().replace("'", '"').encode())
    backup = status_text(mirror="type='file'").replace("type='copy'", "type='backup'")
    assert not may_have_jobs(backup.encode())


@pytest.mark.parametrize("quote", ["'", '"'])
def test_only_two_tags_change(quote: str) -> None:
    """A pivot is what libvirt had written after it had asked for one; every other byte stays."""
    before = status_text().replace("'", quote)
    status = read_status(before.encode())
    after = with_job_ending(status, status.jobs[0], pivots=True)
    assert [line.replace(quote, "'") for line in changed(before, after)] == [
        f"<blockjob name='{NAME}' type='copy' state='pivoting' newstate='ready' jobflags='0x4'>",
        "<mirror type='file' file='/images/new.qcow2' format='qcow2' job='copy' ready='pivot'>",
    ]
    (job,) = read_status(after).jobs
    assert (job.state, job.ready, job.known) == ("pivoting", "pivot", True)


@pytest.mark.parametrize("kind", ["copy", "active-commit"])
def test_a_forgotten_mirror_gets_its_job_back(kind: str) -> None:
    """What libvirt 9.0 has lost follows from the job's element, and the abort is written as well as the pivot."""
    before = status_text(kind=kind, state="aborting", newstate="completed", mirror=FORGOTTEN)
    status = read_status(before.encode())
    assert not status.jobs[0].known
    after = with_job_ending(status, status.jobs[0], pivots=False)
    assert changed(before, after)[-1] == f"<mirror type='file' job='{kind}' ready='abort'>"
    (job,) = read_status(after).jobs
    assert (job.state, job.ready, job.known) == ("aborting", "abort", True)


@pytest.mark.parametrize(
    ("kind", "state", "ready", "root", "job", "repair"),
    [
        # The copy goes on.
        ("copy", "ready", "yes", "old", GOES_ON, None),
        ("copy", "pivoting", "pivot", None, GOES_ON, None),
        # It has ended as libvirt expects it.
        ("copy", "pivoting", "pivot", "new", DONE, None),
        ("copy", "ready", "yes", "old", DONE, None),
        ("copy", "running", None, "old", FAILED, None),
        ("copy", "pivoting", "pivot", "old", FAILED, None),
        ("copy", "aborting", "abort", "old", DONE, None),
        ("active-commit", "ready", "yes", "new", DONE, None),
        ("active-commit", "pivoting", "pivot", "new", DONE, None),
        ("active-commit", "aborting", "abort", "old", DONE, None),
        ("active-commit", "ready", "yes", "old", FAILED, None),
        # libvirtd died before it noted what it had asked for.
        ("copy", "ready", "yes", "new", DONE, Repair(pivots=True, rewrite=True, job=False)),
        ("active-commit", "ready", "yes", "old", DONE, Repair(pivots=False, rewrite=True, job=False)),
        # It died after it had dismissed the job.
        ("copy", "pivoting", "pivot", "new", None, Repair(pivots=True, rewrite=False, job=True)),
        ("copy", "ready", "yes", "new", None, Repair(pivots=True, rewrite=True, job=True)),
        ("copy", "aborting", "abort", "old", None, Repair(pivots=False, rewrite=False, job=True)),
        ("active-commit", "pivoting", "pivot", "new", None, Repair(pivots=True, rewrite=False, job=True)),
        ("active-commit", "aborting", "abort", "old", None, Repair(pivots=False, rewrite=False, job=True)),
        # And QEMU has done the other thing.
        ("copy", "pivoting", "pivot", "old", DONE, Repair(pivots=False, rewrite=True, job=False)),
    ],
)
def test_decisions(kind, state, ready, root, job, repair) -> None:
    """QEMU's root says which end it was; nothing is changed where libvirt comes to the same end by itself."""
    mirror = f"type='file' job='{kind}'" + (f" ready='{ready}'" if ready else "")
    assert decide(job_of(kind=kind, state=state, mirror=mirror), Seen(root, job)) == repair


@pytest.mark.parametrize("root", ["old", "new"])
@pytest.mark.parametrize("job", [DONE, None])
def test_a_forgotten_mirror_is_always_written(root: str, job: dict[str, str] | None) -> None:
    """Libvirt would not read the file at all, and would take the domain for shut off."""
    seen = Seen(root, job)
    repair = decide(job_of(state="pivoting", newstate="completed", mirror=FORGOTTEN), seen)
    assert repair == Repair(pivots=root == "new", rewrite=True, job=job is None)


def test_a_root_that_nobody_knows_is_left_alone() -> None:
    """Somebody has put another node on top: no end is right."""
    with pytest.raises(NotUnderstoodError, match="on the node filter"):
        decide(job_of(), Seen("filter", None))
    with pytest.raises(NotUnderstoodError, match="although its job"):
        decide(job_of(), Seen("new", FAILED))


def without_job(text: str, *, others: bool) -> str:
    """Return a status file of a libvirtd that has dropped the job of vda, and has other jobs or none."""
    begin, rest = text.split("  <blockjobs active='yes'>\n")
    jobs, end = rest.split("  </blockjobs>\n")
    backup = jobs[: jobs.index("</blockjob>") + len("</blockjob>\n")]
    kept = f"  <blockjobs active='yes'>\n{backup}  </blockjobs>\n" if others else "  <blockjobs active='no'/>\n"
    return begin + kept + end


@pytest.mark.parametrize("others", [False, True], ids=["no job", "others"])
@pytest.mark.parametrize(
    ("kind", "pivots"), [("active-commit", True), ("active-commit", False), ("copy", False), ("copy", True)]
)
def test_a_job_that_libvirtd_has_dropped_comes_back(kind: str, pivots: bool, others: bool) -> None:
    """It was started without the hook, and did not find the job in QEMU: the mirror alone is left, for good."""
    before = without_job(status_text(kind=kind, mirror=f"type='file' job='{kind}' ready='pivot'"), others=others)
    status = read_status(before.encode())
    (job,) = status.jobs
    name = f"{'copy' if kind == 'copy' else 'commit'}-vda-old"
    assert (job.number, job.name, job.source, job.target) == (LOST, name, "old", "new")
    assert decide(job, Seen("new" if pivots else "old", None)) == Repair(pivots=pivots, rewrite=True, job=True)
    after = with_job_ending(status, job, pivots=pivots)
    (again,) = read_status(after).jobs
    state, ready = ("pivoting", "pivot") if pivots else ("aborting", "abort")
    assert (again.name, again.kind, again.state, again.ready) == (name, kind, state, ready)
    assert b"<blockjobs active='yes'>" in after
    assert (b"backup-vdb" in after) is others
    assert b"deleteCommittedImages" not in after


COPIES = {
    "all of it": ("<backingStore/>", "<backingStore/>", "", b"jobflags='0x0'>"),
    "the top": ("{below}", "", "base", b"jobflags='0x1' shallownew='yes'>"),
    "the top, to an image that is there": ("{below}", "{other}", "other", b"jobflags='0x1'>"),
}
BELOW = "<backingStore type='file'><source file='/b'><privateData><nodenames><nodename type='format' name='{}'/>"
BELOW += "</nodenames></privateData></source><backingStore/></backingStore>"


@pytest.mark.parametrize("what", COPIES)
def test_how_a_dropped_copy_was_started_is_seen_by_what_is_below_its_image(what: str) -> None:
    """Of a shallow one libvirt takes over what is below the old image, unless the file says what is below the new one."""
    source, mirror, below, written = COPIES[what]
    head, _, after = without_job(status_text(mirror="job='copy' ready='pivot'"), others=False).rpartition("<mirror")
    head = head[::-1].replace("<backingStore/>"[::-1], source.format(below=BELOW.format("base"))[::-1], 1)[::-1]
    after = after.replace("<backingStore/>", mirror.format(other=BELOW.format("other")), 1)
    status = read_status(f"{head}<mirror{after}".encode())
    (job,) = status.jobs
    assert job.below == below
    assert written in with_job_ending(status, job, pivots=True)


def test_a_mirror_without_a_job_is_seen_by_the_quick_look() -> None:
    assert may_have_jobs(without_job(status_text(), others=False).encode())
    assert not may_have_jobs(without_job(status_text(mirror="type='file'"), others=False).encode())


def test_a_dropped_job_needs_a_place_for_it() -> None:
    """A file without the element of all jobs is not as libvirt writes it."""
    text = without_job(status_text(kind="active-commit"), others=False).replace("  <blockjobs active='no'/>\n", "")
    status = read_status(text.encode())
    with pytest.raises(NotUnderstoodError, match="no place for block jobs"):
        with_job_ending(status, status.jobs[0], pivots=True)
