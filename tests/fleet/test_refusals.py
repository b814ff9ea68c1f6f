"""What etcd refuses, and what it holds that pivotd cannot use: one clear line each, and nothing is written."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pivotd.errors import FleetError, FleetRefusedError, FleetSilentError
from pivotd.fleet.store import EtcdFleet
from tests.fleet.certificates import Certificates
from tests.fleet.conftest import Settings, served
from tests.fleet.etcd import Cluster
from tests.fleet.test_messages import LONG_S, ready
from tests.fleet.views import announced, claimed, published

BACKEND_BYTES = 16 << 20
PATIENT_S = 4.0
"""Enough for a handshake on busy cores."""


async def refusal(fleet: EtcdFleet, kind: type[FleetError] = FleetRefusedError, timeout_s: float = LONG_S) -> str:
    """Return the line that a read gets."""
    with pytest.raises(kind) as caught:
        await fleet.read("web1", timeout_s)
    assert caught.value.message.isprintable()
    return caught.value.message


# -- who connects


@pytest.fixture(scope="module")
def secure(
    etcd_release: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    certificates: Certificates,
) -> Iterator[Cluster]:
    """Return a node that wants certificates."""
    with served(request, tmp_path_factory.mktemp("secure"), 1, tls=certificates) as cluster:
        yield cluster


async def test_certificates_open_etcd(secure: Cluster, certificates: Certificates, fleet_of: Settings) -> None:
    """With those of its authority a domain can be read and written."""
    tls = {"ca": certificates.ca, "certificate": certificates.client, "key": certificates.key_of(certificates.client)}
    fleet = fleet_of(*secure.urls, **tls)
    view = await ready(fleet, claimed, announced, published)
    assert await fleet.read(view.domain, LONG_S) == view


async def test_wrong_certificates_are_named(
    secure: Cluster, certificates: Certificates, tmp_path: Path, fleet_of: Settings
) -> None:
    """Etcd's is not known here, ours is not known there, there is none, it is for another host, it is no file."""
    stranger = Certificates(tmp_path / "stranger", "stranger")
    mine = {"certificate": certificates.client, "key": certificates.key_of(certificates.client)}
    theirs = {"certificate": stranger.client, "key": stranger.key_of(stranger.client)}
    url = secure.urls[0]
    assert re.search("its certificate is not valid here", await refusal(fleet_of(url, ca=stranger.ca, **mine)))
    assert re.search(
        "does not accept this host's certificate", await refusal(fleet_of(url, ca=certificates.ca, **theirs))
    )
    assert re.search("does not accept this host's certificate", await refusal(fleet_of(url, ca=certificates.ca)))
    nowhere = tmp_path / "nowhere.pem"
    said = await refusal(fleet_of(url, ca=nowhere, **mine))
    assert said == f"[fleet] ca: {nowhere}: No such file or directory"
    said = await refusal(fleet_of(url, ca=certificates.ca, certificate=certificates.ca, key=mine["key"]))
    assert said == f"[fleet] certificate: {certificates.ca} with {mine['key']}: key values mismatch"


async def test_certificate_for_another_host_is_named(
    certificates: Certificates, tmp_path: Path, fleet_of: Settings
) -> None:
    """The name in etcd's certificate has to be that of the endpoint."""
    elsewhere = copy.copy(certificates)
    elsewhere.server = certificates.make("elsewhere", "DNS:elsewhere.example")
    mine = {"certificate": certificates.client, "key": certificates.key_of(certificates.client)}
    cluster = Cluster(tmp_path, 1, tls=elsewhere)
    cluster.start_all()  # the rig's own client does not take the certificate either, so it cannot wait until it serves
    try:
        said = await refusal(fleet_of(*cluster.urls, ca=certificates.ca, **mine))
    finally:
        cluster.end()
    assert "its certificate is not valid here: IP address mismatch" in said


