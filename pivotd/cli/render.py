"""Answers for people: tables and cards, plain in a pipe, with colour on a terminal; and JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

from pivotd.cli.context import App, Form

NOTHING = "-"


def answer(app: App, found: Any, name: Sequence[str] = ()) -> bool:
    """Print an answer unless it is for people; return whether it was printed.

    ``name``: the fields that `-o name` prints, as the command takes them as arguments; the first one if none is given.
    """
    if app.form is Form.TABLE:
        return False
    plain = msgspec.to_builtins(found)
    if app.documents:
        print(document(app, plain, indented=is_terminal()), flush=not is_terminal())
        return True
    for one in plain if isinstance(plain, list | tuple) else [plain]:
        print(_line(app, one, name))
    return True


def each(app: App, found: Any, name: Sequence[str] = (), *, flush: bool = False) -> bool:
    """Print one of a stream of answers unless it is for people, on one line but for YAML; return whether it was."""
    if app.form is Form.TABLE:
        return False
    plain = msgspec.to_builtins(found)
    if app.form is Form.YAML:
        print("---")
    print(document(app, plain) if app.documents else _line(app, plain, name), flush=flush)
    return True


def document(app: App, plain: Any, *, indented: bool = False) -> str:
    """Return a document as JSON or YAML; JSON is one line unless ``indented``."""
    if app.form is Form.YAML:
        import yaml  # type: ignore[import-untyped]  # noqa: PLC0415 - asked for rarely

        plain = json.loads(json.dumps(plain, default=str))
        return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=1 << 30)).removesuffix("\n")
    return json.dumps(plain, indent=2 if indented else None, ensure_ascii=not indented, default=str)


def _line(app: App, plain: Any, name: Sequence[str]) -> str:
    """Return one answer as its name or by the template. Raises: UsageError."""
    if app.template is not None and app.form is Form.TEMPLATE:
        return app.template.line(plain, text)
    return " ".join(text(plain[field]) for field in name or list(plain)[:1])


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, last_below: bool = False, spare: Sequence[str] = ()
) -> None:
    """Print rows under columns; a pipe gets one line for each row, whatever its width.

    ``last_below``: the last column has sentences. A terminal shows them below the table, each after the first cell; if
    there are none, there is no such column. ``spare``: the columns that a narrow terminal does without, the first one
    first; all but the first column, from the right, if none is given. What is left out is said.
    """
    cells = [[text(value) for value in row] for row in rows]
    headed = _headed()
    if last_below and all(row[-1] == NOTHING for row in cells):
        columns, cells, last_below = columns[:-1], [row[:-1] for row in cells], False
    if is_terminal():
        from pivotd.cli import fitting  # noqa: PLC0415 - a pipe does without

        said = [(row[0], row.pop()) for row in cells] if last_below else []
        fitting.show(columns[:-1] if last_below else columns, cells, spare, headed=headed)
        for first, sentence in said:
            if sentence != NOTHING:
                print(_folded(f"{first}: {sentence}"))
        return
    lines = [list(columns), *cells] if headed else cells
    widths = [max((len(line[index]) for line in lines), default=0) for index in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def card(title: str, fields: Iterable[tuple[str, Any]]) -> None:
    """Print one thing: its title, then a line for each field that has a value."""
    shown = [(name, value) for name, value in fields if value is not None and value != []]
    width = max((len(name) for name, _ in shown), default=0)
    print(text(title))
    for name, value in shown:
        first, *others = value if isinstance(value, list) else [value]
        print(f"  {name:{width}}  {text(first)}")
        for line in others:
            print(f"  {'':{width}}  {text(line)}")


def text(value: Any) -> str:
    """Return one line that cannot move the cursor, whatever a file was called."""
    if value is None or value == "":
        return NOTHING
    return "".join(char if char.isprintable() or char == " " else f"\\x{ord(char):02x}" for char in str(value))


def one_line(message: str) -> str:
    """Return a message as one printable line."""
    return text(" ".join(message.split()))


def size(size_bytes: int | None) -> str:
    """Return bytes as people say them."""
    if size_bytes is None:
        return NOTHING
    number = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            return f"{number:.0f} {unit}" if number == int(number) else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("the last unit takes everything")


def mib(size_bytes: float) -> str:
    """Return bytes in MiB, the unit of all that moves: figures that are compared need one unit."""
    number = size_bytes / (1 << 20)
    return f"{number:.1f} MiB" if 0 < number < 10 else f"{number:.0f} MiB"


def duration(seconds: float | None) -> str:
    """Return a length of time in its two largest units."""
    if seconds is None:
        return NOTHING
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def pause(pause_ms: float | None) -> str:
    """Return the length of a pause of the guest."""
    return NOTHING if pause_ms is None else f"{pause_ms:.1f} ms"


def when(at: str | None) -> str | None:
    """Return a time of the journal to the second."""
    return None if at is None else f"{at[:10]} {at[11:19]}Z"


def minute(at: str | None) -> str | None:
    """Return a time of the journal to the minute, where many stand below each other."""
    return None if at is None else f"{at[:10]} {at[11:16]}Z"


def images(source: str, destination: str) -> str:
    """Return the images of a disk: from where to where, or the one that it keeps."""
    return source if source == destination else f"{source} -> {destination}"


def is_terminal() -> bool:
    """Return whether the answer goes to a terminal."""
    return sys.stdout.isatty()


def _folded(sentence: str) -> str:
    """Return a sentence in lines that fit the terminal; a path stays whole, so that it can be copied."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(sentence, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _headed() -> bool:
    context = click.get_current_context(silent=True)
    app = None if context is None else context.find_object(App)
    return app is None or app.header
