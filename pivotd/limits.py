"""The bounds: unit last in the name, the reason beside it, relations asserted at the end.

One that a single module has may stand there.
"""

from __future__ import annotations

CONNECT_TIMEOUT_S = 2.0
"""connect() to a local socket; longer means the backlog is full."""
CONNECT_AGAIN_S = 0.02
"""Between two tries while it is."""
SOCKET_PATH_BYTES_MAX = 107
"""Of a Unix socket's address. Source: unix(7)."""
GREETING_TIMEOUT_S = 3.0
"""QEMU greets in 1-6 ms even when its main loop hangs; silence means that another client holds the monitor."""
QUERY_TIMEOUT_S = 5.0
"""A query answers in under 1 ms unless QEMU's main loop is blocked by storage."""
COMMAND_TIMEOUT_S = 20.0
"""A changing command may open images on slow storage."""
UNSENT_BYTES_MAX = 1 << 20
"""Commands waiting for a QEMU that does not read; pivotd sends no more beyond this. One burst has a few KiB."""
JOB_NAME_BYTES_MAX = 256
"""Longer job ids in events are not pivotd's."""
PLANNING_PATIENCE_S = 10.0
"""How long a request waits for its turn at a domain; two requests to a QEMU that hangs take about this long."""
DRIVER_STARTS_S = 1.0
"""After this time an open pivot without a driver is reported; a driver starts within milliseconds of the record."""
RECONNECT_FIRST_S = 0.05
RECONNECT_MAX_S = 5.0
"""Back-off of reconnecting to a monitor; 200 dead domains then cost 40 connects per second at most."""
LOOK_AGAIN_S = 1.0
"""A driver that waits for events looks again after this, in case an event was lost with a connection."""

LIBVIRT_CONNECT_TIMEOUT_S = 5.0
"""A connection takes 1-10 ms; one that has to start libvirtd takes as long as that looks at its guests."""
LIBVIRT_KEEPALIVE_S = 2
LIBVIRT_KEEPALIVES = 3
"""A libvirtd that answers none of these is given up: 8 s after it has begun to hang, calls to it end."""
LIBVIRT_DOUBT_S = 35.0
"""How long a call whose answer was lost may still be carried out by a libvirtd that works again: each call waits at
most 30 s for its turn at a domain (QEMU_JOB_WAIT_TIME)."""
LIBVIRT_QUICK_S = 1.0
"""A first look that takes longer has waited: for a call of a pivotd before this one, or for a libvirtd that hung."""
LIBVIRT_HELD_BACK_S = 2.0
LIBVIRT_PAUSE_LOOK_S = 0.005
"""Readers of a libvirt guest wait so long for the end of its pause, and look so often: a call takes 1-10 ms."""
CALL_LEAVES_S = 0.001
"""A call to libvirt has left its thread by then: a record beside it would keep the interpreter from that for 0.3 ms."""
LOOKS_BESIDE_MAX = 10
"""How often QEMU is looked at past a libvirt that does not answer, until that is asked again."""
LIBVIRT_MOVE_S = 1.0
"""From libvirt's word that a job has ended to the look at its disk: libvirt saves the definitions right after that."""
LIBVIRT_LIST_S = 10.0
"""Between two looks for libvirt's domains; its events tell of them at once."""

