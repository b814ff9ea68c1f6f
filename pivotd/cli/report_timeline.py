"""The timeline of a pivot on a page: a strip to scale, the longest pause below it on a scale of its own, and tables.

Places and widths are per cent, so that a strip fits every screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from xml.etree.ElementTree import Element

from pivotd.cli.report_markup import Child, el
from pivotd.cli.timeline import GuestPause, Scale, Span, Timeline
from pivotd.cli.timeline_text import clock, ended, took

PAUSES_MAX = 6
"""Pauses with a table of their own; the records have all."""
STRIP, FUNNEL, BAR = 20, 26, 12
"""Heights of a strip, of what leads from it to the next, and of a bar in a table, in pixels."""
SEEN = 0.3
"""The least width of a bar: what is shorter is drawn so that it can be seen."""
ROOM_FOR_TEXT = 55.0
"""The least width of a bar with text in it, on the narrowest screen."""
MEANING = {
    "preparing": "images are made and opened",
    "copying": "the guest runs, its data is copied",
    "ready": "the copy follows the guest",
    "pausing": "from the intent to the outcome",
    "cancelling": "the jobs are cancelled",
    "decided": "the outcome is on disk",
}


def timeline_section(timeline: Timeline) -> list[Child]:
    """Return the figure and the tables."""
    longest = sorted(timeline.pauses, key=lambda pause: pause.pause_ms)[-PAUSES_MAX:]
    shown = [(number, pause) for number, pause in enumerate(timeline.pauses, 1) if pause in longest]
    more = len(timeline.pauses) - len(shown)
    back = "The clock of the host went back meanwhile: lengths around that are wrong; those of pauses are right."
    return [
        _figure(timeline) if timeline.length_s > 0 else None,
        _phases(timeline),
        [_pause(number, pause, len(timeline.pauses)) for number, pause in shown],
        el("p", f"{more} shorter pauses more are in the records.", class_="muted") if more else None,
        el("p", back, class_="warn") if timeline.clock_went_back else None,
    ]


def _figure(timeline: Timeline) -> Element:
    """Return the whole pivot, and its longest pause enlarged."""
    scale = timeline.scale
    strip = [_rect(scale, span, f"phase {span.phase}", title=span.phase) for span in timeline.spans]
    spoken = ", ".join(f"{phase} {took(_length_s(spans))}" for phase, spans in timeline.phases())
    caption = f"{took(timeline.length_s)} to scale" + (", still open" if timeline.open else "")
    height = STRIP
    longest = max(timeline.pauses, key=lambda pause: pause.pause_ms, default=None)
    if longest is not None:
        height = STRIP * 2 + FUNNEL
        strip += _enlarged(scale, longest)
        caption += f"; below, the longest pause enlarged: {took(longest.pause_ms / 1000)}"
        spoken += f"; the longest pause of the guest {took(longest.pause_ms / 1000)}"
    drawn = el(
        "svg",
        el("title", caption),
        strip,
        class_="strip",
        width="100%",
        height=height,
        role="img",
        aria_label=f"{caption}. {spoken}",
    )
    return el("figure", drawn, el("figcaption", caption))


def _enlarged(whole: Scale, pause: GuestPause) -> list[Element]:
    scale, y, edge = pause.scale, STRIP + FUNNEL, STRIP + 3
    left, right = _percent(whole, pause.begin), _percent(whole, pause.end)
    drawn = [
        el("line", x1=left, x2=left, y1=-1, y2=edge, class_="tick"),
        el("line", x1=left, x2="0%", y1=edge, y2=y, class_="funnel"),
        el("line", x1=right, x2="100%", y1=edge, y2=y, class_="funnel"),
        el("rect", x="0", y=y, width="100%", height=STRIP, class_="phase runs"),
        _rect(scale, pause, "phase paused", title="guest paused", y=y),
    ]
    for one in pause.moments:
        at = _percent(scale, one.at)
        drawn.append(
            el("line", el("title", one.event), x1=at, x2=at, y1=y - 3, y2=edge + FUNNEL + STRIP, class_="moment")
        )
    width = 100 * (scale.fraction(pause.end) - scale.fraction(pause.begin))
    if width >= ROOM_FOR_TEXT:
        said = f"guest paused {took(pause.pause_ms / 1000)}"
        drawn.append(el("text", said, x=f"{_percent(scale, pause.begin)}", dx=8, y=y + 14, class_="inside"))
    return drawn


def _phases(timeline: Timeline) -> Element:
    scale = timeline.scale
    rows = [_phase(scale, phase, spans) for phase, spans in timeline.phases()]
    if timeline.pauses:
        key = el("span", class_="key paused")
        rows.append(
            el(
                "tr",
                el("th", key, "guest paused", scope="row"),
                el("td", clock(timeline.pauses[0].begin), class_="num wide"),
                el("td", took(timeline.paused_ms / 1000), class_="num"),
                _bars(_rect(scale, one, "phase paused", height=BAR) for one in timeline.pauses),
            )
        )
    return _table("Phases", ("Phase", "Began", "Took", "To scale"), rows)


def _phase(scale: Scale, phase: str, spans: Sequence[Span]) -> Element:
    times = f", {len(spans)} times" if len(spans) > 1 else ""
    meaning = el("div", MEANING.get(phase, ""), class_="muted wide")
    return el(
        "tr",
        el("th", el("span", class_=f"key {phase}"), phase, times, meaning, scope="row"),
        el("td", clock(spans[0].begin), class_="num wide"),
        el("td", took(_length_s(spans)), class_="num"),
        _bars(_rect(scale, span, f"phase {phase}", height=BAR) for span in spans),
    )


def _pause(number: int, pause: GuestPause, of: int) -> Element:
    scale = pause.scale
    still = _bars([_rect(scale, pause, "phase paused", height=BAR)])
    entries = [(pause.begin, _entry("guest paused", took(pause.pause_ms / 1000), still))]
    for one in pause.moments:
        mark = _bars([_rect(scale, Scale(one.at, one.at), "phase moment", height=BAR)])
        entries.append((one.at, _entry(one.event, f"+{took((one.at - scale.zero).total_seconds())}", mark)))
    entries.sort(key=lambda entry: entry[0])
    fleet = "" if pause.fleet_ms is None else f", {took(pause.fleet_ms / 1000)} of it for the fleet"
    which = "The pause" if of == 1 else f"Pause {number} of {of}, attempt {pause.attempt}"
    caption = f"{which}: {took(pause.pause_ms / 1000)}{fleet}, {ended(pause)}; +0 is {clock(scale.zero)}"
    return _table(caption, ("Record", "At", "To scale"), [row for _, row in entries])


def _entry(label: str, figure: str, bar: Element) -> Element:
    return el("tr", el("th", label, scope="row"), el("td", figure, class_="num"), bar)


def _table(caption: str, columns: Iterable[str], rows: list[Element]) -> Element:
    classes = {"Began": "num wide", "Took": "num", "At": "num", "To scale": "bar"}
    heads = [el("th", name, scope="col", class_=classes.get(name)) for name in columns]
    return el("table", el("caption", caption), el("thead", el("tr", heads)), el("tbody", rows), class_="timing")


def _bars(bars: Iterable[Element]) -> Element:
    """Return a cell with bars; the figures beside it say the same, so they are not read out."""
    return el("td", el("svg", bars, width="100%", height=BAR, aria_hidden="true"), class_="bar")


def _rect(  # noqa: PLR0913 - what it shows, where, how
    scale: Scale, span: Span | GuestPause | Scale, kind: str, *, title: str = "", y: int = 0, height: int = STRIP
) -> Element:
    begin, end = (span.zero, span.end) if isinstance(span, Scale) else (span.begin, span.end)
    left, right = 100 * scale.fraction(begin), 100 * scale.fraction(end)
    return el(
        "rect",
        el("title", title) if title else None,
        x=f"{min(left, 100 - SEEN):.4f}%",
        y=y,
        width=f"{max(right - left, SEEN):.4f}%",
        height=height,
        class_=kind,
    )


def _percent(scale: Scale, at: datetime) -> str:
    return f"{100 * scale.fraction(at):.4f}%"


def _length_s(spans: Iterable[Span]) -> float:
    return sum(span.length_s for span in spans)
