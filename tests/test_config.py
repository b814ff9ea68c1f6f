"""What the configuration may say, and how it is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotd import config, limits
from pivotd.core.fleet import OnSilence
from pivotd.errors import ConfigError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return what writes the main file and drop-ins and returns the path of the main file."""

    def write(main: str | bytes = "", **drop_ins: str) -> Path:
        path = tmp_path / "pivotd.toml"
        path.write_bytes(main if isinstance(main, bytes) else main.encode())
        for name, text in drop_ins.items():
            (tmp_path / "pivotd.toml.d").mkdir(exist_ok=True)
            (tmp_path / "pivotd.toml.d" / f"{name}.toml").write_text(text)
        return path

    return write


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert "\n" not in caught.value.message
    return caught.value


def test_empty_file_gives_defaults(write: Write) -> None:
    """An empty file is valid and means the documented defaults; nobody but root has access."""
    loaded = config.load(write())
    assert loaded == config.Config()
    assert str(loaded.state_dir) == "/var/lib/pivotd"
    assert str(loaded.socket) == "/run/pivotd/pivotd.sock"
    assert (loaded.pause.max_ms, loaded.pause.attempts) == (500, 5)
    assert loaded.access.operators.names == loaded.access.readers.names == ()


def test_every_key_arrives(write: Write) -> None:
    """Each documented key ends up in its field."""
    loaded = config.load(
        write("""
        state_dir = "/srv/state"
        socket = "/srv/p.sock"
        discover = ["/run/qemu/*.qmp"]
        [access]
        operators = ["root"]
        readers = ["@root", "root"]
        [pause]
        max_ms = 200
        attempts = 9
        [log]
        level = "warning"
        [fleet]
        endpoints = ["https://etcd1:2379", "https://[::1]"]
        host = "h1"
        prefix = "/x/"
        ca = "/ca"
        certificate = "/c"
        key = "/k"
        user = "pivotd"
        password_file = "/p"
        cluster = "cdf818194e3a8c32"
        on_silence = "wait"
        timeout_ms = 300
        [domains.web1]
        qmp = "/run/web1.qmp"
        [domains."a.qmp"]
        qmp = "/run/a.qmp"
        """)
    )
    assert loaded == config.Config(
        state_dir=Path("/srv/state"),
        socket=Path("/srv/p.sock"),
        discover=("/run/qemu/*.qmp",),
        access=config.Access(
            operators=config.Principals(("root",), frozenset({0}), frozenset()),
            readers=config.Principals(("@root", "root"), frozenset({0}), frozenset({0})),
        ),
        pause=config.PauseLimits(200, 9),
        log=config.Log("warning"),
        fleet=config.Fleet(
            endpoints=("https://etcd1:2379", "https://[::1]"),
            host="h1",
            prefix="/x/",
            ca=Path("/ca"),
            certificate=Path("/c"),
            key=Path("/k"),
            user="pivotd",
            password_file=Path("/p"),
            cluster="cdf818194e3a8c32",
            on_silence=OnSilence.WAIT,
            timeout_ms=300,
        ),
        domains={"web1": Path("/run/web1.qmp"), "a.qmp": Path("/run/a.qmp")},
    )


