"""The calls that no guard of a libvirt guest can leave out, by a client that does nothing else.

python -m bench.libvirt_bare URI DOMAIN DISK FILE

It pauses the guest, has its writes counted, has libvirt switch the disk, asks QEMU for the disks and libvirt for both
definitions, syncs the file of the next boot and its directory, writes one record, and lets the guest run. It looks at
nothing of what it gets, has one thread, and keeps no journal but one block. It prints for how many ms the guest was
paused. bench.libvirt_pause uses it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from pivotd.host.fsync import fsync_directory, fsync_file
from pivotd.libvirt.library import load

RECORD_BYTES = 8192
"""As much as a record adds to the journal."""


def main() -> None:
    """Guard one pivot."""
    uri, name, disk, file = sys.argv[1:]
    library = load()
    api, query = library.api, library.qemu.qemuMonitorCommand
    connection = api.open(uri)
    domain = connection.lookupByName(name)
    with tempfile.TemporaryFile() as journal:
        os.pwrite(journal.fileno(), bytes(RECORD_BYTES), 0)
        os.fsync(journal.fileno())  # the record then overwrites blocks that are there
        began_s = time.monotonic()
        domain.suspend()
        query(domain, '{"execute":"query-blockstats"}', 0)
        domain.blockJobAbort(disk, api.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        query(domain, '{"execute":"query-block"}', 0)
        domain.XMLDesc(0)
        domain.XMLDesc(api.VIR_DOMAIN_XML_INACTIVE)
        fsync_file(Path(file))
        fsync_directory(Path(file).parent)
        os.pwrite(journal.fileno(), b"x" * RECORD_BYTES, 0)
        os.fdatasync(journal.fileno())
        domain.state()
        domain.resume()
        print((time.monotonic() - began_s) * 1e3)
    connection.close()


if __name__ == "__main__":
    main()
