"""JSON that is almost right: one or a few places of a real document changed, and any document at all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "pending", "concluded", "running", "null", "source", "/machine/peripheral/", 2**64, -1])
)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(document: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every value in a document."""
    yield path
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*path, index))


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """Return a copy of a document with one to three changes: another value, one less, one twice, one of elsewhere."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(result))))
        result = _changed(draw, result, path)
    return result


def _changed(draw: st.DrawFn, document: Any, path: Path) -> Any:
    how = draw(st.sampled_from(["replace", "delete", "double", "move"]))
    if not path:
        return draw(ANY) if how == "replace" else document
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    last: Any = path[-1]
    match how:
        case "delete":
            del parent[last]
        case "double" if isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        case "move":
            other = draw(st.sampled_from(list(places(document))))
            value = document
            for step in other:
                value = value[step]
            parent[last] = copy.deepcopy(value)
        case _:
            parent[last] = draw(ANY)
    return document
