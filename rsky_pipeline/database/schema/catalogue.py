"""Reads table definitions from PostgreSQL's catalogue, comparable and storable as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from rsky_pipeline.database.connection import Transaction, quote_schema

# Dropped columns keep a row; a generated column's expression is stored like a default.
_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       CASE WHEN a.attgenerated <> '' THEN 'generated' WHEN a.attidentity <> '' THEN 'identity' END,
       pg_get_expr(d.adbin, d.adrelid)
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p', 'm')
ORDER BY c.relname, a.attnum"""

# PostgreSQL 18 lists NOT NULL among the constraints; it is part of the column here.
_CONSTRAINTS = """
SELECT c.relname, k.conname, pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE c.relnamespace = %s::regnamespace AND k.contype <> 'n'
ORDER BY c.relname, k.conname"""

_INDEXES = """
SELECT c.relname, i.relname, pg_get_indexdef(x.indexrelid), x.indisvalid
FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p', 'm')
  AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = x.indexrelid
                  AND k.contype IN ('p', 'u', 'x'))
ORDER BY c.relname, i.relname"""

# Of triggers those of foreign keys are left out, and those that do not fire for us. Bits of tgtype:
# 2 is BEFORE, 4 INSERT.
_INTERFERENCES = """
SELECT c.relname, 'trigger', t.tgname, pg_get_triggerdef(t.oid), t.tgtype & 2 <> 0,
       t.tgtype & 4 <> 0
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = %s::regnamespace AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
UNION ALL
SELECT tablename, 'rule', rulename, definition, true, true FROM pg_rules
WHERE schemaname = %s AND definition !~ '^CREATE RULE "?_RETURN'
ORDER BY 1, 2, 3"""


class Interference(NamedTuple):
    """What happens when somebody writes into a table: a trigger or a rule."""

    table: str
    kind: str
    name: str
    definition: str
    before: bool  # it can change or refuse the row
    on_insert: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table or materialized view: definitions by name, in physical order."""

    columns: dict[str, str] = field(default_factory=dict)
    constraints: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)  # except indexes of constraints


Catalogue = dict[str, Table]


def read_catalogue(tx: Transaction, schema: str) -> Catalogue:
    """Return the tables of a schema; {} if it does not exist.

    Definitions are read with the schema first in search_path, so its name is not in them.
    """
    quoted = quote_schema(schema)
    if not tx.query("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]):
        return {}
    tx.execute(f"SET LOCAL search_path TO {quoted}, public")
    catalogue: Catalogue = {}
    for table, name, type_, not_null, filled, expression in tx.query(_COLUMNS, [quoted]):
        text = type_ + (" not null" if not_null else "")
        if filled == "identity":
            text += " default identity"
        elif expression is not None:
            text += f" {filled or 'default'} {expression}"
        catalogue.setdefault(table, Table()).columns[name] = _neutral(text, schema)
    for table, name, definition in tx.query(_CONSTRAINTS, [quoted]):
        catalogue[table].constraints[name] = _neutral(definition, schema)
    for table, name, definition, valid in tx.query(_INDEXES, [quoted]):
        text = _neutral(definition, schema) + ("" if valid else " INVALID")
        catalogue[table].indexes[name] = text
    return catalogue


def read_interferences(tx: Transaction, schema: str) -> list[Interference]:
    """Return the triggers and rules of a schema's tables."""
    return [
        Interference(table, kind, name, _neutral(definition, schema), before, on_insert)
        for table, kind, name, definition, before, on_insert in tx.query(
            _INTERFERENCES, [quote_schema(schema), schema]
        )
    ]


def to_json(catalogue: Catalogue) -> dict[str, dict[str, dict[str, str]]]:
    """Return plain dicts, the inverse of `from_json`."""
    return {name: asdict(table) for name, table in catalogue.items()}


def from_json(document: Mapping[str, Mapping[str, dict[str, str]]]) -> Catalogue:
    """Return the catalogue of a `to_json` document."""
    return {name: Table(**table) for name, table in document.items()}


def _neutral(definition: str, schema: str) -> str:
    return definition.replace(f'"{schema}".', "").replace(f"{schema}.", "")
