"""The templates of ``--format``: Python's format strings over the fields of the JSON document.

``{outcome}`` is a field, ``{requested_by.uid}`` a field of a field, ``{disks[0].disk}`` one of a list, and
``{disks.disk}`` that field of each, separated by spaces. ``{pause_ms:>8.1f}``: width and precision as in Python.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Never

from pivotd.cli.complaints import TemplateError

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d{1,9})\]")
_ESCAPES = {r"\t": "\t", r"\n": "\n", "\\\\": "\\"}
_NUMBER_SPEC = re.compile(r"(.?[<>^])?[+\- ]?#?0?(\d*)(?:\.\d+)?[bcdeEfFgGnoxX%]", re.DOTALL)
"""A format for numbers, of which a field without a value keeps the place and the width."""


class Template:
    """One template, checked as far as it can be without a document."""

    def __init__(self, text: str) -> None:
        """Raises: TemplateError: it is no format string."""
        if not text:
            raise TemplateError("--format must not be empty; write it like '{id} {outcome}'")
        shown = re.sub(r"\\[tn\\]", lambda found: _ESCAPES[found[0]], text)
        try:
            self._parts = [_part(*one) for one in string.Formatter().parse(shown)]
        except ValueError as error:
            raise TemplateError(f"--format {text!r}: {error}; write it like '{{id}} {{outcome}}'") from None

    def line(self, document: Any, printable: Any) -> str:
        """Return the text for one document; ``printable`` makes text that fits on one line. Raises: TemplateError."""
        return "".join(
            literal if path is None else literal + _formatted(_value(document, path), conversion, spec, path, printable)
            for literal, path, conversion, spec in self._parts
        )

    def check(self, fields: Sequence[str]) -> None:
        """Raises: TemplateError: a document with these fields lacks one that the template names."""
        for _, path, _, _ in self._parts:
            if path is not None:
                _value(dict.fromkeys(fields), path[:1])


Part = tuple[str, list[str | int] | None, str | None, str]


def _part(literal: str, field: str | None, spec: str | None, conversion: str | None) -> Part:
    if field is None:
        return literal, None, None, ""
    steps: list[str | int] = []
    at = 0
    while at < len(field):
        found = _STEP.match(field, at)
        if found is None:
            break
        steps.append(found[1] if found[1] is not None else int(found[2]))
        at = found.end()
    if at < len(field) or not steps or isinstance(steps[0], int):
        raise ValueError(f"{{{field}}} names no field")
    if spec and "{" in spec:
        raise ValueError(f"{{{field}:{spec}}} has a field in its format")
    if conversion is not None:
        raise ValueError(f"!{conversion} is not known here")
    return literal, steps, conversion, spec or ""


def _value(value: Any, path: list[str | int]) -> Any:
    """Return what a path leads to; a field of a list is that field of each. Raises: TemplateError."""
    for at, step in enumerate(path):
        if value is None:
            return None
        if isinstance(step, int):
            if not isinstance(value, list | tuple):
                _refuse(path, f"{_written(path[:at])} is no list")
            value = value[step] if step < len(value) else None
        elif isinstance(value, list | tuple):
            return [_value(one, path[at:]) for one in value]
        elif not isinstance(value, Mapping):
            _refuse(path, f"{_written(path[:at])} has no fields")
        elif step not in value:
            _refuse(path, f"there is no field {step}; there are {', '.join(map(str, value))}")
        else:
            value = value[step]
    return value


def _formatted(value: Any, _conversion: str | None, spec: str, path: list[str | int], printable: Any) -> str:
    if isinstance(value, list | tuple) and not any(isinstance(one, list | tuple | Mapping) for one in value):
        value = " ".join(_plain(one) for one in value)
    if value is None and (found := _NUMBER_SPEC.fullmatch(spec)):
        spec = f"{found[1] or '>'}{found[2]}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        value = printable(_plain(value))
    try:
        return format(value, spec)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        _refuse(path, f"{spec}: {str(error) or 'too wide'}")


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _written(path: list[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _refuse(path: list[str | int], why: str) -> Never:
    raise TemplateError(f"--format {{{_written(path)}}}: {why}", field="format")
