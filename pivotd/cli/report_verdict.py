"""Which image is right, on a page: what the pivot recorded when it was decided, and the verdict of now."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from pivotd.cli import render
from pivotd.cli.report_data import Report, Reported
from pivotd.cli.report_markup import Child, el
from pivotd.cli.report_parts import link
from pivotd.client import PivotWithRecords, Verdict

DECISIONS = ("switched", "kept", "merged", "split", "unknown")
QEMU = {
    "same": "the QEMU in which the pivot began answered",
    "gone": "QEMU was gone",
    "replaced": "another QEMU was behind the monitor",
    "silent": "QEMU did not answer",
}


def decision(pivot: PivotWithRecords) -> Element | None:
    """Return the record that decided the pivot, with what was seen then; None if there is none yet."""
    made = next((record for record in reversed(pivot.records) if record.event in DECISIONS), None)
    if made is None:
        return None
    facts = made.facts
    seen = [
        *_said(facts.get("reason")),
        *_said(QEMU.get(str(facts.get("qemu")), facts.get("qemu"))),
        *_said(facts.get("run_state"), "the guest was {}"),
        *(f"{disk} had its {root} as root" for disk, root in _pairs(facts.get("roots"))),
        *(f"job {name}: {_job(job)}" for name, job in _pairs(facts.get("jobs"))),
        *_said(facts.get("warning")),
    ]
    return el(
        "div",
        el(
            "p",
            el("strong", "Decided: "),
            f"{made.event}, recorded {render.when(made.at)} (record {made.seq}). Seen then:",
        ),
        el("ul", [el("li", one) for one in seen]),
        class_="verdict was",
    )


def verdicts(report: Report, one: Reported) -> list[Child]:
    """Return the verdict of now on each disk of a pivot, with the later pivot by which it is, if there was one."""
    pivot, here = one.pivot, {each.pivot.id for each in report.pivots}
    found: list[Child] = []
    for disk in pivot.disks:
        verdict = report.verdicts.get((pivot.domain, disk.disk))
        found.append(el("h4", f"{disk.disk}, when this was written"))
        if verdict is None:
            why = report.silent.get(pivot.domain, "neither QEMU nor the journal named the disk when this was asked")
            found.append(el("p", f"The verdict could not be had: {why}.", class_="warn"))
            continue
        found.append(_verdict(verdict, None if verdict.pivot in {None, pivot.id} else verdict.pivot, here))
    return found


def _verdict(verdict: Verdict, later: str | None, here: set[str]) -> Element:
    """Return a verdict. One that is not certain never looks as if it named an image to use."""
    image = el("span", verdict.image or "no image", class_="path")
    if verdict.certain:
        first = el("p", el("strong", "Certain: "), image, f" ({verdict.format or 'format not known'})")
    elif verdict.outcome == "unknown":
        first = el("p", el("strong", "Nobody can be certain"), " which image is right: a person must look.")
    else:
        ask = " Ask again in a moment." if verdict.pending else ""
        first = el("p", el("strong", "Nobody can be certain."), " The journal names ", image, f".{ask}")
    moved = None if later is None else el("p", "This is by a later pivot of the disk, ", link(later, here), ".")
    word = el("strong", "A person's word. ") if verdict.outcome == "accepted" else None
    evidence = el("ul", [el("li", said) for said in verdict.evidence])
    kind = "verdict sure" if verdict.certain else "verdict unsure"
    return el("div", first, moved, el("p", word, verdict.reason), evidence, class_=kind)


def _said(value: Any, pattern: str = "{}") -> list[str]:
    return [pattern.format(value)] if isinstance(value, str) and value else []


def _pairs(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _job(job: Any) -> str:
    if not isinstance(job, dict):
        return str(job)
    status = "had ended and was gone" if job.get("status") == "null" else str(job.get("status"))
    return f"{status}, {job['error']}" if job.get("error") else status
