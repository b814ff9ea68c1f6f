"""Commands that end pivots, or wait for their ends: wait, complete, cancel; of one pivot, of several, of all."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from pivotd.cli import render, several
from pivotd.cli.complaints import InterruptError, perhaps_taken
from pivotd.cli.context import App, pass_app
from pivotd.cli.several import Answers
from pivotd.cli.several_display import Shown, several_display
from pivotd.cli.several_running import Running, look, totals
from pivotd.cli.waiting import FOLLOW, exit_status, wait_to_the_end
from pivotd.client import Client, ClientError, Pivot
from pivotd.errors import EXIT_DONE, EXIT_UNKNOWN, PhaseConflictError

FOLLOW_SEVERAL = "follow them with `pivotctl wait {names}`, cancel them with `pivotctl cancel {names}`"
SEE = "see `pivotctl pivot show {id}`"


@click.command("wait")
@several.named("All pivots that are open")
@pass_app
def wait(app: App, names: tuple[str, ...], every: bool, domain: str | None) -> None:
    """Wait until each pivot is closed or waits at ready, and show its progress.

    Ctrl-C stops waiting; the pivots continue. Waiting continues across a restart of the daemon.

    If one of several pivots fails, the command still waits for the others. The exit status is the gravest of all: 6, 3,
    4, 5, 0.
    """
    if several.only_one(names, domain, every=every):
        wait_to_the_end(app, app.client.pivot(names[0]))
        return
    with _left_alone(lambda: several.typed(names, domain, every=every)):
        chosen = several.select(app, names, domain, every=every, wanted=lambda _pivot: True)
        answers = Answers(app, chosen)
        # A daemon that is not there is told at once; one that goes away later is waited for.
        known = [name for name, _ in answers.asked(chosen, app.client.pivot)]
    running: dict[str, Running] = {}
    with _left_alone(lambda: several.typed(running or known, domain, every=every)):
        _wait_for(app, known, running, answers)
    answers.end()


@click.command("complete")
@several.named("All pivots that wait at ready")
@pass_app
def complete(app: App, names: tuple[str, ...], every: bool, domain: str | None) -> None:
    """Switch each pivot that waits at ready, and wait until it has switched.

    A pivot waits at ready after `copy --no-pivot`, and after all its attempts have failed: this command tries again.

    Each of several pivots switches by itself. If one fails, the others still switch. The exit status is the gravest of
    all: 6, 3, 4, 5, 0.
    """
    if several.only_one(names, domain, every=every):
        with perhaps_taken(SEE.format(id=shlex.quote(names[0])), pivot=names[0]):
            asked = app.client.complete(names[0])
        wait_to_the_end(app, asked)
        return
    chosen = several.select(app, names, domain, every=every, wanted=lambda pivot: pivot.phase == "ready" and pivot.hold)
    answers = Answers(app, chosen)
    with perhaps_taken(_again("complete", names, domain, every=every), pivots=chosen):
        known = [name for name, _ in answers.asked(chosen, app.client.complete)]
    running: dict[str, Running] = {}
    with _left_alone(lambda: several.typed(running or known, domain, every=False)):
        _wait_for(app, known, running, answers)
    answers.end()


@click.command("cancel")
@several.named("All pivots that are open and have not switched")
@pass_app
def cancel(app: App, names: tuple[str, ...], every: bool, domain: str | None) -> None:
    """Cancel each pivot: its guest continues on the source images.

    The command returns once this is in the journal. A pivot that has switched already stays as it is, and the exit
    status is 4.

    If one of several pivots cannot be cancelled, the others still are. The exit status is the gravest of all: 6, 3, 4,
    0.
    """
    if several.only_one(names, domain, every=every):
        with perhaps_taken(SEE.format(id=shlex.quote(names[0])), pivot=names[0]):
            pivot = _cancelled(app, names[0])
        app.status = _cancel_status(pivot)
        if not render.answer(app, pivot):
            _print_cancelled(pivot)
        return
    chosen = several.select(app, names, domain, every=every, wanted=_can_be_cancelled)
    answers = Answers(app, chosen)
    # All are cancelled before anything is printed: a pipe that breaks must not leave some of them.
    with perhaps_taken(_again("cancel", names, domain, every=every), pivots=chosen):
        found = list(answers.asked(chosen, lambda name: _cancelled(app, name)))
    for name, pivot in found:
        answers.take(name, pivot, _cancel_status(pivot))
    answers.end()
    if app.for_people:
        for _, pivot in found:
            _print_cancelled(pivot)


def _again(command: str, names: Sequence[str], domain: str | None, *, every: bool) -> str:
    return f"`pivotctl {command} {several.typed(names, domain, every=every)}` goes on"


@contextmanager
def _left_alone(names: Callable[[], str]) -> Iterator[None]:
    """Around what only looks: after Ctrl-C say that the pivots go on. ``names``: how they are typed.

    Raises: InterruptError.
    """
    try:
        yield
    except KeyboardInterrupt:
        said = FOLLOW_SEVERAL.format(names=names())
        raise InterruptError(f"interrupted; the pivots continue: {said}") from None


def _wait_for(app: App, names: list[str], running: dict[str, Running], answers: Answers) -> None:
    """Wait for all pivots at once, and print the end of each as soon as it is known.

    ``running``: is filled with those that run, by name.
    """
    client = app.client
    for name, pivot in answers.asked(names, lambda name: client.wait(name, 0)):
        running[name] = Running(pivot.domain, pivot)
    with several_display(app) as display:
        client.tell = display.tell
        _follow(client, running, display, answers)


def _follow(client: Client, running: dict[str, Running], display: Shown, answers: Answers) -> None:
    """Take each pivot out of ``running`` and into the answers once it rests."""
    done: list[int] = []
    failed = 0
    while True:
        for name, one in [(name, one) for name, one in running.items() if one.pivot.rests]:
            del running[name]
            status = exit_status(one.pivot)
            answers.take(name, one.pivot, status)
            display.rested(one.pivot)
            if status == EXIT_DONE:
                done.append(one.total_bytes)
            else:
                failed += 1
        if not running:
            return
        shown = list(running.values())
        display.show(shown, totals(shown, waiting=(), done=done, failed=failed))
        try:
            look(client, shown, display.interval_s)
        except ClientError as failure:
            with display.aside():
                for name in running:
                    answers.fail(name, failure)
            return


def _can_be_cancelled(pivot: Pivot) -> bool:
    return pivot.phase not in {"decided", "closed"}


def _cancelled(app: App, name: str) -> Pivot:
    """Return the pivot once it is cancelled. Raises: ClientError, PhaseConflictError: it has switched or merged."""
    found = app.client.cancel(name)
    if found.outcome == "switched":
        message = f"pivot {found.id} has switched already; copy the disks back to return to the source"
        raise PhaseConflictError(message, pivot=found.id)
    if found.outcome == "merged":
        raise PhaseConflictError(f"pivot {found.id} has merged its layers already: too late to cancel", pivot=found.id)
    return found


def _cancel_status(pivot: Pivot) -> int:
    return EXIT_UNKNOWN if pivot.outcome in {"unknown", "split"} else EXIT_DONE


def _print_cancelled(pivot: Pivot) -> None:
    if pivot.phase in {"cancelling", "decided", "closed"}:
        print(f"pivot {pivot.id} is cancelled: the guest continues on the source")
    else:
        print(f"pivot {pivot.id} will be cancelled as soon as QEMU answers; {FOLLOW.format(id=pivot.id)}")
