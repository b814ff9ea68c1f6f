"""Removes what is secret from text that leaves the host: passwords in addresses, and values whose names say so.

What cannot be told from a secret counts as one.
"""

from __future__ import annotations

import re

GONE = "REMOVED"
_ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,30}:\\?/\\?/)[^\s\"'\\<>]{0,2000}@")
"""An address up to its last @: the user, perhaps with a password, in which anything can stand."""
_WORDS = r"pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|key|auth(?:orization)?"
_NAME = rf"(?<![A-Za-z0-9])(?:[\w.-]{{0,60}}[_.-])?(?:{_WORDS})"
_NAMED = re.compile(
    rf"(?P<name>{_NAME}(?P<end>\\*[\"'])?\]?(?P<sep>\s*[=:][ \t]*))"
    r"(?:(?P<quote>\\*[\"'])(?P<quoted>.*?)(?<!\\)(?P=quote)|(?P<bare>(?(end)[^\s,;}\]&\"']+|[^\s,;}\]&\"'][^\n\"']*)))",
    re.IGNORECASE,
)
"""``name = value``, ``--name=value``, ``"name": "value"``, of names that end in one of the words."""
_ASSIGNED = re.compile(rf"(?P<quote>[\"'])(?P<name>{_NAME}=)[^\n]*?(?P=quote)", re.IGNORECASE)
"""``Environment="NAME=a value"`` of systemd."""
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
    text = _ASSIGNED.sub(lambda found: f"{found['quote']}{found['name']}{GONE}{found['quote']}", text)
    return _NAMED.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    """Return a named value without what is secret; one without quotes ends at a blank unless blanks stand before it."""
    value, rest = found["quoted"], ""
    if found["quote"] is None:
        value = found["bare"]
        if found["end"] is None and not found["sep"].endswith((" ", "\t")):
            value, blank, rest = value.partition(" ")
            rest = blank + rest
    if _HARMLESS.fullmatch(value.strip()):
        return found[0]
    quote = found["quote"] or found["end"] or ""
    return f"{found['name']}{quote}{GONE}{quote}{_NAMED.sub(_without_value, rest)}"
