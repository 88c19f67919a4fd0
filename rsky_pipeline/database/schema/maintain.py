"""Creating the schema, bringing it up to date, and comparing it with what is expected."""

import re
from importlib.resources import files

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.database.schema.catalog import Difference, compare, read_catalog

_LOCK = 0x72736B79  # one initialisation at a time on a database
_SCRATCH = "rsky_pipeline_expected"
_NAME = re.compile(r"[A-Za-z_]+")


class _Undo(Exception):
    """Ends a transaction whose result is not wanted."""


def initialise(url: str, schema: str = "bsky") -> list[str]:
    """Create what is missing and return what was done, a line each.

    Safe to repeat and to run from several processes. A schema that the official migrations made is
    kept as it is; only the pipeline's own parts are added. Raises DatabaseError.
    """
    _require_name(schema)
    database = Database.connect(url, schema=schema, name="schema", statement_timeout_ms=600_000)
    try:
        with database.transaction() as transaction:
            transaction.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            return _initialise(transaction, schema)
    finally:
        database.close()


def check(url: str, schema: str = "bsky") -> list[Difference]:
    """Compare the database with the expected schema, column by column and index by index.

    The expected one is created beside it in a transaction that is rolled back, so that both are
    read from the same server. Raises DatabaseError.
    """
    _require_name(schema)
    database = Database.connect(url, schema=schema, name="schema")
    expected: dict[str, str] = {}
    found: dict[str, str] = {}
    try:
        with database.transaction() as transaction:
            found = read_catalog(transaction, schema)
            own = read_catalog(transaction, "rsky_pipeline")
            transaction.create_schema(_SCRATCH)
            transaction.use_schema(_SCRATCH)
            transaction.run_script(_script("appview"))
            transaction.run_script(_script("additions"))
            expected = read_catalog(transaction, _SCRATCH)
            transaction.run_script("DROP SCHEMA IF EXISTS rsky_pipeline CASCADE")
            transaction.run_script(_script("pipeline"))
            expected_own = read_catalog(transaction, "rsky_pipeline")
            expected |= {f"{key} (rsky_pipeline)": text for key, text in expected_own.items()}
            found |= {f"{key} (rsky_pipeline)": text for key, text in own.items()}
            raise _Undo
    except _Undo:
        return compare(expected, found)
    finally:
        database.close()


def _initialise(transaction: Transaction, schema: str) -> list[str]:
    done: list[str] = []
    if not transaction.query("SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'"):
        transaction.run_script("CREATE EXTENSION pg_trgm SCHEMA public")
        done.append("created the extension pg_trgm")
    transaction.create_schema(schema)
    transaction.use_schema(schema)
    before = read_catalog(transaction, schema)
    if "column record.uri" not in before:
        if any(subject.startswith("column ") for subject in before):
            raise DatabaseError(
                f"the schema {schema} holds tables but no AppView: choose another with "
                "database_schema, or empty it"
            )
        transaction.run_script(_script("appview"))
        done.append(f"created the AppView's tables in the schema {schema}")
    transaction.run_script(_script("additions"))
    if "column record.rev" not in before and not done[-1:]:
        done.append("added the column record.rev")
    has_own = transaction.query("SELECT to_regnamespace('rsky_pipeline')")[0][0] is not None
    transaction.run_script(_script("pipeline"))
    if not has_own:
        done.append("created the schema rsky_pipeline")
    return done


def _script(name: str) -> str:
    return (files(__package__) / f"{name}.sql").read_text()


def _require_name(schema: str) -> None:
    if not _NAME.fullmatch(schema):
        raise DatabaseError(f"the schema name {schema!r} may hold letters and underscores only")
