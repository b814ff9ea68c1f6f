"""Removes what is secret from text that leaves the host: passwords in addresses, and values whose names say so.

What cannot be told from a secret counts as one.
"""

from __future__ import annotations

import re

from pivotd.cli import redaction_commands
from pivotd.cli.redaction_commands import GONE
from pivotd.cli.redaction_documents import Documents

__all__ = ["GONE", "clean"]

_ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,30}:\\?/\\?/)[^\s\"'\\<>]{0,2000}@")
"""An address up to its last @: the user, perhaps with a password, in which anything can stand."""
_WORDS = (
    r"pass(?:words?|wd|phrase|code)?|pwd?|psk|pin|otp|secrets?|tokens?|creds?|credentials?|key|auth(?:orization)?|bearer|"
    r"cookie|jwt|sig(?:nature)?|community"
)
_LONG = (
    r"pass(?:words?|wd|phrase|code)|(?:bind|root|admin)pw|(?:require|store|key|bind|root)pass|secrets?|tokens?|"
    r"credentials?|(?:access|account|api|private|public|shared|preshared|encryption|master|signing|session)key|"
    r"signature|session[_-]?id|secret[_-]id|(?-i:(?<=[A-Z])PASS|(?<=[a-z0-9])(?:Pass|Pwd?|Key|Psk|Pin|Otp|Creds?|Auth|Sig))"
)
"""Words that mean it also where no separator stands before them: PGPASSWORD, authToken."""
_STUCK = rf"(?!(?:Set|Load)Credential)[\w.-]{{0,60}}(?:{_LONG})"
_NAME = rf"(?<![A-Za-z0-9])(?:(?:[\w.-]{{0,60}}[_.-])?(?:{_WORDS})|{_STUCK})\d{{0,3}}"
_NAMED = re.compile(
    rf"(?P<name>{_NAME}(?P<end>\\*[\"'])?\]?(?P<sep>\s*[=:]{{1,3}}>?[ \t]*))"
    r"(?:(?:\s*(?P<quote>\\*[\"'])(?P<quoted>\n?.*?)(?<!\\)(?P=quote))"
    r"|(?P<bare>(?(end)[^\s,;}\]&\"']+|[\"']?(?:[^\s\"']|[\"'](?=\w))(?:[^\n\"']|[\"'](?=\w))*)))",
    re.IGNORECASE,
)
"""``name = value``, ``--name=value``, ``"name": "value"``, of names that end in one of the words.

A quote before a letter is a part of a value without quotes: after the end of a string of JSON there is none.
"""
_ASSIGNED = re.compile(rf"(?P<quote>[\"'])(?P<name>{_NAME}=)[^\n]*?(?P=quote)", re.IGNORECASE)
"""``Environment="NAME=a value"`` of systemd."""
_OPTION = re.compile(
    rf"(?P<name>(?<![\w-])--?{_NAME}(?:(?:\\*[\"'])?[ \t]*,[ \t]*|[ \t]+))"
    r"(?P<quote>\\*[\"'])?(?P<value>(?(quote)[^\n]+?|(?!-)[^\s\"']+))(?(quote)(?P=quote))",
    re.IGNORECASE,
)
"""``--name value`` on a command line, also where that is a list of strings."""
_SAYS = r"\b(?:pass(?:word|wd|phrase|code)|secret|token|pw)[ \t]+"
_IS = r"(?:is|was|for[ \t]+[^\s\"':=]+[ \t]*[:=])[ \t]*"
_SAID = (
    re.compile(rf"(?P<name>{_SAYS}(?:{_IS})?(?P<quote>\\*[\"']))[^\n\"']+?(?=(?P=quote))", re.IGNORECASE),
    re.compile(
        rf"(?P<name>{_SAYS}{_IS}"
        r"|\b(?:login|user|username|account|connect|vnc|spice|by)(?:[ \t]+[^\s\"']+)?[ \t]+(?:password|passwd|pw)[ \t]+"
        r"|\bidentified[ \t]+by[ \t]+\\*[\"']?"
        rf"|(?:^|\b(?:set|setenv|export)[ \t])[ \t]*(?!\S*(?:key|auth)[ \t]){_NAME}[ \t]+(?=\S+[ \t]*$))"
        r"[^\s\"'\\=:]+",
        re.IGNORECASE | re.MULTILINE,
    ),
)
"""Text: ``password 'value'``, ``login NAME password VALUE``, a line ``name value`` of a configuration."""
_INDENTED = re.compile(
    rf"^(?P<indent>[ \t]*)(?P<name>(?:- )?{_NAME}[\"']?[ \t]*:[ \t]*)[|>][-+0-9]*[ \t]*\n"
    r"(?:(?:(?P=indent)[ \t]+[^\n]*|[ \t]*)(?:\n|\Z))+",
    re.IGNORECASE | re.MULTILINE,
)
"""YAML's text of several lines."""
_ELEMENT = re.compile(rf"(?P<name><(?:{_NAME}|value)\b[^<>]*>)(?:[^<]+|<!\[CDATA\[.*?\]\]>)(?=</)", re.IGNORECASE)
_OPENED = re.compile(rf"(?P<name>{_NAME}(?:\\*[\"'])?\]?\s*[=:]\s*)(?P<open>[\[{{]|\"\"\"|''')", re.IGNORECASE)
"""A named list or table, or TOML's text of several lines: all of it may be secret."""
_MARK = re.compile(r"\\*[\"']|[\[\]{}]")
_OPENED_MAX = 1 << 16
"""One that is longer does not end as such; so much of it goes."""
_OBJECT = re.compile(r"\bsecret,(?=[^\s\"']*\bdata=)[^\s\"']*(?:(?<==)(?P<quote>\\*[\"'])[^\n]*?(?P=quote)[^\s\"']*)?")
"""What QEMU's option -object makes of a secret."""
_BEARER = re.compile(r"\b(?P<name>Bearer|Basic)\s+[A-Za-z0-9+/=._~-]{8,}")
_BLOCK = re.compile(r"-----BEGIN [^-]+-----.*?(?:-----END [^-]+-----|\Z)", re.DOTALL)
_SYSTEMD = re.compile(
    r"(?P<name>^\s*SetCredential(?:Encrypted)?=[^:\n]*:|\b(?:io\.systemd\.credential(?:\.binary)?:[\w.-]+=|"
    r"systemd\.set_credential(?:_binary)?=[\w.-]+:))(?:[^\n]*\\\n)*[^\n\"]*",
    re.MULTILINE,
)
_SIGNS = (
    *("pass", "pw", "psk", "pin", "otp", "secret", "token", "cred", "key", "auth", "bearer", "cookie", "jwt", "sig"),
    *("community", "session", "digest", "basic", "identified", "value>", "qom-type", "private-lines", "-----", "@"),
    *(" -", "'-", '"-', "\t-", "[-", " /p:", '"/p:', "echo ", "printf ", "<<<"),
)
"""One of these is in every text that has a secret by a name, by an option or in a command."""
_HARMLESS = re.compile(r"/[^\s]*|null|none|true|false|\d{1,3}|", re.IGNORECASE)
"""Values that are no secrets: the path of a file that holds one, nothing, a small number."""


