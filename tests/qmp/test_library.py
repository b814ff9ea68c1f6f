"""What pivotd takes from qemu.qmp beyond its public interface is as it was when pivotd/qmp/burst.py was written."""

from __future__ import annotations

import ast
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from qemu.qmp import Message, QMPClient

from pivotd.qmp import burst

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pivotd"
PINNED = "0.0.6"
ADVICE = (
    "read qemu.qmp's changes, mend pivotd/qmp/burst.py, run tests/wire and tests/qmp, then change this list and pin"
)

METHODS = {
    "_bh_flush_writer": "(self) -> None",
    "_cb_inbound": "(self, msg: ~T) -> ~T",
    "_cb_outbound": "(self, msg: ~T) -> ~T",
    "_cleanup": "(self) -> None",
    "_schedule_disconnect": "(self) -> None",
}
"""Private methods that burst.Client replaces or extends."""
ATTRIBUTES = {"_pending": {}, "_writer": None}
"""Private attributes that it uses, and what a client that was never connected has there."""


async def _await_put(client: QMPClient) -> str:
    """Return what the client calls with a reply to a command that waits."""
    called: list[str] = []

    class Slot:
        async def put(self, reply: Message) -> None:
            called.append("put")

        def put_nowait(self, error: Exception) -> None:
            called.append("put_nowait")

    client._pending = {7: Slot()}  # type: ignore[dict-item]
    await client._on_message(Message({"return": {}, "id": 7}))
    with pytest.raises(AssertionError):  # it has no connection to end
        await client._bh_disconnect()
    return ",".join(called)


def test_the_installed_version_is_the_one_that_is_pinned():
    """Private names change without notice."""
    assert version("qemu.qmp") == PINNED, f"qemu.qmp is {version('qemu.qmp')}, not {PINNED}: {ADVICE}"
    for name in ("pyproject.toml", "requirements.txt"):
        pins = re.findall(r"qemu\.qmp\S*?([=<>~!]+)([\w.]+)", (ROOT / name).read_text())
        assert pins == [("==", PINNED)], f"{name}: qemu.qmp is pinned as {pins}: {ADVICE}"


@pytest.mark.parametrize("name", METHODS)
def test_a_private_method_is_as_it_was(name: str):
    """Another signature, or none: what burst.Client overrides would no longer be called, or be called otherwise."""
    method = getattr(QMPClient, name, None)
    assert method is not None, f"qemu.qmp has no {name} any more: {ADVICE}"
    assert _plain(inspect.signature(method)) == METHODS[name], f"{name}{inspect.signature(method)}: {ADVICE}"
    assert inspect.iscoroutinefunction(method) == inspect.iscoroutinefunction(vars(burst.Client)[name]), ADVICE


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_private_attribute_is_as_it_was(name: str):
    """A writer of which nobody knows would leave the connection open."""
    assert getattr(QMPClient(), name, "nothing") == ATTRIBUTES[name], f"qemu.qmp's {name} is another: {ADVICE}"


async def test_whoever_waits_is_told_as_before():
    """burst.py puts objects of its own where qemu.qmp keeps a queue for each command."""
    assert await _await_put(QMPClient()) == "put,put_nowait", ADVICE


def test_only_what_is_listed_here_is_used():
    """In burst.Client; and nobody else extends qemu.qmp's client or reaches into it."""
    tree = ast.parse((PACKAGE / "qmp/burst.py").read_text())
    (client,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Client"]
    inherited = {name for name in dir(QMPClient()) if re.match("_[a-z]", name)}
    used = {node.attr for node in ast.walk(client) if isinstance(node, ast.Attribute)}
    used |= {node.name for node in ast.walk(client) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert used & inherited == set(METHODS) | set(ATTRIBUTES)
    texts = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert [name for name, text in texts.items() if "QMPClient" in text] == ["qmp/burst.py"]
    assert not [name for name, text in texts.items() if "SLF001" in text], "ruff finds private names of others"


def _plain(signature: inspect.Signature) -> str:
    """Return a signature as text, whether its annotations are strings or not."""
    return str(signature).replace("'", "").replace("qemu.qmp.message.", "")