FLEET_TIMEOUT_MS_DEFAULT = 2000
"""An etcd that has just lost its leader answers again after about 1.5 s."""
FLEET_TIMEOUT_MS_MIN = 100
FLEET_TIMEOUT_MS_MAX = 60_000
FLEET_SECOND_S = 0.1
"""After this time without an answer, which takes 2-5 ms, a request also goes to the next endpoint."""
FLEET_RESEND_S = 1.0
"""After this time, and twice, four times that, a silent endpoint gets another copy: a new leader is elected by then."""
FLEET_ENDPOINT_AGAIN_S = 0.05
"""The first wait before an endpoint that has failed is tried again; each further wait is twice as long."""
FLEET_IDLE_S = 30.0
"""A connection that was not used for longer is not trusted: a firewall may have forgotten it."""
FLEET_TOKEN_S = 120.0
"""A token that is older is renewed before a read; etcd's default life is 300 s, and a pause lasts 60 s at most."""
FLEET_ANSWER_BYTES_MAX = 16 << 20
"""A page of FLEET_PAGE keys has about 1 MiB."""
FLEET_PAGE = 2000
FLEET_READS_AT_ONCE = 16
"""Domains that one request for verdicts asks about at the same time."""
FLEET_READERS_AT_ONCE = 4
"""Requests of `pivotctl fleet` and doctor that have a thread; each takes as long as etcd does not answer."""
FLEET_ENDPOINTS_MAX = 16
FLEET_LISTINGS_MAX = 3
"""How often a listing begins again because etcd compacted its revision meanwhile."""
FLEET_WATCH_LOOK_S = 5.0
"""Between two checks that the endpoint of a watch still belongs to a majority."""
FLEET_WATCH_AGAIN_S = 1.0
"""Between two tries to follow a fleet."""
FLEET_TAKES_MAX = 5
"""How often a take-over begins again because the domain has changed meanwhile."""
FLEET_HOST_TTL_S = 120
FLEET_HOST_END_S = 0.5
"""How long an orderly end may wait for etcd; without an answer, the key goes with its lease."""
FLEET_END_S = 1.0
"""How long what was asked of etcd may delay the end of the daemon; etcd answers in milliseconds, or is away."""
FLEET_END_PATIENCE_S = 3.0
"""How long beyond max_pause the end of the daemon waits, with tries of FLEET_END_S, for a guest that is paused until
etcd answers: longer than etcd takes for a new leader. The next daemon goes on with it."""
FLEET_HOST_RENEW_S = 40.0
"""A host that is gone disappears from `fleet ls` after that time; 10,000 hosts are 250 requests per second."""

