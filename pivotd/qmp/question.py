"""One question to QEMU, and how its answer is read. Pure: no connection, no decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pivotd.errors import QmpRefusedError, QmpUnknownError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Question(Generic[T_co]):
    """A query. ``command`` asks it; called with QEMU's answer it returns what that says.

    Raises: QmpUnknownError: QEMU refused the query, which a healthy one does not, or the answer has another shape than
    documented. Both leave us without facts: no list at all must not look like an empty one.
    """

    def __init__(self, name: str, arguments: dict[str, Any], read: Callable[[Any], T_co]) -> None:
        self.command: dict[str, Any] = {"execute": name} | ({"arguments": arguments} if arguments else {})
        self._name = name
        self._read = read
        self.__doc__ = read.__doc__

    def __call__(self, answer: Any) -> T_co:
        """Return what the answer says. Raises: QmpUnknownError."""
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
    """Make a function that reads the answer to a query the question itself."""
    return lambda read: Question(name, arguments, read)


def of(kind: type[T], value: object) -> T:
    """Return a value that has the documented type; a boolean is no integer. Raises: TypeError."""
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is due")
    return value
