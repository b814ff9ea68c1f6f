"""Starting a pivot: options that every kind has, sending the request so that a retry is safe, and waiting."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pivotd import limits
from pivotd.cli import render
from pivotd.cli.app import App
from pivotd.cli.client import persistently
from pivotd.cli.errors import EXIT_INTERRUPTED, CtlError, LostError, UsageError
from pivotd.cli.values import Bandwidth, Milliseconds, Name
from pivotd.cli.waiting import FOLLOW, wait_to_the_end
from pivotd.errors import EXIT_DONE

F = TypeVar("F", bound=Callable[..., Any])


def bandwidth(function: F) -> F:
    """Add the option that limits how fast bytes are copied."""
    return click.option(
        "--bandwidth", type=Bandwidth(), default=0, metavar="RATE", help="Bytes per second, like 10M or 1G."
    )(function)


def pausing(function: F) -> F:
    """Add the options that bound the pause of the guest."""
    function = click.option(
        "--attempts",
        type=click.IntRange(1, limits.ATTEMPTS_MAX),
        metavar="N",
        help="How often to try the switch within the longest pause.  [default: the daemon's]",
    )(function)
    return click.option(
        "--max-pause",
        "max_pause_ms",
        type=Milliseconds(),
        metavar="TIME",
        help="Longest pause of the guest, like 500ms or 1s.  [default: the daemon's]",
    )(function)


def holding(function: F) -> F:
    """Add the option to stop before the switch."""
    return click.option("--no-pivot", is_flag=True, help="Stop at ready; `pivotctl pivot complete ID` switches.")(
        function
    )


def common(function: F) -> F:
    """Add the options of every request."""
    function = click.option("--force", is_flag=True, help="Go on where a warning would refuse.")(function)
    function = click.option("--id", "request_id", type=Name(), metavar="REQUEST_ID", help="Your own id, see above.")(
        function
    )
    return click.option("--detach", "-d", is_flag=True, help="Do not wait.")(function)


def check_twice(what: str, names: list[str], command: str) -> None:
    """Raises: UsageError: a name is given twice."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{what} {twice} is named twice; see `pivotctl {command} --help`")


def start(app: App, kind: str, domain: str, disks: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Send the request, and wait for the end of the pivot unless told not to.

    What was not given is left out of the request, and the daemon's own setting counts.
    """
    names = {"bandwidth": "bandwidth_bytes_per_s"}
    body = {names.get(key, key): value for key, value in options.items()}
    request_id = body.pop("request_id") or os.urandom(16).hex()
    detach = body.pop("detach")
    if "no_pivot" in body:
        body["pivot"] = not body.pop("no_pivot")
    given = {key: value for key, value in body.items() if value is not None}
    pivot = _send(app, kind, domain, {"disks": disks, **given}, request_id)
    if not detach:
        wait_to_the_end(app, pivot)
        return
    app.status = EXIT_DONE
    if not render.answer(app, pivot):
        print(f"pivot {pivot['id']} runs; {FOLLOW.format(id=pivot['id'])}")


def _send(app: App, kind: str, domain: str, body: dict[str, Any], request_id: str) -> dict[str, Any]:
    """Return the pivot. Sent again after a lost connection: the request id makes that safe."""
    client = app.client
    again = f"see `pivotctl pivot show {request_id}`, or send it again with --id {request_id}"
    try:
        try:
            return client.start(kind, domain, body, request_id)
        except LostError:
            return persistently(
                lambda: client.start(kind, domain, body, request_id),
                lambda message: print(f"pivotctl: {message}", file=sys.stderr),
            )
    except KeyboardInterrupt:
        message = f"interrupted; pivotd may have taken the request: {again}"
        raise CtlError("interrupted", message, EXIT_INTERRUPTED, request_id=request_id) from None
