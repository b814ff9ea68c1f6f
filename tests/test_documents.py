"""README.md and docs/: whatever a page names is there, and each command on it is one.

A page that is run as a whole has a test of its own (test_tasks.py, test_api_page.py, test_command_line_page.py and so on).
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from _pytest.mark.expression import Expression  # what -k is read with

from pivotd import config
from pivotd.api.routes import ROUTES
from pivotd.cli.global_options import GlobalOption
from pivotd.cli.main import cli
from pivotd.cli.verdict_command import accept
from tests.cli.test_usage import leaves
from tests.documents import ROOT, Page, pages

PAGES = pages()
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
ROOMS = ["pivotd", "tests", "docs", "bench", "systemd", "debian", "contrib", "migrations"]
EXPLORE = "tests.model.explore"
"""What ``…`` stands for in the tables of docs/reliability.md."""
ROUTE = r"/v1/[\w./]*[\w…]"


@EACH_PAGE
def test_each_link_leads_somewhere(page: Page):
    """To a file of the tree, and where it names a heading, to one of that page."""
    for link in page.links():
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), link
        assert not anchor or anchor in Page(target).anchors(), link


@EACH_PAGE
def test_each_file_that_is_named_exists(page: Page):
    """By its path from the root, from the package or from tests/; ``*`` stands for any, FOLDER and <kind> for one."""
    for code in page.code:
        for name in re.findall(rf"(?<![\w/.~<-])((?:{'|'.join([*ROOMS, *_folders()])})/[\w./*@-]*[\w*])", code):
            if "FOLDER" not in name and "<" not in code:
                assert any(found for base in (".", "pivotd", "tests") for found in (ROOT / base).glob(name)), name


@EACH_PAGE
def test_each_module_that_is_named_alone_exists(page: Page):
    """`decide.py` in a sentence is a file of the tree, or of the library that the sentence is about."""
    names = {path.name for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    named = {word.rpartition("/")[2] for word in re.findall(r"`([\w/]*\w\.py)`", page.prose)}
    assert {name for name in named if not name.startswith("_")} <= names


@EACH_PAGE
def test_each_test_that_is_named_exists(page: Page):
    """As a function, or as the name of a file."""
    named = set(re.findall(r"\btest_[a-z0-9_]+", page.text))
    assert named - _names_of_tests() == set()


@functools.cache
def _names_of_tests() -> set[str]:
    files = list((ROOT / "tests").rglob("test_*.py"))
    functions = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    return functions | {file.stem for file in files}


@EACH_PAGE
def test_each_target_of_make_exists(page: Page):
    """And the variables that are given to it are those of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"\$[({]+([A-Z]+)", makefile)) | set(
        re.findall(r"^([A-Z]+) \??=", makefile, re.MULTILINE)
    )
    for command in page.commands(r"make(?= [a-z])"):
        words = shlex.split(command.replace("[", "").replace("]", ""))[1:]
        assert words[0] in targets, command
        given = {word.partition("=")[0] for word in words if re.match(r"[A-Z]+=", word)}
        assert given <= variables | {"PIVOTD_TEST_ETCD"}, command


@EACH_PAGE
def test_each_program_of_the_tests_takes_its_options(page: Page):
    """`python -m tests.x --option`: the module is there, and says the option."""
    for command in page.commands(r"(?:(?:\.venv/bin/)?python -m|…)(?= [a-z-])"):
        words = command.replace("…", f"python -m {EXPLORE}").replace("[", "").replace("]", "").split(" -m ")[1].split()
        file = ROOT / (words[0].replace(".", "/") + ".py")
        file = file if file.exists() else file.with_suffix("") / "__main__.py"
        assert file.exists(), command
        options = {word for word in words if word.startswith("--")}
        assert options <= _said_options(file), command


def _said_options(file: Path) -> set[str]:
    """Return the options that a module, or one that it takes them from, adds to its parser."""
    text = file.read_text()
    for module in re.findall(r"^from (tests\.[\w.]+) import .*(?:arguments|parser|bounds)", text, re.MULTILINE):
        text += (ROOT / (module.replace(".", "/") + ".py")).read_text()
    return set(re.findall(r"\"(--[a-z-]+)\"", text))


def _folders() -> list[str]:
    """Return the rooms of the package and the folders of the tests, by which pages name files in short."""
    parents = [ROOT / "pivotd", ROOT / "tests"]
    return sorted(
        {path.name for parent in parents for path in parent.iterdir() if path.is_dir() and path.name[0] != "_"}
    )


