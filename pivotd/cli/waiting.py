"""Wait until a pivot rests, and derive the exit status from its end."""

from __future__ import annotations

import sys

from pivotd.cli import render
from pivotd.cli.complaints import InterruptError
from pivotd.cli.context import App
from pivotd.cli.progress import Silent, display_for
from pivotd.client import Client, Pivot
from pivotd.errors import EXIT_DONE, EXIT_KEPT, EXIT_UNKNOWN

FOLLOW = "follow it with `pivotctl pivot wait {id}`, cancel it with `pivotctl pivot cancel {id}`"


def wait_to_the_end(app: App, pivot: Pivot) -> None:
    """Wait until the pivot rests and show its progress; then print the result and set the exit status."""
    try:
        pivot = rested(app, pivot)
    except KeyboardInterrupt:
        message = f"pivot {pivot.id} continues; {FOLLOW.format(id=pivot.id)}"
        raise InterruptError(message, pivot=pivot.id) from None
    app.status = exit_status(pivot)
    if not render.answer(app, pivot):
        _print_end(pivot)
    elif app.documents:
        return
    complain(pivot)


def rested(app: App, pivot: Pivot) -> Pivot:
    """Return the pivot once it rests, and show its progress until then."""
    client = app.client
    with display_for(app) as display:
        return _wait(client, pivot, display)


def print_rest(app: App, pivot: Pivot) -> None:
    """Print the result of a pivot that rests, and on stderr what went wrong; a document says both later."""
    if app.for_people:
        _print_end(pivot)
    if not app.documents:
        complain(pivot)


def complain(pivot: Pivot) -> None:
    """Say on stderr what went wrong with a pivot that rests."""
    warned = pivot.outcome == "switched" and pivot.error is not None  # a next boot that libvirt did not get right, say
    if (exit_status(pivot) != EXIT_DONE or warned) and sys.stderr is not None:
        sys.stdout.flush()
        print(f"pivotctl: {render.one_line(complaint(pivot))}", file=sys.stderr)


def _wait(client: Client, pivot: Pivot, display: Silent) -> Pivot:
    client.tell = display.tell
    while not pivot.rests:
        display.show(pivot, client.progress(pivot.id))
        pivot = client.wait(pivot.id, display.interval_s)
    display.end(pivot)
    return pivot


def exit_status(pivot: Pivot) -> int:
    """Return the exit status of a pivot that rests; a pivot that waits at ready as requested is done."""
    match pivot.outcome:
        case "switched" | "merged":
            return EXIT_DONE
        case "kept":
            return EXIT_KEPT
        case None if pivot.phase == "ready":
            return EXIT_DONE
        case _:
            return EXIT_UNKNOWN


def complaint(pivot: Pivot) -> str:
    """Return one line: what went wrong, why, and what to do next."""
    name, why = f"pivot {pivot.id}", pivot.error or "no reason is recorded"
    if pivot.phase == "ready":
        return (
            f"{name} could not switch and waits at ready: {why}; `pivotctl pivot complete {pivot.id}` tries again, "
            f"`pivotctl pivot cancel {pivot.id}` cancels it"
        )
    if pivot.outcome == "switched":
        return f"{name} has switched, but: {why}; see `pivotctl pivot show {pivot.id}`"
    if pivot.outcome == "kept":
        return f"{name} kept the source: {why}; see `pivotctl pivot show {pivot.id}`"
    if pivot.outcome == "split":
        return f"{name} ended differently for its disks: {why}; see `pivotctl verdict {pivot.domain}`"
    return f"{name} has an unknown outcome: {why}; compare the images, see `pivotctl verdict {pivot.domain}`"


def _print_end(pivot: Pivot) -> None:
    for disk in pivot.disks:
        outcome = disk.outcome or "ready"
        image = disk.destination if outcome == "switched" else disk.source
        where = "a person must look" if outcome == "unknown" else f"its data is in {render.text(image)}"
        print(f"{render.text(pivot.domain)} {render.text(disk.disk)}: {outcome}, {where}")
    paused = "the guest was not paused"
    if pivot.pause_ms is not None:
        paused = f"the guest was paused for {render.pause(pivot.pause_ms)}"
    print(f"pivot {pivot.id}: {paused}")
    if pivot.undo_until:
        until = render.when(pivot.undo_until)
        print(f"the old images are kept in sync until {until}: `pivotctl pivot undo {pivot.id}` returns to them")
    if pivot.phase == "ready" and pivot.outcome is None:
        print(f"it waits at ready: `pivotctl pivot complete {pivot.id}` switches")
