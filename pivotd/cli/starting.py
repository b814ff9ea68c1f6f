"""Starting a pivot: options that every kind has, sending the request so that a retry is safe, and waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from pivotd import limits
from pivotd.cli import render
from pivotd.cli.complaints import InterruptError, UsageError
from pivotd.cli.context import App
from pivotd.cli.values import MILLISECONDS, Bandwidth, Name, Number
from pivotd.cli.waiting import FOLLOW, wait_to_the_end
from pivotd.client import NewPivot, Pivot, UnknownError, new_request_id
from pivotd.errors import EXIT_DONE

F = TypeVar("F", bound=Callable[..., Any])

AGAIN = """
    A repeated REQUEST_ID returns the pivot that it started, instead of starting another one. So you can run a script
    that gives a REQUEST_ID again after any failure.

    Ctrl-C stops waiting; the pivot continues.
"""


def bandwidth(function: F) -> F:
    """Add the option that limits how fast bytes are copied."""
    return click.option(
        "--bandwidth",
        "bandwidth_bytes_per_s",
        type=Bandwidth(),
        default=0,
        metavar="RATE",
        help="Bytes per second, like 10M or 1G.",
    )(function)


def pausing(function: F) -> F:
    """Add the options that bound the pause of the guest."""
    function = click.option(
        "--attempts",
        type=Number(1, limits.ATTEMPTS_MAX),
        metavar="N",
        help="How many pauses to try before giving up.  [default: the daemon's]",
    )(function)
    return click.option(
        "--max-pause",
        "max_pause_ms",
        type=MILLISECONDS,
        metavar="TIME",
        help="Longest pause of the guest, like 500ms or 1s.  [default: the daemon's]",
    )(function)


def _denied(_context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    """Return the value for the request: the flag negates it."""
    return not value


def holding(function: F) -> F:
    """Add the option to stop before the switch."""
    said = "Stop at ready; `pivotctl pivot complete ID` switches."
    return click.option("--no-pivot", "pivot", is_flag=True, callback=_denied, help=said)(function)


def throttling(function: F) -> F:
    """Add the option that forbids slowing the guest's writes."""
    said = "Never slow the guest's writes, even if the copy cannot keep up."
    return click.option("--no-throttle", "throttle", is_flag=True, callback=_denied, help=said)(function)


def dropping(function: F) -> F:
    """Add the option to lose snapshots inside images."""
    said = "Go on without the internal snapshots of the images that the disk leaves."
    return click.option("--drop-internal-snapshots", is_flag=True, help=said)(function)


def common(function: F) -> F:
    """Add the options of every request, and the help on waiting and on repeating a request."""
    function.__doc__ = f"{function.__doc__}\n{AGAIN}"
    function = click.option("--force", is_flag=True, help="Continue where pivotd would refuse with a warning.")(
        function
    )
    function = click.option(
        "--id", "request_id", type=Name(), metavar="REQUEST_ID", help="An id of your own for this request, see above."
    )(function)
    said = "Let data of an encrypted disk land in an image that is not encrypted."
    function = click.option("--plain", is_flag=True, help=said)(function)
    return click.option("--detach", "-d", is_flag=True, help="Do not wait.")(function)


def check_twice(what: str, names: list[str], command: str) -> None:
    """Raises: UsageError: a name is given twice."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{what} {twice} is named twice; see `pivotctl {command} --help`")


def check_targets(targets: Iterable[tuple[str, str]], image: str, command: str) -> None:
    """Check DISK=IMAGE; many disks can go to one directory. Raises: UsageError: a disk or an image is named twice."""
    check_twice("disk", [disk for disk, _ in targets], command)
    check_twice(image, [path for _, path in targets if not os.path.isdir(path)], command)  # noqa: PTH112


def start(app: App, domain: str, request: Callable[..., NewPivot], disks: list[Any], options: dict[str, Any]) -> None:
    """Send the request, and wait for the end of the pivot unless told not to.

    ``options``: fields of the request by name, with ``request_id`` and ``detach``.
    """
    app.will_answer(Pivot)
    request_id = options.pop("request_id") or new_request_id()
    detach = options.pop("detach")
    pivot = _send(app, domain, request(disks=disks, **options), request_id)
    if not detach:
        wait_to_the_end(app, pivot)
        return
    app.status = EXIT_DONE
    if not render.answer(app, pivot):
        print(f"pivot {pivot.id} runs; {FOLLOW.format(id=pivot.id)}")


def _send(app: App, domain: str, request: NewPivot, request_id: str) -> Pivot:
    """Return the pivot; an error or interrupt names the id with which to ask again."""
    again = f"see `pivotctl pivot show {request_id}`, or send it again with --id {request_id}"
    try:
        return app.client.start(domain, request, request_id=request_id)
    except UnknownError as failure:
        failure.message += f"; pivotd may have taken the request: {again}"
        raise
    except KeyboardInterrupt:
        message = f"interrupted; pivotd may have taken the request: {again}"
        raise InterruptError(message, request_id=request_id) from None
