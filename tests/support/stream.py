"""Cuts the two byte streams of a QMP connection into messages without changing a byte.

Each splitter is fed chunks as they arrive and returns the messages that are whole; ``rest`` is what is not whole yet.
"""

from __future__ import annotations

import re

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')
_SPACE = b" \t\r\n"


class CommandSplitter:
    """What a client sends: JSON objects one after the other, with or without space between them.

    A message includes the space that follows it in the same chunk; space alone is a message too.
    """

    def __init__(self) -> None:
        self.rest = b""
        self._at = 0  # everything before this has been looked at
        self._depth = 0
        self._quoted = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take a chunk and return the messages that it completes."""
        self.rest += data
        messages = []
        while (end := self._end()) is not None:
            while end < len(self.rest) and self.rest[end] in _SPACE:
                end += 1
            messages.append(self.rest[:end])
            self.rest, self._at = self.rest[end:], 0
        if self.rest and not self.rest.strip():
            messages.append(self.rest)
            self.rest, self._at = b"", 0
        return messages

    def _end(self) -> int | None:
        """Look at what is new and return where the object ends, None if it does not end here."""
        while found := (_INSIDE if self._quoted else _OUTSIDE).search(self.rest, self._at):
            byte = found[0]
            if byte == b"\\":
                if found.end() == len(self.rest):
                    # The escaped byte is not here yet: look at both again.
                    self._at = found.start()
                    return None
                self._at = found.end() + 1
                continue
            self._at = found.end()
            if byte == b'"':
                self._quoted = not self._quoted
            elif byte in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    self._depth = 0
                    return self._at
        self._at = len(self.rest)
        return None


class LineSplitter:
    """What QEMU sends: one message per line."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take a chunk and return the lines that it completes."""
        *whole, self.rest = (self.rest + data).split(b"\n")
        return [line + b"\n" for line in whole]