def _calls_of_pytest() -> Iterator[tuple[str, list[str], str]]:
    """Yield the page, the files and the expression (`-k`) of each call of pytest that names a file or an expression."""
    for page in PAGES:
        for command in page.commands(r"(?:\.venv/bin/)?pytest"):
            words = [word for word in shlex.split(command)[1:] if "FOLDER" not in word]
            files = [word for word in words if word.startswith("tests")]
            expression = words[words.index("-k") + 1] if "-k" in words else ""
            if files or expression:
                yield f"{page.name}: {command}", files, expression


def _tests(request: pytest.FixtureRequest, files: set[str]) -> dict[str, list[str]]:
    """Return the tests of each file: those of this run where it has all files, else of a run that only collects."""
    found = [item.nodeid for item in request.session.items]
    option = request.config.option
    if option.keyword or option.markexpr or not files <= {one.partition("::")[0] for one in found}:
        arguments = ["--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider", *sorted(files)]
        command = [sys.executable, "-m", "pytest", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = [line for line in done.stdout.splitlines() if "::" in line]
    tests: defaultdict[str, list[str]] = defaultdict(list)
    for one in found:
        file, _, name = one.partition("::")
        tests[file].append(name)
    return tests


def _files(name: str) -> list[str]:
    """Return the files of tests below an argument of pytest."""
    path = ROOT / name
    assert path.exists(), name
    return [str(file.relative_to(ROOT)) for file in ([path] if path.is_file() else path.rglob("test_*.py"))]


def test_each_call_of_pytest_selects_a_test(request: pytest.FixtureRequest):
    """In docs/reliability.md each row names the test that shows it: a test that was renamed is one that nobody finds."""
    calls = [
        (command, {file for name in names for file in _files(name)}, k) for command, names, k in _calls_of_pytest()
    ]
    assert len(calls) > 200
    tests = _tests(request, {file for _, files, _ in calls for file in files})
    assert [
        command for command, files, k in calls if not _selects(k, {file: tests[file] for file in files or tests})
    ] == []


def _selects(expression: str, tests: Mapping[str, list[str]]) -> bool:
    """Tell whether `-k` leaves one of the tests; it looks at the file's own name, the test's and its parameters'."""
    if not expression:
        return any(tests.values())
    compiled = Expression.compile(expression)
    names = (f"{file.rpartition('/')[2]} {name}".lower() for file, inner in tests.items() for name in inner)
    return any(compiled.evaluate(lambda word, name=name, **_: word.lower() in name) for name in names)


@EACH_PAGE
def test_each_command_of_pivotctl_is_one(page: Page):
    """Its words name a command, and it takes each option that is given."""
    for text in page.commands(r"pivotctl(?= [a-z-])"):
        _check(text)


@pytest.mark.parametrize("name", sorted({"", *leaves(cli), "verdict accept"}))
def test_each_example_of_the_help_is_a_command(name: str):
    """The same for what `pivotctl COMMAND --help` shows."""
    command: click.Command = cli
    for word in name.split():
        command = _inner(command, word) or command
    shown = command.get_help(click.Context(command, info_name="pivotctl", max_content_width=500))
    examples = re.findall(r"^ +(pivotctl .*?)(?: +#.*)?$", shown.partition("Examples:")[2], re.MULTILINE)
    for text in examples:
        _check(re.split(r" [|>&] ?", text)[0])
    assert examples or "Examples:" not in shown


def _check(text: str) -> None:
    command: click.Command = cli
    options = _options(cli)
    value_follows = False
    for word in re.split(r"[ =]", re.sub(r"\"[^\"]*\"|'[^']*'", "TEXT", text))[1:]:
        if re.match(r"--?[a-zA-Z]", word):
            option = options.get(word.rstrip(",.:"), cli.params[0] if word == "--help" else None)
            assert option is not None, f"{word} of {text}"
            value_follows = isinstance(option, click.Option) and not option.is_flag
        elif value_follows:
            value_follows = False
        elif _is_group(command):
            inner = _inner(command, word)
            assert inner or command is not cli or not word[:1].islower(), f"{word} of {text}"
            command = inner or command
            options |= _options(command)


def _options(command: click.Command) -> dict[str, click.Parameter]:
    return {name: param for param in command.params for name in [*param.opts, *param.secondary_opts]}


def _is_group(command: click.Command) -> bool:
    return isinstance(command, click.Group) or command.name == "verdict"


def _inner(command: click.Command, word: str) -> click.Command | None:
    if isinstance(command, click.Group):
        return command.get_command(click.Context(command), word)
    return accept if word == "accept" else None


@EACH_PAGE
def test_each_route_that_is_named_exists(page: Page):
    """With its method where that is said, and its parameters."""
    said = "\n".join(page.code)
    for method, path, query in re.findall(rf"(?:\b(GET|POST|DELETE) )?({ROUTE})(?:\?(\w+)=)?", said):
        wanted = path.replace("…", "")
        found = [
            one for one in ROUTES if method in {"", one.method} and _leads_to(one.path, wanted, begin=wanted != path)
        ]
        assert found, (method, path)
        assert not query or any(query in one.query for one in found), (path, query)


def _leads_to(route: str, path: str, *, begin: bool) -> bool:
    """Tell whether a path, or the beginning of one, is that of a route, with any name in the place of a `{name}`."""
    return route.startswith(path) if begin else bool(re.fullmatch(re.sub(r"{\w+}", "[^/]+", route), path))


@EACH_PAGE
def test_each_variable_of_the_environment_is_read(page: Page):
    """By the programs or by the tests. Fields of the journal of systemd are those of docs/log.md."""
    read = _variables()
    named = set(re.findall(r"PIVOT(?:D|CTL)_[A-Z_]+", page.text))
    assert page.name == "docs/log.md" or named - read == set()


def _variables() -> set[str]:
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "pivotd").rglob("*.py"), *(ROOT / "tests").rglob("*.sh")]
    return {name for file in files for name in re.findall(r"PIVOT(?:D|CTL)_[A-Z_]+", file.read_text())}


