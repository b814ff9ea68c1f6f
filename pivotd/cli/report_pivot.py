"""One pivot on a page: what moved, chains before and after, timeline, verdicts with their evidence, records."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any
from xml.etree.ElementTree import Element

from pivotd.cli import render
from pivotd.cli.report_chains import after, before
from pivotd.cli.report_data import Report, Reported
from pivotd.cli.report_drawing import drawing
from pivotd.cli.report_markup import Child, el
from pivotd.cli.report_parts import anchor, chip, link
from pivotd.cli.report_timeline import timeline_section
from pivotd.cli.report_verdict import decision, verdicts
from pivotd.cli.report_words import (
    FLEET,
    NOT_TOLD,
    asked_by,
    choices,
    how_the_guest_fared,
    later_requests,
    state,
    title,
    too_long,
    what_came_of_it,
)
from pivotd.client import Record

_WHY = {"switched": "Noted: ", "merged": "Noted: "}


def article(report: Report, one: Reported, *, folded: bool) -> Element:
    """Return everything about one pivot; ``folded``: behind its heading, as where there are many."""
    head = el("h2", title(one.pivot)), chip(state(one.pivot))
    body = _body(report, one)
    if len(report.pivots) == 1:
        return el("article", *body, id=anchor(one.pivot.id))  # the page has its heading
    if folded:
        when = el("span", render.when(one.pivot.created), class_="muted num")
        # A browser unfolds what is around the place to which a link leads, not what is below it.
        inside = el("div", *body, id=anchor(one.pivot.id))
        return el("article", el("details", el("summary", *head, when), inside), class_="folded")
    return el("article", el("header", *head), *body, id=anchor(one.pivot.id))


def _body(report: Report, one: Reported) -> list[Child]:
    pivot = one.pivot
    return [
        el("p", what_came_of_it(one), class_="lead"),
        el("p", how_the_guest_fared(pivot, one.timeline), class_="warn" if too_long(pivot) else None),
        el("p", el("strong", "Fleet: "), FLEET[pivot.fleet], ".", class_="warn") if pivot.fleet in NOT_TOLD else None,
        el("p", el("strong", _WHY.get(state(pivot), "Why: ")), pivot.error, class_="why") if pivot.error else None,
        _disks(one),
        el("h3", "Chains before and after"),
        [_chains(one, index) for index in range(len(pivot.disks))],
        el("h3", "Timeline"),
        timeline_section(one.timeline),
        el("h3", "Which image is right"),
        decision(pivot),
        verdicts(report, one),
        el("h3", "The request"),
        _facts(report, one),
        _records(pivot.records),
    ]


def _disks(one: Reported) -> Element:
    rows = [
        el(
            "tr",
            el("th", disk.disk, scope="row"),
            _cell("From", el("span", disk.source, class_="path"), f" ({disk.source_format})"),
            _cell("To", el("span", disk.destination, class_="path"), f" ({disk.destination_format})")
            if disk.source != disk.destination
            else _cell("To", "the same image, on a shorter chain"),
            _cell("Size", render.size(disk.size_bytes)),
            _cell("Outcome", chip(disk.outcome or "open")),
        )
        for disk in one.pivot.disks
    ]
    heads = [el("th", name, scope="col") for name in ("Disk", "From", "To", "Size", "Outcome")]
    caption = el("caption", "Disks; the size is what the guest sees")
    return el("table", caption, el("thead", el("tr", heads)), el("tbody", rows), class_="stacked")


def _chains(one: Reported, index: int) -> Element:
    disk = one.pivot.disks[index]
    name = f"{one.pivot.domain} {disk.disk}"
    chains = (before(one.pivot, disk), after(one.pivot, disk, one.words.get(disk.disk)))
    figures = [el("figure", el("figcaption", chain.caption), drawing(chain, name)) for chain in chains]
    return el("div", figures[0], el("span", "→", class_="becomes", aria_hidden="true"), figures[1], class_="chains")


def _facts(report: Report, one: Reported) -> Element:
    pivot, here = one.pivot, {each.pivot.id for each in report.pivots}
    known = report.domains.get(pivot.domain)
    version = None if known is None else known.qemu_version
    qemu = "QEMU was not asked" if version is None else f"QEMU {version} when this was written"
    rows: Iterable[tuple[str, Child]] = (
        ("Pivot", pivot.id),
        ("Request id", pivot.request_id if pivot.request_id != pivot.id else None),
        ("Undo of", None if pivot.undo_of is None else link(pivot.undo_of, here)),
        ("Asked by", asked_by(pivot, report.users)),
        ("Asked at", pivot.created),
        ("Decided at", pivot.decided),
        ("Closed at", pivot.closed or "not yet"),
        ("Later", [el("div", said) for said in later_requests(pivot, report.users)] or None),
        ("Options", ", ".join(choices(pivot)) or "as pivotd does by itself"),
        ("Attempts", f"{pivot.attempt} of {pivot.options.attempts}" if pivot.attempt else None),
        ("Guest before", pivot.run_state_before),
        ("Carried out by", "libvirt, guarded by pivotd" if pivot.manager == "libvirt" else "pivotd"),
        ("Fleet", FLEET.get(pivot.fleet)),
        ("QEMU", qemu),
        ("Said by people", [_word(disk, one) for disk in one.words] or None),
    )
    return el("dl", [[el("dt", name), el("dd", value)] for name, value in rows if value is not None])


def _word(disk: str, one: Reported) -> Element:
    word = one.words[disk]
    said = f": holds the data of {disk}, says uid {word.uid} at {render.when(word.at)}: {word.reason}"
    return el("div", el("span", word.image, class_="path"), said)


def _records(records: Collection[Record]) -> Element:
    rows = [
        el(
            "tr",
            el("td", str(record.seq), class_="num wide"),
            el("td", el("time", f"{record.at[11:23]}Z", datetime=record.at, title=record.at), class_="num"),
            el("th", record.event, scope="row"),
            el("td", [_fact(key, value) for key, value in record.facts.items() if value not in (None, "", {}, [])]),
        )
        for record in records
    ]
    heads = [
        el("th", name, scope="col", class_="num wide" if name == "Seq" else None)
        for name in ("Seq", "Time", "Event", "What was seen")
    ]
    table = el("table", el("thead", el("tr", heads)), el("tbody", rows), class_="records")
    return el("details", el("summary", f"All {len(records)} records of the journal"), table, class_="all")


def _fact(key: str, value: Any) -> Element:
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return el("div", el("span", f"{key}: ", class_="muted"), said)


def _cell(column: str, *children: Child) -> Element:
    """Return a cell that says the name of its column where a narrow screen has no columns."""
    return el("td", *children, data_label=column)
