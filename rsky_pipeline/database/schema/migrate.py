"""Creates and upgrades the schema: forward only, in one transaction, under an advisory lock.

The AppView's tables belong to the official migrator. Tables it has created stay untouched; only the
pipeline's own tables and indexes are added. Applied steps are recorded in
`rsky_pipeline.schema_version`, never in the official bookkeeping (see `official`), since an AppView
refuses a database with an unknown migration. Official migrations are applied only if a release is
asked for, and then under their own names.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources

from rsky_pipeline.database.connection import Database, Transaction, quote_schema
from rsky_pipeline.database.errors import NO_PRIVILEGE, DatabaseError, SchemaMismatchError
from rsky_pipeline.database.schema.official import (
    lock_appview,
    missing_migrations,
    names_of_others,
    oldest_migrations,
    read_migrations,
    require_oldest,
    retire,
)

OLDEST_SERVER = 14
PIPELINE_SCHEMA = "rsky_pipeline"
APPVIEW_VERSION = 1  # the step that creates the AppView's tables
_BREAKING = "-- breaks older programs"
_GRANT = (
    "; to do: GRANT CREATE ON DATABASE to this role and make it the owner of the tables, or run "
    "`rsky-pipeline db init` once as their owner"
)
_LOCK = 0x72736B79  # "rsky": the advisory lock that concurrent initialisations wait for

_VERSION_TABLE = f"""
CREATE TABLE {PIPELINE_SCHEMA}.schema_version (
    version integer PRIMARY KEY,
    name text NOT NULL,
    appview_schema text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


@dataclass(frozen=True, slots=True)
class Migration:
    """A numbered step, the content of `NNNN_name.sql`."""

    version: int
    name: str
    sql: str

    @property
    def breaks_older(self) -> bool:
        """Whether programs that lack this step cannot use the database once it is applied."""
        return _BREAKING in self.sql


@cache
def migrations() -> tuple[Migration, ...]:
    """Return all steps in order."""
    found = []
    for file in resources.files(__package__).iterdir():
        if file.name.endswith(".sql"):
            version, _, name = file.name.removesuffix(".sql").partition("_")
            found.append(Migration(int(version), name, file.read_text("utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.version))


def initialise(
    url: str,
    schema: str = "bsky",
    *,
    steps: Sequence[Migration] | None = None,
    appview: str | None = None,
) -> list[str]:
    """Upgrade the database to this version's schema; returns the changes made, [] if none.

    `appview` is the release of the official AppView that the database is to be of (see
    `official.RELEASES`): without it a new one is of the oldest, and one that is there stays.

    Waits for a concurrent initialisation, and for an official migrator. Raises SchemaMismatchError,
    changing nothing, if the database is unusable: the server is too old, the tables have another
    origin, a newer version has applied a step that breaks older programs (most steps only add, and
    do not), or it is beyond `appview`.
    """
    with (
        Database.connect(url, schema=schema, name="db", statement_timeout_ms=0) as db,
        db.transaction() as tx,
    ):
        return migrate(tx, schema, migrations() if steps is None else steps, appview)


def migrate(
    tx: Transaction, schema: str, steps: Sequence[Migration], appview: str | None = None
) -> list[str]:
    """Apply missing steps in an open transaction; see `initialise`."""
    tx.query("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    _check_server(tx)
    missing = _missing(tx, schema, steps)
    if missing or appview:
        lock_appview(tx)
    done: list[str] = []
    for step in missing:
        with _named(step):
            for change in _changes(tx, schema, step):
                if change.sql:
                    tx.execute(change.sql)
                done.append(f"{change.done} {change.subject}")
            tx.execute(
                f"INSERT INTO {PIPELINE_SCHEMA}.schema_version (version, name, appview_schema) "
                "VALUES (%s, %s, %s)",
                [step.version, step.name, schema],
            )
            if step.breaks_older:
                tx.execute(
                    f"UPDATE {PIPELINE_SCHEMA}.schema_version SET breaks_older = true "
                    "WHERE version = %s",
                    [step.version],
                )
    for change in _official_changes(tx, schema, appview):
        tx.execute(change.sql)
        done.append(f"{change.done} {change.subject}")
    retire(tx, schema)
    return done


def pending(url: str, schema: str = "bsky", *, appview: str | None = None) -> list[str]:
    """Dry run of `initialise`: the same changes and errors, without making them."""
    with (
        Database.connect(url, schema=schema, name="db") as db,
        db.transaction() as tx,
    ):
        tx.execute("SET TRANSACTION READ ONLY")
        _check_server(tx)
        changes = [
            change
            for step in _missing(tx, schema, migrations())
            for change in _changes(tx, schema, step)
        ]
        changes += _official_changes(tx, schema, appview)
        return [f"{change.verb} {change.subject}" for change in changes]


@dataclass(frozen=True, slots=True)
class _Change:
    """A change that a step makes: "create" and "created" of one subject; some need no SQL."""

    verb: str
    done: str
    subject: str
    sql: str = ""


def _changes(tx: Transaction, schema: str, step: Migration) -> Iterator[_Change]:
    """Yield the changes of a step; reads only."""
    if step.version == APPVIEW_VERSION:
        yield from _appview_changes(tx, schema, step)
    else:
        yield _Change("apply", "applied", f"{step.version:04}_{step.name}", step.sql)


def _official_changes(tx: Transaction, schema: str, appview: str | None) -> Iterator[_Change]:
    """Yield the official migrations that lead to a release; reads only."""
    if appview is None:
        return
    names = list(oldest_migrations())  # of a database that is not yet made
    if _exists(tx, schema, "kysely_migration"):
        names = [name for name, _ in read_migrations(tx, schema)]
    for one in missing_migrations(names, appview):
        others = f"AppViews before {one.release} refuse it, or fail"
        subject = f"the official migration {one.name} ({others})"
        yield _Change("apply", "applied", subject, one.recorded_sql())


@contextmanager
def _named(step: Migration) -> Iterator[None]:
    """Name the step in the error of a statement, and the privilege that it lacks."""
    try:
        yield
    except DatabaseError as error:
        if error.sqlstate is None:  # refused by ourselves, or no answer
            raise
        text = f"step {step.version:04}_{step.name} of the schema fails: {error}"
        if error.sqlstate == NO_PRIVILEGE:
            text += _GRANT
        raise type(error)(text, sqlstate=error.sqlstate, statement=error.statement) from error


def _missing(tx: Transaction, schema: str, steps: Sequence[Migration]) -> list[Migration]:
    """Return the steps not yet applied.

    Raises SchemaMismatchError if the database has an unknown step that breaks older programs.
    """
    applied = _applied(tx, schema)
    known = {step.version for step in steps}
    foreign = sorted(
        version for version, breaks in applied.items() if breaks and version not in known
    )
    if foreign:
        raise SchemaMismatchError(
            f"the database has version {foreign[-1]} of the schema, which this rsky-pipeline (it "
            f"knows {max(known, default=0)}) cannot use: use the one that upgraded it, or a newer "
            "one"
        )
    return [step for step in steps if step.version not in applied]


def _appview_changes(tx: Transaction, schema: str, step: Migration) -> Iterator[_Change]:
    for name in dict.fromkeys((PIPELINE_SCHEMA, schema)):
        if not tx.query("SELECT 1 FROM pg_namespace WHERE nspname = %s", [name]):
            sql = f"CREATE SCHEMA {quote_schema(name)}"
            yield _Change("create", "created", f"the schema {name}", sql)
    if _exists(tx, schema, "kysely_migration"):
        names = [name for name, _ in read_migrations(tx, schema)]
        require_oldest(names)
        others = len(names_of_others(names))
        of_fork = f", {others} of a fork" if others else ""
        count = f"{len(names) - others} official migrations{of_fork}"
        subject = f"the AppView's tables in {schema} ({count})"
        yield _Change("keep", "found", subject, _VERSION_TABLE)
        return
    names = re.findall(r'^CREATE TABLE "?(\w+)', step.sql, re.MULTILINE)
    if found := [name for name in names if _exists(tx, schema, name)]:
        raise SchemaMismatchError(
            f"the schema {schema} has AppView tables ({', '.join(found[:5])}) without the official "
            "migrator's bookkeeping (kysely_migration), so it is unknown which state they have: "
            "choose another database_schema, or let the official data plane migrate the database "
            "first"
        )
    yield from _extension_changes(tx)
    sql = f"{_VERSION_TABLE};\n{step.sql}"
    yield _Change("create", "created", f"the AppView's tables in {schema}", sql)


def _extension_changes(tx: Transaction) -> Iterator[_Change]:
    """Create pg_trgm in `public`, where the official migrator and our search_path expect it."""
    found = tx.query(
        "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
        "WHERE extname = 'pg_trgm'"
    )
    if found:
        if found[0][0] != "public":
            raise SchemaMismatchError(
                f"the extension pg_trgm is in the schema {found[0][0]}; the AppView expects it in "
                "public: ALTER EXTENSION pg_trgm SET SCHEMA public"
            )
        return
    sql = "CREATE EXTENSION pg_trgm SCHEMA public"
    yield _Change("create", "created", "the extension pg_trgm in public", sql)


def _check_server(tx: Transaction) -> None:
    number, encoding = tx.query(
        "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')"
    )[0]
    if number < OLDEST_SERVER * 10_000:
        raise SchemaMismatchError(
            f"PostgreSQL {number // 10_000} is too old: at least {OLDEST_SERVER} is needed"
        )
    if encoding != "UTF8":
        raise SchemaMismatchError(
            f"the database has the encoding {encoding}: create one with ENCODING 'UTF8'"
        )


def _applied(tx: Transaction, schema: str) -> dict[int, bool]:
    """Return applied steps by version, and whether each breaks programs that lack it."""
    if not _exists(tx, PIPELINE_SCHEMA, "schema_version"):
        return {}
    # Read through JSON, because step 0006 adds the column.
    rows = tx.query(
        "SELECT version, appview_schema, coalesce((to_jsonb(v)->>'breaks_older')::boolean, false) "
        f"FROM {PIPELINE_SCHEMA}.schema_version v"
    )
    other = next((name for _, name, _ in rows if name != schema), None)
    if other is not None:
        raise SchemaMismatchError(
            f"this database's pipeline belongs to the schema {other}, not to {schema}: set "
            f"database_schema to {other}, or use another database"
        )
    return {version: breaks for version, _, breaks in rows}


def _exists(tx: Transaction, schema: str, table: str) -> bool:
    return bool(
        tx.query(
            "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = %s", [schema, table]
        )
    )
