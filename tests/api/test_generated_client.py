"""openapi.json makes a working client: openapi-python-client generates one, and it drives the real daemon."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from .conftest import Api

pytestmark = pytest.mark.qemu

NAME = "generated_pivotd_client"


@pytest.fixture(scope="module")
def generated(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Return the modules of the generated client by name."""
    directory = tmp_path_factory.mktemp("generated")
    document = directory / "openapi.json"
    document.write_bytes(api.call("GET", "/v1/openapi.json").body)
    settings = directory / "settings.yaml"
    settings.write_text("post_hooks: []\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"),
            *("--path", str(document), "--output-path", str(directory / NAME), "--config", str(settings)),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        yield lambda name: importlib.import_module(f"{NAME}.{name}" if name else NAME)


@pytest.fixture
def client(api: Api, generated: Callable[[str], Any]) -> Iterator[Any]:
    transport = httpx.HTTPTransport(uds=str(api.daemon.socket))
    made = generated("").Client(
        base_url="http://pivotd", httpx_args={"transport": transport}, timeout=httpx.Timeout(30)
    )
    with made as entered:
        yield entered


def test_it_reads(client: Any, generated: Callable[[str], Any]) -> None:
    """Health, domains and disks are typed objects."""
    health = generated("api.default.health").sync(client=client)
    assert (health.status, health.journal.healthy, health.domains.connected) == ("ok", True, 1)
    (domain,) = generated("api.default.domains").sync(client=client)
    assert (domain.name, domain.connection, domain.run_state) == ("web1", "connected", "running")


def test_it_copies(api: Api, client: Any, generated: Callable[[str], Any]) -> None:
    """A copy is started with a request id, waited for with a number, and its verdict names the new image."""
    models, image = generated("models"), api.image()
    body = models.CopyRequest(disks=[models.CopyDisk(disk="disk0", image=image)], max_pause_ms=900)
    started = generated("api.default.copy").sync("web1", client=client, body=body, idempotency_key="generated")
    assert (started.request_id, started.options.max_pause_ms) == ("generated", 900)
    ended = generated("api.default.wait").sync(started.id, client=client, timeout_s=20.0)
    assert (ended.phase, ended.outcome) == ("closed", "switched")
    (verdict,) = generated("api.default.verdicts").sync(client=client, domain="web1", disk="disk0")
    assert (verdict.image, verdict.certain) == (image, True)
    shown = generated("api.default.pivot").sync(started.id, client=client)
    assert shown.records[-1].event == "closed"
    assert [pivot.id for pivot in generated("api.default.pivots").sync(client=client, open_=False)][:1] == [started.id]
    assert generated("api.default.events").sync(client=client, after=0, limit=2)[1].seq == 2


def test_it_is_refused_with_a_problem(client: Any, generated: Callable[[str], Any]) -> None:
    """An error is an object with a stable kind."""
    problem = generated("api.default.domain").sync("none", client=client)
    assert (problem.kind, problem.status, problem.exit_status) == ("not-found", 404, 4)


def test_every_parameter_is_described(api: Api) -> None:
    """With a type of its own: numbers are numbers."""
    document = api.call("GET", "/v1/openapi.json").json
    parameters = [
        p for path in document["paths"].values() for operation in path.values() for p in operation["parameters"]
    ]
    assert all(parameter["description"] for parameter in parameters)
    types = {parameter["name"]: parameter["schema"]["type"] for parameter in parameters}
    assert (types["timeout_s"], types["after"], types["limit"], types["open"]) == (
        "number",
        "integer",
        "integer",
        "boolean",
    )
