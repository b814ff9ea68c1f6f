"""The schema of the journal: numbered, append-only steps, applied with ``sqlite-utils migrate journal.db migrations/``.

Never edit a step that was released; add the next one, and raise SCHEMA_VERSION in pivotd/journal/schema.py with it.
Each step runs in one transaction and sets ``PRAGMA user_version`` to its number, so a kill leaves the file before or
after a step, never in between. A pivotd that writes new words into old columns (another ``kind``, another ``phase``)
takes a new number too, even if no table changes: that is how an older pivotd knows that it must not touch the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlite_utils import Migrations

if TYPE_CHECKING:
    from sqlite_utils import Database

migrations = Migrations("pivotd")

APPLICATION_ID = 0x70767464
"""``pvtd``: marks an SQLite file as a journal of pivotd."""

M001_TABLES = (
    """
    CREATE TABLE domain (
        name TEXT PRIMARY KEY NOT NULL,
        qmp_path TEXT NOT NULL,
        added_at TEXT NOT NULL,
        added_by_uid INTEGER NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE pivot (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        request_id TEXT NOT NULL UNIQUE,
        domain TEXT NOT NULL,
        qmp_path TEXT NOT NULL,
        kind TEXT NOT NULL,
        phase TEXT NOT NULL,
        requested_by_uid INTEGER NOT NULL,
        requested_by_gid INTEGER NOT NULL,
        requested_by_pid INTEGER NOT NULL,
        options TEXT NOT NULL,
        created_at TEXT NOT NULL,
        hold INTEGER NOT NULL CHECK (hold IN (0, 1)),
        attempt INTEGER NOT NULL,
        identity TEXT NOT NULL,
        run_state_before TEXT,
        owes_resume INTEGER NOT NULL CHECK (owes_resume IN (0, 1)),
        pausing_since TEXT,
        error TEXT,
        decided_at TEXT,
        closed_at TEXT
    ) STRICT
    """,
    """
    CREATE TABLE pivot_disk (
        pivot TEXT NOT NULL REFERENCES pivot (id),
        disk_index INTEGER NOT NULL,
        disk TEXT NOT NULL,
        qdev TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        source_filename TEXT NOT NULL,
        source_format TEXT NOT NULL,
        source_node TEXT NOT NULL,
        source_file_id TEXT,
        destination_filename TEXT NOT NULL,
        destination_format TEXT NOT NULL,
        destination_node TEXT NOT NULL,
        destination_file_id TEXT,
        job TEXT NOT NULL,
        cache_direct INTEGER NOT NULL CHECK (cache_direct IN (0, 1)),
        outcome TEXT,
        PRIMARY KEY (pivot, disk_index),
        UNIQUE (pivot, disk)
    ) STRICT
    """,
    """
    CREATE TABLE pause (
        pivot TEXT NOT NULL REFERENCES pivot (id),
        number INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        pause_ms REAL NOT NULL,
        ended TEXT NOT NULL,
        PRIMARY KEY (pivot, number)
    ) STRICT
    """,
    """
    CREATE TABLE record (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        domain TEXT,
        pivot TEXT REFERENCES pivot (id),
        event TEXT NOT NULL,
        phase TEXT,
        facts TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX pivot_open ON pivot (domain) WHERE phase <> 'closed'",
    "CREATE INDEX pivot_by_domain ON pivot (domain, number)",
    "CREATE INDEX record_by_pivot ON record (pivot) WHERE pivot IS NOT NULL",
)

M001_APPEND_ONLY = ("record", "pause")
M001_NEVER_DELETED = ("pivot", "pivot_disk")


@migrations()
def m001_journal(db: Database) -> None:
    """Create the tables, and the triggers that keep history what it was."""
    for statement in M001_TABLES:
        db.execute(statement)
    for table in M001_APPEND_ONLY:
        refuse = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        db.execute(f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}")
        db.execute(f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}")
    # INSERT OR REPLACE deletes without firing a delete trigger unless recursive_triggers is on.
    db.execute(
        "CREATE TRIGGER record_no_replace BEFORE INSERT ON record "
        "WHEN EXISTS (SELECT 1 FROM record WHERE seq = NEW.seq) "
        "BEGIN SELECT RAISE(ABORT, 'record is append-only'); END"
    )
    for table in M001_NEVER_DELETED:
        db.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} rows are never deleted'); END"
        )
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")


M002_SIDES = ("top", "base")
M002_COLUMNS = ("filename", "format", "node", "file_id")


