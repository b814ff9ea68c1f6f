"""Commands on pivots: look at them, switch one that waits, give one up, wait."""

from __future__ import annotations

import json
from typing import Any

import click

from pivotd.cli import progress, render
from pivotd.cli.app import App, pass_app
from pivotd.cli.errors import CtlError
from pivotd.cli.values import Bandwidth, Name
from pivotd.cli.waiting import FOLLOW, wait_to_the_end
from pivotd.errors import EXIT_DONE, EXIT_UNKNOWN


@click.group(short_help="Pivots: list, show, complete, cancel, undo, wait.")
def pivot() -> None:
    """Look at pivots and decide what becomes of them.

    A pivot is one journalled switch of one or several disks of one domain. ID is its id, or the request id that was
    given with `copy --id`.
    """


@pivot.command("ls")
@click.option("--domain", metavar="DOMAIN", type=Name(), help="Only pivots of this domain.")
@click.option("--open", "open_only", is_flag=True, help="Only pivots that are not closed.")
@pass_app
def ls(app: App, domain: str | None, open_only: bool) -> None:
    """List pivots, newest first."""
    found = app.reads.pivots(domain, open_only=open_only)
    if render.answer(app, found):
        return
    render.table(
        ("PIVOT", "DOMAIN", "DISKS", "PHASE", "OUTCOME", "PAUSE", "CREATED"),
        [
            (
                row["id"],
                row["domain"],
                " ".join(disk["disk"] for disk in row["disks"]),
                row["phase"],
                row["outcome"],
                render.pause(row["pause_ms"]),
                render.when(row["created"]),
            )
            for row in found
        ],
    )


@pivot.command("show")
@click.argument("pivot_id", metavar="ID", type=Name())
@pass_app
def show(app: App, pivot_id: str) -> None:
    """Show one pivot with every record: when it was made, and what was seen.

    While it copies also how far it is, what the guest writes and what the destination takes.
    """
    found = app.reads.pivot(pivot_id)
    if render.answer(app, found):
        return
    copying = app.offline is None and found["phase"] in {"copying", "ready"}
    now = (app.client.progress(found["id"]) if copying else None) or {}
    who = found["requested_by"]
    tries = [f"{render.pause(p['pause_ms'])}, {p['ended']}" for p in found.get("pauses") or ()]
    render.card(
        f"pivot {found['id']}",
        (
            ("domain", found["domain"]),
            ("kind", found["kind"]),
            ("phase", found["phase"] + _waits_for(found)),
            ("outcome", found["outcome"]),
            ("error", found["error"]),
            ("copied", progress.copied(now)),
            ("rates", progress.rates(now)),
            ("waits for", now.get("detail")),
            *((f"disk {disk['disk']}", _sides(disk)) for disk in found["disks"]),
            ("stale", [image for disk in found["disks"] for image in disk.get("stale") or ()]),
            ("undo until", found.get("undo_until")),
            ("pauses", tries),
            ("saved", _saved(found["records"])),
            ("request id", found["request_id"]),
            ("asked by", f"uid {who['uid']}, gid {who['gid']}, pid {who['pid']}"),
            ("created", found["created"]),
            ("closed", found["closed"]),
        ),
    )
    print("\nrecords")
    for record in found["records"]:
        facts = {key: value for key, value in (record.get("facts") or {}).items() if value not in (None, "", {}, [])}
        print(f"  {record['seq']:>5}  {record['at']}  {render.text(record.get('event') or record['phase'])}")
        for key, value in facts.items():
            print(f"         {render.text(key)}: {render.text(value if isinstance(value, str) else json.dumps(value))}")


def _waits_for(found: dict[str, Any]) -> str:
    if found.get("undo_until"):
        return ", can be undone"
    return ", waits to be completed or cancelled" if found.get("hold") else ""


def _saved(records: list[dict[str, Any]]) -> str | None:
    """Return what interruptions did not make necessary to copy again, None where there was none."""
    facts = [record["facts"] for record in records if record.get("event") == "went-on"]
    if not facts:
        return None
    total = render.size(sum(fact["saved_bytes"] for fact in facts))
    return f"{total} not copied again after {len(facts)} interruption{'s' if len(facts) > 1 else ''}"


