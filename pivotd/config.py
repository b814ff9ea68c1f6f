"""The configuration file and its drop-ins, checked key by key before anything starts.

Every error message is one line: file, line (broken TOML) or key path (otherwise), what was found, what was expected.
On the start-up path: pwd, grp and difflib are imported only where a file needs them.
"""

from __future__ import annotations

import os
import os.path
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pivotd import limits
from pivotd.core.fleet import OnSilence
from pivotd.core.names import DOMAIN_NAME_WORDS, is_domain_name
from pivotd.errors import ConfigError
from pivotd.log import LEVEL_DEFAULT, LEVELS

DEFAULT_PATH = Path("/etc/pivotd/pivotd.toml")

SOCKET_PATH_BYTES_MAX = 107
"""sun_path of unix(7) without the closing NUL."""
SHOWN_LENGTH_MAX = 60
"""Longest quotation of a bad value in a message."""

# Compiled where it is used first: that is half a millisecond of a start without domains.
_ENDPOINT = r"https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?"
_BARE_KEY = r"[A-Za-z0-9_-]+"
_KEEP_UNITS_S = {"d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}


@dataclass(frozen=True, slots=True)
class Principals:
    """Users and groups named in ``[access]``, as written and as the kernel knows them."""

    names: tuple[str, ...] = ()
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Access:
    """Access control; root may always do everything, and by default no other user may do anything."""

    operators: Principals = Principals()
    readers: Principals = Principals()


@dataclass(frozen=True, slots=True)
class PauseLimits:
    """The limits of a guest's pause unless a request sets others."""

    max_ms: int = limits.PAUSE_MS_MAX_DEFAULT
    attempts: int = limits.ATTEMPTS_DEFAULT


@dataclass(frozen=True, slots=True)
class Log:
    """What the log has: events of ``level``, one of log.LEVELS, and of those that are more serious."""

    level: str = LEVEL_DEFAULT


@dataclass(frozen=True, slots=True)
class Journal:
    """What the journal keeps: pivots that were closed for longer than ``keep_s`` move to archives; None: none does."""

    keep_s: int | None = None


@dataclass(frozen=True, slots=True)
class Libvirt:
    """The libvirt of this host whose domains pivotd shows and guards; None: none."""

    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The etcd that this host shares with others; no ``endpoints``: none. ``host`` is this host's name in there.

    ``timeout_ms`` bounds each request outside a pause. ``cluster`` is etcd's id, where another one is to be refused.
    """

    endpoints: tuple[str, ...] = ()
    host: str = ""
    prefix: str = "/pivotd/v1/"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    cluster: str | None = None
    on_silence: OnSilence = OnSilence.RESUME
    timeout_ms: int = limits.FLEET_TIMEOUT_MS_DEFAULT


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration of the daemon. ``domains`` maps each name to the path of its QMP socket."""

    state_dir: Path = Path("/var/lib/pivotd")
    socket: Path = Path("/run/pivotd/pivotd.sock")
    discover: tuple[str, ...] = ()
    """Shell patterns of QMP sockets to adopt; none by default, since a monitor serves one client at a time."""
    access: Access = Access()
    pause: PauseLimits = PauseLimits()
    log: Log = Log()
    journal: Journal = Journal()
    libvirt: Libvirt = Libvirt()
    fleet: Fleet = Fleet()
    domains: Mapping[str, Path] = field(default_factory=dict)
    files: tuple[Path, ...] = field(default=(), compare=False)
    """The files that it was read from, in order."""


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read ``path``, then ``<path>.d/*.toml`` in the order of their names, and return the merged configuration.

    Tables are merged key by key; a later scalar or list replaces an earlier one.

    Raises: ConfigError.
    """
    found: _Settings = {}
    files = (path, *_drop_ins(path))
    for file in files:
        found.update((key, (value, file)) for key, value in _settings(file, _parse(file), ()))
    _check_domains(found)

    def value(default: Any, *key: str) -> Any:
        return found[key][0] if key in found else default

    return Config(
        state_dir=value(Config().state_dir, "state_dir"),
        socket=value(Config().socket, "socket"),
        discover=value((), "discover"),
        access=Access(
            operators=_principals(found, ("access", "operators")),
            readers=_principals(found, ("access", "readers")),
        ),
        pause=PauseLimits(
            max_ms=value(PauseLimits().max_ms, "pause", "max_ms"),
            attempts=value(PauseLimits().attempts, "pause", "attempts"),
        ),
        log=Log(level=value(LEVEL_DEFAULT, "log", "level")),
        journal=Journal(keep_s=value(None, "journal", "keep")),
        libvirt=Libvirt(uri=value(None, "libvirt", "uri")),
        fleet=_fleet(found),
        domains={key[1]: found[key][0] for key in _qmp_keys(found)},
        files=files,
    )


_Key = tuple[str, ...]
_Settings = dict[_Key, tuple[Any, Path]]
"""Key path -> value, file that set it last. Each domain's table is listed, too, with the value None."""


def _drop_ins(path: Path) -> list[Path]:
    directory = path.with_name(path.name + ".d")
    try:
        return sorted(entry for entry in directory.iterdir() if entry.suffix == ".toml")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be listed: {error.strerror}", file=str(directory)) from error


def _parse(file: Path) -> dict[str, Any]:
    """Return the tables of one file. Raises: ConfigError, with the line where the syntax is wrong."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}", file=str(file)) from error
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}: line {line}: not UTF-8", file=str(file), line=line) from error
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at ")
        at_line = re.match(r"line (\d+)", where)
        line = int(at_line[1]) if at_line else len(raw.splitlines())
        what = what.replace("\n", " ")
        raise ConfigError(f"{file}: line {line}: not TOML: {what}", file=str(file), line=line) from error
    except (RecursionError, ValueError) as error:
        # Nested without end, or a number of thousands of digits: tomllib says neither in its own error.
        raise ConfigError(f"{file}: not TOML that pivotd takes: {error}", file=str(file)) from error


def _settings(file: Path, table: dict[str, Any], path: _Key) -> Iterator[tuple[_Key, Any]]:
    """Yield the checked value of every key below ``path``. Raises: ConfigError at the first bad one."""
    for name, value in table.items():
        key = (*path, name)
        pattern = "domains.*" + "".join(f".{part}" for part in key[2:]) if path[:1] == ("domains",) else _dotted(key)
        if pattern in _CHECKS:
            try:
                yield key, _CHECKS[pattern](value)
            except _ExpectedError as expected:
                _refuse(file, _dotted(key), _shown(value), str(expected))
        elif pattern not in _TABLES:
            _refuse_unknown(file, key, pattern)
        elif not isinstance(value, dict):
            _refuse(file, _dotted(key), _shown(value), "a table")
        else:
            if pattern == "domains.*":
                _check_domain_name(file, name)
                yield key, None
            yield from _settings(file, value, key)


class _ExpectedError(Exception):
    """A value is invalid for its key; the text says what is valid."""


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise _ExpectedError("an absolute path")
    return Path(value)


def _socket_path(value: object) -> Path:
    path = _path(value)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise _ExpectedError(f"a socket path of at most {SOCKET_PATH_BYTES_MAX} bytes")
    return path


def _strings(value: object, expected: str, wanted: Callable[[str], bool]) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _ExpectedError(f"a list of {expected}s")
    for entry in value:
        if not isinstance(entry, str) or not wanted(entry):
            raise _ExpectedError(f"a list of {expected}s; {_shown(entry)} is none")
    return tuple(value)


def _patterns(value: object) -> tuple[str, ...]:
    return _strings(value, "absolute path pattern", lambda text: text.startswith("/") and text.isprintable())


def _names(value: object) -> tuple[str, ...]:
    return _strings(value, "user or @group name", lambda text: text.isprintable() and text.strip("@ ") != "")


def _integer(least: int, most: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        # bool is an int to Python and not to TOML.
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _ExpectedError(f"an integer from {least} to {most}")
        return value

    return check


def _keep_s(value: object) -> int:
    """Return seconds. Months are left out: ``m`` means minutes elsewhere."""
    found = re.fullmatch(r"([0-9]{1,6})([dwy])", value, re.ASCII) if isinstance(value, str) else None
    seconds = int(found[1]) * _KEEP_UNITS_S[found[2]] if found is not None else 0
    if not limits.KEEP_S_MIN <= seconds <= limits.KEEP_S_MAX:
        raise _ExpectedError('a length of time in days, weeks or years from "1d" to "100y", like "400d" or "2y"')
    return seconds


def _local_libvirt(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"qemu(\+unix)?:///(system|session)(\?\S+)?", value):
        raise _ExpectedError('the URI of the libvirt of this host, "qemu:///system"')
    return value


def _level(value: object) -> str:
    if value not in LEVELS:
        raise _ExpectedError(f"one of {', '.join(map(_shown, LEVELS))}")
    return str(value)


def _endpoints(value: object) -> tuple[str, ...]:
    endpoints = _strings(value, "https://HOST:PORT URL", lambda text: re.fullmatch(_ENDPOINT, text) is not None)
    if not 1 <= len(endpoints) <= limits.FLEET_ENDPOINTS_MAX or len({*endpoints}) < len(endpoints):
        raise _ExpectedError(f"1 to {limits.FLEET_ENDPOINTS_MAX} different URLs")
    if len({endpoint.partition(":")[0] for endpoint in endpoints}) > 1:
        raise _ExpectedError("either https:// or http:// for all endpoints")
    return endpoints


def _host_name(value: object) -> str:
    if not isinstance(value, str) or not is_domain_name(value):
        raise _ExpectedError(f"a name of {DOMAIN_NAME_WORDS}")
    return value


def _prefix(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"/([\w.-]+/)*", value, re.ASCII):
        raise _ExpectedError('a prefix of keys that begins and ends with a slash, like "/pivotd/v1/"')
    return value


def _user(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise _ExpectedError("the name of a user of etcd")
    return value


def _cluster(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{1,16}", value):
        raise _ExpectedError("etcd's cluster id as `pivotctl fleet status` shows it, 1 to 16 of 0-9 a-f")
    return value


def _on_silence(value: object) -> OnSilence:
    if value not in {*OnSilence}:
        raise _ExpectedError(f"one of {', '.join(map(_shown, OnSilence))}")
    return OnSilence(str(value))


_CHECKS: Mapping[str, Callable[[object], Any]] = {
    "state_dir": _path,
    "socket": _socket_path,
    "discover": _patterns,
    "access.operators": _names,
    "access.readers": _names,
    "pause.max_ms": _integer(limits.PAUSE_MS_MIN, limits.PAUSE_MS_LIMIT),
    "pause.attempts": _integer(1, limits.ATTEMPTS_MAX),
    "log.level": _level,
    "journal.keep": _keep_s,
    "libvirt.uri": _local_libvirt,
    "fleet.endpoints": _endpoints,
    "fleet.host": _host_name,
    "fleet.prefix": _prefix,
    "fleet.ca": _path,
    "fleet.certificate": _path,
    "fleet.key": _path,
    "fleet.user": _user,
    "fleet.password_file": _path,
    "fleet.cluster": _cluster,
    "fleet.on_silence": _on_silence,
    "fleet.timeout_ms": _integer(limits.FLEET_TIMEOUT_MS_MIN, limits.FLEET_TIMEOUT_MS_MAX),
    "domains.*.qmp": _socket_path,
}
_TABLES = frozenset({"access", "pause", "log", "journal", "libvirt", "fleet", "domains", "domains.*"})
_NEEDS = {
    "certificate": "key",
    "key": "certificate",
    "user": "password_file",
    "password_file": "user",
}
"""Keys of [fleet] that mean nothing without another one."""


def machine_name() -> str:
    """Return what this machine is called. Source: uname(2), nodename."""
    return os.uname().nodename


def _fleet(found: _Settings) -> Fleet:
    """Return [fleet], checked as a whole. Raises: ConfigError."""
    given = {key[1]: value for key, (value, _) in found.items() if key[0] == "fleet"}
    if not given:
        return Fleet()
    file = next(file for key, (_, file) in found.items() if key[0] == "fleet")
    if "endpoints" not in given:
        _refuse(file, "fleet.endpoints", "nothing", "the URLs of etcd's nodes")
    for name, other in _NEEDS.items():
        if name in given and other not in given:
            _refuse(file, f"fleet.{other}", "nothing", f"a value, since fleet.{name} is set")
    if "http://" in given["endpoints"][0] and (tls := [name for name in ("ca", "certificate") if name in given]):
        _refuse(file, "fleet.endpoints", "http://", f"https://, since fleet.{tls[0]} is set")
    name = machine_name()
    if "host" not in given and (not is_domain_name(name) or name.partition(".")[0] == "localhost"):
        _refuse(file, "fleet.host", f"nothing, and this machine is called {_shown(name)}", "a name that no other has")
    return Fleet(**{"host": name, **given})


def fleet_by_options(options: Mapping[str, object]) -> Fleet:
    """Return what options of a command say, by the names of the keys of [fleet]. Raises: ConfigError."""
    source = Path("command line")
    return _fleet({key: (value, source) for key, value in _settings(source, {"fleet": dict(options)}, ())})


def _check_domain_name(file: Path, name: str) -> None:
    if not is_domain_name(name):
        _refuse(file, "domains", f"domain name {_shown(name)}", f"a name of {DOMAIN_NAME_WORDS}")


def _qmp_keys(found: _Settings) -> list[_Key]:
    return [key for key in found if key[0] == "domains" and len(key) == 3]


def _check_domains(found: _Settings) -> None:
    """Check the merged configuration: each domain has a socket, and no two domains share one."""
    for key, (value, file) in found.items():
        if value is None and (*key, "qmp") not in found:
            _refuse(file, _dotted((*key, "qmp")), "nothing", "the path of the domain's QMP socket")
    owner: dict[str, _Key] = {}
    for key in _qmp_keys(found):
        path, file = found[key]
        other = owner.setdefault(os.path.normpath(path), key)
        if other != key:
            shared = f"{_shown(str(path))}, the socket of {_dotted(other)} too"
            _refuse(file, _dotted(key), shared, "one domain for each socket")


def _principals(found: _Settings, key: _Key) -> Principals:
    """Look the names up. Raises: ConfigError for a user or group that this host does not have."""
    names, file = found.get(key, ((), None))
    if file is None or not names:
        return Principals()
    import grp  # noqa: PLC0415 - not on the start-up path of a daemon that serves root alone
    import pwd  # noqa: PLC0415

    uids, gids = set(), set()
    for name in names:
        try:
            if name.startswith("@"):
                gids.add(grp.getgrnam(name[1:]).gr_gid)
            else:
                uids.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            what = "group" if name.startswith("@") else "user"
            _refuse(file, _dotted(key), _shown(name), f"a {what} of this host, which has no {what} of that name")
    return Principals(names, frozenset(uids), frozenset(gids))


def _refuse_unknown(file: Path, key: _Key, pattern: str) -> NoReturn:
    import difflib  # noqa: PLC0415 - only for a message

    known = {name.rpartition(".")[2]: name for name in (*_TABLES - {"domains.*"}, *_CHECKS)}
    close = difflib.get_close_matches(pattern, known.values(), 1) or [
        known[name] for name in difflib.get_close_matches(pattern.rpartition(".")[2], known, 1)
    ]
    if close:
        expected = f"{close[0].replace('*', 'NAME')}, the nearest key there is"
    else:
        expected = f"one of {', '.join(sorted(_CHECKS)).replace('*', 'NAME')}"
    _refuse(file, _dotted(key), "an unknown key", expected)


def _refuse(file: Path, key: str, found: str, expected: str) -> NoReturn:
    message = f"{file}: {key}: found {found}, expected {expected}"
    raise ConfigError(message, file=str(file), key=key, found=found, expected=expected)


def _dotted(key: _Key) -> str:
    """Write a key path as TOML does, with quotes where a name is not bare."""
    return ".".join(name if re.fullmatch(_BARE_KEY, name) else _shown(name) for name in key)


def _shown(value: object) -> str:
    """Quote a value as TOML would write it, on one line, cut where it is long."""
    match value:
        case bool():
            text = str(value).lower()
        case str():
            text = f'"{value if value.isprintable() else value.encode("unicode_escape").decode()}"'
        case dict():
            text = "a table"
        case list():
            text = f"[{', '.join(_shown(entry) for entry in value)}]"
        case _:
            text = str(value)
    return text if len(text) <= SHOWN_LENGTH_MAX else f"{text[:SHOWN_LENGTH_MAX]}…"
