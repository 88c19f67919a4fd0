"""What a schema holds, read from PostgreSQL's catalog, and how two of them differ."""

from collections.abc import Mapping
from dataclasses import dataclass

from rsky_pipeline.database.connection import Transaction

_COLUMNS = """
SELECT 'column ' || c.relname || '.' || a.attname,
       format_type(a.atttypid, a.atttypmod)
       || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
       || CASE a.attgenerated WHEN 's' THEN ' GENERATED ' ELSE ' DEFAULT ' END
       || coalesce(pg_get_expr(d.adbin, d.adrelid), 'none')
  FROM pg_attribute a
  JOIN pg_class c ON c.oid = a.attrelid
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'm')
   AND a.attnum > 0 AND NOT a.attisdropped
"""
_INDEXES = """
SELECT 'index ' || c.relname, pg_get_indexdef(i.indexrelid)
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
 WHERE c.relnamespace = to_regnamespace(%s)
"""
_CONSTRAINTS = """
SELECT 'constraint ' || k.conname, pg_get_constraintdef(k.oid)
  FROM pg_constraint k
 WHERE k.connamespace = to_regnamespace(%s) AND k.contype <> 'n'
"""
_MIGRATIONS = "SELECT 'migration ' || name, 'done' FROM kysely_migration"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as the pipeline expects it, and what to do."""

    subject: str  # such as `column post.langs`
    expected: str | None  # None: only the database has it
    found: str | None  # None: it is missing

    @property
    def remedy(self) -> str:
        """What an operator should do."""
        if self.expected is None:
            return "left alone: the pipeline does not use it"
        if self.found is None:
            return "run `rsky-pipeline db init`; if it stays missing, create it by hand"
        return "change it by hand; the pipeline does not alter what it did not create"


def read_catalog(transaction: Transaction, schema: str) -> dict[str, str]:
    """Return everything in a schema that `Difference` can speak about."""
    transaction.use_schema(schema)
    found: dict[str, str] = {}
    quoted = '"' + schema.replace('"', '""') + '"'
    for statement in (_COLUMNS, _INDEXES, _CONSTRAINTS):
        for subject, definition in transaction.query(statement, [quoted]):
            for prefix in (f"{schema}.", f"{quoted}."):
                definition = definition.replace(prefix, "")
            found[subject] = definition
    if transaction.query("SELECT to_regclass('kysely_migration')")[0][0] is not None:
        found.update(transaction.query(_MIGRATIONS))
    return found


def compare(expected: Mapping[str, str], found: Mapping[str, str]) -> list[Difference]:
    """Return the differences between two catalogs, by subject."""
    return [
        Difference(subject, expected.get(subject), found.get(subject))
        for subject in sorted(expected.keys() | found.keys())
        if expected.get(subject) != found.get(subject)
    ]
