"""Real etcd on loopback: one node or three, each a process in a directory of its own, killed and frozen by its pid.

    with Cluster(tmp_path) as cluster:
        cluster.leader().freeze()

Writes are as durable as an operator's: etcd's fsync stays on. Elections are quicker than etcd's defaults, so that a
test does not wait for them, and slow enough for a machine that is busy.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.fleet.certificates import Certificates
from tests.fleet.etcds import command as program

HEARTBEAT_MS = 100
ELECTION_MS = 600
START_TIMEOUT_S = 60.0
LOOK_S = 0.02
STARTS_MAX = 3
"""A port that was free a moment ago can be another test's by now."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Node:
    """One etcd. ``options`` are etcd's own, without the leading dashes."""

    def __init__(self, directory: Path, name: str, ports: tuple[int, int], tls: Certificates | None) -> None:
        self.name = name
        self.directory = directory
        self.client_port, self.peer_port = ports
        self.tls = tls
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return where clients connect."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """Return where the other nodes connect."""
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def pid(self) -> int:
        """Return the process id of the running node."""
        assert self.process is not None
        return self.process.pid

    def start(self, peers: str, options: dict[str, str]) -> None:
        """Start the process; it answers once there is a quorum."""
        command = [*program("etcd"), f"--name={self.name}", f"--data-dir={self.directory / self.name}"]
        command += [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        command += [f"--listen-peer-urls={self.peer_url}", f"--initial-advertise-peer-urls={self.peer_url}"]
        command += [f"--initial-cluster={peers}", "--logger=zap", "--pre-vote=true"]
        command += [f"--heartbeat-interval={HEARTBEAT_MS}", f"--election-timeout={ELECTION_MS}"]
        if self.tls is not None:
            command += [f"--cert-file={self.tls.server}", f"--key-file={self.tls.key_of(self.tls.server)}"]
            command += [f"--trusted-ca-file={self.tls.ca}", "--client-cert-auth=true"]
        command += [f"--{name}={value}" for name, value in options.items()]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**environment, "GOMAXPROCS": "2"})

    def kill(self) -> None:
        """End the process as a crash of its host would."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Stop the process: its connections stay open and nothing answers, from when this returns."""
        stand_still(self.pid)

    def thaw(self) -> None:
        """Let the process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def ask(self, path: str, body: dict[str, Any], timeout_s: float = 1.0) -> Any:
        """Send one request to this node alone. Raises: OSError."""
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode())
        context = self.tls.context() if self.tls is not None else None
        with urllib.request.urlopen(request, timeout=timeout_s, context=context) as answer:
            return json.load(answer)

    def leads(self) -> bool:
        """Return whether this node believes to be the leader."""
        try:
            status = self.ask("/v3/maintenance/status", {})
        except (OSError, urllib.error.URLError):
            return False
        return status.get("leader", "0") == status["header"]["member_id"]


class Cluster:
    """Nodes that form one cluster; it serves when the block is entered, and is gone when the block is left."""

    def __init__(
        self, directory: Path, size: int = 3, *, tls: Certificates | None = None, token: str = "c", **options: str
    ) -> None:
        self.directory = directory
        self.size = size
        self.tls = tls
        self.options = {name.replace("_", "-"): value for name, value in options.items()}
        self.token = token
        self.nodes: list[Node] = []
        self.keeps_data = False
        """Whether the nodes' data stays after an end without an error: 0.2 GB of three nodes. The logs always do."""

    def __enter__(self) -> Self:
        try:
            for attempt in range(STARTS_MAX):
                self.start_all()
                if serves(self):
                    return self
                self.end()
                assert attempt + 1 < STARTS_MAX, self.logs()
        except BaseException:
            self.kill()
            raise
        raise AssertionError("unreachable")

    def start_all(self) -> None:
        """Start all nodes, on ports of their own, and wait for none."""
        self.directory.mkdir(parents=True, exist_ok=True)
        ports = free_ports(2 * self.size)
        self.nodes = [
            Node(self.directory, f"n{number}", (ports[2 * number], ports[2 * number + 1]), self.tls)
            for number in range(self.size)
        ]
        for node in self.nodes:
            self.start(node)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or self.keeps_data:
            self.kill()
        else:
            self.end()

    def end(self) -> None:
        """Kill every node, and remove its data."""
        self.kill()
        self._remove_data()

    def _remove_data(self) -> None:
        for node in self.nodes:
            shutil.rmtree(self.directory / node.name)

    @property
    def urls(self) -> tuple[str, ...]:
        """Return the endpoints of all nodes."""
        return tuple(node.url for node in self.nodes)

    def start(self, node: Node) -> None:
        """Start a node, also one that was killed: it finds its data."""
        peers = ",".join(f"{one.name}={one.peer_url}" for one in self.nodes)
        node.start(peers, {"initial-cluster-token": self.token, **self.options})

    def kill(self) -> None:
        """Kill every node."""
        for node in self.nodes:
            node.kill()

    def leader(self) -> Node:
        """Return the leader, as soon as there is one."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            for node in self.nodes:
                if node.process is not None and node.leads():
                    return node
            time.sleep(LOOK_S)
        raise AssertionError(f"no leader: {self.logs()}")

    def followers(self) -> list[Node]:
        """Return the others."""
        leader = self.leader()
        return [node for node in self.nodes if node is not leader]

    def ctl(self, *arguments: str, check: bool = True, node: Node | None = None) -> str:
        """Run etcdctl and return what it printed."""
        command = [*program("etcdctl"), f"--endpoints={node.url if node else ','.join(self.urls)}", *arguments]
        if self.tls is not None:
            client = self.tls.client
            command += [f"--cacert={self.tls.ca}", f"--cert={client}", f"--key={self.tls.key_of(client)}"]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60, env={**os.environ, "ETCDCTL_API": "3"}
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout + done.stderr

    def stored(self) -> dict[str, str]:
        """Return everything that is stored."""
        stored = json.loads(self.ctl("get", "", "--prefix", "--write-out=json")).get("kvs", [])
        return {_text(pair["key"]): _text(pair.get("value", "")) for pair in stored}

    def logs(self) -> str:
        """Return the last lines of each node's log."""
        logs = (self.directory / f"{node.name}.log" for node in self.nodes)
        return "\n".join(text for log in logs if log.exists() for text in log.read_text().splitlines()[-5:])


def stand_still(pid: int) -> None:
    """Stop a process, and wait until every thread has taken the signal: on a busy machine one may still answer."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        stats = [thread.read_text() for thread in Path(f"/proc/{pid}/task").glob("*/stat")]
        if all(stat.rpartition(")")[2].split()[0] in "TZ" for stat in stats):
            return
        time.sleep(LOOK_S)


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


def serves(cluster: Cluster) -> bool:
    """Wait until there is a leader that every node knows; return False as soon as a node has ended."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if any(node.process is None or node.process.poll() is not None for node in cluster.nodes):
            return False
        try:
            known = {node.ask("/v3/maintenance/status", {}).get("leader") for node in cluster.nodes}
        except (OSError, urllib.error.URLError):
            known = set()
        if len(known) == 1 and known != {None}:
            return True
        time.sleep(LOOK_S)
    return False