async def test_plain_http_where_tls_is_spoken_and_the_reverse(
    secure: Cluster, cluster: Cluster, certificates: Certificates, fleet_of: Settings
) -> None:
    """Each says so."""
    plain = fleet_of(secure.urls[0].replace("https", "http"))
    assert "closed the connection (if it speaks TLS, use https://)" in await refusal(plain, FleetSilentError, PATIENT_S)
    tls = fleet_of(cluster.urls[0].replace("http", "https"), ca=certificates.ca)
    assert "closed the connection (if it speaks no TLS, use http://)" in await refusal(tls, FleetSilentError, PATIENT_S)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_reset_is_told_as_a_close(scheme: str, certificates: Certificates, fleet_of: Settings) -> None:
    """Whether the other end's close arrives as an end or as a reset depends on what it had not read yet."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await refusal(
            fleet_of(f"{scheme}://127.0.0.1:{port}", **({"ca": certificates.ca} if scheme == "https" else {})),
            FleetSilentError,
            PATIENT_S,
        )
    assert "closed the connection (if it speaks " in said


# -- users


@pytest.fixture(scope="module")
def guarded(
    etcd_release: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Return a node with users: root, pivotd who may write below /pivotd/, reader who may not; passwords as the names."""
    with served(request, tmp_path_factory.mktemp("guarded"), 1, bcrypt_cost="4") as cluster:
        for name in ("root", "pivotd", "reader"):
            cluster.ctl("user", "add", f"{name}:{name}")
            cluster.ctl("role", "add", name)
            cluster.ctl("user", "grant-role", name, name)
        cluster.ctl("role", "grant-permission", "pivotd", "--prefix=true", "readwrite", "/pivotd/")
        cluster.ctl("role", "grant-permission", "reader", "--prefix=true", "read", "/pivotd/")
        cluster.ctl("auth", "enable")
        yield cluster


def user(tmp_path: Path, name: str, password: str | None = None) -> dict[str, object]:
    """Return the settings for a user."""
    file = tmp_path / f"{name}.password"
    file.write_text(f"{password or name}\n")
    return {"user": name, "password_file": file}


async def test_password_opens_etcd(guarded: Cluster, tmp_path: Path, fleet_of: Settings) -> None:
    """A user with the permission can read and write."""
    fleet = fleet_of(*guarded.urls, **user(tmp_path, "pivotd"))
    view = await ready(fleet, claimed, announced, published)
    assert await fleet.read(view.domain, LONG_S) == view


async def test_token_is_renewed(guarded: Cluster, tmp_path: Path, fleet_of: Settings) -> None:
    """A node that has started again knows no token: the next request gets another one by itself."""
    fleet = fleet_of(*guarded.urls, **user(tmp_path, "pivotd"))
    view = await ready(fleet, claimed)
    guarded.nodes[0].kill()
    guarded.start(guarded.nodes[0])
    after = await fleet.write(view, announced(view), LONG_S)
    fleet.gateway._token = "nonsense.1"
    assert await fleet.read(view.domain, LONG_S) == after


async def test_wrong_users_are_named(guarded: Cluster, cluster: Cluster, tmp_path: Path, fleet_of: Settings) -> None:
    """Wrong password, unknown user, none at all, no file, a user where there are none."""
    url = guarded.urls[0]
    wrong = r"etcd refuses user \w+: no such user, or not the password in /"
    assert re.match(wrong, await refusal(fleet_of(url, **user(tmp_path, "pivotd", "secret"))))
    assert re.match(wrong, await refusal(fleet_of(url, **user(tmp_path, "nobody"))))
    assert "asks for a user: set user and password_file in [fleet]" in await refusal(fleet_of(url))
    nowhere = tmp_path / "nowhere"
    said = await refusal(fleet_of(url, user="pivotd", password_file=nowhere))
    assert said == f"[fleet] password_file: {nowhere}: No such file or directory"
    said = await refusal(fleet_of(cluster.urls[0], **user(tmp_path, "pivotd")))
    assert "knows no users: remove user and password_file from [fleet]" in said