def clean(text: str) -> str:
    """Return the text with each secret replaced; JSON stays JSON, and TOML stays TOML."""
    found = _DOCUMENTS.clean(text)
    return _clean(text) if found is None else found


def _clean(text: str) -> str:
    folded = text.lower()
    if not any(sign in folded for sign in _SIGNS) and not redaction_commands.looks_secret(text):
        return text  # as most values of a journal
    text = redaction_commands.clean(_BLOCK.sub(GONE, text))
    text = _SYSTEMD.sub(lambda found: found["name"] + GONE, text)
    text = _ADDRESS.sub(lambda found: f"{found['scheme']}{GONE}@", text)
    text = _BEARER.sub(lambda found: f"{found['name']} {GONE}", text)
    text = _OBJECT.sub(f"secret,{GONE}", text)
    text = _INDENTED.sub(rf"\g<indent>\g<name>{GONE}\n", text)
    text = _ELEMENT.sub(rf"\g<name>{GONE}", text)
    text = _without_opened(text)
    text = _OPTION.sub(_without_option, text)
    text = _ASSIGNED.sub(lambda found: f"{found['quote']}{found['name']}{GONE}{found['quote']}", text)
    for pattern in _SAID:
        text = pattern.sub(rf"\g<name>{GONE}", text)
    return _without_named(text)


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


def _without_named(text: str) -> str:
    """Return the text without named values; one without quotes ends at a blank unless blanks stand before it."""
    parts, at = [], 0
    while (found := _NAMED.search(text, at)) is not None:
        value, end = found["quoted"], found.end()
        if found["quote"] is None:
            value = found["bare"]
            if found["end"] is None and not found["sep"].endswith((" ", "\t")):
                value = value.partition(" ")[0]
                end = found.start("bare") + len(value)
        quote = found["quote"] or found["end"] or ""
        kept = (
            text[found.start() : end] if _HARMLESS.fullmatch(value.strip()) else f"{found['name']}{quote}{GONE}{quote}"
        )
        parts.append(text[at : found.start()] + kept)
        at = end
    return "".join([*parts, text[at:]])


_SECRET = re.compile(rf"{_NAME}\Z", re.IGNORECASE)
_DOCUMENTS = Documents(
    _clean, lambda key: _SECRET.search(key) is not None, lambda value: _HARMLESS.fullmatch(value) is not None
)
