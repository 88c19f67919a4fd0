"""Checks of PostgreSQL: schema, stale writes that landed, and a probe of the rev guard."""

from collections.abc import Iterator

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.database.schema import check
from rsky_pipeline.operations.verification.probe import probe_rev_guard
from rsky_pipeline.operations.verification.report import Check, passed

_TOMBSTONES = 10_000  # that are looked at for records that came back
_RESURRECTED = f"""
    SELECT count(*) FROM (SELECT uri, rev FROM rsky_pipeline.tombstone LIMIT {_TOMBSTONES}) t
    JOIN record r ON r.uri = t.uri WHERE r.rev <= t.rev"""


def check_database(settings: Settings) -> Iterator[Check]:
    """Check the database; one that cannot be reached is one failed check."""
    url, schema = settings.database_url or "", settings.database_schema
    try:
        yield _schema(url, schema)
        with Database.connect(
            url, schema=schema, name="verify", statement_timeout_ms=20_000, lock_timeout_ms=5_000
        ) as database:
            yield _guard(database)
            yield _resurrected(database)
    except DatabaseError as error:
        text = " ".join(str(error).split())
        yield Check("database", "fail", text, "see `rsky-pipeline db check` and database_url")


def _schema(url: str, schema: str) -> Check:
    found = check(url, schema)
    errors = [item for item in found if item.severity == "error"]
    if errors:
        figure = f"{len(errors)} differences, the first: {errors[0].subject}"
        return Check("schema", "fail", figure, "`rsky-pipeline db check` lists them", len(errors))
    return passed("schema", f"as expected, {len(found)} warnings", 0)


def _guard(database: Database) -> Check:
    failed = probe_rev_guard(database)
    if failed:
        remedy = "stop the indexers: older states overwrite newer ones"
        return Check("rev_guard", "fail", "; ".join(failed), remedy, len(failed))
    return passed("rev_guard", "stale writes were refused, in a transaction rolled back", 0)


def _resurrected(database: Database) -> Check:
    count = int(database.query(_RESURRECTED)[0][0])
    figure = f"{count:,} of up to {_TOMBSTONES:,} deleted records are there in an older state"
    if count:
        return Check("deleted_stays_deleted", "fail", figure,
                     "something else writes to `record`: stop it, then index these repos again",
                     count)  # fmt: skip
    return passed("deleted_stays_deleted", figure, 0)