async def test_too_little_permission_is_named(guarded: Cluster, tmp_path: Path, fleet_of: Settings) -> None:
    """Who may only read writes nothing; who asks below another prefix reads nothing."""
    fleet = fleet_of(*guarded.urls, **user(tmp_path, "reader"))
    view = await fleet.read("web1", LONG_S)
    with pytest.raises(FleetRefusedError, match="allows user reader too little: its role needs readwrite permission"):
        await fleet.write(view, claimed(view), LONG_S)
    other = fleet_of(*guarded.urls, prefix="/other/v1/", **user(tmp_path, "reader"))
    assert "too little" in await refusal(other)


# -- what is stored


async def test_full_database_takes_no_write_and_answers_reads(tmp_path: Path, fleet_of: Settings) -> None:
    """The alarm NOSPACE is named with what to do; afterwards it works again."""
    with Cluster(tmp_path, 1, quota_backend_bytes=str(BACKEND_BYTES)) as cluster:
        fleet = fleet_of(*cluster.urls)
        view = await ready(fleet, claimed)
        while not _is_full(cluster):
            pass
        with pytest.raises(FleetRefusedError, match="its database is full \\(alarm NOSPACE\\): compact and defragment"):
            await fleet.write(view, announced(view), LONG_S)
        assert await fleet.read(view.domain, LONG_S) == view


def _is_full(cluster: Cluster) -> bool:
    """Write a megabyte more; return whether there was no room for it."""
    try:
        cluster.nodes[0].ask("/v3/kv/put", {"key": "ZmlsbA==", "value": "x" * (1 << 20)}, LONG_S)
    except OSError:
        return True
    return False


async def test_endpoints_of_two_clusters_are_named(cluster: Cluster, tmp_path: Path, fleet_of: Settings) -> None:
    """An endpoint of another cluster knows nothing of the domain, and its answer is not taken."""
    with Cluster(tmp_path, 1, token="other") as other:
        fleet = fleet_of(cluster.urls[0], other.urls[0])
        view = await ready(fleet, claimed)
        fleet.gateway.endpoints.reverse()
        assert "belongs to etcd cluster" in await refusal(fleet)
        assert "but [fleet] cluster says abc" in await refusal(fleet_of(*cluster.urls, cluster="abc"))
        right = fleet_of(*cluster.urls, cluster=fleet.gateway.cluster)
        assert await right.read(view.domain, LONG_S) == view


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("owner", {"v": 2, "host": "h1"}, "has data of version 2, and this pivotd knows version 1: update this host"),
        ("disks/disk0", {"v": 1}, "is not pivotd's"),
        ("owner", "hello", "is not pivotd's"),
        ("surprise", {"v": 1}, "is not a key that this pivotd knows"),
    ],
)
async def test_foreign_data_is_refused(
    name: str, value: object, said: str, cluster: Cluster, fleet_of: Settings
) -> None:
    """What a newer pivotd or another program has written is not guessed at, and a domain beside it is not touched."""
    cluster.ctl("put", f"/foreign{len(said)}/v1/domains/web1/{name}", json.dumps(value))
    fleet = fleet_of(*cluster.urls, prefix=f"/foreign{len(said)}/v1/")
    assert said in await refusal(fleet)
    with pytest.raises(FleetRefusedError, match=re.escape(said)):
        await fleet.domains(LONG_S)
    assert (await ready(fleet, claimed)).revision > 0


async def test_what_is_not_etcd_is_named(cluster: Cluster, fleet_of: Settings) -> None:
    """Nobody listens; somebody listens who is not etcd's gateway."""
    assert "http://127.0.0.1:1: Connection refused;" in await refusal(
        fleet_of("http://127.0.0.1:1"), FleetSilentError, PATIENT_S
    )
    peer = fleet_of(cluster.nodes[0].peer_url)
    assert "not as etcd 3.4 or newer does (HTTP status 404)" in await refusal(peer)
