"""An empty answer about a domain: whether there is nothing to say of it, or no such domain."""

from __future__ import annotations

from itertools import chain

from pivotd import limits
from pivotd.cli.context import App
from pivotd.core.names import no_domain
from pivotd.errors import NotFoundError


def check(app: App, domain: str | None) -> None:
    """Check a name after the answer about it was empty; None is every domain.

    A domain that only history knows, or that only the daemon knows, is known.
    Raises: NotFoundError: neither the daemon nor its journal, or the journal of ``--offline``, knows the name.
    """
    if domain is None:
        return
    reads = app.reads
    if any(reads.pivots(domain, limit=1)):
        return
    names = [one.name for one in reads.domains()]
    if domain in names or reads.last_events(1, domain=domain):
        return
    lately = (pivot.domain for pivot in reads.pivots(limit=limits.PIVOTS_LISTED))
    raise NotFoundError(no_domain(domain, chain(names, lately)), domain=domain)