def _sides(disk: dict[str, Any]) -> list[str]:
    return [
        f"{disk['outcome'] or 'open'}",
        f"source       {disk['source']} ({disk['source_format']})",
        f"destination  {disk['destination']} ({disk['destination_format']})",
    ]


@pivot.command("wait")
@click.argument("pivot_id", metavar="ID", type=Name())
@pass_app
def wait(app: App, pivot_id: str) -> None:
    """Wait until a pivot is closed or waits at ready, and show how far it is.

    Ctrl-C stops the waiting, not the pivot. A restart of the daemon does not end the waiting.
    """
    wait_to_the_end(app, app.client.pivot(pivot_id))


@pivot.command("complete")
@click.argument("pivot_id", metavar="ID", type=Name())
@pass_app
def complete(app: App, pivot_id: str) -> None:
    """Switch a pivot that waits at ready, and wait until that is done.

    A pivot waits at ready after `copy --no-pivot`, and after its attempts have failed: then this tries again.
    """
    wait_to_the_end(app, app.client.complete(pivot_id))


@pivot.command("undo")
@click.argument("pivot_id", metavar="ID", type=Name())
@pass_app
def undo(app: App, pivot_id: str) -> None:
    """Return to the images before a pivot that was made with `copy --keep-synced`, and wait until that is done.

    The guest is paused as for the first switch. This is a pivot of its own; asked again, it is the same one. Once the
    time of --keep-synced has passed there is nothing to return to, and the exit status is 4.
    """
    wait_to_the_end(app, app.client.undo(pivot_id))


@pivot.command("release")
@click.argument("pivot_id", metavar="ID", type=Name())
@pass_app
def release(app: App, pivot_id: str) -> None:
    """Stop keeping the old images in sync: from then on they are out of date.

    Returns once that is in the journal. Where it has ended already nothing is changed.
    """
    found = app.client.release(pivot_id)
    app.status = EXIT_DONE
    if render.answer(app, found):
        return
    if found.get("undo_until"):
        print(f"pivot {found['id']} was asked to let the old images go, but QEMU does not answer yet")
    else:
        print(f"pivot {found['id']}: the old images are not kept in sync any more")


@pivot.command("cancel")
@click.argument("pivot_id", metavar="ID", type=Name())
@pass_app
def cancel(app: App, pivot_id: str) -> None:
    """Give a pivot up: the guest goes on with the source images.

    Returns once that is in the journal. A pivot that has switched already is not changed, and the exit status is 4.
    """
    found = app.client.cancel(pivot_id)
    if found["outcome"] == "switched":
        message = f"pivot {found['id']} had switched already; copy the disks back to return to the source"
        raise CtlError("phase-conflict", message, pivot=found["id"])
    app.status = EXIT_UNKNOWN if found["outcome"] in {"unknown", "split"} else EXIT_DONE
    if render.answer(app, found):
        return
    if found["phase"] in {"cancelling", "decided", "closed"}:
        print(f"pivot {found['id']} is given up: the guest goes on with the source")
    else:
        print(
            f"pivot {found['id']} was asked to give up, but QEMU does not answer yet; {FOLLOW.format(id=found['id'])}"
        )


@pivot.command("set")
@click.argument("pivot_id", metavar="ID", type=Name())
@click.option("--bandwidth", type=Bandwidth(), metavar="RATE", required=True, help="Bytes per second; 0: no limit.")
@pass_app
def set_(app: App, pivot_id: str, bandwidth: int) -> None:
    """Change how fast a pivot copies, from now on; it is in the journal when this returns.

    QEMU keeps to a limit until the copy is ready; what the guest writes after that follows without one.
    """
    found = app.client.set_bandwidth(pivot_id, bandwidth)
    if not render.answer(app, found):
        rate = f"at most {render.size(bandwidth)}/s" if bandwidth else "as fast as it can"
        print(f"pivot {found['id']} copies {rate} from now on")
