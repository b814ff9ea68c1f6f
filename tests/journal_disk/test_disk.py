"""The forgetful disk itself: a judge that forgets too little proves nothing."""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journal_disk.disk import Disk
from tests.journal_disk.server import Fault
from tests.journal_disk.store import Change, Name, Store, Sync, SyncNames, Truncate, Write


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path / "disk") as mounted:
        yield mounted


def write(path: Path, data: bytes, *, sync: bool = False) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(descriptor, data, 0)
        if sync:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_only_what_was_fsynced_survives_a_cut(disk: Disk) -> None:
    """A file that was written and not fsynced is empty after the power cut, a synced one is whole."""
    write(disk.where / "synced", b"kept", sync=True)
    write(disk.where / "unsynced", b"lost")
    sync_directory(disk.where)
    disk.cut()
    assert (disk.where / "synced").read_bytes() == b"kept"
    assert (disk.where / "unsynced").read_bytes() == b""


def test_name_is_lost_without_fsync_of_the_directory(disk: Disk) -> None:
    """A file whose directory was not fsynced is gone, whatever was done to its content."""
    write(disk.where / "file", b"data", sync=True)
    disk.cut()
    assert list(disk.where.iterdir()) == []


def test_rename_and_unlink_come_undone(disk: Disk) -> None:
    """Names change back to what they were at the last fsync of the directory."""
    write(disk.where / "one", b"1", sync=True)
    write(disk.where / "two", b"2", sync=True)
    sync_directory(disk.where)
    (disk.where / "one").rename(disk.where / "other")
    (disk.where / "two").unlink()
    disk.cut()
    assert sorted(path.name for path in disk.where.iterdir()) == ["one", "two"]


def test_torn_writes_survive_in_sectors() -> None:
    """With chance a write survives in part: whole sectors of 512 bytes, old or new."""
    store = Store()
    for change in (Name("f", 2), SyncNames(), Write(2, 0, b"a" * 4096), Sync(2), Write(2, 100, b"b" * 3000)):
        store.apply(change)
    outcomes = {store.after_cut(random.Random(seed))["f"] for seed in range(200)}
    assert len(outcomes) > 20
    for data in outcomes:
        assert data[:100] == b"a" * 100
        for begin in range(512, 3072, 512):
            assert data[begin : begin + 512] in {b"a" * 512, b"b" * 512}


def test_failed_fsync_is_not_made_up_for_by_the_next(disk: Disk) -> None:
    """After an fsync with EIO the next one succeeds, and the data is lost all the same."""
    write(disk.where / "file", b"old", sync=True)
    sync_directory(disk.where)
    descriptor = os.open(disk.where / "file", os.O_RDWR)
    os.pwrite(descriptor, b"new", 0)
    disk.fail(Fault("fsync", 1, "eio"))
    with pytest.raises(OSError, match="Input/output error"):
        os.fsync(descriptor)
    os.fsync(descriptor)
    assert os.pread(descriptor, 3, 0) == b"new"
    os.close(descriptor)
    disk.cut()
    assert (disk.where / "file").read_bytes() == b"old"


def test_mapping_is_shared_between_processes(disk: Disk) -> None:
    """What one process writes into a shared mapping another one reads: SQLite's wal-index needs that."""
    path = disk.where / "shm"
    write(path, bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapping:
        mapping[5000:5005] = b"hello"
        look = (
            "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 8192); "
            "print(m[5000:5005].decode()); m[0:3] = b'and'"
        )
        said = subprocess.run([sys.executable, "-c", look, path], check=True, capture_output=True, text=True).stdout
        assert said == "hello\n"
        assert mapping[0:3] == b"and"


def test_full_disk_writes_half_and_then_fails(disk: Disk) -> None:
    """ENOSPC comes as it does in life: first a short write, then the error, then at once for everything."""
    descriptor = os.open(disk.where / "file", os.O_RDWR | os.O_CREAT)
    disk.fail(Fault("write", 2, "enospc", lasting=True))
    assert os.pwrite(descriptor, b"x" * 1000, 0) == 1000
    assert os.pwrite(descriptor, b"y" * 2000, 1000) == 536
    for _ in range(2):
        with pytest.raises(OSError, match="No space left") as caught:
            os.pwrite(descriptor, b"y", 1536)
        assert caught.value.errno == errno.ENOSPC
    assert os.statvfs(disk.where).f_bavail == 0
    disk.fail()
    assert os.pwrite(descriptor, b"y", 1536) == 1
    os.close(descriptor)


def test_hanging_request_goes_on_when_the_disk_is_sound(disk: Disk) -> None:
    """An fsync that hangs holds only its own caller, and ends when the disk answers again."""
    write(disk.where / "file", b"data")
    disk.fail(Fault("fsync", 1, "hang"))
    thread = threading.Thread(target=write, args=(disk.where / "file", b"more"), kwargs={"sync": True})
    thread.start()
    assert disk.await_strike()
    write(disk.where / "other", b"not held up")
    assert thread.is_alive()
    assert disk.hung() == 1
    disk.fail()
    thread.join(60)
    assert not thread.is_alive()


def test_what_a_durable_truncation_has_cut_off_comes_back_by_no_chance() -> None:
    """Sectors that a failed fsync left behind may be kept by chance, but not behind the end of the file."""
    begin = [
        Name("a", 1),
        SyncNames(),
        Write(1, 0, b"a" * 600),
        Sync(1),
        Write(1, 600, b"b" * 600),
        Sync(1, failed=True),
    ]

    def left(*changes: Change) -> set[bytes]:
        store = Store()
        for change in [*begin, *changes]:
            store.apply(change)
        return {store.after_cut(random.Random(number))["a"] for number in range(50)}

    assert b"a" * 600 + b"b" * 600 in left()
    assert left(Truncate(1, 600)) >= {b"a" * 600, b"a" * 600 + b"b" * 600}
    assert left(Truncate(1, 600), Sync(1)) == {b"a" * 600}
