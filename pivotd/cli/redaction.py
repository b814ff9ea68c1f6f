"""Removes what is secret from text that leaves the host: passwords in addresses, and values whose names say so.

What cannot be told from a secret counts as one.
"""

from __future__ import annotations

import re

GONE = "REMOVED"
_ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,30}:\\?/\\?/)[^\s\"'\\<>]{0,2000}@")
"""An address up to its last @: the user, perhaps with a password, in which anything can stand."""
_WORDS = r"pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|key|auth(?:orization)?"
_LONG = r"pass(?:word|wd|phrase)|secret|token|credentials?|(?:access|account|api|private)key|(?-i:(?<=[A-Z])PASS)"
"""Words that mean it also where no separator stands before them: PGPASSWORD, authToken."""
_STUCK = rf"(?!(?:Set|Load)Credential)[\w.-]{{0,60}}(?:{_LONG})"
_NAME = rf"(?<![A-Za-z0-9])(?:(?:[\w.-]{{0,60}}[_.-])?(?:{_WORDS})|{_STUCK})\d{{0,3}}"
_NAMED = re.compile(
    rf"(?P<name>{_NAME}(?P<end>\\*[\"'])?\]?(?P<sep>\s*[=:][ \t]*))"
    r"(?:(?P<quote>\\*[\"'])(?P<quoted>.*?)(?<!\\)(?P=quote)|(?P<bare>(?(end)[^\s,;}\]&\"']+|[^\s,;}\]&\"'][^\n\"']*)))",
    re.IGNORECASE,
)
"""``name = value``, ``--name=value``, ``"name": "value"``, of names that end in one of the words."""
_ASSIGNED = re.compile(rf"(?P<quote>[\"'])(?P<name>{_NAME}=)[^\n]*?(?P=quote)", re.IGNORECASE)
"""``Environment="NAME=a value"`` of systemd."""
_OPTION = re.compile(
    rf"(?P<name>(?<![\w-])--?{_NAME}[ \t]+)"
    r"(?P<quote>[\"'])?(?P<value>(?(quote)[^\n]+?|(?!-)[^\s\"']+))(?(quote)(?P=quote))",
    re.IGNORECASE,
)
"""``--name value`` on a command line."""
_OPENED = re.compile(rf"(?P<name>{_NAME}(?:\\*[\"'])?\]?\s*[=:]\s*)(?P<open>[\[{{]|\"\"\"|''')", re.IGNORECASE)
"""A named list or table, or TOML's text of several lines: all of it may be secret."""
_MARK = re.compile(r"\\*[\"']|[\[\]{}]")
_OPENED_MAX = 1 << 16
"""One that is longer does not end as such; so much of it goes."""
_OBJECT = re.compile(r"\bsecret,(?=[^\s\"']*\bdata=)[^\s\"']*")
"""What QEMU's option -object makes of a secret."""
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
    text = _OBJECT.sub(f"secret,{GONE}", text)
    text = _without_opened(text)
    text = _OPTION.sub(_without_option, text)
    text = _ASSIGNED.sub(lambda found: f"{found['quote']}{found['name']}{GONE}{found['quote']}", text)
    return _NAMED.sub(_without_value, text)


def _without_opened(text: str) -> str:
    """Return the text with each named list, table or text of several lines replaced by one word."""
    parts, at = [], 0
    while (found := _OPENED.search(text, at)) is not None:
        end = _end(text, found.end("open"), found["open"])
        quote = '"' if (before := _MARK.search(found["name"])) is None or before[0] in "[]{}" else before[0]
        parts.append(f"{text[at : found.start('open')]}{quote}{GONE}{quote}")
        at = end
    return "".join([*parts, text[at:]])


def _end(text: str, start: int, opened: str) -> int:
    """Return where ends what is open from ``start`` on; quotes may be escaped themselves, as in JSON within JSON."""
    limit = min(len(text), start + _OPENED_MAX)
    if len(opened) > 1:
        closing = text.find(opened, start)
        return len(text) if closing < 0 else closing + len(opened)
    depth, quote = 1, None
    for mark in _MARK.finditer(text, start, limit):
        if quote is not None:
            quote = None if mark[0] == quote else quote
        elif mark[0] in "[{":
            depth += 1
        elif mark[0] not in "]}":
            quote = mark[0]
        elif (depth := depth - 1) == 0:
            return mark.end()
    return limit


def _without_option(found: re.Match[str]) -> str:
    if _HARMLESS.fullmatch(found["value"]):
        return found[0]
    quote = found["quote"] or ""
    return f"{found['name']}{quote}{GONE}{quote}"


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
