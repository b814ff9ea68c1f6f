"""Limits on event streams: a bound for each user, and places that readers cannot use up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from pivotd import limits
from pivotd.errors import ConflictError

SEND_TIMEOUT_S = 30.0


class Streams:
    """The event streams that are open, by uid."""

    def __init__(self) -> None:
        self._open: Counter[int] = Counter()

    def enter(self, uid: int, *, operator: bool) -> None:
        """Take a place; leave() releases it. Raises: ConflictError: this user has no place left."""
        if uid != 0 and self._open[uid] >= limits.STREAMS_PER_UID_MAX:
            raise ConflictError(
                f"uid {uid} has {limits.STREAMS_PER_UID_MAX} event streams open already: close one first", uid=uid
            )
        places = limits.STREAMS_MAX if operator else limits.STREAMS_MAX - limits.STREAMS_RESERVED
        if self._open.total() >= places:
            raise ConflictError(f"{places} event streams are open already: try again when one has been closed")
        self._open[uid] += 1

    def leave(self, uid: int) -> None:
        """Release the place."""
        self._open[uid] -= 1
        if not self._open[uid]:
            del self._open[uid]


class EventStream(StreamingResponse):
    """A stream that disconnects a client that does not read; the client resumes by its last id."""

    def __init__(self, streams: Streams, uid: int, frames: AsyncIterator[bytes], *, operator: bool) -> None:
        """Raises: ConflictError: too many streams are open."""
        streams.enter(uid, operator=operator)
        self._streams, self._uid = streams, uid
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(frames, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, and release its place in every case."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.leave(self._uid)

    async def stream_response(self, send: Send) -> None:
        """Send until the stream ends, the reader leaves, or it lets SEND_TIMEOUT_S pass."""

        async def bounded(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        with contextlib.suppress(TimeoutError):
            await super().stream_response(bounded)
