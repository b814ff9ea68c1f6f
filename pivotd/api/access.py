"""Access control: two classes of callers, by the uid and gid that the kernel reports for a connection."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import StrEnum

from pivotd import config
from pivotd.core.request import Requester
from pivotd.errors import NotAllowedError

_UCRED = struct.Struct("3i")
_SO_PEERGROUPS = 59
"""Not in the socket module. Source: asm-generic/socket.h, Linux 4.13 and later."""
_GROUPS_BYTES_MAX = 1024
"""The most that Python's getsockopt() accepts: 256 groups."""


class AccessClass(StrEnum):
    """The class that a route needs; an operator may do everything that a reader may."""

    READER = "reader"
    OPERATOR = "operator"


def peer(sock: socket.socket) -> Requester:
    """Return the peer's credentials of a connected Unix socket. Source: unix(7), SO_PEERCRED."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Requester(uid=uid, gid=gid, pid=pid)


def peer_groups(sock: socket.socket) -> frozenset[int]:
    """Return every group that the peer process had when it connected.

    The user database does not count, because a process may have dropped groups. If a process has more than 256
    supplementary groups, only the primary group counts.
    """
    gid = peer(sock).gid
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES_MAX)
    except OSError:
        found = b""
    return frozenset({gid, *(group for (group,) in struct.iter_unpack("I", found))})


@dataclass(slots=True)
class Access:
    """The ``[access]`` of the configuration; a reload changes it."""

    operators: config.Principals
    readers: config.Principals

    @classmethod
    def of(cls, access: config.Access) -> Access:
        """Return the access rules of the configuration."""
        return cls(access.operators, access.readers)

    def may(self, who: Requester, groups: frozenset[int], needed: AccessClass) -> bool:
        """Return whether the caller is of this class; root is of every class."""
        if who.uid == 0 or _among(self.operators, who.uid, groups):
            return True
        return needed is AccessClass.READER and _among(self.readers, who.uid, groups)

    def check(self, who: Requester, groups: frozenset[int], needed: AccessClass) -> None:
        """Check that the caller has this access. Raises: NotAllowedError."""
        if not self.may(who, groups, needed):
            raise NotAllowedError(
                f"uid {who.uid} is no {needed}: name the user or a group of theirs in [access] "
                f"{'operators' if needed is AccessClass.OPERATOR else 'readers or operators'} of pivotd.toml",
                uid=who.uid,
            )


def _among(principals: config.Principals, uid: int, groups: frozenset[int]) -> bool:
    return uid in principals.uids or bool(principals.gids & groups)