PAUSE_MS_MAX_DEFAULT = 500
PAUSE_MS_MIN = 1
PAUSE_MS_LIMIT = 60_000
"""Guests lose network peers and watchdogs fire beyond this."""
KEEP_SYNCED_S_MAX = 30 * 86_400
"""Each write of the guest waits for two images while the undo window is open, so the window must end."""
LUKS_ITER_MS_MAX = 60_000
"""QEMU does nothing else while it tries a passphrase."""
ATTEMPTS_DEFAULT = 5
ATTEMPTS_MAX = 100
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 10.0
FLEET_QUICK_S = 0.05
"""After a slower answer the guest has written more: the pivot converges again before its pause."""
FLEET_FRESH_S = 5.0
"""A pause begins only so long after the fleet has answered. Then it is likely to answer within the pause, too."""
FLEET_GRACE_S = 0.05
"""A switch that has used up the longest pause still has so long to be told to the fleet."""
FLEET_WOKEN_S = 0.25
"""A try that ended so long after its time was one of a process that stood still: it is made again."""
FLEET_WOKEN_TRY_S = 0.5
"""The time of that try, also beyond the longest pause."""
FLEET_PAUSED_AGAIN_S = 0.05
"""Between two tries while a guest stands still."""
FLEET_AGAIN_S = 2.0
"""Between two tries while none does."""
YANK_TIMEOUT_S = 0.5
"""The answer to a yank: it needs no main loop, but waits for the one thread that reads monitors."""
OPEN_EXPORT_S = 1
"""QEMU's main loop stands still while it connects to an NBD server, and only this bound ends that."""
UNIX_EXPORT_BYTES = 128 << 10
"""What a mirror may have under way to an NBD server on a Unix socket. More than the socket holds (208 KiB, with some
lost to its bookkeeping) waits for room in it, and before QEMU 10.1 no yank frees a request that does.

Source: tests/engine/test_nbd_hangs.py.
"""
GRANULARITY_BYTES_MIN = 512
GRANULARITY_BYTES_MAX = 64 << 20
"""What QEMU takes for a mirror, powers of two. Source: block/mirror.c and blockdev.c, blockdev_mirror_common()."""
LOAD_GUARD_BYTES = 1 << 30
"""The granularity of a bitmap that marks nothing: the coarser, the less memory it takes."""
MIRROR_BUFFER_BYTES = 16 << 20
"""A mirror's buffer without an argument, and how far it steps at once. Source: block/mirror.c."""
MIRROR_BUFFER_BYTES_MAX = 128 << 20
"""It is QEMU's memory once as much was copied; a limit of a guest's memory should have this room."""
MIRROR_STEPS_MAX = 1 << 16
"""At most so many steps through the holes of a raw disk, if the buffer may be as large: 0.5 to 0.9 s of QEMU's time."""
MIRROR_HOLES_PER_DATA = 4096
"""A larger buffer is for disks with this many times more holes than data: 2 GiB of data among 8 TiB."""
PREPARE_PATIENCE_S = 2.0
"""Once connected, the first reads of an export take milliseconds."""
YANK_GRACE_S = 0.05
"""Time beyond the deadline for a command that ends by itself."""
RECORD_PATIENCE_S = 0.1
"""A record takes 0.5 ms; in a pause that is over, one that no decision rests on is not waited for any longer."""
MIGRATION_LOOKS = 20
MIGRATION_LOOK_S = 0.005
"""A paused guest that is being migrated is resumed after 0.1 s, or once that has ended: a small one takes 3 ms."""
PROBE_TIMEOUT_S = 30.0
"""The flush of both images outside the pause; storage that takes longer is not ready for a switch."""
ROLLBACK_TIMEOUT_S = 5.0
"""A reverse mirror copies nothing: 2-9 ms measured."""
FILE_TIMEOUT_S = 5.0
"""stat() answers in microseconds unless the file system hangs."""
OTHERS_FILE_TIMEOUT_S = 0.5
"""For the images of other pivots: a request does not wait long for storage that it does not use."""
JOURNAL_CHECK_S = 2.0
"""How long a start waits for the answer whether the journal was restored; after that every verdict is in doubt."""
JOURNAL_CHECK_AGAIN_S = 5.0
LOOK_TURN_S = 0.05
LOOKS_AT_ONCE = 64
"""Looks at domains in the background follow one another; one that takes longer than a turn lets the next one begin."""
FLEET_SILENT_S = 20.0
"""After an etcd that has not answered, before a look at a guest's images asks it again."""
ALARM_AGAIN_S = 30.0
"""After a look at a domain's images that failed."""
OTHERS_QUERY_S = 1.0
"""How long a request waits for the QEMU of another domain before it looks at what that process has open instead."""
OTHERS_PAUSE_S = 5.0
"""How long a request waits until pivotd has no pause open in another domain that it must look at."""
ALARM_PAUSE_S = 0.2
"""Between two looks whether a pause has ended, which no look at a domain's images may lengthen."""
IMAGES_BELOW_MAX = 256
"""Images below one image: headers can lead in a circle."""
LINKS_MAX = 40
"""Symbolic links in one path; the kernel follows no more. Source: path_resolution(7)."""
DEVICES_BELOW_MAX = 256
"""Devices below one RAID, device-mapper or loop device."""
LEFTOVERS_DELAY_S = 0.5
"""From an event to the look for nodes that nobody uses: whoever unplugs a disk may delete nodes, or use them again."""
LEFTOVERS_AGAIN_S = 30.0
"""Between two looks at a QEMU that has nodes of pivotd's; each is one write and under 1 ms of QEMU's main loop."""
LEFTOVERS_TIMEOUT_S = 5.0
"""For closing images that no disk uses; an NBD server that takes longer is cut off, since QEMU hangs on it."""
EXTENTS_MAX = 100_000
"""Pieces of a sparse file that are counted to see whether there is room for a copy: 0.3 s on a busy host."""
FILES_AT_ONCE = 64
"""How many images one thread looks at in a row."""
PATH_THREADS_MAX = 4
MOUNT_THREADS_MAX = 16
THREADS_MAX = 64
"""Calls that storage may hold up, at once for one path and over all: a thread that hangs cannot be ended. One file
system that hangs may not have them all, so that those beside it can still be looked at."""
USER_TIMEOUT_S = 0.5
USER_KNOWN_S = 600.0
USERS_KNOWN_MAX = 1000
"""Names of users are for the log alone: a request does not wait for a directory service that is away."""
CONVERGE_CHECK_S = 0.1
CONVERGE_PATIENCE_S = 2.0
"""How long a backlog may stay large before the mirror is told to copy each guest write at once."""
FLUSH_QUICK_MS = 25.0
"""A flush slower than this shows that more dirty data came meanwhile: flush again before the pause."""
FLUSH_ROUNDS_MAX = 5
GO_ON_FIRST_S = 0.5
GO_ON_MAX_S = 30.0
"""Back-off of trying again to write to a destination that has failed: each try is one write, and one line of QEMU's."""
GO_ON_SOUND_S = 5.0
"""After this time a continued copy counts as no longer interrupted; the next failure is a new interruption."""
RATE_INTERVAL_S = 0.5
"""Shorter intervals measure QEMU's bursts rather than the storage."""
BUSY_BACKLOG_BYTES = 64 << 10
"""QEMU's own unit of a mirror's bitmap, for most images."""
BACKLOG_BYTES_MIN = 256 << 10
"""A backlog this small never prevents a try of the switch."""
PAUSE_FIXED_MS = 3.0
PAUSE_BYTES_PER_S = 700 << 20
"""What a pause costs besides the backlog, and the rate of that where none was measured: 1.4 ms per MiB."""
ADOPTED_JOB_LENGTH_MAX = 64
"""QEMU reads commands byte by byte, and job ids are in those that are sent while the guest is paused."""
STALL_S = 30.0
"""A copy without progress for this long is reported as stalled."""
LIMITED_PIECE_BYTES = 16 << 20
"""What QEMU's mirror copies at once under a limit of its bandwidth, before it waits. Source: measured with 7.2,
docs/evacuate.md."""
SLOWED_BYTES_PER_S_MIN = 64 << 10
SLOWED_WRITES_PER_S_MIN = 8
"""A guest is not slowed below this: its own timeouts would end it, and a destination so slow is of no use."""
CANCEL_AGAIN_S = 0.2
HOLD_LOOK_S = 5.0
FAILED_FIRST_S = 0.5
FAILED_PAUSED_MAX_S = 1.0
FAILED_MAX_S = 30.0
"""Back-off of a driver that fails again and again; a guest in its pause waits for no more than a second."""
BACK_OFF_REST_S = 0.001
"""A rest of a wait so short is none: clocks cannot tell it."""
FAILED_BEFORE_END = 3
"""After this many consecutive failures a driver leaves its pause open when the daemon ends, for the next process."""
END_PATIENCE_S = 20.0
"""How long beyond max_pause a QEMU that does not answer delays the end of the daemon."""
PIPELINE_PAUSE_MS_MIN = 100
"""From this max_pause on, and after a quick probe, pivotd sends ``stop`` and ``job-complete`` in one write."""
BACKLOG_BYTES_MAX = 2 << 20
"""Pause only below this dirty backlog: about 1.4 ms per MiB inside the pause."""

