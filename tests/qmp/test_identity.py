"""Which process is behind a socket, and in which order it is looked at."""

from __future__ import annotations

import os

from pivotd.host import process
from pivotd.qmp.looking import LOOK


def test_a_pid_that_was_given_to_another_process_is_gone():
    """The start time tells the two apart."""
    pid, boot = os.getpid(), process.boot_id()
    ticks = process.start_ticks(pid)
    assert ticks is not None
    assert not process.is_gone(pid, ticks, boot)
    assert process.is_gone(pid, ticks - 1, boot)


def test_a_process_of_another_boot_is_gone():
    """Whatever has its pid now."""
    pid = os.getpid()
    assert process.is_gone(pid, process.start_ticks(pid), "another boot")


def test_jobs_are_looked_at_before_the_graph():
    """A job seen as ended then has its final effect in the graph."""
    order = [message["execute"] for message in LOOK]
    graph = min(order.index("query-block"), order.index("x-debug-query-block-graph"))
    assert order.index("query-jobs") < graph
