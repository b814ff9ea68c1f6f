"""Who may do what: two classes, decided by the uid and gid that the kernel reports for a connection."""

from __future__ import annotations

import os
import pwd
import socket
import struct
from dataclasses import dataclass
from enum import StrEnum

from pivotd import config
from pivotd.core.request import Requester
from pivotd.errors import NotAllowedError

_UCRED = struct.Struct("3i")


class AccessClass(StrEnum):
    """What a route needs; an operator may do all that a reader may."""

    READER = "reader"
    OPERATOR = "operator"


def peer(sock: socket.socket) -> Requester:
    """Return who is on the other side of a connected Unix socket. Source: unix(7), SO_PEERCRED."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Requester(uid=uid, gid=gid, pid=pid)


@dataclass(slots=True)
class Access:
    """The ``[access]`` of the configuration; a reload changes it."""

    operators: config.Principals
    readers: config.Principals

    @classmethod
    def of(cls, access: config.Access) -> Access:
        """Return what the configuration says."""
        return cls(access.operators, access.readers)

    def check(self, who: Requester, groups: frozenset[int], needed: AccessClass) -> None:
        """Return if the caller may. Raises: NotAllowedError."""
        if who.uid == 0 or _among(self.operators, who.uid, groups):
            return
        if needed is AccessClass.READER and _among(self.readers, who.uid, groups):
            return
        raise NotAllowedError(
            f"uid {who.uid} is no {needed}: name the user or a group of theirs in [access] "
            f"{'operators' if needed is AccessClass.OPERATOR else 'readers or operators'} of pivotd.toml",
            uid=who.uid,
        )


def _among(principals: config.Principals, uid: int, groups: frozenset[int]) -> bool:
    return uid in principals.uids or bool(principals.gids & groups)


def groups_of(who: Requester) -> frozenset[int]:
    """Return primary and supplementary groups: SO_PEERCRED tells only the primary one. May block: the user database."""
    try:
        name = pwd.getpwuid(who.uid).pw_name
    except KeyError:
        return frozenset({who.gid})
    return frozenset({who.gid, *os.getgrouplist(name, who.gid)})
