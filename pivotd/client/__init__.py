"""A client of pivotd: synchronous, typed, over the daemon's Unix socket. docs/api.md says which parts are stable.

from pivotd.client import Client, CopyDisk, CopyRequest

client = Client()
pivot = client.start("web1", CopyRequest(disks=[CopyDisk(disk="disk0", image="/new/web1.qcow2")]))
print(client.wait(pivot.id).outcome)
"""

from pivotd.client.answers import (
    ArchiveProgress,
    ArchiveStats,
    DataFile,
    DiskView,
    DoctorArea,
    DoctorFinding,
    DoctorReport,
    DomainView,
    FleetDomain,
    FleetStatus,
    FleetVerdict,
    Health,
    ImageVerdict,
    InternalSnapshots,
    JobView,
    JournalStats,
    ObsoleteImages,
    Pause,
    Pivot,
    PivotDisk,
    PivotOptions,
    PivotWithRecords,
    Progress,
    Record,
    Requester,
    Verdict,
)
from pivotd.client.daemon_client import DEFAULT_SOCKET, Client, new_request_id
from pivotd.client.requests import (
    AcceptRequest,
    AdoptDisk,
    AdoptRequest,
    ArchiveRequest,
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
    TakeDisk,
    TakeRequest,
)
from pivotd.errors import ClientError, RefusedError, UnknownError, UnsentError

__all__ = [
    "DEFAULT_SOCKET", "AcceptRequest", "AdoptDisk", "AdoptRequest", "ArchiveProgress",
    "ArchiveRequest", "ArchiveStats", "Client", "ClientError", "CommitDisk",
    "CommitRequest", "CopyDisk", "CopyRequest", "DataFile", "DiskView", "DoctorArea", "DoctorFinding",
    "DoctorReport", "DomainView", "FleetDomain", "FleetStatus",
    "FleetVerdict", "Health", "ImageVerdict",
    "InternalSnapshots", "JobView", "JournalStats",
    "NewImage", "NewPivot", "ObsoleteImages", "Pause", "Pivot", "PivotDisk", "PivotOptions", "PivotWithRecords",
    "Progress", "PullDisk", "PullRequest", "Record", "RefusedError", "Requester", "SnapshotDisk", "SnapshotRequest",
    "TakeDisk", "TakeRequest",
    "UnknownError", "UnsentError", "Verdict", "new_request_id",
]  # fmt: skip