def test_example_is_valid_but_for_this_hosts_groups(write: Write) -> None:
    """The example shipped in systemd/ loads, every commented key switched on, once its groups exist."""
    example = (Path(__file__).parents[1] / "systemd/pivotd.toml").read_text()
    lines = [line.removeprefix("#") if not line.startswith("# ") else "" for line in example.splitlines()]
    text = "\n".join(lines).replace("@pivotd-ro", "@root").replace("@pivotd", "@root")
    loaded = config.load(write(text))
    assert loaded.discover == ("/run/qemu/*.qmp",)
    assert loaded.pause == config.PauseLimits()
    assert loaded.log == config.Log()
    assert loaded.state_dir == config.Config().state_dir
    assert loaded.socket == config.Config().socket
    assert loaded.fleet.prefix == config.Fleet().prefix
    assert (loaded.fleet.on_silence, loaded.fleet.timeout_ms) == (OnSilence.RESUME, config.Fleet().timeout_ms)
    assert set(loaded.domains) == {"web1"}


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ('endpoints = ["https://a:2379"]\ncertificate = "/c"\n', "fleet.key: found nothing"),
        ('endpoints = ["https://a:2379"]\nkey = "/k"\n', "fleet.certificate: found nothing"),
        ('endpoints = ["http://a:2379"]\nuser = "u"\n', "fleet.password_file: found nothing"),
        ('endpoints = ["http://a:2379"]\nca = "/ca"\n', "fleet.endpoints: found http://"),
        ('host = "h1"\n', "fleet.endpoints: found nothing"),
        ('endpoints = ["http://a:2379", "https://b:2379"]\n', "fleet.endpoints: found ["),
        ('endpoints = ["http://a:2379", "http://a:2379"]\n', "fleet.endpoints: found ["),
        ("endpoints = []\n", "fleet.endpoints: found []"),
        ('endpoints = ["a:2379"]\n', "fleet.endpoints: found ["),
        ('endpoints = ["http://a:2379/v3"]\n', "fleet.endpoints: found ["),
        ('endpoints = ["http://a"]\nprefix = "pivotd"\n', 'fleet.prefix: found "pivotd"'),
        ('endpoints = ["http://a"]\nhost = "a/b"\n', 'fleet.host: found "a/b"'),
        ('endpoints = ["http://a"]\non_silence = "stop"\n', 'fleet.on_silence: found "stop"'),
        ('endpoints = ["http://a"]\ncluster = "XYZ"\n', 'fleet.cluster: found "XYZ"'),
    ],
)
def test_half_a_fleet_is_refused(write: Write, more: str, key: str) -> None:
    """What belongs together and what a value may be; the file and the key are named."""
    path = write("[fleet]\n" + ("" if "host =" in more else 'host = "h1"\n') + more)
    assert refusal(path).message.startswith(f"{path}: {key}")


