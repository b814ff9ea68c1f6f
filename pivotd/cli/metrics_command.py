"""The command `metrics`: the figures of the daemon for Prometheus, on stdout or in a file for its node exporter."""

from __future__ import annotations

from pathlib import Path

import click

from pivotd.cli import new_file
from pivotd.cli.complaints import UsageError
from pivotd.cli.context import App, pass_app
from pivotd.cli.help import ExampleCommand
from pivotd.cli.values import OutputPath
from pivotd.client import ClientError
from pivotd.errors import EXIT_UNREACHABLE

EXAMPLES = ("pivotctl metrics", "pivotctl metrics --textfile /var/lib/prometheus/node-exporter/pivotd.prom")
DOWN = "# HELP pivotd_up 1: pivotd answers.\n# TYPE pivotd_up gauge\npivotd_up 0.0\n"


@click.command(cls=ExampleCommand, examples=EXAMPLES, short_help="Figures for Prometheus.")
@click.option("--textfile", type=OutputPath(), metavar="FILE",
              help="Write them into FILE, for the textfile collector of Prometheus' node exporter.")  # fmt: skip
@pass_app
def metrics(app: App, textfile: str | None) -> None:
    """Print what pivotd has counted since it started, and what is so now, in Prometheus' text format.

    With --textfile, FILE is replaced as a whole, also where pivotd does not answer: pivotd_up is 0 then, all else is
    left out, and the exit status is 3. The same figures are at /metrics of pivotd's socket.
    """
    if app.offline is not None:
        raise UsageError("metrics are the daemon's own: leave --offline out")
    if not app.for_people:
        raise UsageError("metrics have one form, that of Prometheus: leave --json and its like out")
    try:
        text = app.client.metrics()
    except ClientError as failure:
        # One that refuses is up: then the file stays as it was, and becomes old.
        if textfile is not None and failure.exit_status == EXIT_UNREACHABLE:
            new_file.write(Path(textfile), DOWN.encode(), force=True)
        raise
    if textfile is None:
        click.echo(text, nl=False)
    else:
        new_file.write(Path(textfile), text.encode(), force=True)
