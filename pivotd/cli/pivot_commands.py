"""Commands on pivots: list, show, complete, cancel, undo, release, set, wait."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import islice
from typing import Any

import click

from pivotd import limits
from pivotd.cli import progress, render, unknown_domain, user_names
from pivotd.cli.adopt_command import adopt
from pivotd.cli.complaints import perhaps_taken
from pivotd.cli.context import App, pass_app, tell
from pivotd.cli.ending_commands import SEE, cancel, complete, wait
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DOMAIN, OPEN_PIVOT, PIVOT
from pivotd.cli.since import Since
from pivotd.cli.values import Bandwidth, Number
from pivotd.cli.waiting import wait_to_the_end
from pivotd.client import Pivot, PivotDisk, Record
from pivotd.core.list_filters import OUTCOMES, journal_time
from pivotd.core.request import Kind
from pivotd.errors import EXIT_DONE

LS_EXAMPLES = (
    "pivotctl pivot ls --since 3d --outcome unknown",
    "pivotctl pivot ls --open -q",
    "pivotctl pivot ls --domain web1 --last 5 --format '{id} {outcome} {pause_ms:.1f}'",
)


@click.group(short_help="Pivots: list, show, complete, cancel, undo, wait.")
def pivot() -> None:
    """List pivots, show them, and decide how they end.

    A pivot is one journalled switch of one or several disks of one domain. ID is its id, or the request id that was
    given with `copy --id`, or as much of the beginning of its id as no other pivot has.
    """


for command in (adopt, complete, cancel, wait):
    pivot.add_command(command)


COLUMNS = ("PIVOT", "DOMAIN", "KIND", "DISKS", "STATE", "PAUSE", "CREATED", "UNDO UNTIL", "WHO", "IMAGES")
SPARE = ("PAUSE", "WHO", "IMAGES", "CREATED", "DISKS", "UNDO UNTIL", "KIND", "DOMAIN")
"""What a narrow terminal does without, the first one first."""


@pivot.command("ls", cls=ExampleCommand, examples=LS_EXAMPLES)
@click.option("--domain", metavar="DOMAIN", type=DOMAIN, help="Only pivots of this domain.")
@click.option("--open", "open_only", is_flag=True, help="Only pivots that are not closed.")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Only pivots of this kind.")
@click.option("--outcome", type=click.Choice(OUTCOMES), help="Only pivots that ended so.")
@click.option("--since", type=Since(), metavar="TIME", help="Only pivots created then or later: 2m, 3d, 2026-11-23.")
@click.option(
    "--last",
    "-n",
    "--limit",
    "last",
    type=Number(1, limits.SEQ_MAX),
    default=limits.PIVOTS_LISTED_MAX,
    show_default=True,
    metavar="N",
    help="Only the newest N of them.",
)
@pass_app
def ls(app: App, /, last: int, since: datetime | None, **chosen: Any) -> None:
    """List pivots, newest first.

    STATE is the outcome, or what an open pivot does now. A terminal that is too narrow for all columns does without
    some, and says which.
    """
    chosen["since"] = since and journal_time(since)
    found = list(islice(app.reads.pivots(**chosen, limit=last + 1), last + 1))
    if not found:
        unknown_domain.check(app, chosen["domain"])
    more = len(found) > last
    del found[last:]
    if not render.answer(app, found):
        render.table(COLUMNS, [_row(one) for one in found], spare=SPARE)
    if more:
        tell(_cut_off(app, last, **chosen))


def _row(one: Pivot) -> tuple[Any, ...]:
    return (
        one.id,
        one.domain,
        one.kind,
        " ".join(disk.disk for disk in one.disks),
        _state(one),
        render.pause(one.pause_ms),
        render.minute(one.created),
        render.minute(one.undo_until),
        user_names.name(one.requested_by.uid),
        ", ".join(render.images(disk.source, disk.destination) for disk in one.disks),
    )


def _state(one: Pivot) -> str:
    if one.phase == "closed":
        return one.outcome or "closed"
    if one.phase == "decided":
        return f"{one.outcome}, open"
    return f"{one.phase}, waits" if one.hold else one.phase


def _cut_off(app: App, last: int, domain: str | None, *, open_only: bool, **others: Any) -> str:
    """Say that there are more pivots than were listed, and how many where the journal knows that at once."""
    counted = None if any(others.values()) else app.reads.pivot_count(domain, open_only=open_only)
    of_all = f"the newest {last:,} of {counted:,} pivots" if counted is not None else f"the newest {last:,} pivots"
    return (
        f"{of_all}; there are older ones: see --last, --since" if counted is None else f"{of_all}; see --last, --since"
    )


@pivot.command("show")
@click.argument("pivot_id", metavar="ID", type=PIVOT)
@click.option("--timeline", is_flag=True, help="Draw its phases and pauses to scale, in place of the records.")
@pass_app
def show(app: App, pivot_id: str, *, timeline: bool) -> None:
    """Show one pivot with every record: when pivotd wrote it, and what it had seen.

    While the pivot copies, also show its progress, and how fast the guest writes and the destination takes data.
    """
    found = app.reads.pivot(pivot_id)
    if timeline:
        from pivotd.cli.timeline_text import show_pivot  # noqa: PLC0415 - seldom asked for

        show_pivot(app, found)
        return
    if render.answer(app, found):
        return
    now = app.client.progress(found.id) if app.offline is None and found.closed is None else None
    who, granularity = found.requested_by, found.options.granularity_bytes
    tries = [f"{render.pause(each.pause_ms)}, {each.ended}" for each in found.pauses]
    render.card(
        f"pivot {found.id}",
        (
            ("domain", found.domain),
            ("kind", found.kind),
            ("phase", found.phase + _waits_for(found)),
            ("outcome", found.outcome),
            ("error", found.error),
            *(() if found.phase == "decided" else (("copied", progress.copied(now)), ("rates", progress.rates(now)))),
            ("waits for", now and now.detail),
            *((f"disk {disk.disk}", _sides(disk)) for disk in found.disks),
            ("stale", [image for disk in found.disks for image in disk.stale]),
            ("granularity", granularity and render.size(granularity)),
            ("undo until", found.undo_until),
            ("pauses", tries),
            ("saved", _saved(found.records)),
            ("request id", found.request_id),
            ("asked by", f"uid {who.uid}, gid {who.gid}, pid {who.pid}"),
            ("created", found.created),
            ("closed", found.closed),
        ),
    )
    print("\nrecords")
    for record in found.records:
        facts = {key: value for key, value in record.facts.items() if value not in (None, "", {}, [])}
        print(f"  {record.seq:>5}  {record.at}  {render.text(record.event)}")
        for key, value in facts.items():
            print(f"         {render.text(key)}: {render.text(value if isinstance(value, str) else json.dumps(value))}")


def _waits_for(found: Pivot) -> str:
    if found.undo_until:
        return ", can be undone"
    return ", waits to be completed or cancelled" if found.hold else ""


def _saved(records: tuple[Record, ...]) -> str | None:
    """Return how much interruptions did not force QEMU to copy again, None if there was no interruption."""
    facts = [record.facts for record in records if record.event == "went-on"]
    if not facts:
        return None
    total = render.size(sum(fact["saved_bytes"] for fact in facts))
    return f"{total} not copied again after {len(facts)} interruption{'s' if len(facts) > 1 else ''}"


def _sides(disk: PivotDisk) -> list[str]:
    return [
        f"{disk.outcome or 'open'}",
        f"source       {disk.source} ({disk.source_format})",
        f"destination  {disk.destination} ({disk.destination_format})",
    ]


@pivot.command("undo")
@click.argument("pivot_id", metavar="ID", type=OPEN_PIVOT)
@pass_app
def undo(app: App, pivot_id: str) -> None:
    """Return each disk to its image from before `copy --keep-synced`, and wait until it is there.

    pivotd pauses the guest as for the first switch. The undo is a pivot of its own; repeating the command returns the
    same one. After the time of --keep-synced the old images are out of date, and the exit status is 4.
    """
    app.will_answer(Pivot)
    with perhaps_taken(f"`pivotctl pivot undo {pivot_id}` goes on", pivot=pivot_id):
        asked = app.client.undo(pivot_id)
    wait_to_the_end(app, asked)


@pivot.command("release")
@click.argument("pivot_id", metavar="ID", type=OPEN_PIVOT)
@pass_app
def release(app: App, pivot_id: str) -> None:
    """Stop keeping the old images in sync: from then on they are out of date.

    The command returns once this is in the journal. It changes nothing if the window has ended already.
    """
    app.will_answer(Pivot)
    with perhaps_taken(SEE.format(id=pivot_id), pivot=pivot_id):
        found = app.client.release(pivot_id)
    app.status = EXIT_DONE
    if render.answer(app, found):
        return
    if found.undo_until:
        print(f"pivot {found.id} will stop keeping the old images in sync as soon as QEMU answers")
    else:
        print(f"pivot {found.id}: the old images are not kept in sync any more")


@pivot.command("set")
@click.argument("pivot_id", metavar="ID", type=OPEN_PIVOT)
@click.option("--bandwidth", type=Bandwidth(), metavar="RATE", required=True, help="Bytes per second; 0: no limit.")
@pass_app
def set_(app: App, pivot_id: str, bandwidth: int) -> None:
    """Change how fast a pivot copies; the new limit is in the journal when the command returns.

    QEMU applies the limit until the copy is ready. After that it copies the guest's writes without a limit.
    """
    app.will_answer(Pivot)
    with perhaps_taken(SEE.format(id=pivot_id), pivot=pivot_id):
        found = app.client.set_bandwidth(pivot_id, bandwidth)
    if not render.answer(app, found):
        rate = f"at most {render.size(bandwidth)}/s" if bandwidth else "as fast as it can"
        print(f"pivot {found.id} copies {rate} from now on")