def test_host_of_a_fleet_is_the_machines_name(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name of its own it must be told: two machines of one name would both own its guests."""
    path = write('[fleet]\nendpoints = ["http://a:2379"]\n')
    names = iter(["host7.example", "localhost.localdomain", "(none)"])
    monkeypatch.setattr(config, "machine_name", lambda: next(names))
    assert config.load(path).fleet.host == "host7.example"
    for name in ("localhost.localdomain", "(none)"):
        assert f'fleet.host: found nothing, and this machine is called "{name}"' in refusal(path).message


def test_missing_main_file_is_named(tmp_path: Path) -> None:
    """A main file that is not there is an error with its path."""
    path = tmp_path / "none.toml"
    assert refusal(path).message == f"{path}: cannot be read: No such file or directory"


def test_drop_ins_merge_in_order_of_names(write: Write) -> None:
    """Tables merge key by key, and the last name wins; lists are replaced as a whole."""
    path = write(
        'discover = ["/a/*", "/b/*"]\n[pause]\nmax_ms = 100\nattempts = 2\n[domains.a]\nqmp = "/a"\n',
        b10='[pause]\nmax_ms = 300\n[domains.b]\nqmp = "/b"\n',
        a20='discover = ["/c/*"]\n[pause]\nmax_ms = 200\n',
    )
    loaded = config.load(path)
    assert loaded.pause == config.PauseLimits(max_ms=300, attempts=2)
    assert loaded.discover == ("/c/*",)
    assert set(loaded.domains) == {"a", "b"}
    assert loaded.files == (path, *(path.with_name("pivotd.toml.d") / f"{name}.toml" for name in ("a20", "b10")))


def test_other_files_beside_drop_ins_are_ignored(write: Write) -> None:
    """Only ``*.toml`` is read: what package managers and editors leave behind is not configuration."""
    path = write(a="")
    (path.with_name("pivotd.toml.d") / "a.toml.dpkg-old").write_text("nonsense")
    assert config.load(path) == config.Config()


def test_the_drop_in_at_fault_is_named(write: Write) -> None:
    """A bad value is reported with the file that it stands in."""
    path = write("[pause]\nmax_ms = 100\n", local="[pause]\nmax_ms = 0\n")
    assert refusal(path).message.startswith(
        f"{path}.d/local.toml: pause.max_ms: found 0, expected an integer from 1 to"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = = 2\n", 2), ("a = [1,\n", 1), ('x = "a\n', 1), ("\na = 1\na = 2\n", 3), (b"# ok\n# \xff\n", 2)],
)
def test_broken_toml_is_shown_with_its_line(write: Write, text: str | bytes, line: int) -> None:
    """Where the syntax is wrong, the message has the line."""
    error = refusal(write(text))
    assert error.fields["line"] == line
    assert f": line {line}: not " in error.message


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ('[pause]\nmax_ms = "abc"', 'pause.max_ms: found "abc", expected an integer from 1 to 60000'),
        ("[pause]\nmax_ms = true", "pause.max_ms: found true, expected an integer from 1 to 60000"),
        ("[pause]\nmax_ms = 60001", "pause.max_ms: found 60001, expected an integer from 1 to 60000"),
        ("[pause]\nmax_ms = 5.0", "pause.max_ms: found 5.0, expected an integer from 1 to 60000"),
        ("[pause]\nattempts = 0", "pause.attempts: found 0, expected an integer from 1 to 100"),
        ("pause = 5", "pause: found 5, expected a table"),
        ("domains.web1 = 5", "domains.web1: found 5, expected a table"),
        ('state_dir = "lib"', 'state_dir: found "lib", expected an absolute path'),
        ("state_dir = {}", "state_dir: found a table, expected an absolute path"),
        (r'state_dir = "/a\nb"', r'state_dir: found "/a\nb", expected an absolute path'),
        ("socket = 1979-05-27", "socket: found 1979-05-27, expected an absolute path"),
        ('discover = "/a/*"', 'discover: found "/a/*", expected a list of absolute path patterns'),
        (
            'discover = ["/a", "b"]',
            'discover: found ["/a", "b"], expected a list of absolute path patterns; "b" is none',
        ),
        (
            "access.readers = [1]",
            "access.readers: found [1], expected a list of user or @group names; 1 is none",
        ),
        (
            '[log]\nlevel = "notice"',
            'log.level: found "notice", expected one of "debug", "info", "warning", "error"',
        ),
        ("log.level = [6]", 'log.level: found [6], expected one of "debug", "info", "warning", "error"'),
        *(
            (
                f"[journal]\nkeep = {value}",
                f"journal.keep: found {value}, expected a length of time in days, weeks or years "
                'from "1d" to "100y", like "400d" or "2y"',
            )
            for value in (
                '"400"',
                '"0d"',
                '"5m"',
                '"-1d"',
                '"101y"',
                '"1.5y"',
                '" 1d"',
                '"1d\\n"',
                "400",
                "true",
                '["1d"]',
            )
        ),
        (
            '[libvirt]\nuri = "qemu+ssh://host/system"',
            'libvirt.uri: found "qemu+ssh://host/system", expected the URI of the libvirt of this host, "qemu:///system"',
        ),
        ("[domains.web1]", "domains.web1.qmp: found nothing, expected the path of the domain's QMP socket"),
    ],
)
def test_bad_value_is_shown_beside_what_was_expected(write: Write, text: str, rest: str) -> None:
    """The message has file, key path, what was found and what was expected."""
    path = write(text)
    assert refusal(path).message == f"{path}: {rest}"


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ('statedir = "/a"', "statedir", "state_dir"),
        ("max_ms = 5", "max_ms", "pause.max_ms"),
        ("[pause]\nmaxms = 5", "pause.maxms", "pause.max_ms"),
        ("[acces]", "acces", "access"),
        ('[log]\nlevels = "info"', "log.levels", "log.level"),
        ('[access]\noperator = ["root"]', "access.operator", "access.operators"),
        ('[domains.web1]\nqpm = "/a"', "domains.web1.qpm", "domains.NAME.qmp"),
        ('"pause.max_ms" = 5', '"pause.max_ms"', "pause.max_ms"),
    ],
)
def test_unknown_key_names_the_nearest(write: Write, text: str, key: str, nearest: str) -> None:
    """A key that does not exist is refused with the known key that is most like it."""
    path = write(text)
    assert refusal(path).message == f"{path}: {key}: found an unknown key, expected {nearest}, the nearest key there is"


def test_unknown_key_like_no_other_lists_all(write: Write) -> None:
    """Where no key is near, all are listed."""
    error = refusal(write("zzzz = 1"))
    assert error.fields["expected"].startswith("one of access.operators, access.readers, discover, domains.NAME.qmp")


@pytest.mark.parametrize("name", ["-a", ".a", "a b", "a/b", "", "ä", "a\\n", "x" * (limits.NAME_LENGTH_MAX + 1)])
def test_bad_domain_name_is_refused(write: Write, name: str) -> None:
    """Domain names are file-name-like and of bounded length."""
    assert refusal(write(f'[domains."{name}"]\nqmp = "/a"\n')).fields["key"] == "domains"


def test_longest_domain_name_is_accepted(write: Write) -> None:
    """The bound on names is inclusive."""
    name = "x" * limits.NAME_LENGTH_MAX
    assert list(config.load(write(f'[domains.{name}]\nqmp = "/a"\n')).domains) == [name]


def test_two_domains_with_one_socket_are_refused(write: Write) -> None:
    """The same QMP socket under two names is refused, however its path is written and wherever it stands."""
    path = write('[domains.a]\nqmp = "/run/a.qmp"\n', more='[domains.b]\nqmp = "/run//x/../a.qmp"\n')
    assert "the socket of domains.a.qmp too, expected one domain" in refusal(path).message


def test_socket_path_longer_than_the_kernel_takes_is_refused(write: Write) -> None:
    """A path that connect() could not take is refused at once."""
    path = "/" + "x" * config.SOCKET_PATH_BYTES_MAX
    assert "a socket path of at most 107 bytes" in refusal(write(f'socket = "{path}"')).message
    assert str(config.load(write(f'socket = "{path[:-1]}"')).socket) == path[:-1]


@pytest.mark.parametrize(("name", "what"), [("no-such-user", "user"), ("@no-such-group", "group")])
def test_users_and_groups_must_exist(write: Write, name: str, what: str) -> None:
    """A name that this host does not know would silently lock somebody out, so it is an error."""
    path = write(f'[access]\noperators = ["root", "{name}"]\n')
    expected = f'access.operators: found "{name}", expected a {what} of this host, which has no {what} of that name'
    assert refusal(path).message == f"{path}: {expected}"


def test_names_in_a_replaced_list_are_not_looked_up(write: Write) -> None:
    """Only the list that counts in the end must name existing users."""
    path = write('access.operators = ["no-such-user"]', local='access.operators = ["root"]')
    assert config.load(path).access.operators.uids == {0}


def test_import_is_cheap() -> None:
    """Loading a plain file pulls in none of the modules that only some files need, but for what pathlib itself imports.

    From Python 3.13 on that is pwd and grp.
    """
    program = (
        "import sys, pathlib, pivotd.config as c; c.load(pathlib.Path('/dev/null'));"
        "print(sorted({'pwd', 'grp', 'difflib', 'structlog', 'msgspec', 'click'} & set(sys.modules)))"
    )
    before = "import sys, pathlib; print(sorted({'pwd', 'grp', 'difflib'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    seen = [
        subprocess.run(
            [sys.executable, "-S", "-c", text], check=True, capture_output=True, env=environment, text=True
        ).stdout
        for text in (program, before)
    ]
    assert seen[0] == seen[1]


@pytest.mark.parametrize(("text", "days"), [("1d", 1), ("400d", 400), ("57w", 399), ("2y", 730), ("100y", 36_500)])
def test_how_long_pivots_are_kept(write: Write, text: str, days: int) -> None:
    """In days, weeks, or years of 365 days; without the key for ever."""
    assert config.load(write(f'[journal]\nkeep = "{text}"')).journal.keep_s == days * 86_400
    assert config.load(write("")).journal.keep_s is None