@migrations()
def m002_layers(db: Database) -> None:
    """Make room for the layers that a commit or a pull merges; the words of ``kind`` and ``outcome`` grow with it."""
    for side in M002_SIDES:
        for column in M002_COLUMNS:
            db.execute(f"ALTER TABLE pivot_disk ADD COLUMN {side}_{column} TEXT")
    db.execute("ALTER TABLE pivot_disk ADD COLUMN backing_file TEXT")
    db.execute("PRAGMA user_version = 2")


@migrations()
def m003_layers_between(db: Database) -> None:
    """Make room for the names of all layers that a commit or a pull merges: a JSON list, empty where none was kept."""
    db.execute("ALTER TABLE pivot_disk ADD COLUMN between_filenames TEXT NOT NULL DEFAULT '[]'")
    db.execute("PRAGMA user_version = 3")


M004_STATEMENTS = (
    "ALTER TABLE pivot ADD COLUMN revision INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE pivot ADD COLUMN undo_of TEXT",
    """
    UPDATE pivot SET undo_of = json_extract(options, '$.undo_of')
    WHERE json_valid(options) AND json_extract(options, '$.undo_of') IS NOT NULL
    """,
    "CREATE UNIQUE INDEX pivot_undo_of ON pivot (undo_of) WHERE undo_of IS NOT NULL",
    """
    CREATE TABLE disk_latest (
        domain TEXT NOT NULL,
        disk TEXT NOT NULL,
        pivot TEXT NOT NULL REFERENCES pivot (id),
        PRIMARY KEY (domain, disk)
    ) STRICT, WITHOUT ROWID
    """,
    # With max(), SQLite takes the other columns from the row that has it.
    """
    INSERT INTO disk_latest (domain, disk, pivot)
    SELECT domain, disk, id FROM (
        SELECT domain, disk, id, max(number) FROM pivot JOIN pivot_disk ON pivot_disk.pivot = pivot.id
        GROUP BY domain, disk
    )
    """,
    """
    CREATE TRIGGER pivot_disk_latest AFTER INSERT ON pivot_disk BEGIN
        INSERT INTO disk_latest (domain, disk, pivot) SELECT domain, NEW.disk, id FROM pivot WHERE id = NEW.pivot
        ON CONFLICT (domain, disk) DO UPDATE SET pivot = excluded.pivot;
    END
    """,
    """
    CREATE TRIGGER disk_latest_no_delete BEFORE DELETE ON disk_latest
    BEGIN SELECT RAISE(ABORT, 'disk_latest rows are never deleted'); END
    """,
)


@migrations()
def m004_revisions(db: Database) -> None:
    """Count the changes of each pivot, give undo a column of its own, and keep the last pivot of each disk at hand."""
    for statement in M004_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 4")