OPEN_FILES = 16_384
"""A monitor for each domain, a connection for each client, a file for each flush. The unit has the same."""
ALLOCATIONS_BETWEEN_COLLECTIONS = 50_000
"""While recovering: walking over all that 1,000 drivers allocate, every 700 allocations, took a fifth of the time."""
RELOAD_TIMEOUT_S = 50.0
"""For the answer to a reload; the unit's TimeoutStartSec=60s, which bounds ExecReload=, is longer."""
RELOAD_READ_S = 10.0
"""For reading the configuration: files take a millisecond, names of users and groups what their directory takes."""
RELOAD_AGAIN_S = 0.5
"""After a request to reload could not be accepted."""

JOURNAL_BATCH_MAX = 256
JOURNAL_QUEUE_MAX = 10_000
ARCHIVE_SCAN = 2000
"""Pivots that one look for those that may be archived passes: about 10 ms of a reader."""
ARCHIVE_PIVOTS = 32
ARCHIVE_RECORDS = 1000
"""What one transaction of an archive takes, at most or with a single pivot that has more."""
ARCHIVE_ROWS = 250
"""Records that one transaction of the journal deletes: about 5 ms during which the writer takes nothing else."""
ARCHIVE_PAGES = 64
"""Pages by which one transaction makes the journal smaller: about 3 ms of the writer."""
ARCHIVE_REST = 2.0
"""Rest between two batches, as a multiple of what the last one took: archiving is in no hurry, guests use the disk."""
ARCHIVE_CALM_S = 1e9
"""How long archiving waits for the end of a pause."""
ARCHIVE_FIRST_S = 300.0
ARCHIVE_EVERY_S = 6 * 3600.0
"""From the start to the first look for what may be archived, and between two looks."""
ARCHIVE_STEP_S = 2.0
"""How long one request to archive works before it answers; the client asks again."""
ARCHIVE_BUSY_TIMEOUT_MS = 5000
"""A batch of a writer, or one look of a reader, locks the other out for milliseconds."""
ARCHIVES_OF_YEAR = 9
"""One is the rule; others begin where it is damaged, missing, read-only, or that of a journal before a restore."""
KEEP_S_MIN = 86_400
KEEP_S_MAX = 100 * 365 * 86_400
DEAD_DAEMON_LOOKS = 3
"""How often a reader looks again because the daemon died under its hands."""
JOURNAL_LOCK_TIMEOUT_S = 2.0
"""A client reading offline may hold the lock for milliseconds while it copies the file."""
JOURNAL_NAMES_S = 0.5
"""How long health waits for a look at the names of the journal's files: their storage may hang."""
JOURNAL_COPIES_MAX = 3
"""Copies of the journal from before an upgrade of its schema, one for each schema."""
PIVOTS_LISTED_MAX = 1000
PIVOTS_LISTED = 100
"""Pivots in one answer: the maximum, and the default."""
READ_AT_ONCE = 20
"""Pivots or disks that are read and encoded in one go: 1-2 ms during which a pause may begin, which then shares the
interpreter with the rest of them. Source: bench/readers.py.
"""
RECORDS_AT_ONCE = 100
"""The same for records."""
PIVOTS_EXAMINED_AT_ONCE = 2000
RECORDS_EXAMINED_AT_ONCE = 5000
"""Rows that SQLite compares with a filter in one go, without the interpreter."""
PIVOTS_EXAMINED_MAX = 20_000
RECORDS_EXAMINED_MAX = 100_000
"""Rows that are compared for one answer; it then says from where to go on."""
CLOCK_SET_BACK_S = 86_400
"""How far the clock of a host may have gone back, so that rows of a later time are still found by their order."""
PIVOTS_NAMED_MAX = 11
"""Pivots of which a name may be the beginning of the id, in one answer: more than anybody can choose from."""
SWITCH_INTERVAL_S = 0.0005
"""How long a thread that reads may keep the interpreter from the event loop, which asks for it at each answer of QEMU.
Python's own 5 ms are longer than a pause; with a tenth of that 9 of 10 answers come in 1.5 instead of 2.1 ms.
"""
READ_HELD_BACK_S = 0.1
"""How long reads wait for a pause to end; a guest that stays paused for longer does not block readers."""
CLEAN_UP_HELD_BACK_S = 5.0
"""How long what a pivot leaves in QEMU stays there while other guests are in their pauses, which may be 1,000 after a
kill (bench/domains.py)."""
DOCTOR_S = 30.0
"""How long the daemon looks for what is wrong with all guests; what it has not seen by then is told as that."""
DOCTOR_AT_ONCE = 16
"""Disks whose images are looked at at once: each has a thread."""
DOCTOR_GUESTS_AT_ONCE = 64
"""QEMUs that are asked at once; those that hang have 5 s for each question."""
DOCTOR_HEALTH_S = 10.0
"""A daemon that has not said how it is by then hangs; it waits for a pause at most, and answers in milliseconds."""
DOCTOR_JOURNAL_S = 60.0
"""How long the whole journal is read for damage: about 1 GiB on slow storage."""
DOCTOR_COMMAND_S = 10.0
"""For each program of systemd that is asked."""
DOCTOR_STORAGE_BYTES_MIN = 1 << 30
DOCTOR_STORAGE_BYTES_ERROR = 64 << 20
"""Room on storage of images below which a warning, and an error, is due."""
DOCTOR_STATE_BYTES_MIN = 256 << 20
DOCTOR_STATE_BYTES_ERROR = 16 << 20
"""The same for the state directory: a pivot takes about 10 KiB."""
DOCTOR_JOURNAL_BYTES_MAX = 1 << 30
DOCTOR_WAL_BYTES_MAX = 256 << 20
"""Larger ones are worth a look: some 100,000 pivots, and a reader that holds a snapshot for hours."""
DOCTOR_CLOCK_S = 5.0
"""A clock that goes back by less is one that is being slewed or stepped at boot."""
DOCTOR_BUNDLE_BYTES_MAX = 64 << 20
"""The largest journal that goes into a bundle as a copy; of a larger one the last records go in."""
STATUS_INTERVAL_S = 0.2
"""Between two texts for `systemctl status`: many domains may connect at once."""
READS_WAITING_MAX = 256
"""Reads that wait in one queue, 0.2 s of work; further ones are told to ask again."""
EVENTS_PAGE_MAX = 1000
SEQ_MAX = 1 << 53
"""Sequence numbers, and how many things may be asked for: what every reader of JSON counts exactly."""
NEWS_DELAY_S = 0.03
"""How long the announcement of records waits while a guest is in its pause: most pauses are over by then."""
WAIT_TIMEOUT_S_MAX = 300.0
REQUEST_BODY_BYTES_MAX = 64 << 10
REQUEST_READ_BYTES_MAX = 4 << 20
"""A larger body is read up to here and dropped: a client that still writes would not see the refusal."""
REFUSALS_INTERVAL_S = 60
REFUSALS_LOGGED_PER_UID = 10
REFUSALS_LOGGED = 100
"""Refused requests that the log tells in one interval, of one user and of all; of the others it tells the number."""
REFUSED_BODY_S = 1.0
"""How long the rest of a refused request is read; a local client writes it in microseconds."""
METRICS_VERDICTS_S = 30.0
"""The verdicts of all disks are counted anew for a scrape after this time, if there are new records."""
STREAMS_MAX = 64
STREAMS_PER_UID_MAX = 16
"""Event streams of one user; root alone may have more: a program that leaks them locks itself out and nobody else."""
STREAMS_RESERVED = 16
"""Part of STREAMS_MAX for root and operators only, so that readers cannot lock out those who have to act."""
COMPLETION_S = 1.0
"""How long a shell waits for names that it could complete."""
HOOK_TIMEOUT_S = 60
"""How long the command of `events --exec` may take, unless --timeout says otherwise."""
HOOK_TIMEOUT_S_MAX = 86_400
HOOK_GRACE_S = 5.0
"""Between SIGTERM and SIGKILL for a command that took too long, or whose follower is ended."""
HOOK_AGAIN_FIRST_S = 1.0
HOOK_AGAIN_MAX_S = 60.0
"""Back-off of a command that fails: a definition is late by a minute at most once the fault is mended."""
FOLLOWER_AGAIN_FIRST_S = 0.05
FOLLOWER_AGAIN_MAX_S = 5.0
"""Back-off of a follower whose daemon is away; it never gives up."""
FOLLOWER_PAGE = 100
"""Records that a follower holds at once."""
FOLLOWER_LOOK_S = 60.0
"""An idle follower makes sure this often that the journal is still the one that its cursor belongs to."""
EVACUATE_PATIENCE_S = 300.0
"""How long `evacuate` waits for a daemon that is away: it works for hours, and pivotd may be upgraded meanwhile."""
EVACUATE_PARALLEL_MAX = 64
"""Each pivot that runs costs two short requests a second."""
NOT_STARTED_S = 1.0
"""How long a daemon that cannot start answers the clients that wait for it; the others make systemd start it again."""
NOT_STARTED_LINGER_S = 0.3
"""How long it waits for one more client, and keeps the connections open: a request is written in a millisecond."""
NAME_LENGTH_MAX = 64
REQUEST_ID_LENGTH_MAX = 128

