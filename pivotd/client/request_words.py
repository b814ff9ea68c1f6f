"""What is wrong with a request, in words: msgspec speaks of types, paths and regular expressions.

The API says it; pivotctl puts the name of its option in the place of the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from pivotd.client import requests
from pivotd.core.names import DOMAIN_NAME_WORDS

VALUE_LENGTH_MAX = 60
"""Characters of a wrong value that are shown."""
_ONE_LINE = f"of at most {requests.IMAGE_LENGTH_MAX} characters on one line"
PATTERNS = {
    requests.NAME_PATTERN: DOMAIN_NAME_WORDS,
    requests.PATH_PATTERN: f"an absolute path {_ONE_LINE}",
    requests.DESTINATION_PATTERN: "an absolute path, nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=/PATH, "
    + _ONE_LINE,
    requests.IMAGE_PATTERN: f"an absolute path, an NBD address, or QEMU's json: description, {_ONE_LINE}",
    requests.REASON_PATTERN: "one line of text, of 1 to 1000 characters",
}
"""What each regular expression of the requests means."""
UNITS = {
    "_per_s": "bytes per second",
    "cluster_size": "bytes",
    "_bytes": "bytes",
    "_ms": "milliseconds",
    "_s": "seconds",
}
"""The end of a field's name -> the unit of its number; the first that fits."""
_PLACE = re.compile(r" - at `\$(.*)`$")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`( - at |$)", re.DOTALL)


def of_error(error: msgspec.ValidationError, body: bytes, model: type[msgspec.Struct]) -> tuple[str, str]:
    """Return the name of the field, empty for the whole body, and a line that starts with it and says what to give."""
    text = str(error)
    place = _PLACE.search(text)
    steps = [(name or None, int(index or 0)) for name, index in _STEP.findall(place[1])] if place else []
    kind, value, where = _follow(steps, model, _document(body))
    if (missing := _MISSING.match(text)) is not None:
        return missing[1], f"{missing[1]}{where} is missing: give {_expected(_fields(kind)[missing[1]])}"
    if (unknown := _UNKNOWN.match(text)) is not None:
        name = _shown(unknown[1])
        return name, f"{name}{where} is no field of this request; its fields are: {', '.join(_fields(kind))}"
    field = next((name for name, _ in reversed(steps) if name is not None), "")
    given = "" if value is _NONE else f" cannot be {_shown(value)}"
    unit = next((unit for end, unit in UNITS.items() if field.endswith(end)), None)
    wanted = _expected(kind).replace(" number ", f" number of {unit} " if unit else " number ", 1)
    return field, f"{field or 'the body'}{where}{given}: give {wanted}"


_NONE = object()
"""The value is not known."""


def _document(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NONE


def _follow(steps: list[tuple[str | None, int]], model: type[msgspec.Struct], value: Any) -> tuple[Any, Any, str]:
    """Return the type and the value at a place, and of which disk they are."""
    kind: Any = inspect.type_info(model)
    where = ""
    for name, index in steps:
        if name is not None:
            kind = _fields(kind)[name]
            value = value.get(name, _NONE) if isinstance(value, dict) else _NONE
            continue
        kind = _alone(kind).item_type
        value = value[index] if isinstance(value, list) and index < len(value) else _NONE
        disk = value.get("disk") if isinstance(value, dict) else None
        named = isinstance(disk, str) and 0 < len(disk) <= VALUE_LENGTH_MAX
        where = f" of {disk}" if named else f" of disk number {index + 1}"
    return kind, value, where


def _alone(kind: Any) -> Any:
    """Return a type without the null that may stand in its place."""
    if isinstance(kind, inspect.UnionType):
        return next(one for one in kind.types if not isinstance(one, inspect.NoneType))
    return kind


def _fields(kind: Any) -> dict[str, Any]:
    kind = _alone(kind)
    assert isinstance(kind, inspect.StructType), kind
    return {field.encode_name: field.type for field in kind.fields}


def _expected(kind: Any) -> str:
    words = " ".join(_words(_alone(kind)))
    return f"{words}, or leave it out" if isinstance(kind, inspect.UnionType) else words


def _words(kind: Any) -> Iterator[str]:
    match kind:
        case inspect.LiteralType(values=values):
            *first, last = map(str, values)
            yield f"{', '.join(first)} or {last}"
        case inspect.StrType(pattern=str(pattern)):
            yield PATTERNS[pattern]
        case inspect.StrType(min_length=least, max_length=most):
            yield f"text of {least} to {most} characters"
        case inspect.IntType(ge=least, le=most):
            yield f"a whole number from {least} to {most}"
        case inspect.BoolType():
            yield "true or false"
        case inspect.ListType(min_length=least, max_length=most):
            yield f"a list of {least or 0} to {most} objects"
        case inspect.StructType():
            yield f"an object with fields of {', '.join(_fields(kind))}"
        case _:
            raise AssertionError(kind)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = text if len(text) <= VALUE_LENGTH_MAX else f"{text[:VALUE_LENGTH_MAX]}… ({len(text)} characters)"
    return f'"{text}"' if isinstance(value, str) else text