M005_ACCEPTED = ("filename TEXT", "format TEXT", "at TEXT", "by_uid INTEGER", "reason TEXT")
M005_STATEMENTS = (
    """
    CREATE TABLE image_latest (
        filename TEXT NOT NULL,
        domain TEXT NOT NULL,
        disk TEXT NOT NULL,
        file_id TEXT,
        pivot TEXT NOT NULL REFERENCES pivot (id),
        PRIMARY KEY (filename, domain, disk)
    ) STRICT, WITHOUT ROWID
    """,
    # With max(), SQLite takes the other columns from the row that has it.
    """
    INSERT INTO image_latest (filename, domain, disk, file_id, pivot)
    SELECT filename, domain, disk, file_id, id FROM (
        SELECT side.filename, domain, side.disk, side.file_id, id, max(number) FROM pivot JOIN (
            SELECT pivot, disk, source_filename AS filename, source_file_id AS file_id FROM pivot_disk
            UNION ALL SELECT pivot, disk, destination_filename, destination_file_id FROM pivot_disk
            UNION ALL SELECT pivot, disk, top_filename, top_file_id FROM pivot_disk
            UNION ALL SELECT pivot, disk, base_filename, base_file_id FROM pivot_disk
            UNION ALL SELECT pivot, disk, value, NULL FROM pivot_disk,
                json_each(CASE WHEN json_valid(between_filenames) THEN between_filenames ELSE '[]' END)
        ) AS side ON pivot.id = side.pivot
        WHERE side.filename IS NOT NULL GROUP BY side.filename, domain, side.disk
    )
    """,
    "CREATE INDEX image_latest_by_file ON image_latest (file_id) WHERE file_id IS NOT NULL",
    # A pivot of a disk begins after the one before it has ended: what comes later is the last that knew an image.
    """
    CREATE TRIGGER pivot_disk_images AFTER INSERT ON pivot_disk BEGIN
        INSERT INTO image_latest (filename, domain, disk, file_id, pivot)
        SELECT side.filename, domain, NEW.disk, side.file_id, id FROM pivot, (
            SELECT NEW.source_filename AS filename, NEW.source_file_id AS file_id
            UNION ALL SELECT NEW.destination_filename, NEW.destination_file_id
            UNION ALL SELECT NEW.top_filename, NEW.top_file_id
            UNION ALL SELECT NEW.base_filename, NEW.base_file_id
            UNION ALL SELECT value, NULL FROM json_each(NEW.between_filenames)
        ) AS side WHERE id = NEW.pivot AND side.filename IS NOT NULL
        ON CONFLICT (filename, domain, disk) DO UPDATE SET file_id = excluded.file_id, pivot = excluded.pivot;
    END
    """,
    """
    CREATE TRIGGER pivot_disk_image_made AFTER UPDATE OF destination_file_id ON pivot_disk BEGIN
        UPDATE image_latest SET file_id = NEW.destination_file_id
        WHERE filename = NEW.destination_filename AND disk = NEW.disk AND pivot = NEW.pivot;
    END
    """,
    """
    CREATE TRIGGER pivot_disk_image_accepted AFTER UPDATE OF accepted_at ON pivot_disk BEGIN
        INSERT INTO image_latest (filename, domain, disk, pivot)
        SELECT NEW.accepted_filename, domain, NEW.disk, id FROM pivot WHERE id = NEW.pivot
        ON CONFLICT (filename, domain, disk) DO UPDATE SET pivot = excluded.pivot;
    END
    """,
    # Which file this journal is; a restored copy is another one, and then every disk is in doubt until it is seen.
    "CREATE TABLE journal_file (identity TEXT NOT NULL) STRICT",
    "ALTER TABLE disk_latest ADD COLUMN doubtful INTEGER NOT NULL DEFAULT 0 CHECK (doubtful IN (0, 1))",
    "DROP TRIGGER pivot_disk_latest",
    """
    CREATE TRIGGER pivot_disk_latest AFTER INSERT ON pivot_disk BEGIN
        INSERT INTO disk_latest (domain, disk, pivot) SELECT domain, NEW.disk, id FROM pivot WHERE id = NEW.pivot
        ON CONFLICT (domain, disk) DO UPDATE SET pivot = excluded.pivot, doubtful = 0;
    END
    """,
    """
    CREATE TRIGGER disk_latest_accepted AFTER UPDATE OF accepted_at ON pivot_disk BEGIN
        UPDATE disk_latest SET doubtful = 0 WHERE disk = NEW.disk AND pivot = NEW.pivot;
    END
    """,
    """
    CREATE TRIGGER image_latest_no_delete BEFORE DELETE ON image_latest
    BEGIN SELECT RAISE(ABORT, 'image_latest rows are never deleted'); END
    """,
)


@migrations()
def m005_images(db: Database) -> None:
    """Index every image: the last pivot of each disk that knew it. Keep what people accept."""
    for column in M005_ACCEPTED:
        db.execute(f"ALTER TABLE pivot_disk ADD COLUMN accepted_{column}")
    for statement in M005_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 5")


M006_STATEMENTS = (
    # When the guest was last seen to leave its QEMU by a migration; another host may have moved its disks since.
    "ALTER TABLE disk_latest ADD COLUMN left_at TEXT",
    "DROP TRIGGER pivot_disk_latest",
    """
    CREATE TRIGGER pivot_disk_latest AFTER INSERT ON pivot_disk BEGIN
        INSERT INTO disk_latest (domain, disk, pivot) SELECT domain, NEW.disk, id FROM pivot WHERE id = NEW.pivot
        ON CONFLICT (domain, disk) DO UPDATE SET pivot = excluded.pivot, doubtful = 0, left_at = NULL;
    END
    """,
    "DROP TRIGGER disk_latest_accepted",
    """
    CREATE TRIGGER disk_latest_accepted AFTER UPDATE OF accepted_at ON pivot_disk BEGIN
        UPDATE disk_latest SET doubtful = 0, left_at = NULL WHERE disk = NEW.disk AND pivot = NEW.pivot;
    END
    """,
)


@migrations()
def m006_guests_that_left(db: Database) -> None:
    """Keep when a guest left its QEMU by a migration."""
    for statement in M006_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 6")


