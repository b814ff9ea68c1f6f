"""Secrets on command lines, and secrets that can be told by their looks, wherever they stand.

A command line may be a line of a log or of a unit, or a list of JSON, also within JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable

GONE = "REMOVED"
_QUOTE = r"\\*[\"']"
_BETWEEN = rf"(?:(?:{_QUOTE})?[ \t]*,[ \t]*|[ \t]+|=)"
"""What stands between an option and its value: blanks, ``=``, or what separates the strings of a list."""
_VALUE = rf"(?:(?P<open>{_QUOTE})(?P<quoted>[^\n]*?)(?P=open)|(?P<bare>(?![\"'\[{{,-])(?:[^\s\"'\\]|\\(?![\"']))+))"
_PROGRAMS = (
    (r"sshpass|mysql\w*|mariadb[\w-]*|mongo\w*|fence_\w+|7z[ar]?|rdesktop", "p"),
    (r"(?:docker|podman|nerdctl|skopeo|buildah|oc|az|helm)[\s\"',\\]+(?:registry[\s\"',\\]+)?login", "p"),
    (r"ldap\w+", "wy"),
    (r"(?:redis|valkey)-cli", "a"),
    (r"mosquitto_\w+|ipmi[\w-]+|sqlcmd|bcp|zip|unzip|zipcloak", "P"),
    (r"snmp\w+", "cAX"),
    (r"openssl", "kK"),
    (r"curl|wget", "bE"),
)
"""Programs, and their options of one letter that take a secret."""
_COMMANDS = tuple(
    (
        re.compile(rf"(?<![\w.-])(?:{programs})(?![\w.])[^\n]*"),
        re.compile(rf"(?P<name>(?<![\w-])-[A-Za-z0-9]{{0,3}}?[{letters}]{_BETWEEN}?){_VALUE}"),
    )
    for programs, letters in _PROGRAMS
)
_USER = re.compile(
    rf"(?P<name>(?<![\w-])(?:(?:--(?:proxy-)?user(?:name|pwd)?|-[A-Za-z]{{0,3}}[uU]){_BETWEEN}|-[uU]))"
    rf"(?P<open>{_QUOTE})?(?P<user>[^\s\"':,%=]+[:%])(?P<value>(?(open)[^\n]+?(?=(?P=open))|[^\s\"']+))"
)
"""``curl -u user:password``, ``etcdctl --user``, ``smbclient -U user%password``."""
_LFTP = re.compile(rf"(?P<name>(?<![\w.-])lftp(?![\w.])[^\n|;]*?-u{_BETWEEN}(?:{_QUOTE})?[^\s\"',]+,)[^\s\"'\\]+")
_LAST = re.compile(
    r"\b(?P<name>secret-set-value|set-user-password|wpa_passphrase|htpasswd)"
    rf"(?:(?P<list>{_QUOTE},[ \t]*{_QUOTE})(?:[^\n\"']|{_QUOTE},[ \t]*{_QUOTE})+|[ \t]+[^\n|;\"]+)"
)
"""Commands whose last arguments are secrets: all arguments go."""
_PIPED = re.compile(
    r"\b(?P<name>(?:echo|printf)\b)[^\n|]{0,300}(?P<pipe>\|\s*(?:sudo\s+(?:-\w+\s+)*)?(?:/\S*/)?"
    r"(?:sudo|su|\w*passwd|cryptsetup|kinit|docker|podman|openssl|gpg2?|virsh|base64|systemd-creds|etcdctl)\b)"
)
_HERE = re.compile(rf"(?P<name><<<\s*){_VALUE}")
_MONITOR = re.compile(r"\b(?P<name>set_password[ \t]+\w+[ \t]+)(?P<value>[^\s\"'\\]+)")
_SLASH = re.compile(r"(?P<name>(?<![^\s\"'])/(?:p|pass|password):)[^\s\"']+")
_QOM = (
    re.compile(
        r"(?P<name>\bqom-type\\*[\"']\s*:\s*\\*[\"']secret\b.{0,400}?\bdata\\*[\"']\s*:\s*)(?P<open>\\*[\"'])"
        r"(?P<quoted>.*?)(?<!\\)(?P=open)",
        re.DOTALL,
    ),
    re.compile(
        r"(?P<name>\bdata\\*[\"']\s*:\s*)(?P<open>\\*[\"'])(?P<quoted>[^\"'\n]*?)(?<!\\)(?P=open)"
        r"(?=[^{}]{0,400}\bqom-type\\*[\"']\s*:\s*\\*[\"']secret\b)"
    ),
)
"""``object-add`` of a secret, in QMP and as JSON on a command line, in either order."""
_PLAIN_ADDRESS = re.compile(
    r"(?P<name>(?<![\w/.@%+-])(?:iscsi:|//)?(?!rbd:)[\w.%+-]{1,100}:)(?!//)[^\s@\"'<>\\]{1,200}@(?=[\w\[])"
)
"""``user:password@host`` without a scheme."""
_LOOKS = re.compile(
    r"\beyJ[\w-]{8,}\.[\w-]{4,}\.?[\w-]*"  # a JSON web token
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|hv[sbr]\.|AIza|AGE-SECRET-KEY-|sk-)[\w-]{8,}"
    r"|\bAQ[A-Za-z0-9+/]{30,}[\w+/-]*={0,2}"  # of Ceph
    r"|\$(?:1|2[abxy]|5|6|7|y|gy|argon2\w*)\$[^\s:\"'\\]{8,}"  # of crypt(3)
    r"|\{(?:SSHA|SHA|SMD5|MD5|CRYPT)\d{0,3}\}[^\s\"'\\]+"
)
_DIGEST = re.compile(r"\b(?P<name>Digest|Signature)\s+(?:\w+=(?:\\*\"[^\"\n]*\\*\"|[^\s,\"]+)(?:,\s*)?)+")
_ENDED = re.compile(r"(?:^[^\n]*?[A-Za-z0-9+/=]{8,}[^\n]*\n)*^[^\n]*-----END [^-]+-----", re.MULTILINE)
"""The end of a key whose beginning was cut off."""
_PUTTY = re.compile(r"(?P<name>Private-Lines: \d+\s*\n)(?:[^\n:]+(?:\n|\Z))+")
_ID = re.compile(r"\d{1,5}")


def looks_secret(text: str) -> bool:
    """Return whether a text has what clean() replaces by its looks."""
    return _LOOKS.search(text) is not None


def clean(text: str) -> str:
    """Return the text with each secret of these kinds replaced; JSON stays JSON."""
    text = _ENDED.sub(GONE, text) if "-----END " in text else text
    text = _PUTTY.sub(rf"\g<name>{GONE}\n", text)
    for pattern in _QOM:
        text = pattern.sub(_without_value, text)
    for command, option in _COMMANDS:
        text = command.sub(_within(option), text)
    text = _USER.sub(_without_password, text)
    text = _LFTP.sub(rf"\g<name>{GONE}", text)
    text = _LAST.sub(lambda found: f"{found['name']}{found['list'] or ' '}{GONE}", text)
    text = _PIPED.sub(rf"\g<name> {GONE} \g<pipe>", text)
    text = _HERE.sub(_without_value, text)
    text = _MONITOR.sub(rf"\g<name>{GONE}", text)
    text = _SLASH.sub(rf"\g<name>{GONE}", text)
    text = _PLAIN_ADDRESS.sub(rf"\g<name>{GONE}@", text)
    text = _DIGEST.sub(rf"\g<name> {GONE}", text)
    return _LOOKS.sub(GONE, text)


def _within(option: re.Pattern[str]) -> Callable[[re.Match[str]], str]:
    return lambda command: option.sub(_without_value, command[0])


def _without_value(found: re.Match[str]) -> str:
    quote = found["open"] or ""
    return f"{found['name']}{quote}{GONE}{quote}"


def _without_password(found: re.Match[str]) -> str:
    user = found["user"][:-1]
    if _ID.fullmatch(user) and _ID.fullmatch(found["value"]):
        return found[0]  # numbers of a user and a group
    return f"{found['name']}{found['open'] or ''}{found['user']}{GONE}"
