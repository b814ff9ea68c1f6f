"""The judge of a fleet's rounds: what every certain answer promises, checked against what the guest was told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pivotd.core.fleet import FleetView
from pivotd.core.rules.fleet_words import FleetVerdict, fleet_verdict
from pivotd.errors import FleetError
from tests.fleet.etcd import stand_still
from tests.fleet.hosts import DOMAIN, FleetHost, Site
from tests.fleet.plan import Summary


class FleetJudge:
    """Checks answers as of now; nothing may change the images meanwhile (still())."""

    def __init__(self, site: Site, summary: Summary, say: Callable[[str], None], *, other_image: bool = False) -> None:
        self._site, self._summary, self._say = site, summary, say
        self._other_image = other_image

    @contextmanager
    def still(self, host: FleetHost) -> Iterator[None]:
        """Let the QEMU of a host stand still, if it has one."""
        if host.qemu is not None:
            stand_still(host.qemu.pid)
        try:
            yield
        finally:
            if host.qemu is not None:
                os.kill(host.qemu.pid, signal.SIGCONT)

    def fleet(self, when: str, *, certain: bool = False) -> FleetView | None:
        """Check the fleet's word on each disk; return what it was made from, None if there is no majority.

        ``certain``: by now it has to be.
        """
        site = self._site
        try:
            view = site.view()
        except FleetError:
            self._count("fleet", "no answer")
            return None
        for disk, present in site.images.items():
            word = fleet_verdict(view, disk)
            if word.certain:
                self._count("fleet", "certain" if word.image is not None else "never moved")
                image = present if word.image is None else word.image.filename
                self.holds_all(image if not self._other_image else self._other(view, disk, image), f"fleet, {when}")
            else:
                self._count("fleet", "unknown")
                self._unknown(word, disk, when)
                if certain:
                    self._broken(f"the fleet is still not certain of {disk} {when}: {word.reason}")
        return view

    def host(self, host: FleetHost, when: str, *, offline: bool = False) -> None:
        """Check the word of a host that has owned the guest all the time. ``offline``: pivotd and QEMU are dead."""
        found = self._offline(host) if offline else host.words()
        if found is None:
            self._count("host", "no answer")
            return
        said = {disk: (bool(one["certain"]), str(one["image"])) for disk, one in found.items()}
        for certain, image in said.values():
            self._count("host", "certain" if certain else "unknown")
            if certain:
                self.holds_all(image, f"{host.name}, {when}")

    @staticmethod
    def _offline(host: FleetHost) -> dict[str, Any] | None:
        found = host.offline("verdict", DOMAIN).json
        return {one["disk"]: one for one in found} if isinstance(found, list) else None

    def believes_itself(self, host: FleetHost) -> None:
        """Check that a host does not name an image, as certain, of a guest that lives on another one by now."""
        for disk, one in (host.words() or {}).items():
            if one["certain"] and one["image"] != self._site.images[disk]:
                self._count("old host", "believes itself")
                self._summary.believed.append(
                    f"{host.name} is certain that {disk} is on {one['image']}: {one['reason']}"
                )
            else:
                self._count("old host", "certain of the same" if one["certain"] else "unknown")

    def holds_all(self, image: str, who: str) -> None:
        """Check that an image holds every acknowledged write."""
        if missing := self._site.writes.missing(image):
            text = f"{who}: {image} lacks {len(missing)} acknowledged writes, the last is {missing[-1]}"
            self._summary.wrong.append(text)
            self._say(text)

    def complete(self, word: FleetVerdict) -> list[str]:
        """Return the candidates that hold every acknowledged write."""
        names = [image.filename for image in word.candidates]
        return [name for name in names if not self._site.writes.missing(name)]

    def _unknown(self, word: FleetVerdict, disk: str, when: str) -> None:
        if len(word.candidates) != 2 or not self.complete(word):
            names = [image.filename for image in word.candidates]
            text = f"fleet, {when}: {disk} is unknown, and none of {names} holds every acknowledged write"
            self._summary.wrong.append(text)
            self._say(text)

    def _other(self, view: FleetView, disk: str, image: str) -> str:
        known, move = view.disk(disk), view.move(disk)
        sides = [move.source, move.destination] if move is not None else [known.image, known.other] if known else []
        return next((side.filename for side in sides if side is not None and side.filename != image), image)

    def _broken(self, text: str) -> None:
        self._summary.broken.append(text)
        self._say(text)

    def _count(self, who: str, what: str) -> None:
        self._summary.words[f"{who}: {what}"] += 1
