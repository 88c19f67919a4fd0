"""What PostgreSQL holds about a record and its account."""

from collections.abc import Mapping, Sequence
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.operations.trace.places import InDatabase, Subject

_FLAGS = ("invalidReplyRoot", "violatesThreadGate", "violatesEmbeddingRules")


def ask_database(settings: Settings, subject: Subject) -> InDatabase:
    """Look everything up; a database that cannot be asked is a `problem`."""
    try:
        with Database.connect(
            settings.database_url or "", schema=settings.database_schema, name="trace",
            statement_timeout_ms=30_000,
        ) as database:  # fmt: skip
            return _look(database, subject)
    except DatabaseError as error:
        return InDatabase(problem=" ".join(str(error).split()))


def _look(database: Database, subject: Subject) -> InDatabase:
    collection = registry.load().get(subject.collection)
    table = collection.table.name if collection and collection.table else None
    uri, did = [subject.uri], [subject.did]
    duplicate = database.query('SELECT "duplicateOf" FROM duplicate_record WHERE uri = %s', uri)
    return InDatabase(
        record=_row(database, ("cid", "rev", "indexed_at", "taken_down"),
                    'SELECT cid, rev, "indexedAt", "takedownRef" FROM record WHERE uri = %s', uri),
        tables=_tables(database, collection, subject.uri),
        main_table=table,
        duplicate_of=duplicate[0][0] if duplicate else None,
        tombstone=_row(database, ("rev", "deleted_at"),
                       "SELECT rev, deleted_at::text FROM rsky_pipeline.tombstone WHERE uri = %s",
                       uri),
        floor=_floor(database, subject.did),
        actor=_row(database, ("handle", "status", "taken_down"),
                   'SELECT handle, "upstreamStatus", "takedownRef" FROM actor WHERE did = %s', did),
        account_event=_row(
            database, ("time", "active", "status"),
            "SELECT event_time, active, status FROM rsky_pipeline.account_event WHERE did = %s",
            did),
        synced_rev=_first(
            database.query('SELECT "repoRev" FROM actor_sync WHERE did = %s', did)),
        backfill=_row(
            database, ("status", "rev", "error", "attempts", "updated_at"),
            "SELECT status, rev, error, attempts, updated_at::text "
            "FROM rsky_pipeline.backfill_repo WHERE did = %s", did),
        labels=_labels(database, subject),
        flags=_flags(database, subject.uri) if table == "post" else {},
        records=_records(database, subject.did) if not subject.collection else {},
    )  # fmt: skip


def _tables(database: Database, collection: Collection | None, uri: str) -> dict[str, int]:
    """Count the rows of a record in the tables of its collection, and what it set off."""
    owners = {"notification": "recordUri"}
    if collection is not None and collection.table is not None:
        owners[collection.table.name] = "uri"
        owners |= {side.name: side.owner for side in collection.side}
    counts = {
        name: int(
            database.query(f'SELECT count(*) FROM "{name}" WHERE "{owner}" = %s', [uri])[0][0]
        )
        for name, owner in owners.items()
    }
    return {name: count for name, count in counts.items() if count}


def _floor(database: Database, did: str) -> str | None:
    if database.query("SELECT to_regclass('rsky_pipeline.repo_floor')")[0][0] is None:
        return None  # a database of an earlier version
    return _first(database.query("SELECT rev FROM rsky_pipeline.repo_floor WHERE did = %s", [did]))


def _labels(database: Database, subject: Subject) -> tuple[Mapping[str, Any], ...]:
    rows = database.query(
        "SELECT src, uri, val, cts FROM label WHERE uri = ANY(%s) AND NOT neg LIMIT 100",
        [[subject.uri, subject.did]],
    )
    return tuple(dict(zip(("src", "uri", "val", "cts"), row, strict=True)) for row in rows)


def _flags(database: Database, uri: str) -> dict[str, bool]:
    columns = ", ".join(f'"{name}"' for name in _FLAGS)
    rows = database.query(f"SELECT {columns} FROM post WHERE uri = %s", [uri])
    return {name: bool(value) for name, value in zip(_FLAGS, rows[0], strict=True)} if rows else {}


def _records(database: Database, did: str) -> dict[str, int]:
    rows = database.query(
        "SELECT split_part(uri, '/', 4), count(*) FROM record WHERE did = %s GROUP BY 1 ORDER BY 1",
        [did],
    )
    return {str(name): int(count) for name, count in rows}


def _row(
    database: Database, names: Sequence[str], sql: str, parameters: Sequence[Any]
) -> dict[str, Any] | None:
    rows = database.query(sql, parameters)
    return dict(zip(names, rows[0], strict=True)) if rows else None


def _first(rows: Sequence[tuple[Any, ...]]) -> str | None:
    return str(rows[0][0]) if rows else None
