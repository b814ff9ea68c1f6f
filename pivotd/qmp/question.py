"""One query to QEMU, and the parser of its answer. Pure: no connection, no decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pivotd.errors import QmpRefusedError, QmpUnknownError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Question(Generic[T_co]):
    """A query. ``command`` sends it; called with QEMU's answer, the object returns its meaning.

    Raises: QmpUnknownError: QEMU refused the query, which a healthy QEMU does not, or the answer is not of the
    documented type. In both cases there are no facts: a missing list must not look like an empty one.
    """

    def __init__(self, name: str, arguments: dict[str, Any], read: Callable[[Any], T_co]) -> None:
        self.command: dict[str, Any] = {"execute": name} | ({"arguments": arguments} if arguments else {})
        self._name = name
        self._read = read
        self.__doc__ = read.__doc__

    def __call__(self, answer: Any) -> T_co:
        """Return the meaning of the answer. Raises: QmpUnknownError."""
        if isinstance(answer, QmpRefusedError):
            raise QmpUnknownError(f"a query failed: {answer.message}") from answer
        try:
            return self._read(answer)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            why = f"{type(error).__name__} {error}".splitlines()[0][:100]
            raise QmpUnknownError(
                f"QEMU's answer to {self._name} has another shape than documented ({why})", command=self._name
            ) from error


def asks(name: str, **arguments: Any) -> Callable[[Callable[[Any], T]], Question[T]]:
    """Turn a function that parses the answer to a query into a question."""
    return lambda read: Question(name, arguments, read)


def of(kind: type[T], value: object) -> T:
    """Return the value if it has the documented type; a boolean is not an integer. Raises: TypeError."""
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is due")
    return value
