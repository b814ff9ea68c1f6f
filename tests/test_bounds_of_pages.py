"""Each bound that a page names is the one of the code: its sentence is made from the constant, and must be there."""

from __future__ import annotations

import pytest

from pivotd import config, daemon, limits
from pivotd.cli import doctor_bundle, doctor_units, journal_copy, journal_look
from pivotd.client import checks, daemon_client, transport
from tests.documents import ROOT, Page

GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
SENTENCES = [
    ("README.md", f"after `max_pause` ({limits.PAUSE_MS_MAX_DEFAULT} ms)"),
    ("docs/api.md", f"It takes up to {limits.DOCTOR_S:.0f} s if QEMUs or storage hang"),
    ("docs/api.md", f"looks at {limits.PIVOTS_EXAMINED_MAX:,} pivots at most"),
    ("docs/api.md", f'`{{"keep_s": {400 * config._KEEP_UNITS_S["d"]}}}`'),
    ("docs/architecture.md", f"every {limits.LEFTOVERS_AGAIN_S:.0f} s while a QEMU has such nodes"),
    ("docs/command-line.md", f"{limits.PIVOTS_EXAMINED_MAX:,} pivots or {limits.RECORDS_EXAMINED_MAX:,} records"),
    ("docs/doctor.md", f"up to {doctor_bundle.LOG_LINES:,} lines of the log"),
    (
        "docs/doctor.md",
        f"above {limits.DOCTOR_BUNDLE_BYTES_MAX // MIB} MiB, its last {journal_copy.RECORDS_MAX:,} records",
    ),
    (
        "docs/doctor.md",
        f"A warning below {limits.DOCTOR_STATE_BYTES_MIN // MIB} MiB, "
        f"an error below {limits.DOCTOR_STATE_BYTES_ERROR // MIB} MiB",
    ),
    (
        "docs/doctor.md",
        f"A warning below {limits.DOCTOR_STORAGE_BYTES_MIN // GIB} GiB, "
        f"an error below {limits.DOCTOR_STORAGE_BYTES_ERROR // MIB} MiB",
    ),
    ("docs/doctor.md", f"in the last {journal_look.RECORDS:,} records of a week, above {limits.DOCTOR_CLOCK_S:.0f} s"),
    ("docs/doctor.md", f"pivotd removes its own within {limits.LEFTOVERS_AGAIN_S:.0f} s"),
    ("docs/hooks.md", f"up to every {limits.HOOK_AGAIN_MAX_S:.0f} s"),
    (
        "docs/hooks.md",
        f"longer than `--timeout` ({limits.HOOK_TIMEOUT_S} s) gets SIGTERM, {limits.HOOK_GRACE_S:.0f} s later SIGKILL",
    ),
    ("docs/journal.md", f"pivotd looks every {limits.ARCHIVE_EVERY_S / 3600:.0f} hours"),
    ("docs/journal.md", f"at most {limits.ARCHIVE_ROWS} records at once"),
    ("docs/journal.md", f"after archiving, {limits.ARCHIVE_PAGES} at a time"),
    ("docs/log.md", f"Of one user it tells {limits.REFUSALS_LOGGED_PER_UID} in a minute"),
    ("docs/log.md", f"of all users {limits.REFUSALS_LOGGED};"),
    ("docs/metrics.md", f"looked up again at most every {limits.METRICS_VERDICTS_S:.0f} s"),
    ("docs/performance.md", f"at most {limits.READ_HELD_BACK_S * 1000:.0f} ms: a guest that stays paused"),
    ("docs/performance.md", f"beyond {limits.READS_WAITING_MAX} in a queue"),
    ("docs/performance.md", f"lists {limits.READ_AT_ONCE} pivots at a time"),
    (
        "docs/performance.md",
        f"as much as makes {limits.MIRROR_STEPS_MAX:,} steps, at most {limits.MIRROR_BUFFER_BYTES_MAX // MIB} MiB",
    ),
    ("docs/performance.md", f"{limits.MIRROR_HOLES_PER_DATA:,} times more holes than data"),
    ("docs/protocol.md", f"`max_pause` is {limits.PIPELINE_PAUSE_MS_MIN} ms or more"),
    ("docs/protocol.md", f"to a server on a Unix socket to {limits.UNIX_EXPORT_BYTES // KIB} KiB"),
    ("docs/protocol.md", f"for up to {limits.MIGRATION_LOOKS * limits.MIGRATION_LOOK_S:.1f} s before it resumes"),
    ("docs/protocol.md", f"for {limits.LIBVIRT_DOUBT_S:.0f} seconds by the libvirtd that it was made to"),
    ("docs/report.md", f"takes the newest {limits.PIVOTS_LISTED_MAX:,} pivots"),
    ("docs/tasks.md", f"and so on, up to {limits.GO_ON_MAX_S:.0f} s"),
    ("docs/tasks.md", f"After {limits.STALL_S:.0f} s without progress"),
    (
        "docs/tasks.md",
        f"a power of two from {limits.GRANULARITY_BYTES_MIN} to {limits.GRANULARITY_BYTES_MAX // MIB}M, "
        f"for an export on a Unix socket {limits.UNIX_EXPORT_BYTES // KIB}K at most",
    ),
    ("systemd/pivotd.toml", f"in milliseconds ({limits.PAUSE_MS_MIN} to {limits.PAUSE_MS_LIMIT})"),
    ("systemd/pivotd.toml", f"stays with its present image (1 to {limits.ATTEMPTS_MAX})"),
    ("systemd/pivotd.toml", f"in milliseconds ({limits.FLEET_TIMEOUT_MS_MIN} to {limits.FLEET_TIMEOUT_MS_MAX})"),
]


