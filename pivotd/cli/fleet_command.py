"""`pivotctl fleet`: what etcd knows, on any machine that reaches it; no daemon is needed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pivotd import config
from pivotd.cli.complaints import UsageError
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.known_names import DISK, DISK_IMAGE, DOMAIN
from pivotd.cli.values import AbsolutePath

if TYPE_CHECKING:
    from pivotd.fleet.store import EtcdFleet

VERDICT_EXAMPLES = ("pivotctl fleet verdict", "pivotctl fleet verdict web1 disk0")
TAKE_EXAMPLES = (
    "pivotctl fleet take web1 --fenced",
    "pivotctl fleet take web1 --fenced --image disk0=/images/web1.qcow2",
)
LS_EXAMPLES = ("pivotctl fleet ls", "pivotctl --json fleet ls --follow")
T = TypeVar("T")


@click.group(short_help="What etcd knows of all hosts.")
@click.option("--config", "file", type=AbsolutePath(), default=str(config.DEFAULT_PATH), metavar="FILE",
              help="Take [fleet] from this file.  [default /etc/pivotd/pivotd.toml]")  # fmt: skip
@click.option("--endpoints", metavar="URL,...", help="etcd's nodes; no file is read then.")
@click.option("--prefix", metavar="PREFIX", help="What all keys begin with.  [default /pivotd/v1/]")
@click.option("--ca", type=AbsolutePath(), metavar="FILE", help="Who signed etcd's certificates.")
@click.option("--certificate", type=AbsolutePath(), metavar="FILE", help="This host's certificate.")
@click.option("--key", type=AbsolutePath(), metavar="FILE", help="The key of that.")
@click.option("--user", metavar="NAME", help="A user of etcd.")
@click.option("--password-file", type=AbsolutePath(), metavar="FILE", help="The password of that.")
@click.option("--host", metavar="NAME", help="This host's name in the fleet.  [default: [fleet] host]")
@click.pass_context
def fleet(context: click.Context, /, file: str, endpoints: str | None, **options: Any) -> None:
    """Ask etcd which host owns a guest and which image is the right one, also when that host is lost.

    Without --endpoints, [fleet] in the configuration of this host says where etcd is. The answers come from a majority
    of etcd's nodes; the exit status is 3 if there is none.
    """
    context.meta["fleet"] = file, {"endpoints": endpoints.split(",") if endpoints is not None else None, **options}


def settings() -> config.Fleet:
    """Return [fleet] as the configuration or the options of the command line have it.

    Raises: ConfigError, UsageError.
    """
    file, options = click.get_current_context().meta["fleet"]
    given = {name: value for name, value in options.items() if value is not None}
    if "endpoints" in given:
        return config.fleet_by_options({"host": "nobody", **given})
    if given:
        name = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{name} goes with --endpoints; otherwise [fleet] in {file} says it")
    if not Path(file).exists():
        raise UsageError(f"there is no {file}: give --endpoints, or configure [fleet] (docs/fleet.md)")
    found = config.load(Path(file)).fleet
    if not found.endpoints:
        raise UsageError(f"{file} has no [fleet]: give --endpoints, or configure it (docs/fleet.md)")
    return found


def asked(work: Callable[[EtcdFleet], Coroutine[Any, Any, T]]) -> T:
    """Return what a piece of work on the fleet returns."""
    found = settings()
    import asyncio  # noqa: PLC0415 - not for the help

    from pivotd.fleet.store import EtcdFleet  # noqa: PLC0415 - the client of etcd only where it is used

    async def run() -> T:
        store = EtcdFleet(found)
        try:
            return await work(store)
        finally:
            store.close()

    return asyncio.run(run())


@fleet.command("verdict", cls=ExampleCommand, examples=VERDICT_EXAMPLES, short_help="Which image holds the data.")
@click.argument("domain", metavar="[DOMAIN", type=DOMAIN, required=False)
@click.argument("disk", metavar="[DISK]]", type=DISK, required=False)
@pass_app
def verdict(app: App, domain: str | None, disk: str | None) -> None:
    """Say which image holds the data of each disk, by etcd alone.

    Exit status 6: a verdict that is shown is not certain; both images are named, and whose journal decides. Status 7:
    no pivotd of this fleet has ever moved what was asked for.
    """
    _domain().verdict(app, domain, disk)


@fleet.command("take", cls=ExampleCommand, examples=TAKE_EXAMPLES, short_help="Take a guest from a lost host.")
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
@click.option("--fenced", is_flag=True, help="You have made sure that the old host runs the guest no more.")
@click.option("--image", "chosen", type=DISK_IMAGE, multiple=True, metavar="DISK=IMAGE",
              help="Your word, for a disk whose verdict is not certain; it is recorded.")  # fmt: skip
@pass_app
def take(app: App, domain: str, fenced: bool, chosen: tuple[tuple[str, str], ...]) -> None:
    """Make this host the owner of a guest whose host is lost, and print the images to start it from.

    Fence the old host first: cut its power, or its access to the images. etcd can keep it from switching images, and
    cannot keep its QEMU from writing.
    """
    if not fenced:
        raise UsageError(
            f"cut the power of the host that runs {domain}, or its access to the images; then say so with --fenced"
        )
    options = click.get_current_context().meta["fleet"][1]
    if options["endpoints"] is not None and options["host"] is None:
        raise UsageError("with --endpoints, --host has to say which host takes the guest")
    _domain().take(app, domain, dict(chosen))


@fleet.command("ls", cls=ExampleCommand, examples=LS_EXAMPLES, short_help="All domains of the fleet.")
@click.option("--follow", is_flag=True, help="Then show each domain that changes, until Ctrl-C.")
@pass_app
def ls(app: App, follow: bool) -> None:
    """List the domains of all hosts, with their owners and images."""
    import_module("pivotd.cli.fleet_listing").ls(app, follow=follow)


@fleet.command("status", short_help="etcd's nodes, hosts, undecided pivots.")
@pass_app
def status(app: App) -> None:
    """Show whether etcd has a majority, which hosts run pivotd, and the pivots whose outcome etcd does not know."""
    import_module("pivotd.cli.fleet_listing").status(app)


@fleet.command("forget", short_help="Remove a domain from etcd.")
@click.argument("domain", metavar="DOMAIN", type=DOMAIN)
@pass_app
def forget(app: App, domain: str) -> None:
    """Remove what etcd keeps of a domain that is gone for good, or whose name is to be used again.

    Refused while a pivot of it is undecided. If its guest still runs somewhere, the pivotd there enters it again. A
    host that told etcd of the guest before asks for a person's word then: its journal may be older.
    """
    _domain().forget(app, domain)


def _domain() -> Any:
    return import_module("pivotd.cli.fleet_domain")
