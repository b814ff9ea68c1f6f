"""What a monitoring system gets: each figure after what it counts, alerts and dashboard that ask for no other ones."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pivotd.cli.context import App
from pivotd.cli.metrics_command import metrics
from pivotd.client import Client, RefusedError
from pivotd.core.pivot import Outcome, Pause
from pivotd.counts import Counts, Histogram
from pivotd.journal.backup import back_up
from pivotd.journal.journal import Journal
from tests.cli.conftest import Bench
from tests.cli.ctl import complaint, ctl
from tests.cli.every_kind import fill
from tests.engine.test_copy import write
from tests.journal.old_pivots import run
from tests.journal.samples import make_pivot
from tests.support.daemon import Daemon

pytestmark = pytest.mark.qemu

CONTRIB = Path(__file__).parents[2] / "contrib"
Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """Return each value by the name and the values of the labels."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(bench: Bench) -> Samples:
    answer = bench.ctl("metrics")
    assert answer.status == 0, answer
    return samples(answer.stdout)


def test_a_copy_is_counted(bench: Bench) -> None:
    """Its pause, its end, its bytes, its records; nothing is wrong with this host."""
    write(bench.qemu, "disk0", 0x41)
    before = scraped(bench)
    answer = bench.json("copy", "web1", f"disk0={bench.image()}")
    assert answer.status == 0, answer
    after = scraped(bench)

    def more(*key: str) -> float:
        return after[key] - before.get(key, 0.0)

    assert more("pivotd_pivots_total", "copy", "switched") == 1
    assert more("pivotd_pause_seconds_count", "switched", "copy") == 1
    assert more("pivotd_pause_seconds_sum", "switched", "copy") == pytest.approx(
        answer.json["pause_ms"] / 1000, abs=1e-4
    )
    assert more("pivotd_pause_seconds_bucket", "switched", "copy", "+Inf") == 1
    assert more("pivotd_copied_bytes_total", "copy") > 0
    assert more("pivotd_journal_commit_seconds_count") >= 5
    assert after["pivotd_domains", "connected"] == after["pivotd_up",] == after["pivotd_healthy",] == 1
    nothing = ("guests_waiting", "resumes_owed", "disks_on_wrong_image", "verdicts_unknown", "pivots_failing")
    assert [after[f"pivotd_{name}",] for name in nothing] == [0.0] * len(nothing)


def test_an_open_pivot_is_shown(bench: Bench) -> None:
    pivot = bench.at_ready()
    assert scraped(bench)["pivotd_pivots_open", "ready"] == 1
    bench.ctl("cancel", pivot)
    bench.ctl("wait", pivot)
    after = scraped(bench)
    assert after["pivotd_pivots_open", "ready"] == 0
    assert after["pivotd_pivots_total", "copy", "kept"] >= 1


def test_a_textfile(bench: Bench, tmp_path: Path) -> None:
    """It is replaced as a whole; without a daemon it says that, and nothing of before."""
    path = tmp_path / "pivotd.prom"
    path.write_text("pivotd_up 7\n")
    assert bench.ctl("metrics", "--textfile", path).status == 0
    assert samples(path.read_text())["pivotd_up",] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["pivotd.prom"]
    bench.daemon.kill()
    try:
        answer = bench.ctl("metrics", "--textfile", path)
    finally:
        bench.daemon.start()
    assert (answer.status, samples(path.read_text())) == (3, {("pivotd_up",): 0.0})
    assert "no daemon listens" in complaint(answer)