@pytest.mark.parametrize(("page", "sentence"), SENTENCES)
def test_the_page_names_the_bound(page: str, sentence: str):
    """Word by word."""
    assert sentence in " ".join(Page(ROOT / page).text.replace("\n# ", " ").split())


def test_bounds_that_pages_name_in_words():
    """In the order of the pages; whoever changes one of these changes its page."""
    assert limits.PIVOTS_NAMED_MAX == 11  # api.md: up to eleven whose ids begin so
    assert limits.ARCHIVE_STEP_S == 2  # api.md: moves old pivots for two seconds
    assert limits.CLOCK_SET_BACK_S == 86_400  # command-line.md: set back by more than a day
    assert transport.SILENT_S == 5  # command-line.md: does not answer for five seconds
    assert transport.REQUEST_TIMEOUT_S == 60  # command-line.md: wait for a minute
    assert daemon_client.SILENCE_S == 60  # the same for a stream
    assert limits.COMPLETION_S == 1  # command-line.md: without an answer within a second
    assert doctor_units.HOUR_S == 3600  # doctor.md: restart within the last hour
    assert checks.DAY_S == 86_400  # doctor.md: at ready for more than a day
    assert limits.EVACUATE_PATIENCE_S == 300  # evacuate.md: if pivotd stays away for five minutes
    assert limits.LIMITED_PIECE_BYTES == 16 * MIB  # evacuate.md: the first 16 MiB of each disk at once
    assert limits.FLEET_HOST_TTL_S == 120  # fleet.md: within the last two minutes
    assert (limits.FLEET_END_S, limits.FLEET_END_PATIENCE_S) == (1, 3)  # fleet.md: a second, and 3 s beyond max_pause
    assert daemon.DISCOVER_INTERVAL_S == 5  # install.md: finds it within five seconds
    assert limits.JOURNAL_COPIES_MAX == 3  # install.md, journal.md: the three newest stay
    assert limits.LIBVIRT_KEEPALIVE_S * (limits.LIBVIRT_KEEPALIVES + 1) == 8  # libvirt.md: given up after eight seconds
    assert limits.FLEET_READERS_AT_ONCE == 4  # performance.md: while etcd does not answer there are four
    assert limits.LIBVIRT_HELD_BACK_S == 2  # performance.md: in the first 2 s of it
    assert limits.NAME_LENGTH_MAX == 64  # libvirt.md: longer than 64 characters
