"""A client of pivotd: synchronous, typed, over the daemon's Unix socket. docs/api.md says what of it is stable.

from pivotd.client import Client, CopyDisk, CopyRequest

client = Client()
pivot = client.start("web1", CopyRequest(disks=[CopyDisk(disk="disk0", image="/new/web1.qcow2")]))
print(client.wait(pivot.id).outcome)
"""

from pivotd.client.daemon_client import DEFAULT_SOCKET, Client, new_request_id
from pivotd.client.requests import (
    AdoptDisk,
    AdoptRequest,
    CommitDisk,
    CommitRequest,
    CopyDisk,
    CopyRequest,
    NewImage,
    NewPivot,
    PullDisk,
    PullRequest,
    SnapshotDisk,
    SnapshotRequest,
)
from pivotd.core.pivot import Outcome, Pause, Phase, Record
from pivotd.core.request import CopyMode, Discard, Kind, Requester, Sync
from pivotd.core.shapes import (
    DiskView,
    DomainView,
    Health,
    JobView,
    Pivot,
    PivotDisk,
    PivotOptions,
    PivotWithRecords,
    Progress,
)
from pivotd.core.verdict import Verdict
from pivotd.errors import ClientError, RefusedError, UnknownError, UnsentError

__all__ = [
    "DEFAULT_SOCKET",
    "AdoptDisk",
    "AdoptRequest",
    "Client",
    "ClientError",
    "CommitDisk",
    "CommitRequest",
    "CopyDisk",
    "CopyMode",
    "CopyRequest",
    "Discard",
    "DiskView",
    "DomainView",
    "Health",
    "JobView",
    "Kind",
    "NewImage",
    "NewPivot",
    "Outcome",
    "Pause",
    "Phase",
    "Pivot",
    "PivotDisk",
    "PivotOptions",
    "PivotWithRecords",
    "Progress",
    "PullDisk",
    "PullRequest",
    "Record",
    "RefusedError",
    "Requester",
    "SnapshotDisk",
    "SnapshotRequest",
    "Sync",
    "UnknownError",
    "UnsentError",
    "Verdict",
    "new_request_id",
]
