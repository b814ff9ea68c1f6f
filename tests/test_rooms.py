"""The rooms of the code: names of modules, and what docs/adding-a-kind.md promises about where a kind of pivot lives."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

from pivotd.core.kinds import KINDS
from pivotd.core.request import Kind

ROOT = Path(__file__).parents[1]
ONLY_READ = {
    "pivotd/planning/adopting.py": "which kind a job of somebody else is",
    "pivotd/planning/adoptable_jobs.py": "which kind a job of somebody else is",
    "pivotd/core/rules/target_errors.py": "which image a commit fills",
    "pivotd/qmp/cleaning.py": "only a copy opens images that were there before",
    "pivotd/qmp/bitmaps.py": "bitmaps of the layers between",
    "pivotd/api/models.py": "jobs that are adopted are mirrors or commits, and one of the two has to be said",
    "pivotd/app/start.py": "what is left out of a repeated request means something",
}
"""Files that name a kind and need no line for a new one, with the reason."""

BOTH_SIDES = {"ports": {"api", "engine"}, "fleet": {"core", "fleet"}}
"""Names that two rooms share because they mean the same there: what the room needs of others; what is kept in etcd."""


def files_that_name_a_kind() -> set[str]:
    """Return the files of the package in which ``Kind.X`` stands, or a kind's own module."""
    found = set()
    for path in (ROOT / "pivotd").rglob("*.py"):
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Kind"
        }
        if names & set(Kind.__members__):
            found.add(str(path.relative_to(ROOT)))
    return found


def listed() -> set[str]:
    """Return the files that the document lists."""
    return set(re.findall(r"^\| `(pivotd/[^`]+)`", (ROOT / "docs" / "adding-a-kind.md").read_text(), re.MULTILINE))


def test_the_document_lists_every_file_that_a_new_kind_touches():
    """Whoever adds one finds every place; a file that names kinds and is not listed needs a reason."""
    generic = {"pivotd/core/request.py", "pivotd/core/kinds/<kind>.py", "pivotd/api/routes.py"}
    generic |= {"pivotd/client/requests.py", "pivotd/client/answers.py"}
    assert files_that_name_a_kind() - set(ONLY_READ) == listed() - generic
    assert set(ONLY_READ) <= files_that_name_a_kind()


def test_the_document_draws_the_rooms_as_the_linter_holds_them():
    """docs/architecture.md: the same layers from top to bottom, and a row for each room."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    with (ROOT / "pyproject.toml").open("rb") as file:
        contract = tomllib.load(file)["tool"]["importlinter"]["contracts"][0]
    layers = [{name.removeprefix("pivotd.") for name in layer.split(" | ")} for layer in contract["layers"]]
    drawing = re.findall(r"^(?:([a-z.]+)/?)? +(?:([a-z]+)/ )?.*$", page.split("```")[1], re.MULTILINE)
    drawn = [{name.removesuffix(".py") for name in line if name} for line in drawing]
    continued = {"fleet"}  # on a line of its own, below the others of its layer
    assert [line for line in drawn if line != continued] == [layer - continued for layer in layers]
    rows = re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in (ROOT / "pivotd").iterdir() if (path / "__init__.py").exists())


def test_every_kind_has_rules_in_a_file_of_its_own():
    """The table and the folder say the same."""
    assert set(KINDS) == set(Kind)
    for kind in Kind:
        assert (ROOT / "pivotd" / "core" / "kinds" / f"{kind}.py").exists()


def rooms_by_name() -> dict[str, set[str]]:
    """Return for each name of a module or of a folder the rooms that have it; the package itself counts as one."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "pivotd").rglob("*.py"):
        *folders, name = path.relative_to(ROOT / "pivotd").with_suffix("").parts
        if name == "__init__":
            name = folders[-1] if folders else "pivotd"
        found[name].add(folders[0] if folders else "pivotd")
    return found


def test_no_two_rooms_have_a_module_of_one_name():
    """Whoever reads `layers` knows which one is meant."""
    shared = {name: rooms for name, rooms in rooms_by_name().items() if len(rooms) > 1}
    assert shared == BOTH_SIDES


def test_the_daemon_starts_no_program():
    """docs/hooks.md says so, and KillMode=process of the unit rests on it; pivotctl alone starts some."""
    words = (
        "subprocess",
        "os.fork",
        "os.exec",
        "os.spawn",
        "os.posix_spawn",
        "os.system",
        "os.popen",
        "multiprocessing",
    )
    files = [path for path in (ROOT / "pivotd").rglob("*.py") if path.parent.name != "cli"]
    found = {path.name for path in files if any(word in path.read_text() for word in words)}
    # libvirt runs the first as a program of its own; the second replaces the process itself, before anything is open.
    assert found == {"libvirt_hook.py", "utf8.py"}