M007_STATEMENTS = (
    """
    CREATE TABLE overwritten (
        domain TEXT NOT NULL,
        disk TEXT NOT NULL,
        image TEXT NOT NULL,
        pivot TEXT NOT NULL REFERENCES pivot (id),
        moved_on INTEGER NOT NULL CHECK (moved_on IN (0, 1)),
        PRIMARY KEY (domain, disk)
    ) STRICT, WITHOUT ROWID
    """,
    # Only a person's word ends this doubt: a new pivot of the disk proves nothing of what was below it.
    """
    CREATE TRIGGER overwritten_accepted AFTER UPDATE OF accepted_at ON pivot_disk BEGIN
        DELETE FROM overwritten WHERE disk = NEW.disk
            AND domain = (SELECT domain FROM pivot WHERE id = NEW.pivot);
    END
    """,
)


@migrations()
def m007_overwritten(db: Database) -> None:
    """Keep the disks of which a pivot of another disk was forced to overwrite an image, or has moved on from it."""
    for statement in M007_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 7")


M008_STATEMENTS = (
    "ALTER TABLE pivot ADD COLUMN manager TEXT NOT NULL DEFAULT 'pivotd' CHECK (manager IN ('pivotd', 'libvirt'))",
    "ALTER TABLE pivot ADD COLUMN asking INTEGER NOT NULL DEFAULT 0 CHECK (asking IN (0, 1))",
)


@migrations()
def m008_libvirt(db: Database) -> None:
    """Keep who carries out the steps of a pivot, and whether libvirt was asked to switch."""
    for statement in M008_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 8")


M009_STATEMENTS = (
    """
    ALTER TABLE pivot ADD COLUMN fleet TEXT NOT NULL DEFAULT 'none'
        CHECK (fleet IN ('none', 'announced', 'told', 'superseded'))
    """,
    # The owner's epoch under which the pivot was announced.
    "ALTER TABLE pivot ADD COLUMN fleet_epoch INTEGER CHECK (fleet <> 'announced' OR fleet_epoch IS NOT NULL)",
    "ALTER TABLE pause ADD COLUMN fleet_ms REAL",
)


@migrations()
def m009_fleet(db: Database) -> None:
    """Keep what the fleet knows of a pivot, and how long its guest waited for that."""
    for statement in M009_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 9")


