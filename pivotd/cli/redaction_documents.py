"""Secrets in documents of JSON: values of keys that say so, and secrets within texts, which may be documents again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

GONE = "REMOVED"
_START = re.compile(r"\s*(?P<prefix>json:)?(?=[{\[])")
_END = re.compile(r"\s*\Z")
_INDENT = re.compile(r"\n( *)\S")


class Documents:
    """Cleans documents. ``text``: cleans a text that is none; ``secret``: whether a key says that its value is one."""

    def __init__(
        self, text: Callable[[str], str], secret: Callable[[str], bool], harmless: Callable[[str], bool]
    ) -> None:
        """``harmless``: whether a value is no secret, whatever its key says."""
        self._text, self._secret, self._harmless = text, secret, harmless

    def clean(self, text: str) -> str | None:
        """Return a document without its secrets, None for a text that is no document."""
        start = _START.match(text)
        if start is None:
            return None
        try:
            document = json.loads(text[start.end() :])
            cleaned = self._value(document)
        except ValueError:
            return None
        except RecursionError:
            return GONE
        if cleaned == document:
            return text
        end, indent = _END.search(text), _INDENT.search(text)
        assert end is not None
        return f"{start[0]}{json.dumps(cleaned, indent=len(indent[1]) if indent else None)}{end[0]}"

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, list):
            return self._list(value)
        return self._object(value) if isinstance(value, dict) else value

    def _string(self, text: str) -> str:
        found = self.clean(text)
        return self._text(text) if found is None else found

    def _object(self, value: dict[str, Any]) -> dict[str, Any]:
        adds = str(value.get("qom-type", "")).startswith("secret")
        return {
            self._string(key): GONE
            if self._is_secret(key, one) or (adds and key in {"data", "props"})
            else self._value(one)
            for key, one in value.items()
        }

    def _is_secret(self, key: str, value: Any) -> bool:
        return self._secret(key) and not self._harmless(value if isinstance(value, str) else json.dumps(value))

    def _list(self, values: list[Any]) -> list[Any]:
        """Return a list; of strings it may be a command line, in which an option stands before its value."""
        if len(values) > 1 and all(isinstance(one, str) for one in values):
            try:
                found = json.loads(self._text(json.dumps(values, ensure_ascii=False)))
            except ValueError:
                return [GONE]
            if len(found) != len(values) or not all(isinstance(one, str) for one in found):
                return [GONE]
            values = found
        return [self._value(one) for one in values]