@EACH_PAGE
def test_each_example_of_a_configuration_is_taken(page: Page, tmp_path: Path):
    """The loader of pivotd reads it without a complaint."""
    for index, block in enumerate(re.findall(r"^ *```toml\n(.*?)^ *```$", page.text, re.MULTILINE | re.DOTALL)):
        file = tmp_path / f"{index}.toml"
        file.write_text(block)
        assert tomllib.loads(block)
        config.load(file)


def test_each_option_of_evacuate_is_in_its_table():
    """docs/evacuate.md: what it takes, and below the table what of `copy` it refuses."""
    section = Page(ROOT / "docs" / "evacuate.md").text.partition("## Options")[2].partition("**Names.**")[0]
    rows = "\n".join(re.findall(r"^\| (.*?) \|", section, re.MULTILINE))
    evacuate, copy = (cli.get_command(click.Context(cli), name) for name in ("evacuate", "copy"))
    assert evacuate is not None
    assert copy is not None
    own = [param for param in evacuate.params if not isinstance(param, GlobalOption)]
    taken = {name for param in own if not getattr(param, "hidden", False) for name in param.opts if name[:2] == "--"}
    assert set(re.findall(r"--[a-z-]+", rows)) == taken
    refused = re.search(r"^(.*) of `copy` are refused", section, re.MULTILINE)
    assert refused is not None
    of_copy = {name for param in copy.params for name in param.opts if name[:2] == "--"}
    common = {name for param in cli.params for name in param.opts}
    assert set(re.findall(r"`(--[a-z-]+)`", refused[1])) == of_copy - taken - common


@pytest.mark.parametrize(
    ("page", "section", "place"),
    [
        ("docs/fleet.md", "When it does not work", r"^\| (`.*?) \|"),
        ("docs/libvirt-hook.md", "What it logs", r"^\| (`.*?) \|"),
        ("docs/libvirt.md", "What happens when something dies", r"(\*[A-Za-z][^*]{20,}\*)"),
    ],
)
def test_each_message_that_is_quoted_is_one_of_the_code(page: str, section: str, place: str):
    """Piece by piece: what stands between the values in it, which are names, numbers, and what `…` stands for."""
    text = Page(ROOT / page).text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    quoted = [one for found in re.findall(place, text, re.MULTILINE) for one in re.findall(r"[`*]([^`*]+)[`*]", found)]
    pieces = {piece.strip() for one in quoted for piece in re.split(VALUE, " ".join(one.split()))}
    texts = _strings()
    assert len(quoted) > 1
    assert {piece for piece in pieces if len(piece) > 2 and not any(piece in one for one in texts)} == set()


VALUE = r"[…:;,()]|\S*\d\S*|\bvda\b|finish the pivot of|status file and job|Operation not permitted"


@functools.cache
def _strings() -> list[str]:
    """Return the constant texts of the package."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "pivotd").rglob("*.py")]
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_each_page_is_reached_from_the_readme():
    """By links, from page to page."""
    reached: set[Path] = set()
    new = [ROOT / "README.md"]
    while new:
        path = new.pop()
        reached.add(path)
        targets = {(path.parent / link.partition("#")[0]).resolve() for link in Page(path).links() if "://" not in link}
        new += [target for target in targets if target.suffix == ".md" and target not in reached]
    assert {page.path for page in PAGES} - reached == set()