M010_STATEMENTS = (
    """
    CREATE TABLE guest_to_release (
        domain TEXT NOT NULL PRIMARY KEY,
        epoch INTEGER NOT NULL,
        seen_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
)


@migrations()
def m010_guest_to_release(db: Database) -> None:
    """Keep the guests that have left by a migration, and that the fleet still has to release."""
    for statement in M010_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 10")


M011_TABLES = (
    """
    CREATE TABLE archive (
        name TEXT PRIMARY KEY NOT NULL,
        pivots INTEGER NOT NULL,
        records INTEGER NOT NULL,
        first_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        first_closed_at TEXT NOT NULL,
        last_closed_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    # What stays of an archived pivot; ``whole`` 0: its rows stay too, because the index of images names it.
    """
    CREATE TABLE archived (
        number INTEGER PRIMARY KEY,
        pivot TEXT NOT NULL UNIQUE,
        request_id TEXT NOT NULL UNIQUE,
        undo_of TEXT,
        domain TEXT NOT NULL,
        archive TEXT NOT NULL REFERENCES archive (name),
        whole INTEGER NOT NULL CHECK (whole IN (0, 1))
    ) STRICT
    """,
    "CREATE UNIQUE INDEX archived_undo_of ON archived (undo_of) WHERE undo_of IS NOT NULL",
    "CREATE INDEX archived_by_domain ON archived (domain, number) WHERE whole = 1",
    # What may be deleted in this transaction. No archive is called '', so a row that is still there at COMMIT fails it.
    """
    CREATE TABLE archiving (
        pivot TEXT PRIMARY KEY NOT NULL REFERENCES archived (pivot),
        until_commit TEXT NOT NULL DEFAULT '' REFERENCES archive (name) DEFERRABLE INITIALLY DEFERRED
    ) STRICT, WITHOUT ROWID
    """,
    # Without these, each deletion would read the whole table for rows that still name the pivot.
    "CREATE INDEX image_latest_by_pivot ON image_latest (pivot)",
    "CREATE INDEX disk_latest_by_pivot ON disk_latest (pivot)",
)
M011_DELETED = {
    "record": ("pivot", "record is append-only"),
    "pause": ("pivot", "pause is append-only"),
    "pivot": ("id", "pivot rows are never deleted"),
    "pivot_disk": ("pivot", "pivot_disk rows are never deleted"),
}
M011_TRIGGERS = (
    """
    CREATE TRIGGER archiving_only_archived BEFORE INSERT ON archiving
    WHEN NOT EXISTS (SELECT 1 FROM archived WHERE pivot = NEW.pivot)
        OR NOT EXISTS (SELECT 1 FROM pivot WHERE id = NEW.pivot AND phase = 'closed')
        OR EXISTS (SELECT 1 FROM disk_latest WHERE pivot = NEW.pivot)
        OR EXISTS (SELECT 1 FROM overwritten WHERE pivot = NEW.pivot)
    BEGIN SELECT RAISE(ABORT, 'a verdict rests on this pivot, or no archive has it'); END
    """,
    """
    CREATE TRIGGER pivot_not_archived BEFORE INSERT ON pivot
    WHEN EXISTS (SELECT 1 FROM archived WHERE request_id = NEW.request_id)
        OR EXISTS (SELECT 1 FROM archived WHERE pivot = NEW.id)
        OR EXISTS (SELECT 1 FROM archived WHERE undo_of = NEW.undo_of)
    BEGIN SELECT RAISE(ABORT, 'an archive has a pivot of this name'); END
    """,
    """
    CREATE TRIGGER archived_no_update BEFORE UPDATE ON archived
    WHEN NOT (OLD.whole = 0 AND NEW.whole = 1 AND NEW.number = OLD.number AND NEW.pivot = OLD.pivot
        AND NEW.request_id = OLD.request_id AND NEW.undo_of IS OLD.undo_of AND NEW.archive = OLD.archive)
    BEGIN SELECT RAISE(ABORT, 'archived rows never change'); END
    """,
    """
    CREATE TRIGGER archived_no_delete BEFORE DELETE ON archived
    BEGIN SELECT RAISE(ABORT, 'archived rows are never deleted'); END
    """,
    """
    CREATE TRIGGER archive_no_delete BEFORE DELETE ON archive
    BEGIN SELECT RAISE(ABORT, 'archive rows are never deleted'); END
    """,
)


@migrations()
def m011_archives(db: Database) -> None:
    """Let the archiver, and nobody else, delete what it has copied to an archive; keep what is where."""
    for statement in M011_TABLES:
        db.execute(statement)
    for table, (column, why) in M011_DELETED.items():
        db.execute(f"DROP TRIGGER {table}_no_delete")
        allowed = f"EXISTS (SELECT 1 FROM archiving WHERE pivot = OLD.{column})"  # noqa: S608 - our own names
        refuse = f"BEGIN SELECT RAISE(ABORT, '{why}'); END"
        db.execute(f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} WHEN NOT {allowed} {refuse}")
    for statement in M011_TRIGGERS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 11")


M012_STATEMENTS = (
    # The image, not the one of the verdict, on which the guest was last seen to run.
    "ALTER TABLE disk_latest ADD COLUMN ran_on TEXT",
    "ALTER TABLE disk_latest ADD COLUMN ran_on_format TEXT CHECK ((ran_on_format IS NULL) = (ran_on IS NULL))",
    "ALTER TABLE disk_latest ADD COLUMN ran_on_at TEXT CHECK ((ran_on_at IS NULL) = (ran_on IS NULL))",
    "DROP TRIGGER pivot_disk_latest",
    """
    CREATE TRIGGER pivot_disk_latest AFTER INSERT ON pivot_disk BEGIN
        INSERT INTO disk_latest (domain, disk, pivot) SELECT domain, NEW.disk, id FROM pivot WHERE id = NEW.pivot
        ON CONFLICT (domain, disk) DO UPDATE SET pivot = excluded.pivot, doubtful = 0, left_at = NULL,
            ran_on = NULL, ran_on_format = NULL, ran_on_at = NULL;
    END
    """,
    "DROP TRIGGER disk_latest_accepted",
    """
    CREATE TRIGGER disk_latest_accepted AFTER UPDATE OF accepted_at ON pivot_disk BEGIN
        UPDATE disk_latest SET doubtful = 0, left_at = NULL, ran_on = NULL, ran_on_format = NULL, ran_on_at = NULL
        WHERE disk = NEW.disk AND pivot = NEW.pivot;
    END
    """,
)


@migrations()
def m012_other_images(db: Database) -> None:
    """Keep the image on which a guest has run without pivotd: after QEMU has ended, nothing else tells of it."""
    for statement in M012_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 12")


M013_STATEMENTS = (
    # When the disk's guest was last seen to run on an image that its verdict did not name.
    "ALTER TABLE image_latest ADD COLUMN ran_on_at TEXT",
    "UPDATE image_latest SET ran_on_at = (SELECT l.ran_on_at FROM disk_latest l WHERE l.domain = image_latest.domain"
    " AND l.disk = image_latest.disk AND l.ran_on = image_latest.filename)",
    "CREATE INDEX image_latest_ran_on ON image_latest (domain, disk) WHERE ran_on_at IS NOT NULL",
    """
    CREATE TRIGGER image_latest_accepted AFTER UPDATE OF accepted_at ON pivot_disk BEGIN
        UPDATE image_latest SET ran_on_at = NULL WHERE ran_on_at IS NOT NULL AND disk = NEW.disk
            AND domain = (SELECT domain FROM pivot WHERE id = NEW.pivot);
    END
    """,
    # Its writes are on the destination, or it was written all over.
    """
    CREATE TRIGGER image_latest_switched AFTER UPDATE OF outcome ON pivot_disk WHEN NEW.outcome = 'switched' BEGIN
        UPDATE image_latest SET ran_on_at = NULL WHERE ran_on_at IS NOT NULL AND disk = NEW.disk
            AND domain = (SELECT domain FROM pivot WHERE id = NEW.pivot)
            AND filename IN (NEW.source_filename, NEW.destination_filename);
    END
    """,
)


@migrations()
def m013_images_with_writes(db: Database) -> None:
    """Keep every image on which a guest has run without pivotd: it may have the only copy of what was written there."""
    for statement in M013_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 13")


M014_STATEMENTS = (
    # The file that a QEMU of the guest was last seen to have as the right image; it counts for an image of this name.
    "ALTER TABLE disk_latest ADD COLUMN file_name TEXT",
    "ALTER TABLE disk_latest ADD COLUMN file_id TEXT",
    "ALTER TABLE disk_latest ADD COLUMN file_boot_id TEXT",
    "ALTER TABLE disk_latest ADD COLUMN file_born TEXT",
    """
    CREATE TRIGGER disk_latest_file AFTER UPDATE OF pivot ON disk_latest BEGIN
        UPDATE disk_latest SET file_name = NULL, file_id = NULL, file_boot_id = NULL, file_born = NULL
        WHERE domain = NEW.domain AND disk = NEW.disk;
    END
    """,
    """
    CREATE TRIGGER disk_latest_file_accepted AFTER UPDATE OF accepted_at ON pivot_disk BEGIN
        UPDATE disk_latest SET file_name = NULL, file_id = NULL, file_boot_id = NULL, file_born = NULL
        WHERE disk = NEW.disk AND pivot = NEW.pivot;
    END
    """,
)


@migrations()
def m014_files_seen(db: Database) -> None:
    """Keep which file QEMU had: after it has ended, another one may have its name, and even its number."""
    for statement in M014_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 14")


M015_STATEMENTS = (
    # When the file of each image was made, where pivotd has seen it.
    *(f"ALTER TABLE pivot_disk ADD COLUMN {side}_born TEXT" for side in ("source", "destination", "top", "base")),
    # Only the fleet names another image than ran_on; of older rows, that is so at most where there was a fleet.
    "ALTER TABLE disk_latest ADD COLUMN ran_on_by_fleet INTEGER NOT NULL DEFAULT 0 CHECK (ran_on_by_fleet IN (0, 1))",
    """
    UPDATE disk_latest SET ran_on_by_fleet = 1 WHERE ran_on IS NOT NULL
        AND EXISTS (SELECT 1 FROM pivot p WHERE p.id = disk_latest.pivot AND p.fleet_epoch IS NOT NULL)
        AND EXISTS (SELECT 1 FROM pivot_disk d WHERE d.pivot = disk_latest.pivot AND d.disk = disk_latest.disk
            AND disk_latest.ran_on = ifnull(d.accepted_filename,
                CASE d.outcome WHEN 'switched' THEN d.destination_filename ELSE d.source_filename END))
    """,
)


@migrations()
def m015_births(db: Database) -> None:
    """Keep when the files of a pivot were made: QEMU and pivotd may end before a look has noted which one QEMU has."""
    for statement in M015_STATEMENTS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 15")