def test_a_refusal_is_no_death(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that answers is up, whatever it says: the file stays as it was."""
    path = tmp_path / "pivotd.prom"
    path.write_text("old\n")

    def refused(*_: object) -> str:
        raise RefusedError("too-busy", "come back later", 4)

    monkeypatch.setattr(Client, "metrics", refused)
    app = App(str(bench.daemon.socket))
    with pytest.raises(RefusedError):
        metrics.main(["--textfile", str(path)], obj=app, standalone_mode=False)
    assert path.read_text() == "old\n"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--json", "metrics"), 2, "one form"),
        (("--offline", "/nowhere", "metrics"), 2, "leave --offline out"),
        (("metrics", "--textfile", "/nowhere/pivotd.prom"), 4, "/nowhere is no directory"),
        (("metrics", "--textfile", "/"), 4, "is a directory"),
    ],
)
def test_what_cannot_be(bench: Bench, arguments: tuple[str, ...], status: int, words: str) -> None:
    answer = bench.ctl(*arguments)
    assert answer.status == status, answer
    assert words in answer.stdout + answer.stderr


def test_disks_of_a_restored_journal_are_in_doubt(tmp_path: Path) -> None:
    """They count until QEMU is seen on them, as do all whose verdict is not certain, whatever its outcome was."""

    async def fill() -> None:
        (tmp_path / "old").mkdir()
        journal = Journal.open(tmp_path / "old")
        await run(journal, 1)
        await journal.close()
        back_up(journal.path, daemon.state_dir)

    with tempfile.TemporaryDirectory(prefix="pm") as name:
        daemon = Daemon(Path(name), {})
        daemon.state_dir.rmdir()
        asyncio.run(fill())
        with daemon:
            verdicts = daemon.ctl("verdict").json
            assert [(one["certain"], one["outcome"]) for one in verdicts] == [(False, "switched")]
            text = ctl("--socket", daemon.socket, "metrics").stdout
    assert samples(text)["pivotd_verdicts_unknown",] == 1


def test_promtool_takes_what_pivotd_says(bench: Bench) -> None:
    """The names and help texts are as Prometheus wants them."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    text = bench.ctl("metrics").stdout
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize("command", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_the_alerts(command: tuple[str, ...]) -> None:
    """Each fires for what it is for, and none on a host that is well."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    checked = subprocess.run(
        ["promtool", *command], cwd=CONTRIB / "prometheus", capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_and_dashboard_ask_for_what_there_is(bench: Bench) -> None:
    """No expression names a figure that pivotd does not have, and every alert and figure is in docs/metrics.md."""
    page = (CONTRIB.parent / "docs/metrics.md").read_text()
    documented = set(re.findall(r"`(pivotd_\w+)", page))
    rules = (CONTRIB / "prometheus/alerts.yml").read_text()
    dashboard = json.loads((CONTRIB / "grafana/pivotd.json").read_text())
    expressions = re.findall(r"expr: (.*)", rules) + [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]
    asked = {name for expression in expressions for name in re.findall(r"pivotd_\w+", expression)}
    suffix = re.compile("_(bucket|count|sum)$")
    families = {suffix.sub("", name) for name in asked}
    assert families <= documented, families - documented
    assert set(re.findall(r"alert: (\w+)", rules)) == set(re.findall(r"`(Pivotd\w+)`", page))
    told = set(re.findall(r"^# TYPE (\w+)", bench.ctl("metrics").stdout, re.MULTILINE))
    fleet = {name for name in documented if name.startswith("pivotd_fleet_")}
    assert told | fleet == documented, told ^ documented
    assert len(fleet) == 3


def test_a_guest_that_was_found_paused_counts_once_it_runs() -> None:
    """Also if its pivot changes before that; another pivot does not count."""
    counts, pivot = Counts(), replace(make_pivot(1), owes_resume=True)
    counts.taken_up(pivot)
    counts.changed(pivot, pivot, lambda: None)
    assert counts.recoveries.shown()[0][-1] == ("+Inf", 0.0)
    counts.changed(make_pivot(2), make_pivot(2), lambda: None)
    runs = replace(pivot, owes_resume=False, pauses=(Pause(1, 7.0, "switched"),))
    counts.changed(pivot, runs, lambda: None)
    counts.changed(runs, runs, lambda: None)
    assert counts.recoveries.shown()[0][-1] == ("+Inf", 1.0)
    assert counts.pauses["copy", "switched"].shown()[1] == pytest.approx(0.007)


def test_an_outcome_counts_once() -> None:
    counts, pivot = Counts(), make_pivot(1)
    disks = tuple(replace(disk, outcome=Outcome.KEPT) for disk in pivot.disks)
    decided = replace(pivot, disks=disks, decided_at="2026-11-30T00:00:00.000000Z")
    counts.changed(pivot, decided, lambda: 4096)
    counts.changed(decided, replace(decided, closed_at=decided.decided_at), lambda: 4096)
    assert (counts.pivots, counts.copied_bytes) == ({("copy", "kept"): 1}, {"copy": 4096})


def test_a_histogram_counts_below_its_bounds() -> None:
    """A time equal to a bound is within it."""
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds)
    assert histogram.shown() == ([("0.1", 2.0), ("1", 3.0), ("+Inf", 4.0)], pytest.approx(7.65))


async def test_what_a_person_must_look_at_is_counted(tmp_path: Path) -> None:
    """By the journal, as the verdicts on guests that do not run say it."""
    daemon = Daemon(tmp_path, {})
    daemon.state_dir.mkdir(exist_ok=True)
    await fill(daemon.state_dir)
    with daemon:
        verdicts = ctl("--socket", daemon.socket, "--json", "verdict").json
        found = samples(ctl("--socket", daemon.socket, "metrics").stdout)
    unknown = [one["disk"] for one in verdicts if not one["certain"]]
    assert found["pivotd_verdicts_unknown",] == len(unknown) > 0, unknown
