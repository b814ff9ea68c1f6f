"""`pivotctl report`: what is on the page, which pivots, and the file that it is written to."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pivotd.cli import report_data
from pivotd.cli.context import App
from pivotd.cli.report_data import Choice, Report, Reported, Source, gather
from pivotd.cli.report_page import document
from pivotd.cli.report_words import where
from pivotd.cli.since import Since
from pivotd.cli.timeline import of_pivot
from pivotd.client import Record, shown
from pivotd.core.pivot import Pivot
from pivotd.core.request import CopyOptions
from tests.cli.conftest import Bench
from tests.cli.ctl import COMMAND, complaint, ctl, environment
from tests.cli.every_kind import HOSTILE, fill, fill_many
from tests.journal.samples import PIVOTS, TEXT

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "article", "details"),
    *(
        "summary",
        "div",
        "p",
        "span",
        "a",
        "h1",
        "h2",
        "h3",
        "h4",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    ),
    *("dl", "dt", "dd", "ul", "li", "strong", "time", "figure", "figcaption"),
    *("svg", "g", "rect", "line", "path", "circle", "text", "desc"),
}


class Page(HTMLParser):
    """The text of a page, its elements, and everything that it names."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.parts: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.parts)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kinds")
    asyncio.run(fill(path))
    return path


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("night")
    asyncio.run(fill_many(path, 12))
    return path


@pytest.fixture(scope="module")
def pages(state_dir: Path) -> Callable[[str], Page]:
    """Return a page of one pivot by its request id, made once."""
    known: dict[str, Page] = {}

    def page(pivot: str) -> Page:
        if pivot not in known:
            known[pivot] = Page(document(gather_offline(state_dir, Choice((pivot,)))))
        return known[pivot]

    return page


def gather_offline(state_dir: Path, choice: Choice) -> Report:
    import click  # noqa: PLC0415

    app = App("", offline=str(state_dir))
    with click.Context(click.Command("report"), obj=app):
        return gather(app, choice)


# -- what is on the page


@pytest.mark.parametrize(
    ("pivot", "said"),
    [
        ("three-hours", "All disks have moved: the data is in the new images."),
        ("three-hours", "The guest stood still for 6.2 ms in 3 h; at most 500 ms were allowed."),
        ("snapshot", "The disk writes to its new overlay; the image from before is the base of that, and is complete."),
        ("commit-inner", "web1: commit of inner layers of disk0"),
        ("commit-inner", "No disk has moved: the image is the same, on a shorter chain."),
        ("commit-active", "The layers were written into their base, and the base holds the data."),
        ("pull", "No disk has moved: the image is the same, on a shorter chain."),
        ("cancelled", "cancelled by uid 1000 at 2026-11-29"),
        ("cancelled", "The guest was never paused."),
        ("kept-after-attempts", "Nothing has moved: the old image holds the data."),
        (
            "kept-after-attempts",
            "501 ms, 501 ms, 501 ms, 501 ms and 620 ms (2.6 s together) in 1 min 52 s; at most 500 ms were allowed for each pause.",
        ),
        ("kept-after-attempts", "the deadline passed in each of 5 attempts"),
        ("unknown", "a person must compare the images before the guest starts again."),
        ("unknown", "Nobody can be certain which image is right: a person must look."),
        ("accepted", "A person (uid 1000) has said since which image is right."),
        ("accepted", "compared <both>, the newer one boots"),
        ("split", "Not all disks have moved. Each disk is complete where it is: see below."),
        ("adopted", "the block jobs were started by another program, and adopted"),
        ("libvirt", "libvirt, guarded by pivotd"),
        ("fleet", "etcd knows the outcome"),
        ("undo", "The disk is back on its old image."),
        ("open", "This pivot is still open, in phase ready: what is told here can change."),
        ("open", "No switch is recorded: the old image holds the data."),
    ],
)
def test_what_came_of_it_is_said(pages: Callable[[str], Page], pivot: str, said: str) -> None:
    """One sentence for each kind and end, and what a reader asks next."""
    assert said in pages(pivot).text


