"""The help of `pivotctl --help`: purpose, commands by task, examples, exit statuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

HELP = """Move disks of running QEMU guests to other images, and know which image is right.

A DOMAIN is a running QEMU, a DISK one of its guest devices, an IMAGE the file or device that holds its data. A PIVOT
switches one or several disks of a domain to new images, all or none. Its OUTCOME for each disk is switched (the new
image holds the data), kept (the old one does), merged (the same image, on a shorter chain) or unknown (a person must
look). The VERDICT names the image that holds a disk's data, and says why.
"""

SECTIONS = (
    (
        "Look",
        (
            ("verdict [DOMAIN [DISK]]", "which image holds the data, and why"),
            ("verdict --image IMAGE", "what all of history says of one image"),
            ("domain ls | domain show DOMAIN", "connection, run state, open pivots, jobs"),
            ("disk ls DOMAIN", "image, backing chain, job, journal"),
            ("pivot ls | pivot show ID", "pivots; every record of one"),
            ("pivot show ID --timeline", "its phases and pauses, to scale"),
            ("report [ID]... -o FILE", "a page of what pivots did, for a ticket"),
            ("events", "the durable event log"),
            ("journal stats", "size and archives of the journal"),
            ("doctor", "everything that is wrong here, and what to do"),
            ("metrics [--textfile FILE]", "figures for Prometheus"),
        ),
    ),
    (
        "Move disks",
        (
            ("copy DOMAIN DISK=IMAGE...", "copy to new images, switch as one"),
            ("evacuate --from DIR --to DIR", "every disk below one place to another"),
            ("snapshot DOMAIN DISK=OVERLAY...", "new overlays, all at one instant"),
            ("commit DOMAIN DISK...", "write layers into one below them"),
            ("pull DOMAIN DISK...", "copy lower layers into the image"),
            ("wait ID... | wait --all", "wait for pivots, show their progress"),
            ("complete ID... | complete --all", "switch pivots that wait at ready"),
            ("pivot adopt DOMAIN DISK[=IMAGE]...", "take over other programs' block jobs"),
            ("libvirt pivot | libvirt abort DOMAIN DISK...", "guard a job of libvirt's to its end"),
            ("pivot set ID --bandwidth RATE", "copy slower or faster from now on"),
            ("cancel ID... | cancel --all", "cancel pivots, keep the sources"),
            ("pivot undo ID", "return to images that were kept in sync"),
            ("pivot release ID", "stop keeping the old images in sync"),
        ),
    ),
    (
        "Start guests",
        (
            ("image DOMAIN DISK", "the path of the right image alone, for $(...)"),
            ("guard DOMAIN DISK=IMAGE...", "refuse to start from other images"),
            ("verdict accept DOMAIN DISK IMAGE", "settle a doubt by a person's word"),
            ("stale", "images that no disk needs any more"),
        ),
    ),
    (
        "Several hosts",
        (
            ("fleet verdict [DOMAIN [DISK]]", "the right image, by etcd, on any host"),
            ("fleet take DOMAIN --fenced", "take a guest from a lost host"),
            ("fleet ls | fleet status", "all domains; etcd, hosts"),
            ("fleet forget DOMAIN", "remove a domain from etcd"),
        ),
    ),
    (
        "Set up",
        (
            ("domain add DOMAIN --qmp PATH", "let pivotd manage a QEMU"),
            ("domain rm DOMAIN", "remove it; QEMU keeps running"),
            ("journal archive | journal backup DIRECTORY", "move old pivots out; copy all of it"),
            ("libvirt install-hooks", "repair libvirt's view of its disks"),
            ("completion SHELL", "for bash, zsh and fish: what TAB needs"),
            ("help [COMMAND]...", "the help of a command"),
        ),
    ),
)

EXAMPLES = (
    ("Copy a disk and switch to it:", "pivotctl copy web1 disk0=/new/web1.qcow2"),
    ("Two disks, as one pivot:", "pivotctl copy web1 disk0=a.raw disk1=b.raw --format raw"),
    ("Copy now, switch later:", "pivotctl copy web1 disk0=/new/web1.qcow2 --no-pivot"),
    ("", "pivotctl complete ID"),
    ("Which image is right, while nothing runs:", "pivotctl --offline /var/lib/pivotd verdict"),
    ("Every record as it is written, for a program:", "pivotctl --json events --follow"),
)

EXIT_STATUSES = (
    ("0", "done: switched, merged, or waiting at ready as requested"),
    ("1", "the answer could not be written: a full file system, a closed stdout"),
    ("2", "usage: the command line is wrong"),
    ("3", "the daemon, or a majority of etcd, cannot be reached or does not answer"),
    ("4", "refused: bad input, conflict, not found or not allowed"),
    ("5", "the pivot ended kept: the guest continues on the source image"),
    ("6", "nobody can be certain, or the disks differ: a person must look"),
    ("7", "this journal has never moved that disk, or never seen that image"),
    ("8", "`doctor` has found something"),
    ("130", "interrupted; the pivot continues"),
)


def below(context: click.Context, name: str) -> click.Context | None:
    """Return the context of the command of this name below another one, None if there is none."""
    find: Callable[[click.Context, str], click.Command | None] | None = getattr(context.command, "get_command", None)
    found = None if find is None else find(context, name)
    if found is None:
        return None
    if isinstance(context.command, click.Group):
        return click.Context(found, info_name=name, parent=context)
    return click.Context(found, info_name=f"{context.info_name} {name}", parent=context.parent)


class GroupedGroup(click.Group):
    """A group whose help shows commands by purpose, then examples and exit statuses."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Return the commands with what they are for, and the options; no command is imported for that."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - only where a shell asks

        said = {usage.split()[0]: purpose for _, rows in reversed(SECTIONS) for usage, purpose in reversed(rows)}
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        commands = [CompletionItem(name, help=said.get(name)) for name in names]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections after the options."""
        for title, rows in SECTIONS:
            with formatter.section(title):
                formatter.write_dl(rows, col_max=40)
        with formatter.section("Examples"):
            for why, example in EXAMPLES:
                for indent, line in ((0, why), (2, example)):
                    if line:
                        formatter.write(f"{'':{formatter.current_indent + indent}}{line}\n")
        with formatter.section("Exit status"):
            formatter.write_dl(EXIT_STATUSES)


class ExampleCommand(click.Command):
    """A command whose help ends with examples, each a line of its own."""

    def __init__(self, *arguments: Any, examples: tuple[str, ...], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = examples

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples after the options."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")
