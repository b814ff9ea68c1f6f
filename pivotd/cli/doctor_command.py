"""`pivotctl doctor`: everything that is wrong on this host, each with what to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pivotd.cli import (
    doctor_configuration,
    doctor_daemon,
    doctor_journal,
    doctor_text,
    doctor_units,
    render,
)
from pivotd.cli.context import App, pass_app
from pivotd.cli.doctor_units import Units
from pivotd.cli.help import ExampleCommand
from pivotd.cli.values import AbsolutePath, OutputPath
from pivotd.client import DoctorArea, DoctorFinding, checks
from pivotd.client.answers import Health
from pivotd.config import DEFAULT_PATH, Config
from pivotd.errors import EXIT_DONE, EXIT_FOUND

EXAMPLES = (
    "pivotctl doctor",
    "pivotctl doctor --ignore image-unreadable",
    "pivotctl doctor --bundle /tmp/pivotd.tar.gz",
    "pivotctl --json doctor",
    "pivotctl --offline /var/lib/pivotd doctor",
)
OFFLINE = "left out by --offline"


@dataclass(frozen=True, slots=True)
class Examined:
    """All that was looked at: the areas, in the order of checks.AREAS, and what the bundle needs."""

    areas: tuple[DoctorArea, ...]
    config: Config | None
    config_path: Path
    journal: Path
    units: Units
    health: Health | None

    def findings(self, ignored: tuple[str, ...] = ()) -> list[DoctorFinding]:
        """Return what was found, the errors first, then by check; ``ignored``: without these checks."""
        every = [
            one
            for area in self.areas
            for one in area.findings
            if not {one.check, *(() if one.seen else one.also)} <= set(ignored)
        ]
        order = list(checks.CHECKS)
        return sorted(
            every, key=lambda one: (not one.seen, one.severity != checks.ERROR, order.index(one.check), one.remedy)
        )


class CheckName(click.Choice[str]):
    """A check; a shell completes it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        if value not in self.choices:
            from difflib import get_close_matches  # noqa: PLC0415 - only for an error

            near = get_close_matches(str(value), self.choices, 1)
            meant = f": do you mean {near[0]}?" if near else ": `pivotctl --json doctor` names every check"
            self.fail(f"there is no check {value}{meant}", param, ctx)
        return str(value)


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="Everything that is wrong here, with what to do.")
@click.option("--config", type=AbsolutePath(), metavar="FILE", help="Configuration of the daemon, where it is not the "
              "one that the daemon or its unit names.")  # fmt: skip
@click.option("--ignore", type=CheckName(sorted(checks.CHECKS)), metavar="CHECK", multiple=True,
              help="Do not count what this check finds; may be repeated.")  # fmt: skip
@click.option("--bundle", type=OutputPath(), metavar="FILE.tar.gz",
              help="Also write what a support request needs, without secrets, into a new file.")  # fmt: skip
@pass_app
def doctor(app: App, config: str | None, ignore: tuple[str, ...], bundle: str | None) -> None:
    """Look for everything that is wrong with pivotd on this host, and say of each thing what to do.

    Looks at configuration, units, daemon, journal, clock, room, pivots, verdicts, guests, disks, libvirt and the fleet,
    and changes nothing. What only pivotd's own user can see in its sandbox, the daemon looks at. What could not be
    looked at is said, and counts as found.

    Exit status 0 if nothing was found, 8 if something was. With --offline, the daemon is not asked.
    """
    app.will_answer(DoctorFinding)
    if bundle is not None:
        from pivotd.cli import doctor_bundle  # noqa: PLC0415 - asked for rarely

        with doctor_bundle.new_file(bundle) as file:
            examined = examine(app, config)
            contents = doctor_bundle.write(file, app, examined, document(examined, ignore))
    else:
        examined, contents = examine(app, config), []
    app.found(EXIT_FOUND if examined.findings(ignore) else EXIT_DONE)
    shown = document(examined, ignore)
    if bundle is not None:
        shown |= {"bundle": bundle, "contents": contents}
    if render.answer(app, shown if app.documents else examined.findings(ignore), ("check",)):
        return
    doctor_text.show(examined.areas, examined.findings(ignore), ignore)
    if bundle is not None:
        print(f"{bundle} has {len(contents)} files; contents.txt in it lists them, and what was left out")


def document(examined: Examined, ignored: tuple[str, ...]) -> dict[str, Any]:
    """Return the answer for programs."""
    found = examined.findings(ignored)
    return {
        "errors": sum(one.severity == checks.ERROR for one in found),
        "warnings": sum(one.severity == checks.WARNING for one in found),
        "checks": checks.states(examined.areas, ignored),
        "areas": list(examined.areas),
    }


def examine(app: App, given: str | None) -> Examined:
    """Look at everything; each look is bounded in time."""
    by = f"pivotctl as uid {os.geteuid()}"
    units = doctor_units.ask() if app.offline is None else Units({})
    offline = app.offline is not None
    asked = doctor_daemon.ask(app.socket, by) if not offline else None
    report = None if asked is None else asked.report
    named = Path(report.configuration[0]) if report is not None and report.configuration else units.config
    path = Path(given) if given is not None else named or DEFAULT_PATH
    read = doctor_configuration.read(path, by, needed=given is not None or not offline)
    health = None if asked is None else asked.health
    journal = _journal(app, health, read.config)
    looked = doctor_journal.look(journal, verdicts=report is None)
    areas = [read.area, doctor_journal.area(looked, journal, by)]
    if asked is not None:
        fleet = bool(read.config and read.config.fleet.endpoints)
        areas += [one for one in [doctor_units.look(units, by, fleet=fleet)] if one is not None]
        areas += [asked.area, doctor_daemon.only_one(looked, units, path, by)]
    if read.config is not None and not offline:
        areas += [one for one in [doctor_configuration.hook(read.config, by)] if one is not None]
    if report is not None:
        areas += report.areas
    else:
        areas += doctor_journal.of_pivots(looked, by)
    if asked is not None and report is None:
        areas += doctor_daemon.unasked(asked, by)
    areas.sort(key=lambda area: checks.AREAS.index(area.area))
    return Examined(tuple(areas), read.config, path, journal, units, health)


def _journal(app: App, health: Health | None, config: Config | None) -> Path:
    if app.offline is not None:
        return Path(app.offline)
    if health is not None:
        return Path(health.journal.path).parent
    return (config or Config()).state_dir
