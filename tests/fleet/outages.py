"""What a round does to etcd, and how it ends."""

from __future__ import annotations

from collections.abc import Callable

from pivotd.errors import FleetError
from tests.fleet.etcd import Cluster, Node
from tests.fleet.hosts import until
from tests.fleet.plan import Weather
from tests.fleet.wires import Wires

LEADING = {Weather.LEADER_KILLED, Weather.LEADER_FROZEN}
KILLING = {Weather.NODE_KILLED, Weather.LEADER_KILLED}
RETURN_TIMEOUT_S = 60.0


class Outages:
    """Kills and freezes nodes of one cluster, and heals it; ``answers`` raises FleetError while there is no majority."""

    def __init__(self, cluster: Cluster, answers: Callable[[], object]) -> None:
        self._cluster, self._answers = cluster, answers
        self._killed: list[Node] = []
        self._frozen: list[Node] = []
        self._cut: list[Wires] = []

    def begin(self, weather: Weather, wires: Wires) -> None:
        """Let it happen; ``wires`` are those of the host that may be cut off."""
        if weather is Weather.FINE:
            return
        if weather is Weather.CUT:
            wires.cut = True
            self._cut.append(wires)
            return
        if weather is Weather.NO_MAJORITY:
            nodes = self._cluster.nodes[:2]
        else:
            leader = self._cluster.leader()
            nodes = [leader] if weather in LEADING else [node for node in self._cluster.nodes if node is not leader][:1]
        for node in nodes:
            if weather in KILLING:
                node.kill()
                self._killed.append(node)
            else:
                node.freeze()
                self._frozen.append(node)

    def heal(self) -> bool:
        """End everything; return whether etcd answers again."""
        for wires in self._cut:
            wires.cut = False
        for node in self._frozen:
            node.thaw()
        for node in self._killed:
            self._cluster.start(node)
        self._cut, self._frozen, self._killed = [], [], []
        return until(self.answers, RETURN_TIMEOUT_S)

    def answers(self) -> bool:
        """Return whether there is a majority."""
        try:
            self._answers()
        except FleetError:
            return False
        return True