@pytest.mark.parametrize(
    ("pivot", "before", "after"),
    [
        (
            "snapshot",
            "web1 disk0 on /new/web1-0.qcow2 (holds the data) on more layers, if any",
            "web1 disk0 on /new/snap.qcow2 (holds the data) on /new/web1-0.qcow2 (base now) on more layers, if any",
        ),
        (
            "commit-inner",
            "web1 disk0 on /new/top.qcow2 (holds the data) on more layers, if any on /new/b.qcow2 (layer) "
            "on /new/m.qcow2 (layer) on /new/a.qcow2 (base) on more layers, if any",
            "web1 disk0 on /new/top.qcow2 (holds the data) on more layers, if any on /new/a.qcow2 (base) "
            "on more layers, if any. beside the chain: /new/b.qcow2 (written into the base: stale); "
            "/new/m.qcow2 (written into the base: stale)",
        ),
        (
            "commit-active",
            "web1 disk0 on /new/top.qcow2 (holds the data) on /new/mid.qcow2 (layer) on /new/a.qcow2 (base) "
            "on more layers, if any",
            "web1 disk0 on /new/a.qcow2 (holds the data) on more layers, if any. beside the chain: "
            "/new/top.qcow2 (stale); /new/mid.qcow2 (stale)",
        ),
        (
            "pull",
            "web1 disk1 on /new/web1-1.qcow2 (holds the data) on /new/under.qcow2 (layer) on /new/deep.qcow2 (layer)",
            "web1 disk1 on /new/web1-1.qcow2 (holds the data). beside the chain: /new/under.qcow2 "
            "(not in the chain any more); /new/deep.qcow2 (not in the chain any more)",
        ),
        (
            "cancelled",
            "web1 disk1 on /new/web1-1.qcow2 (holds the data) on more layers, if any",
            "web1 disk1 on /new/web1-1.qcow2 (holds the data) on more layers, if any. beside the chain: "
            "/new/x.qcow2 (never switched to)",
        ),
        (
            "unknown",
            "web1 disk2 on /new/web1-2.qcow2 (holds the data) on more layers, if any",
            "web1 disk2 on /new/web1-2.qcow2 (may hold the data). or: /other/web1-2.qcow2 (may hold the data)",
        ),
        (
            "accepted",
            "web1 sda on /new/sda.qcow2 (holds the data) on more layers, if any",
            "web1 sda on /other/sda.qcow2 (holds the data, says uid 1000) on more layers, if any. "
            "beside the chain: /new/sda.qcow2 (not the one)",
        ),
        (
            "undo",
            "web1 vdu on /new/u.qcow2 (holds the data) on more layers, if any",
            "web1 vdu on /old/u.qcow2 (holds the data) on more layers, if any. beside the chain: /new/u.qcow2 (stale)",
        ),
    ],
)
def test_chains_are_drawn(pages: Callable[[str], Page], pivot: str, before: str, after: str) -> None:
    """Both drawings, as they are described to those who do not see them."""
    text = pages(pivot).text
    assert f"before{before}" in text
    assert re.search(rf"after[^/]*{re.escape(after)}(?! on)", text)


def test_a_copy_stands_alone(pages: Callable[[str], Page]) -> None:
    """Below an image that pivotd has made from a whole chain there is nothing."""
    assert (
        "web1 disk2 on /new/web1-2.qcow2 (holds the data). beside the chain: /old/web1-2.qcow2 (stale)"
        in pages("three-hours").text
    )


def test_a_split_is_drawn_disk_by_disk(pages: Callable[[str], Page]) -> None:
    """Each with the image that holds its data."""
    text = pages("split").text
    assert "web1 vda on /new/a.qcow2 (holds the data)" in text
    assert "web1 vdb on /old/b.qcow2 (holds the data)" in text


def test_one_that_was_overtaken_says_by_which(pages: Callable[[str], Page]) -> None:
    """The verdict is that of now, and belongs to the last pivot of the disk."""
    assert "This is by a later pivot of the disk, P0004." in pages("snapshot").text


def test_an_uncertain_verdict_names_no_image_to_use(pages: Callable[[str], Page]) -> None:
    """The words that go before the right image are not there."""
    text = pages("unknown").text
    assert "Certain:" not in text
    assert "Nobody can be certain which image is right for web1 disk2: see below." in text


def test_offline_is_said(pages: Callable[[str], Page]) -> None:
    """Whoever reads the page knows that neither QEMU nor the daemon was asked."""
    text = pages("three-hours").text
    assert "Read from the journal alone" in text
    assert "QEMU was not asked" in text


def test_every_domain_has_its_verdicts(night: Path) -> None:
    """Of two domains, which are asked one by one, and of twelve, which are asked at once: of the disks on the page."""
    for choice, domains in (
        (Choice(("CHG-1003", "CHG-1007")), 2),
        (Choice(since=datetime(2026, 1, 1, tzinfo=UTC)), 12),
    ):
        report = gather_offline(night, choice)
        assert len(report.verdicts) == domains
        assert report.verdicts.keys() == {(one.pivot.domain, one.pivot.disks[0].disk) for one in report.pivots}


