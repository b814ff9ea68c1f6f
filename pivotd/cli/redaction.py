"""Removes what is secret from text that leaves the host: passwords in addresses, and values whose names say so.

What cannot be told from a secret counts as one.
"""

from __future__ import annotations

import re

GONE = "REMOVED"
_ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*:\\?/\\?/)[^\s\"'\\<>]*@")
"""An address up to its last @: the user, perhaps with a password, in which anything can stand."""
_WORDS = r"pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|key|auth(?:orization)?"
_NAMED = re.compile(
    rf"(?P<name>(?<![A-Za-z0-9])(?:[\w.-]*[_.-])?(?:{_WORDS})(?P<end>\\*[\"'])?\]?\s*[=:]\s*)"
    r"(?:(?P<quote>\\*[\"'])(?P<quoted>.*?)(?P=quote)|(?P<bare>[^\s,;}\]&\"']+))",
    re.IGNORECASE,
)
"""``name = value``, ``--name=value``, ``"name": "value"``, of names that end in one of the words."""
_BEARER = re.compile(r"\b(?P<name>Bearer|Basic)\s+[A-Za-z0-9+/=._~-]{8,}")
_BLOCK = re.compile(r"-----BEGIN [^-]+-----.*?(?:-----END [^-]+-----|\Z)", re.DOTALL)
_SYSTEMD = re.compile(r"^(?P<name>\s*SetCredential(?:Encrypted)?=[^:\n]*:).*$", re.MULTILINE)
_HARMLESS = re.compile(r"/[^\s]*|null|none|true|false|\d{1,3}|", re.IGNORECASE)
"""Values that are no secrets: the path of a file that holds one, nothing, a small number."""


def clean(text: str) -> str:
    """Return the text with each secret replaced; JSON stays JSON, and TOML stays TOML."""
    text = _BLOCK.sub(GONE, text)
    text = _SYSTEMD.sub(lambda found: found["name"] + GONE, text)
    text = _ADDRESS.sub(lambda found: f"{found['scheme']}{GONE}@", text)
    text = _BEARER.sub(lambda found: f"{found['name']} {GONE}", text)
    return _NAMED.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    value = found["bare"] if found["quote"] is None else found["quoted"]
    if _HARMLESS.fullmatch(value):
        return found[0]
    quote = found["quote"] or found["end"] or ""
    return f"{found['name']}{quote}{GONE}{quote}"
