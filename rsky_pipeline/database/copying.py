"""Copying all rows of one database into another one, whatever their versions of PostgreSQL.

Neither a dump nor a replica goes from a newer version to an older one. The schema is made by our
own steps on both sides, with its extension and indexes, so that only rows are copied. All rows come
from one moment, and are all there or none.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from rsky_pipeline.database.connection import Database, Row
from rsky_pipeline.database.errors import DatabaseError, SchemaMismatchError, translate
from rsky_pipeline.database.schema import appview_release, initialise
from rsky_pipeline.database.schema.migrate import PIPELINE_SCHEMA

_COLUMNS = """
SELECT n.nspname, c.relname, array_agg(a.attname ORDER BY a.attnum)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid
WHERE n.nspname = ANY(%s) AND c.relkind = 'r'
  AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
GROUP BY 1, 2 ORDER BY 1, 2
"""
_REFERENCES = """
SELECT n.nspname, c.relname, m.nspname, r.relname
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace m ON m.oid = r.relnamespace
WHERE k.contype = 'f' AND n.nspname = ANY(%s)
"""
_SEQUENCES = """
SELECT schemaname, sequencename, last_value FROM pg_sequences
WHERE schemaname = ANY(%s) AND last_value IS NOT NULL
"""
_OTHERS = """
SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname <> ALL(%s) AND n.nspname <> 'information_schema'
  AND n.nspname !~ '^pg_'
GROUP BY 1 ORDER BY 1
"""
_VIEWS = "SELECT schemaname, matviewname FROM pg_matviews WHERE schemaname = ANY(%s)"

_MADE_WITH_ROWS = ("kysely_", "view_param")

Table = tuple[str, str]  # schema and name
Connection = psycopg.Connection[Row]


class DatabaseNotEmptyError(DatabaseError):
    """The database that rows are copied into has rows."""


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """A table, and how many rows of it were copied."""

    name: str
    rows: int


def copy_database(
    source: str, target: str, schema: str, *, replace: bool, tell: Callable[[str], None]
) -> list[CopiedTable]:
    """Copy the AppView's tables and ours; return the rows of each table that has any.

    Makes or upgrades the schema of both, that of the target for the AppView release of the source:
    the names of official migrations are copied as well, and must fit the tables. Raises
    DatabaseNotEmptyError for a target with rows, unless they are to be replaced,
    SchemaMismatchError for one of a later release, and other DatabaseErrors; then no row of the
    target has changed.
    """
    initialise(source, schema)
    initialise(target, schema, appview=appview_release(source, schema))
    names = [schema, PIPELINE_SCHEMA]
    # Our own way to connect finds out about poolers and refuses what cannot be used.
    with Database.connect(target, schema=schema, name="copy"):
        pass
    try:
        with (
            psycopg.connect(source, application_name="rsky-pipeline copy") as old,
            psycopg.connect(target, application_name="rsky-pipeline copy") as new,
        ):
            old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            new.execute("SET statement_timeout = 0")
            tables = _tables(old, new, names)
            if not replace and (used := _used(new, tables, schema)):
                raise DatabaseNotEmptyError(
                    f"the database has rows already ({used}): --replace removes them first"
                )
            new.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(map(_identifier, tables))))
            done = list(_copy_rows(old, new, tables, tell))
            _set_sequences(old, new, names)
            for (other,) in old.execute(_OTHERS, [names]).fetchall():
                tell(f"left out: the schema {other}, of another program")
            for view in new.execute(_VIEWS, [names]).fetchall():
                new.execute(sql.SQL("REFRESH MATERIALIZED VIEW {}").format(sql.Identifier(*view)))
        with psycopg.connect(target, autocommit=True) as new:
            new.execute("ANALYZE")
    except psycopg.Error as error:
        raise translate(error) from error
    return done


def _tables(old: Connection, new: Connection, names: Sequence[str]) -> dict[Table, list[str]]:
    """Return the tables with their columns, those that others refer to first."""
    found = {(row[0], row[1]): row[2] for row in old.execute(_COLUMNS, [names]).fetchall()}
    there = {(row[0], row[1]): row[2] for row in new.execute(_COLUMNS, [names]).fetchall()}
    for table, columns in found.items():
        missing = set(columns) - set(there.get(table, []))
        if missing:
            raise SchemaMismatchError(
                f"the other database lacks {'.'.join(table)} ({', '.join(sorted(missing))}): let "
                "the program that made it, such as the official data plane, make it there as well"
            )
    needs: dict[Table, set[Table]] = {table: set() for table in found}
    for schema, name, other_schema, other in old.execute(_REFERENCES, [names]).fetchall():
        if (schema, name) != (other_schema, other):
            needs[schema, name].add((other_schema, other))
    order: dict[Table, list[str]] = {}
    while len(order) < len(found):
        ready = [table for table in found if table not in order and needs[table] <= order.keys()]
        if not ready:  # a circle: the server says which row lacks another one
            ready = [table for table in found if table not in order]
        order |= {table: found[table] for table in ready}
    return order


def _used(new: Connection, tables: Sequence[Table] | dict[Table, list[str]], schema: str) -> str:
    """Return a table of the AppView that has rows, apart from those that are made with some."""
    for table in tables:
        if table[0] == schema and not table[1].startswith(_MADE_WITH_ROWS):
            query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(_identifier(table))
            if new.execute(query).fetchone() == (True,):
                return ".".join(table)
    return ""


def _copy_rows(
    old: Connection, new: Connection, tables: dict[Table, list[str]], tell: Callable[[str], None]
) -> Iterator[CopiedTable]:
    for table, columns in tables.items():
        what = sql.SQL("{} ({})").format(
            _identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with old.cursor() as reading, new.cursor() as writing:
            with (
                reading.copy(sql.SQL("COPY {} TO STDOUT (FORMAT BINARY)").format(what)) as rows,
                writing.copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(what)) as copy,
            ):
                for block in rows:
                    copy.write(block)
            read, written = reading.rowcount, writing.rowcount
        if read != written:
            raise DatabaseError(f"{'.'.join(table)}: {read} rows were read, {written} written")
        if written:
            tell(f"{'.'.join(table)}: {written:,} rows")
            yield CopiedTable(".".join(table), written)


def _set_sequences(old: Connection, new: Connection, names: Sequence[str]) -> None:
    for schema, name, value in old.execute(_SEQUENCES, [names]).fetchall():
        query = sql.SQL("SELECT setval({}::regclass, {})")
        new.execute(
            query.format(
                sql.Literal(sql.Identifier(schema, name).as_string(new)), sql.Literal(value)
            )
        )


def _identifier(table: Table) -> sql.Identifier:
    return sql.Identifier(*table)