def test_a_verdict_that_could_not_be_had_is_said(state_dir: Path) -> None:
    """With the reason, and not as if there were nothing to tell."""
    report = gather_offline(state_dir, Choice(("three-hours",)))
    lacking = msgspec.structs.replace(report, verdicts={}, silent={"web1": "etcd has no majority"})
    assert "The verdict could not be had: etcd has no majority." in Page(document(lacking)).text


def test_json_says_what_the_fleet_knows(state_dir: Path) -> None:
    """Of a pivot that was told, and of one on a host without a fleet."""
    known = [ctl("--offline", state_dir, "--json", "pivot", "show", pivot).json["fleet"] for pivot in ("fleet", "open")]
    assert known == ["told", "none"]


@pytest.mark.parametrize("fleet", ["announced", "superseded"])
def test_what_the_fleet_does_not_know_is_a_warning(state_dir: Path, fleet: str) -> None:
    """It is said at once, above the table."""
    report = gather_offline(state_dir, Choice(("fleet",)))
    pivot = msgspec.structs.replace(report.pivots[0].pivot, fleet=fleet)
    one = msgspec.structs.replace(report.pivots[0], pivot=pivot)
    page = document(msgspec.structs.replace(report, pivots=(one,)))
    assert b'<p class="warn"><strong>Fleet: </strong>' in page


def test_a_pause_that_was_too_long_is_a_warning(pages: Callable[[str], Page], state_dir: Path) -> None:
    """620 ms where 500 were allowed."""
    assert b'<p class="warn">The guest stood still for' in document(
        gather_offline(state_dir, Choice(("kept-after-attempts",)))
    )
    assert b'class="warn"' not in document(gather_offline(state_dir, Choice(("snapshot",))))


@pytest.mark.parametrize("asking", [False, True])
def test_while_libvirt_is_asked_both_images_are_named(state_dir: Path, asking: bool) -> None:
    """Before that, nothing but the old one holds the data."""
    report = gather_offline(state_dir, Choice(("three-hours",)))
    of = report.pivots[0].pivot
    disks = tuple(msgspec.structs.replace(disk, outcome=None) for disk in of.disks)
    pivot = msgspec.structs.replace(of, disks=disks, phase="pausing", outcome=None, closed=None, asking=asking)
    source, destination = disks[0].source, disks[0].destination
    wanted = f"disk0 {source} or {destination}" if asking else f"disk0 stays {source}"
    assert where(Reported(pivot, of_pivot(pivot, None), {}))[0] == wanted


def test_a_pause_without_a_record_is_counted(state_dir: Path) -> None:
    """Nobody is told that a guest was never paused, because a record is not where it is looked for."""
    report = gather_offline(state_dir, Choice(("three-hours",)))
    pivot = msgspec.structs.replace(report.pivots[0].pivot, records=report.pivots[0].pivot.records[:4])
    one = Reported(pivot, of_pivot(pivot, None), {})
    text = Page(document(msgspec.structs.replace(report, pivots=(one,)))).text
    assert "The guest stood still for 6.2 ms in" in text


def test_nothing_is_loaded(state_dir: Path) -> None:
    """No address but places on the page itself, no script, no style but the one that the policy names."""
    page = Page(document(gather_offline(state_dir, Choice(domain="web1"))))
    assert page.tags <= TAGS
    addresses = {value for name, value in page.attributes if name in {"href", "src", "action", "data", "srcset"}}
    assert all(value.startswith("#pivot-") for value in addresses)
    assert not any(name.startswith("on") or name == "style" for name, _ in page.attributes)
    css = (Path(report_data.__file__).parent / "report.css").read_text()
    assert not re.search(r"url\(|@import|@font-face", css)


def test_names_are_shown_as_they_are(pages: Callable[[str], Page]) -> None:
    """Markup letter by letter, what cannot be seen by its number."""
    for index, name in enumerate(HOSTILE):
        page = pages(f"hostile-{index}")
        assert "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in name) in page.text
        assert page.tags <= TAGS


NASTY = st.one_of(TEXT, st.sampled_from(("</style><script>", "\udcff\ud800", "]]>", "<!--", "&lt;", "'\"><a href=x>")))
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(lambda at: f"{at.isoformat()}Z")


