"""`pivotctl evacuate`: move every disk below one place to another place."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import click

from pivotd import limits
from pivotd.cli import evacuate_at, evacuate_room, image_options, starting, unknown_domain
from pivotd.cli.complaints import InterruptError, UsageError
from pivotd.cli.context import App, pass_app, tell
from pivotd.cli.copy_command import check_kept, copying, keeping
from pivotd.cli.evacuate_at import At
from pivotd.cli.evacuate_places import Places
from pivotd.cli.evacuate_plan import OWN, Plan
from pivotd.cli.evacuate_planner import Planner
from pivotd.cli.evacuate_report import Report
from pivotd.cli.evacuate_run import Evacuation, patiently
from pivotd.cli.evacuate_start import Starter
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DOMAIN
from pivotd.cli.several_display import several_display
from pivotd.cli.values import FORMAT, AbsolutePath, Bandwidth, Name, Number
from pivotd.client import Client, ClientError
from pivotd.core.names import DOMAIN_NAME_WORDS, is_domain_name
from pivotd.errors import EXIT_UNREACHABLE

F = TypeVar("F", bound=Callable[..., Any])
EXAMPLES = (
    "pivotctl evacuate --from /old --to /new --dry-run",
    "pivotctl evacuate --from /old --to /new --parallel 4 --bandwidth-total 400M",
    "pivotctl evacuate --from /old --to /new --at 22:00 --on-failure continue",
    "pivotctl evacuate --from /a --from /b --to /new --domain web1 --domain db1",
)
OF_COPY = {
    "--reuse": "a file in the way is overwritten only if an earlier try of this evacuation has left it",
    "--no-pivot": "disks that do not switch stay where they are; `pivotctl copy --no-pivot` stops at ready",
    "--bandwidth": "give --bandwidth-total, for all copies together",
    "--detach": "what runs goes on after Ctrl-C; begin it later with --at",
    "--id": "give --name: the request ids are made from it",
}
"""Options of copy that make no sense here, and why."""


def not_taken(function: F) -> F:
    """Refuse options of copy with what to do instead."""

    def refuse(_context: click.Context, parameter: click.Parameter, value: object) -> None:
        if value:
            word = parameter.opts[0]
            raise UsageError(f"evacuate takes no {word}: {OF_COPY[word]}; see `pivotctl evacuate --help`")

    for word in OF_COPY:
        kind: dict[str, Any] = {} if word in {"--bandwidth", "--id"} else {"is_flag": True}
        function = click.option(word, hidden=True, expose_value=False, callback=refuse, **kind)(function)
    return function


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="Move every disk from one place to another.")
@click.option("--from", "sources", type=AbsolutePath(), multiple=True, required=True, metavar="DIR", help="Old place.")
@click.option("--to", type=AbsolutePath(), required=True, metavar="DIR", help="New place; it has to be there.")
@click.option("--domain", "domains", type=DOMAIN, multiple=True, metavar="DOMAIN", help="Only disks of this domain.")
@click.option("--format", "image_format", type=FORMAT, help="Format of the new images.  [default: the source's]")
@click.option(
    "--sync",
    type=click.Choice(("full", "top")),
    default="full",
    show_default=True,
    help="Copy all layers, or only the active one.",
)
@click.option(
    "--parallel",
    type=Number(1, limits.EVACUATE_PARALLEL_MAX),
    default=1,
    show_default=True,
    metavar="N",
    help=f"How many pivots copy at once, up to {limits.EVACUATE_PARALLEL_MAX}.",
)
@click.option(
    "--bandwidth-total",
    type=Bandwidth(),
    default=0,
    metavar="RATE",
    help="Bytes per second of all copies together, like 400M.",
)
@click.option("--at", type=At(), metavar="TIME", help="Begin then: 22:00, or 2027-01-31T22:00.")
@click.option(
    "--on-failure",
    type=click.Choice(("stop", "continue")),
    default="stop",
    show_default=True,
    help="Whether to begin more after one has failed.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Show what would move, how much, and whether there is room.")
@click.option("--name", type=Name(), metavar="NAME", help="Part of the request ids.  [default: made from the places]")
@click.option("--overcommit", is_flag=True, help="Begin although the new place seems to have too little room.")
@partial(image_options.creating, words=("--option",))
@copying
@keeping
@click.option("--resumable", is_flag=True, help="A failing destination pauses the copy instead of ending it.")
@starting.pausing
@starting.throttling
@starting.dropping
@not_taken
@click.option("--plain", is_flag=True, help="Let data of encrypted disks land in images that are not encrypted.")
@click.option("--force", is_flag=True, help="Continue where pivotd would refuse with a warning.")
@pass_app
def evacuate(  # noqa: PLR0913, PLR0917 - the options of the command
    app: App,
    /,
    sources: tuple[str, ...],
    to: str,
    domains: tuple[str, ...],
    image_format: str | None,
    parallel: int,
    bandwidth_total: int,
    at: str | None,
    on_failure: str,
    dry_run: bool,
    name: str | None,
    overcommit: bool,
    **options: Any,
) -> None:
    """Move every disk whose image lies below the old place, of every domain, to the new place.

    The disks of one domain move as one pivot: all or none. Each image keeps its path below the old place. Missing
    directories are made like the old ones.

    The same command goes on where it was, whatever was killed: it follows what runs, moves what is left, and moves no
    disk twice. Ctrl-C leaves what runs.

    With --keep-synced the old place stays in use for that time: `pivotctl pivot release` ends that for each pivot.

    The exit status is 0 once no disk needs the old place. Else it is the gravest of all: 6, 3, 4, 5; 4 also if
    something stays there, such as the disk of a guest that does not run.
    """
    places = Places(sources, to)
    name = places.mark if name is None else name
    if not is_domain_name(name):
        raise UsageError(f"--name cannot be {name!a}: give {DOMAIN_NAME_WORDS}")
    check_kept(options["keep_synced_s"], "evacuate", keep_synced=options["keep_synced"])
    request = image_options.fold(options)
    client = app.client
    client.patience_s = limits.EVACUATE_PATIENCE_S
    for domain in domains:
        unknown_domain.check(app, domain)
    planner = Planner(client, places, domains, name=name, image_format=image_format, options=request)
    plan = planner.plan()
    report = Report(app, places, name)
    if dry_run:
        report.planned(plan)
        return
    if not overcommit:
        evacuate_room.refuse_without(plan, places.to)
    if plan.moves and app.for_people:
        tell(evacuate_room.words(plan, places.to))
    if at is not None and _wait(client, f"{OWN}{name}-", at):
        plan = patiently(client, planner.plan)
        if not overcommit:
            evacuate_room.refuse_without(plan, places.to)
    with several_display(app) as display:
        client.tell = display.tell
        starter = Starter(client, places, image_format, request)
        evacuation = Evacuation(
            client,
            starter,
            planner.plan,
            display,
            ended=lambda result: report.say_end(result, display),
            parallel=parallel,
            bytes_per_s=bandwidth_total,
            stop_on_failure=on_failure == "stop",
        )
        plan = _run(evacuation, plan)
    report.ended(evacuation, plan)


def _wait(client: Client, prefix: str, at: str) -> bool:
    """Wait for the time, unless the evacuation has begun since it was last; return whether that took any time."""
    last, then = evacuate_at.last_and_next(at, datetime.now().astimezone())
    if evacuate_at.has_begun(client, prefix, last):
        tell(f"going on: this evacuation has begun since {last:%Y-%m-%d %H:%M}")
        return False
    try:
        if then <= datetime.now(UTC):
            tell(f"{then:%Y-%m-%d %H:%M %Z} has passed: beginning now")
            return False
        tell(f"waiting until {then:%Y-%m-%d %H:%M %Z}")
        evacuate_at.sleep_until(then)
    except KeyboardInterrupt:
        raise InterruptError("interrupted; nothing has begun") from None
    return True


def _run(evacuation: Evacuation, plan: Plan) -> Plan:
    """Carry out the plan. An end in the middle says what goes on. Raises: InterruptError, ClientError."""
    try:
        return evacuation.run(plan)
    except KeyboardInterrupt:
        raise InterruptError(f"interrupted; {_goes_on(evacuation)}", pivots=_running(evacuation)) from None
    except ClientError as failure:
        if failure.exit_status == EXIT_UNREACHABLE:
            failure.message += f"; {_goes_on(evacuation)}"
        raise


def _running(evacuation: Evacuation) -> list[str]:
    return [one.pivot.id for one in evacuation.running]


def _goes_on(evacuation: Evacuation) -> str:
    pivots = _running(evacuation)
    asked = evacuation.beginning
    parts = [
        _continue(pivots) if pivots else "no pivot is known to run",
        f"pivotd may have taken the request for {asked.words}" if asked is not None else None,
        "the same command goes on from here",
        f"`pivotctl cancel {' '.join(pivots)}` cancels" if pivots else None,
    ]
    return "; ".join(part for part in parts if part)


def _continue(pivots: list[str]) -> str:
    return f"pivot {pivots[0]} continues" if len(pivots) == 1 else f"the pivots {', '.join(pivots)} continue"
