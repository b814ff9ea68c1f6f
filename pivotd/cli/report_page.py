"""The page of a report: what it is, an overview where there are several pivots, and one part for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from xml.etree.ElementTree import Element

from pivotd.cli import render
from pivotd.cli.report_data import PIVOTS_MAX, Report, Reported
from pivotd.cli.report_markup import Child, el, page
from pivotd.cli.report_parts import anchor, chip, link
from pivotd.cli.report_pivot import article
from pivotd.cli.report_words import listed, paused_s, state, title, user, where
from pivotd.cli.timeline_text import took

CSS = Path(__file__).with_name("report.css")
UNFOLDED_MAX = 3
"""More pivots than this are folded: the overview is what is read first."""
CHART = 150
"""Height of the chart of pauses in pixels."""


def document(report: Report) -> bytes:
    """Return the whole page as UTF-8."""
    pivots = report.pivots
    one = len(pivots) == 1
    heading = title(pivots[0].pivot) if one else f"{len(pivots)} pivots of {_domains(report)}"
    body: list[Child] = [
        el(
            "header",
            el("p", "pivotd report", class_="muted"),
            el("h1", heading, [" ", chip(state(pivots[0].pivot))] if one else None),
            _notes(report),
            class_="top",
        ),
        None if one else _overview(report),
        el("main", [article(report, each, folded=len(pivots) > UNFOLDED_MAX) for each in pivots]),
        _footer(report),
    ]
    return page(f"{heading} · pivotd report", CSS.read_text(), body)


def _domains(report: Report) -> str:
    domains = sorted({one.pivot.domain for one in report.pivots})
    return listed(domains) if len(domains) <= 3 else f"{len(domains)} domains"


def _notes(report: Report) -> list[Child]:
    """Return what a reader has to know before anything else."""
    source = report.source
    open_ = [one.pivot for one in report.pivots if one.pivot.closed is None]
    doubtful = sorted(f"{domain} {disk}" for (domain, disk), verdict in report.verdicts.items() if not verdict.certain)
    notes: list[Child] = []
    if source.offline:
        notes.append(
            "Read from the journal alone: neither pivotd nor QEMU was asked, and what was written to another copy of "
            "the journal since is not here."
        )
    if open_:
        names = f"{len(open_)} of {len(report.pivots)} pivots are" if len(report.pivots) > 1 else "This pivot is"
        notes.append(f"{names} still open: what is told here can change. Make the report again once they have ended.")
    if doubtful:
        notes.append(f"Nobody can be certain which image is right for {listed(doubtful)}: see below.")
    if report.left_out:
        notes.append(f"There are more pivots: these are the newest {PIVOTS_MAX}.")
    return [el("p", note, class_="note-box") for note in notes]


def _overview(report: Report) -> Element:
    return el(
        "section",
        el("h2", "Overview"),
        _tiles(report.pivots),
        _chart(report.pivots),
        _table(report),
        class_="overview",
    )


def _tiles(pivots: Sequence[Reported]) -> Element:
    outcomes = Counter(state(one.pivot) if one.pivot.outcome else "open" for one in pivots)
    pauses = [pause.pause_ms for one in pivots for pause in one.pivot.pauses]
    disks = {(one.pivot.domain, disk.disk): disk.size_bytes for one in pivots for disk in one.pivot.disks}
    tiles = [(chip(word), f"{count}") for word, count in outcomes.most_common()]
    figures = [
        ("disks", str(len(disks))),
        ("size that guests see", render.size(sum(disks.values()))),
        *(
            [("longest pause", took(max(pauses) / 1000)), ("median pause", took(median(pauses) / 1000))]
            if pauses
            else []
        ),
    ]
    return el(
        "dl",
        [el("div", el("dt", word), el("dd", count)) for word, count in tiles],
        [el("div", el("dt", name), el("dd", figure)) for name, figure in figures],
        class_="tiles",
    )


def _chart(pivots: Sequence[Reported]) -> Element | None:
    """Return the pauses over time, on a logarithmic scale; None if there are too few."""
    shown = [(one, pause) for one in pivots for pause in one.timeline.pauses]
    if len(shown) < 2:
        return None
    top = max(2, math.ceil(math.log10(max(1.0, *(pause.pause_ms for _, pause in shown)))))
    first, last = min(pause.begin for _, pause in shown), max(pause.begin for _, pause in shown)
    length_s = (last - first).total_seconds() or 1.0

    def height(pause_ms: float) -> float:
        return CHART - 8 - (CHART - 20) * max(0.0, math.log10(max(pause_ms, 1.0))) / top

    lines = [
        [
            el("line", x1="0", x2="100%", y1=height(10**power), y2=height(10**power), class_="grid"),
            el("text", took(10**power / 1000).replace(".0 ", " "), x=2, y=height(10**power) - 3, class_="note"),
        ]
        for power in range(top + 1)
    ]
    dots = [
        el(
            "a",
            el(
                "circle",
                el("title", f"{title(one.pivot)}: {took(pause.pause_ms / 1000)}, {pause.ended}"),
                cx=f"{10 + 88 * (pause.begin - first).total_seconds() / length_s:.3f}%",
                cy=f"{height(pause.pause_ms):.1f}",
                r=4,
                class_=f"dot {pause.ended}",
            ),
            href=f"#{anchor(one.pivot.id)}",
            aria_label=f"{title(one.pivot)}: {took(pause.pause_ms / 1000)}",
        )
        for one, pause in shown
    ]
    caption = f"Each pause of a guest, from {first:%Y-%m-%d %H:%M}Z to {last:%Y-%m-%d %H:%M}Z"
    drawn = el("svg", el("title", caption), *lines, *dots, class_="pauses", width="100%", height=CHART)
    return el("figure", drawn, el("figcaption", caption, "; a dot leads to its pivot"))


def _table(report: Report) -> Element:
    here = {one.pivot.id for one in report.pivots}
    rows = [_row(report, one, here) for one in report.pivots]
    names = ("Pivot", "Outcome", "Asked at", "Took", "Guest paused", "Asked by")
    heads = [el("th", name, scope="col") for name in names]
    caption = el("caption", f"Pivots {report.chosen}, oldest first")
    return el("table", caption, el("thead", el("tr", heads)), el("tbody", rows), class_="stacked many")


def _row(report: Report, one: Reported, here: set[str]) -> Element:
    pivot, timeline = one.pivot, one.timeline
    moved = [el("div", said, class_="path muted") for said in where(one)]
    paused = took(paused_s(pivot)) if pivot.pauses else "none"
    request = pivot.request_id if pivot.request_id != pivot.id else ""
    asked = el("div", user(pivot.requested_by.uid, report.users), class_="muted")
    return el(
        "tr",
        el("th", link(pivot.id, here, title(pivot)), moved, scope="row"),
        el("td", chip(state(pivot)), data_label="Outcome"),
        el("td", render.when(pivot.created), class_="num", data_label="Asked at"),
        el("td", took(timeline.length_s), class_="num", data_label="Took"),
        el("td", paused, class_="num", data_label="Guest paused"),
        el("td", request, asked, data_label="Asked by"),
    )


def _footer(report: Report) -> Element:
    source = report.source
    daemon = "" if source.pivotd is None else f", pivotd {source.pivotd}"
    origin = f"the journal in {source.where}" if source.offline else f"the daemon at {source.where}"
    written = f"Written {source.made:%Y-%m-%d %H:%M:%S}Z on {source.host} by pivotctl {source.pivotctl}{daemon}"
    return el(
        "footer",
        el("p", f"{written}, from {origin}: pivots {report.chosen}."),
        el(
            "p",
            "All times are UTC. The uid, gid and process of who asked are what the kernel told pivotd. Lengths of "
            "pauses were measured; their places on the timelines are as close as the records around them.",
        ),
    )
