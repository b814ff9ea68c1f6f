"""Calls that storage may hold up for ever: each in a thread of its own, so that a hung one blocks nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(timeout_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what function returns. A thread that hangs stays behind, alone, until the storage answers.

    Raises: TimeoutError: no answer within timeout_s. Whatever function raises.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def resolve(value: Any, error: BaseException | None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = function(*args, **kwargs)
        except Exception as failure:  # noqa: BLE001 - it is raised where it was asked for
            error = failure
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, value, error)

    threading.Thread(target=work, name=getattr(function, "__name__", "call"), daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await result
