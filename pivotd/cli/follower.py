"""`events --exec`: run a command for each decided pivot, at least once, in order, whatever is killed meanwhile.

A record is looked at only in an answer that also holds the record at which the cursor stands. So a journal that is
not the cursor's is noticed before anything of it is taken, also if the daemon was restarted on it a moment ago.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn, TypeVar

import msgspec

from pivotd import limits
from pivotd.cli.context import tell
from pivotd.cli.cursor import Cursor, CursorError, CursorFile
from pivotd.cli.decided_pivot import DecidedPivot, decided_pivot, is_decision
from pivotd.cli.hook import Hook
from pivotd.client import Client, ClientError, Record

T = TypeVar("T")
HOPELESS = frozenset({"bad-request", "not-allowed", "not-found"})
"""Kinds of errors that asking again does not mend; every other one passes: a daemon that restarts, or is busy."""


class Follower:
    """One cursor, one command, one daemon."""

    def __init__(self, client: Client, file: CursorFile, hook: Hook) -> None:
        self._client, self._file, self._hook = client, file, hook
        self._place = Cursor(0, None)

    def begin(self, after: int | None) -> None:
        """Find the place to start from, and make it durable: a kill before the first pivot must not move it.

        ``after``: the place if there is no cursor yet; None: after the last record.
        Raises: CursorError, ClientError: there is no daemon.
        """
        last = self._client.health().journal.last_seq
        known = self._file.read()
        if known is None:
            seq = last if after is None else after
            here = self._client.events_page(seq - 1, 1) if seq else []
            if seq and (not here or here[0].seq != seq):
                raise CursorError(f"--after {seq}: the journal ends at record {last}; leave --after out to start there")
            known = Cursor(seq, here[0].at if here else None)
        self._place = known
        self._verified(known, self._page())
        self._file.write(known)
        tell(f"running {self._hook.name} for each pivot that is decided after record {known.seq}")

    def catch_up(self) -> None:
        """Deal with every record that is there, oldest first. Raises: CursorError, ClientError."""
        while records := self._ask(self._records):
            self._take(records)

    def follow(self) -> NoReturn:
        """Deal with every record, for ever. Raises: CursorError, ClientError."""
        while True:
            self._take(self._ask(self._records_or_wait))

    # -- records

    def _records_or_wait(self) -> list[Record]:
        records = self._records()
        if not records:
            self._client.await_event(self._place.seq, limits.FOLLOWER_LOOK_S)
        return records

    def _records(self) -> list[Record]:
        """Return the next records, none if there are none yet. Raises: CursorError, ClientError."""
        return self._verified(self._place, self._page())

    def _page(self) -> list[Record]:
        """Return the record at the place, and those after it."""
        return self._client.events_page(max(self._place.seq - 1, 0), limits.FOLLOWER_PAGE)

    def _verified(self, place: Cursor, page: list[Record]) -> list[Record]:
        """Return the records after the place. Raises: CursorError: the journal has another record at the place."""
        if not place.seq:
            return page
        if not page:
            found = "ends before it"
        elif (page[0].seq, page[0].at) != (place.seq, place.at):
            found = f"has a record {page[0].seq} of {page[0].at} there"
        else:
            return page[1:]
        raise CursorError(
            f"the cursor {self._file.path} stands at record {place.seq} of {place.at}, and this journal {found}: it is "
            f"another journal, or was restored from a backup. Compare your definitions with `pivotctl verdict`, then "
            f"remove {self._file.path} to go on from now"
        )

    def _ask(self, question: Callable[[], T]) -> T:
        """Return the answer, however long the daemon is away. Raises: ClientError: asking again would not help."""
        wait_s, told = limits.FOLLOWER_AGAIN_FIRST_S, False
        while True:
            try:
                answer = question()
            except ClientError as failure:
                if failure.kind in HOPELESS:
                    raise
                if not told:
                    tell(f"trying again until pivotd answers: {failure.message}")
                told = True
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, limits.FOLLOWER_AGAIN_MAX_S)
            else:
                if told:
                    tell("pivotd answers again")
                return answer

    # -- decided pivots

    def _take(self, records: list[Record]) -> None:
        for record in records:
            here = Cursor(record.seq, record.at)
            if is_decision(record) and record.pivot is not None:
                pivot = self._ask(partial(self._client.pivot, record.pivot))
                self._run(decided_pivot(pivot, record))
                self._keep(here)
                tell(f"{self._hook.name} ended with 0 for pivot {pivot.id} of {pivot.domain}")
            self._place = here

    def _run(self, pivot: DecidedPivot) -> None:
        """Run the command until it ends with 0."""
        about = f"for pivot {pivot.id} of {pivot.domain} ({pivot.outcome})"
        # msgspec refuses file names that are no text, json escapes them.
        document = json.dumps(msgspec.to_builtins(pivot)).encode() + b"\n"
        wait_s = limits.HOOK_AGAIN_FIRST_S
        while (fault := self._hook.run(document, self._file.lock)) is not None:
            tell(f"{self._hook.name} {fault} {about}; trying again in {wait_s:g} s")
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, limits.HOOK_AGAIN_MAX_S)

    def _keep(self, cursor: Cursor) -> None:
        """Make the cursor durable; the command is not run again because that fails."""
        wait_s = limits.HOOK_AGAIN_FIRST_S
        while True:
            try:
                self._file.write(cursor)
            except CursorError as failure:
                tell(f"{failure.message}; trying again in {wait_s:g} s")
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, limits.HOOK_AGAIN_MAX_S)
            else:
                return


class _TerminatedError(BaseException):
    """SIGTERM came."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception does, and then the process as the sender expects."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _TerminatedError

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _TerminatedError:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