assert REFUSALS_LOGGED_PER_UID <= REFUSALS_LOGGED
assert RELOAD_READ_S + FILE_TIMEOUT_S < RELOAD_TIMEOUT_S
assert NOT_STARTED_LINGER_S < NOT_STARTED_S
assert STREAMS_PER_UID_MAX <= STREAMS_MAX - STREAMS_RESERVED
assert RECONNECT_FIRST_S < RECONNECT_MAX_S
assert HOOK_AGAIN_FIRST_S < HOOK_AGAIN_MAX_S
assert FOLLOWER_AGAIN_FIRST_S < FOLLOWER_AGAIN_MAX_S
assert FOLLOWER_PAGE <= EVENTS_PAGE_MAX
assert PAUSE_MS_MIN <= PAUSE_MS_MAX_DEFAULT <= PAUSE_MS_LIMIT
assert 0 < PATH_THREADS_MAX < MOUNT_THREADS_MAX < THREADS_MAX
assert QUERY_TIMEOUT_S < COMMAND_TIMEOUT_S
assert OTHERS_PAUSE_S + 2 * QUERY_TIMEOUT_S + FILE_TIMEOUT_S < DOCTOR_S
assert DOCTOR_STORAGE_BYTES_ERROR < DOCTOR_STORAGE_BYTES_MIN
assert DOCTOR_STATE_BYTES_ERROR < DOCTOR_STATE_BYTES_MIN
assert FLEET_QUICK_S < FLEET_FRESH_S
assert FLEET_PAUSED_AGAIN_S < FLEET_WOKEN_S < FLEET_WOKEN_TRY_S
assert FLEET_SECOND_S < FLEET_WOKEN_TRY_S
assert FLEET_ENDPOINT_AGAIN_S < FLEET_SECOND_S < FLEET_RESEND_S
assert FLEET_HOST_RENEW_S * 2 < FLEET_HOST_TTL_S
assert PAUSE_MS_LIMIT / 1000 < FLEET_TOKEN_S
