"""The migrations of the official AppView: which release has which, and how they are recorded.

The AppView's tables belong to its own migrator (kysely), which keeps the names of its migrations in
`kysely_migration`. At each start it orders them by time, ties by name, and compares: they must be
the first of the names that its release knows, in their order. With an unknown name, a hole or a
time that JavaScript cannot read it refuses to start; a table that is there without its name makes
its own migration fail. So a name is recorded with its tables, in one transaction, and never at an
earlier time than one before it.

How far a database is decides which AppView may start: a later release migrates it, an earlier one
refuses it. A new database is therefore made as the oldest release has it that this program serves.

A record type whose official table is younger has one of the same name and columns in our own
schema, which is behind the AppView's in the search_path: statements name neither schema. Once the
official table appears, new statements find that one. Then the rows are moved and the stand-in is
dropped, which has statements that were prepared before look for the name again.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from rsky_pipeline.database.connection import Database, Transaction, quote_schema
from rsky_pipeline.database.errors import DatabaseError, SchemaMismatchError

OLDEST_RELEASE = "0.0.275"
_OLDEST_STEP = "0001_appview.sql"
RELEASES = ("0.0.275", "0.0.276", "0.0.277", "0.0.278", "0.0.279", "0.0.280")
# The session lock that kysely holds while it migrates.
_LOCK = 3853314791062309107
_LOCK_SECONDS = 60
_RECORD = """
INSERT INTO kysely_migration (name, "timestamp")
SELECT '{name}', GREATEST(
    to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), max("timestamp")
) FROM kysely_migration
"""
# Official migrations under the names that the fork of Blacksky (blacksky-algorithms/atproto) gave
# them.
_RENAMED = {
    "_20260806T000000000Z": "_20260729T223157563Z",
    "_20260807T000000000Z": "_20260618T200000000Z",
}

STAND_IN = "reference_list_opt_out"  # official since 0.0.278
_IS_REPLACED = """
SELECT to_regclass(%s) IS NOT NULL AND to_regclass(%s) IS NOT NULL
"""
# Between the appearance of the table and the move, records are written into it and deleted from it.
# So records that are gone are left behind, and of two that say the same that one stands that is
# there. The stand-in is locked first: a transaction may have used it, and then use the other one.
_MOVE = f"""
LOCK TABLE rsky_pipeline.{STAND_IN} IN ACCESS EXCLUSIVE MODE;
LOCK TABLE {{schema}}.{STAND_IN} IN SHARE ROW EXCLUSIVE MODE;
DELETE FROM rsky_pipeline.{STAND_IN} s
WHERE NOT EXISTS (SELECT FROM {{schema}}.record r WHERE r.uri = s.uri AND r.cid = s.cid);
INSERT INTO {{schema}}.{STAND_IN} (uri, cid, creator, "subjectUri", "createdAt", "indexedAt")
SELECT uri, cid, creator, "subjectUri", "createdAt", "indexedAt" FROM rsky_pipeline.{STAND_IN}
ORDER BY uri ON CONFLICT DO NOTHING;
INSERT INTO {{schema}}.duplicate_record (uri, cid, "duplicateOf", "indexedAt")
SELECT s.uri, s.cid, t.uri, s."indexedAt"
FROM rsky_pipeline.{STAND_IN} s JOIN {{schema}}.{STAND_IN} t USING (creator, "subjectUri")
WHERE t.uri <> s.uri ON CONFLICT DO NOTHING;
DROP TABLE rsky_pipeline.{STAND_IN}
"""


@dataclass(frozen=True, slots=True)
class OfficialMigration:
    """A migration of a release after `OLDEST_RELEASE`."""

    name: str  # as in `kysely_migration`
    release: str  # the first one of @atproto/bsky that has it
    sql: str  # without the record of it

    def recorded_sql(self) -> str:
        """Return the statements that make the change and record it."""
        return f"{self.sql};\n{_RECORD.format(name=self.name)}"


@cache
def oldest_migrations() -> tuple[str, ...]:
    """Return the names of the migrations of `OLDEST_RELEASE`, as the step records them that makes
    its tables."""
    text = resources.files(__package__).joinpath(_OLDEST_STEP).read_text("utf-8")
    return tuple(re.findall(r"'(_20\d{6}T\d{9}Z)'", text))


@cache
def later_migrations() -> tuple[OfficialMigration, ...]:
    """Return the migrations after those of `OLDEST_RELEASE`, in their order."""
    found = []
    for file in resources.files(__package__).joinpath("official").iterdir():
        if file.name.endswith(".sql"):
            release, _, sql = file.read_text("utf-8").removeprefix("-- ").partition("\n")
            found.append(OfficialMigration(f"_{file.name.removesuffix('.sql')}", release, sql))
    return tuple(sorted(found, key=lambda migration: migration.name))


def release_number(release: str) -> tuple[int, ...]:
    """Return a release in a form that orders."""
    return tuple(int(part) for part in release.split("."))


def release_of(names: Collection[str]) -> str | None:
    """Return the oldest release that has these migrations and no others of the known ones.

    None if even the oldest has more.
    """
    if oldest_migrations()[-1] not in names:
        return None
    last = [one.release for one in later_migrations() if one.name in names]
    return max((OLDEST_RELEASE, *last), key=release_number)


def name_releases(release: str) -> str:
    """Name the known releases whose tables are those of this one, which is the oldest of them."""
    number = release_number(release)
    changed = {one.release for one in later_migrations()}
    same = [release]
    for each in RELEASES:
        if release_number(each) > number:
            if each in changed:
                break
            same.append(each)
    return f"release {release}" if len(same) == 1 else f"releases {release} to {same[-1]}"


def official_names(names: Collection[str]) -> set[str]:
    """Return the names with the official ones of migrations that a fork records under its own."""
    return {_RENAMED.get(name, name) for name in names}


def names_of_others(names: Collection[str]) -> list[str]:
    """Return unknown names that are no newer official ones: those of a fork."""
    known = {*oldest_migrations(), *(one.name for one in later_migrations())}
    newest = max(known)
    return sorted(name for name in names if name not in known and name < newest)


def read_migrations(tx: Transaction, schema: str) -> list[tuple[str, str]]:
    """Return the names and times of `kysely_migration` as the official migrator orders them."""
    return [
        (str(name), str(time))
        for name, time in tx.query(
            f'SELECT name, "timestamp" FROM {quote_schema(schema)}.kysely_migration '
            'ORDER BY "timestamp" COLLATE "C", name COLLATE "C"'
        )
    ]


def require_oldest(names: Collection[str]) -> None:
    """Raise SchemaMismatchError for a database of a release before `OLDEST_RELEASE`.

    A database with names of a fork is not judged by them.
    """
    oldest = set(oldest_migrations())
    if oldest - set(names) and set(names) <= oldest:
        raise SchemaMismatchError(
            f"the database has {len(names)} of the {len(oldest)} official migrations of release "
            f"{OLDEST_RELEASE}, the oldest that the pipeline can use: start an AppView of it or a "
            "later one, which makes the others"
        )


def missing_migrations(names: Collection[str], release: str) -> Iterator[OfficialMigration]:
    """Yield the migrations that lead to a release.

    Raises SchemaMismatchError if the AppView of that release would refuse the database.
    """
    wanted = release_number(release)
    known = [one for one in later_migrations() if release_number(one.release) <= wanted]
    beyond = {name for name in names if name > oldest_migrations()[-1]} - {
        one.name for one in known
    }
    if beyond:
        raise SchemaMismatchError(
            f"the database is beyond release {release}, whose AppView refuses to start with it: "
            f"it has {', '.join(sorted(beyond))}"
        )
    yield from (one for one in known if one.name not in names)


def lock_appview(tx: Transaction) -> None:
    """Keep official migrators out until the end of the transaction.

    Raises TransactionConflictError if one is at work for over a minute.
    """
    tx.execute(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
    try:
        tx.query("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    except DatabaseError as error:
        text = f"an AppView may be migrating the database; its lock is not free: {error}"
        raise type(error)(text, sqlstate=error.sqlstate, statement=error.statement) from error
    tx.execute("SET LOCAL lock_timeout TO DEFAULT")


def retire(tx: Transaction, schema: str) -> bool:
    """Move the rows into the official table if it is there; return whether it was done."""
    quoted = quote_schema(schema)
    names = (f"rsky_pipeline.{STAND_IN}", f"{quoted}.{STAND_IN}")
    if tx.query(_IS_REPLACED, names) != [(True,)]:
        return False
    tx.execute(_MOVE.format(schema=quoted))
    return True


def retire_stand_in(database: Database) -> bool:
    """Do it in a transaction of its own; cheap where there is nothing to do."""
    with database.transaction() as tx:
        return retire(tx, database.schema)