@given(pivot=PIVOTS, names=st.lists(NASTY, min_size=3, max_size=3), at=st.lists(TIMES, min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_any_pivot_can_be_shown(pivot: Pivot, names: list[str], at: list[str]) -> None:
    """Whatever is in a journal, also what is not UTF-8: a page of ours alone, which can be written as UTF-8."""
    disk = replace(pivot.disks[0], source=replace(pivot.disks[0].source, filename=names[0]), between=(names[1],))
    known = replace(pivot, disks=(disk, *pivot.disks[1:]), created_at=at[0], error=names[2], options=CopyOptions())
    records = [
        Record(number, moment, names[0], known.id, event, phase, {"pause_ms": 3.0, names[1]: [names[2]]})
        for number, (moment, event, phase) in enumerate(
            zip(at, ("pausing", names[2], "switched", "closed"), ("pausing", None, "decided", "closed"), strict=True)
        )
    ]
    shown_pivot = msgspec.structs.replace(shown.pivot_with_records(known, []), records=tuple(records))
    one = Reported(shown_pivot, of_pivot(shown_pivot, None), {})
    source = Source(True, names[0], names[1], datetime(2026, 11, 30, tzinfo=UTC), "1", None)
    page = document(Report(source, "by their ids", (one, one), False, {}, {}, {}, {}))
    assert Page(page).tags <= TAGS


# -- which pivots


def test_ids_or_a_choice(state_dir: Path) -> None:
    """By id or request id, each once; by domain; by when they ended; the oldest first."""
    assert chosen(state_dir, Choice(("P0003", "commit-inner", "P0001"))) == ["P0001", "P0003"]
    assert len(chosen(state_dir, Choice(domain="web1"))) == 24
    assert chosen(state_dir, Choice(domain="web9")) == []
    since = datetime(2026, 11, 30, 8, tzinfo=UTC)
    assert chosen(state_dir, Choice(since=since)) == ["P0022", "P0023", "P0024"]


def chosen(state_dir: Path, choice: Choice) -> list[str]:
    return [one.pivot.id for one in gather_offline(state_dir, choice).pivots]


def test_a_long_copy_belongs_to_the_night_in_which_it_ended(state_dir: Path) -> None:
    """Begun before the time that was given, and ended after it."""
    assert "P0001" in chosen(state_dir, Choice(since=datetime(2026, 11, 29, 1, tzinfo=UTC)))
    assert "P0001" not in chosen(state_dir, Choice(since=datetime(2026, 11, 29, 3, tzinfo=UTC)))


def test_more_than_a_page_takes(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest are on it, and it says that there are more."""
    monkeypatch.setattr(report_data, "PIVOTS_MAX", 5)
    report = gather_offline(state_dir, Choice(domain="web1"))
    assert [one.pivot.id for one in report.pivots] == [f"P00{number}" for number in range(20, 25)]
    assert "There are more pivots" in Page(document(report)).text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["report", "-o", "x.html"], "say which pivots"),
        (["report", "P0001"], "missing option '-o'"),
        (["report", "P0001", "--since", "1h", "-o", "x.html"], "give either ids"),
        (["report", "--since", "soon", "-o", "x.html"], "'soon' is no time"),
        (["report", "--since", "99999999999d", "-o", "x.html"], "is no time"),
        (["--json", "report", "P0001", "-o", "-"], None),
    ],
)
def test_wrong_use_is_one_line(state_dir: Path, given: list[str], said: str | None) -> None:
    """Status 2, what is wrong, and no file."""
    answer = ctl("--offline", state_dir, *given, cwd=state_dir)
    assert answer.status == 2
    if said is None:
        assert answer.json["error"]["kind"] == "usage"
    else:
        assert said in complaint(answer)
    assert not (state_dir / "x.html").exists()


def test_no_pivots(state_dir: Path) -> None:
    """The command line is right, and nothing was found: status 4, one line, and no page."""
    answer = ctl("--offline", state_dir, "report", "--domain", "web9", "-o", "x.html", cwd=state_dir)
    assert (answer.status, answer.stdout) == (4, "")
    assert complaint(answer) == "there is no domain web9: do you mean web1?"
    assert not (state_dir / "x.html").exists()


def test_a_pivot_that_is_not_there(state_dir: Path, tmp_path: Path) -> None:
    """Status 4, and no page of the others."""
    answer = ctl("--offline", state_dir, "report", "P0001", "P9999", "-o", tmp_path / "x.html")
    assert answer.status == 4
    assert "P9999" in complaint(answer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-11-30", datetime(2026, 11, 30, tzinfo=UTC)),
        ("2026-11-30T08:00", datetime(2026, 11, 30, 8, tzinfo=UTC)),
        ("2026-11-30 08:00:01+02:00", datetime(2026, 11, 30, 6, 0, 1, tzinfo=UTC)),
    ],
)
def test_since_a_date(text: str, at: datetime) -> None:
    """UTC unless it says otherwise, as everything that pivotctl prints."""
    assert Since().convert(text, None, None) == at


def test_since_a_while_ago() -> None:
    """Units as people write them."""
    ago = [datetime.now(UTC) - Since().convert(text, None, None) for text in ("120s", "2m", "2min")]
    assert all(119 < length.total_seconds() < 130 for length in ago)


# -- the file


def test_the_file(state_dir: Path, tmp_path: Path) -> None:
    """Written as a whole, with the rights of any new file; what was done is said, or is a document."""
    file = tmp_path / ("名" * 80 + ".html")  # 245 bytes: no room for anything beside them
    answer = ctl("--offline", state_dir, "report", "three-hours", "-o", file, env={"PYTHONIOENCODING": "utf-8"})
    assert (answer.status, answer.stderr) == (0, "")
    assert answer.stdout == f"{file}: 1 pivot, {file.stat().st_size / 1024:.1f} KiB\n"
    assert file.read_bytes().startswith(b'<!DOCTYPE html>\n<html lang="en">')
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    again = ctl("--offline", state_dir, "--json", "report", "three-hours", "-o", file, "--force").json
    assert again == {"file": str(file), "pivots": 1, "bytes": file.stat().st_size}


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_that_is_there_stays(state_dir: Path, tmp_path: Path) -> None:
    """Also an empty one, and a link to nowhere; --force replaces it, and through a link what the link leads to."""
    file, link, nowhere = tmp_path / "a.html", tmp_path / "link", tmp_path / "nowhere"
    file.write_text("mine")
    link.symlink_to(file)
    nowhere.symlink_to(tmp_path / "absent")
    for path in (file, link, nowhere):
        answer = ctl("--offline", state_dir, "report", "snapshot", "-o", path)
        assert answer.status == 4
        assert complaint(answer).endswith(f"{path} is there already: choose another name, or give --force")
    assert file.read_text() == "mine"
    assert ctl("--offline", state_dir, "report", "snapshot", "-o", link, "--force").status == 0
    assert link.is_symlink()
    assert file.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (".", "is a directory"),
        ("absent/x.html", "is no directory"),
        ("pipe", "is no file"),
        ("x" * 5000, "too long"),
    ],
)
def test_no_place_for_a_file(state_dir: Path, tmp_path: Path, path: str, said: str) -> None:
    """Refused in one line, also with --force: what is no file, as a device, is not replaced by a page."""
    os.mkfifo(tmp_path / "pipe")
    answer = ctl("--offline", state_dir, "report", "snapshot", "-o", path, "--force", cwd=tmp_path)
    assert answer.status == 4
    assert said in complaint(answer)
    assert [one.is_fifo() for one in tmp_path.iterdir()] == [True]


def test_a_file_that_cannot_be_finished_is_not_there(state_dir: Path, tmp_path: Path) -> None:
    """A full disk, or here a limit of the size of files: one line, and neither a part of it nor anything beside it."""
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit")
    command = ["prlimit", "--fsize=4096", *COMMAND, "--offline", str(state_dir), "report", "snapshot", "-o", "x.html"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert "x.html" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_stdout(state_dir: Path) -> None:
    """`-o -` prints the page and nothing else; a full device is the usual status 1."""
    answer = ctl("--offline", state_dir, "report", "snapshot", "-o", "-")
    assert (answer.status, answer.stderr) == (0, "")
    assert answer.stdout.startswith("<!DOCTYPE html>\n")
    assert answer.stdout.endswith("</html>\n")
    with Path("/dev/full").open("wb") as full:
        command = [*COMMAND, "--offline", str(state_dir), "report", "snapshot", "-o", "-"]
        done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr


# -- from the daemon


@pytest.mark.qemu
def test_a_real_pivot(bench: Bench, tmp_path: Path) -> None:
    """From the daemon: verdicts that were checked against QEMU, versions, and the name of who asked."""
    new = bench.image()
    bench.json("copy", "web1", f"disk0={new}", "--id", "reported")
    waits = bench.at_ready()
    answer = bench.ctl("report", "reported", waits, "-o", tmp_path / "x.html")
    assert (answer.status, answer.stderr) == (0, "")
    text = Page((tmp_path / "x.html").read_bytes()).text
    assert f"Certain: {new} (qcow2)" in text
    assert f"QEMU uses {new} now" in text
    assert re.search(r"QEMU \d+\.\d+\.\d+ when this was written", text)
    assert re.search(r"by pivotctl \S+, pivotd \S+, from the daemon at ", text)
    assert f"uid {os.getuid()} (" in text
    assert "1 of 2 pivots are still open" in text
    assert "Read from the journal alone" not in text
    bench.ctl("pivot", "cancel", waits)
