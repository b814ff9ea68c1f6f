"""QEMUs that come, or have another name, while somebody asks for a verdict, and cannot be asked."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from pivotd import limits
from pivotd.app.accepting import Accepting
from pivotd.app.reads import Reads
from pivotd.client.requests import AcceptRequest
from pivotd.core.request import Kind, Target
from pivotd.core.standing import Standing
from pivotd.errors import ConflictError
from pivotd.planning import lower_images
from tests.app.conftest import WHO, engine
from tests.app.test_holders import Desk, desk
from tests.app.test_meanwhile import verdict
from tests.cli.test_unasked import taken
from tests.support.qemu import Disk

__all__ = ["desk", "engine"]
pytestmark = pytest.mark.qemu


async def started_again(desk: Desk) -> tuple[Path, Path]:
    """Return the right image of web1, which was removed, and the monitor of a guest on its old image."""
    old = desk.image("a.qcow2")
    right = await desk.stopped("web1", Disk(old), to="b.qcow2")
    desk.engine.host.remove("web1")
    assert (await verdict(desk, "web1")).certain
    return right, desk._start_qemu([Disk(old)], name="web1").qmp


async def test_a_monitor_that_has_another_name_and_is_taken(desk: Desk):
    """It is not asked by that name either."""
    right, monitor = await started_again(desk)
    with taken(monitor):
        supervisor = desk.engine.host.add("web9", str(monitor), "runtime")
        await supervisor.settled(60)
        assert supervisor.is_silent
        assert not (await verdict(desk, "web1")).certain
        (found,) = await desk.reads.image(str(right), lambda one: one)
        assert (found.verdict.certain, found.finding.standing) == (False, Standing.UNKNOWN)


@pytest.mark.parametrize("busy", [False, True])
async def test_a_domain_that_is_added_while_somebody_asks(desk: Desk, busy: bool, monkeypatch: pytest.MonkeyPatch):
    """After the tries to connect and the look at QEMUs, of which it has had none."""
    right, monitor = await started_again(desk)
    look = Reads.live_verdicts

    async def then_it_is_added(*facts: Any) -> Any:
        found = await look(*facts)
        if "web1" not in desk.engine.host.supervisors:
            desk.engine.host.add("web1", str(monitor), "runtime")
        return found

    monkeypatch.setattr(Reads, "live_verdicts", then_it_is_added)
    if busy:
        with taken(monitor):
            assert not (await verdict(desk, "web1")).certain
    else:
        assert not (await verdict(desk, "web1")).certain
    desk.engine.host.remove("web1")
    (found,) = await desk.reads.image(str(right), lambda one: one)
    assert (found.verdict.certain, found.finding.standing) == (False, Standing.UNKNOWN)


@pytest.mark.parametrize("slow", [False, True])
async def test_a_word_while_the_storage_of_another_guest_is_slow(
    desk: Desk, slow: bool, monkeypatch: pytest.MonkeyPatch
):
    """The image lies below that of a guest which is off, and no pivot has named it: nobody can tell in time."""
    base = desk.image("base.qcow2")
    over = desk.image("over.qcow2", backing=desk.image("mid.qcow2", backing=base))
    await desk.stopped("web1", Disk(desk.image("x.qcow2")), to="y.qcow2")
    qemu = await desk.guest("web2", Disk(over))
    assert (await desk.run(Kind.SNAPSHOT, "web2", Target("disk0", str(desk.directory / "top.qcow2")))).outcome
    qemu.kill()
    session = desk.engine.host.get("web2").session
    if session is not None:
        await session.closed()
    answers = threading.Event()
    if slow:
        look = lower_images.by_headers

        def late(*facts: Any) -> Any:
            answers.wait()
            return look(*facts)

        monkeypatch.setattr(lower_images, "by_headers", late)
        monkeypatch.setattr(limits, "OTHERS_FILE_TIMEOUT_S", 0.1)
    accepting = Accepting(desk.engine.host, desk.engine.journal, desk.reads, desk.starter.reservations)
    said = (
        "nobody can tell yet whether web2 disk0 needs it: the storage of .* does not answer" if slow else "it is below"
    )
    with pytest.raises(ConflictError, match=said):
        await accepting.accept("web1", "disk0", AcceptRequest(str(base), "so", "qcow2"), WHO)
    answers.set()


async def test_a_guest_that_ends_between_the_try_to_connect_and_the_look(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """It was connected at the one, and is gone at the other: somebody looks again, and the journal's word counts."""
    qemu = await desk.guest("web1", Disk(desk.image("a.qcow2")))
    assert (await desk.copy("web1", desk.directory / "b.qcow2")).outcome == "switched"
    supervisor, look = desk.engine.host.get("web1"), Reads.live_verdicts

    async def first_it_ends(*facts: Any) -> Any:
        if supervisor.session is not None:
            session = supervisor.session
            qemu.kill()
            await session.closed()
            while supervisor.session is not None:
                await asyncio.sleep(0)
        return await look(*facts)

    monkeypatch.setattr(Reads, "live_verdicts", first_it_ends)
    found = await verdict(desk, "web1")
    assert (found.certain, found.image) == (True, str(desk.directory / "b.qcow2"))


async def test_a_monitor_below_a_directory_with_a_line_break(desk: Desk):
    """The kernel's table cannot show who listens there: it is not adopted, and the reason is told."""
    place = desk.directory / "line\nbreak"
    place.mkdir()
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(str(place / "web7.sock"))
        await desk.engine.host.discover([str(desk.directory / "*" / "*.sock")])
    assert "web7" not in desk.engine.host.supervisors
    ((path, why),) = desk.engine.host.skipped
    assert path.endswith("line\\nbreak/web7.sock")
    assert "line breaks" in why
