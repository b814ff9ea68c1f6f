"""The answer to an evacuation, or to its dry run: one document, or lines; and its exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from msgspec import Struct

from pivotd.cli import evacuate_room, render
from pivotd.cli.context import App, tell
from pivotd.cli.evacuate_places import Places
from pivotd.cli.evacuate_plan import DiskMove, Left, Move, Plan
from pivotd.cli.evacuate_run import Evacuation, Result
from pivotd.cli.several import gravest
from pivotd.cli.several_display import Shown
from pivotd.errors import EXIT_REFUSED


class Moved(Struct, frozen=True):
    """One move and its end. ``exit_status`` None: it has not begun. ``pivot``: the one that makes it, or made it."""

    domain: str
    disks: tuple[DiskMove, ...]
    pivot: str | None
    outcome: str | None
    pause_ms: float | None
    done: bool
    error: str | None
    exit_status: int | None


class Arrived(Struct, frozen=True):
    """A disk whose image is in the new place."""

    domain: str
    disk: str
    image: str


class Evacuated(Struct, frozen=True, rename={"sources": "from"}):
    """The whole answer. ``needed_bytes``: what the moves that are left to do may take; ``free_bytes`` None: unknown."""

    sources: tuple[str, ...]
    to: str
    name: str
    dry_run: bool
    needed_bytes: int
    free_bytes: int | None
    moves: tuple[Moved, ...]
    left: tuple[Left, ...]
    arrived: tuple[Arrived, ...]


class Report:
    """Prints the answer to one command. ``name``: the part of the request ids that stands for it."""

    def __init__(self, app: App, places: Places, name: str) -> None:
        self._app, self._places, self._name = app, places, name

    def planned(self, plan: Plan) -> None:
        """Print what would be done."""
        short = evacuate_room.lacks_room(plan, self._places.to)
        self._app.found(gravest([*(one.exit_status for one in plan.left), *[EXIT_REFUSED] * short]))
        if not self._answered(plan, [_moved(move, None) for move in plan.moves], plan.left, dry_run=True):
            self._print_plan(plan, short=short)
        self._tell_left(plan.left)

    def say_end(self, result: Result, display: Shown) -> None:
        """Print the end of one move, unless the document will say it."""
        if self._app.documents:
            return
        if result.pivot is not None:
            display.rested(result.pivot)
            return
        with display.aside():
            if result.error is not None:
                tell(render.one_line(f"{result.move.words}: {result.error}"))
            elif self._app.for_people:
                print(f"{render.text(result.move.words)}: moved already")

    def ended(self, evacuation: Evacuation, plan: Plan) -> None:
        """Print what was done, and what is left. Each move was printed at its end. ``plan``: as of now."""
        results, later = evacuation.results, evacuation.not_begun
        left = _left(plan, results, later)
        statuses = [*(result.exit_status for result in results), *(one.exit_status for one in left)]
        self._app.status = gravest([*statuses, *[EXIT_REFUSED] * len(later)])
        moves = [_moved(result.move, result) for result in results] + [_moved(move, None) for move in later]
        if not self._answered(plan, moves, left, dry_run=False):
            print(_sum(results, later, left) if results or later else self._nothing(plan))
        self._tell_left(left)

    def _answered(self, plan: Plan, moves: Sequence[Moved], left: Sequence[Left], *, dry_run: bool) -> bool:
        whole = Evacuated(
            tuple(self._places.roots.values()),
            self._places.to,
            self._name,
            dry_run,
            evacuate_room.needed_bytes(plan),
            evacuate_room.free_bytes(self._places.to),
            tuple(moves),
            tuple(left),
            tuple(Arrived(*one) for one in plan.arrived),
        )
        return render.answer(self._app, whole if self._app.documents else list(whole.moves))

    def _print_plan(self, plan: Plan, *, short: bool) -> None:
        if not plan.moves:
            print(self._nothing(plan))
            return
        rows = [
            (move.domain, disk.disk, disk.image, disk.target, render.size(disk.copy_bytes))
            for move in plan.moves
            for disk in move.disks
        ]
        render.table(("DOMAIN", "DISK", "IMAGE", "NEW IMAGE", "AT MOST"), rows)
        print(evacuate_room.words(plan, self._places.to) + (": not enough" if short else ""))

    def _tell_left(self, left: Sequence[Left]) -> None:
        """Say on stderr what is left, and why; a document has said it."""
        if self._app.documents:
            return
        sys.stdout.flush()
        for one in left:
            what = f"{one.domain} {one.disk}" if one.disk else one.domain
            image = f" stays in {one.image}" if one.image else ""
            tell(render.one_line(f"{what}{image}: {one.reason}"))

    def _nothing(self, plan: Plan) -> str:
        there = f"; {len(plan.arrived)} are below {self._places.to}" if plan.arrived else ""
        return f"no disk that pivotd can move lies below {' or '.join(self._places.roots.values())}{there}"


def _sum(results: Sequence[Result], later: Sequence[Move], left: Sequence[Left]) -> str:
    done = sum(result.done for result in results)
    parts = [
        f"{done} of {len(results) + len(later)} moved",
        f"{len(results) - done} failed" if done < len(results) else None,
        f"{len(later)} not begun" if later else None,
        f"{len(left)} left there or not known" if left else None,
    ]
    return ", ".join(part for part in parts if part)


def _moved(move: Move, result: Result | None) -> Moved:
    pivot = None if result is None else result.pivot
    return Moved(
        move.domain,
        move.disks,
        pivot.id if pivot else move.pivot,
        pivot.outcome if pivot else None,
        pivot.pause_ms if pivot else None,
        result is not None and result.done,
        result.error if result else None,
        result.exit_status if result else None,
    )


def _left(plan: Plan, results: Sequence[Result], later: Sequence[Move]) -> list[Left]:
    """Return what is in the old place at the end, except failures, and what was not begun: these are told as such."""
    moves = [*(result.move for result in results if not result.done), *later]
    known = {(move.domain, disk.disk, disk.image) for move in moves for disk in move.disks}
    new = [
        Left(move.domain, disk.disk, disk.image, "it came up meanwhile: evacuate again")
        for move in plan.moves
        for disk in move.disks
    ]
    return [one for one in (*plan.left, *new) if (one.domain, one.disk, one.image) not in known]
