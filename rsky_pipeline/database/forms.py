"""Forms of the AppView's tables in which databases differ, and to which statements adapt.

Whoever ran an AppView before us may have changed them. A form is read once a connection, and again
after a transaction that failed: a table may have been changed under it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Columns that are officially jsonb and hold lists of texts: another writer's tables have arrays.
LISTS = {"post": frozenset({"langs", "tags"})}
# Rows that occur once also where no index says so, but for repeated withdrawals of verifications.
NOTIFICATION_KEY = frozenset({"did", '"recordUri"', "reason"})
# The time of the last account event that another writer applied.
ACCOUNT_TIME = "accountEventAt"

_READ = f"""
SELECT
    ARRAY(
        SELECT ARRAY[c.relname::text, a.attname::text]
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        JOIN pg_type t ON t.oid = a.atttypid
        WHERE c.oid = to_regclass('post') AND a.attname = ANY(%s::name[]) AND t.typcategory = 'A'
    ),
    EXISTS (
        SELECT FROM pg_index x WHERE x.indrelid = to_regclass('notification')
        AND x.indisunique AND NOT x.indisprimary
    ),
    EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = to_regclass('actor')
        AND a.attname = '{ACCOUNT_TIME}' AND NOT a.attisdropped
    ),
    ARRAY(
        SELECT t.name FROM unnest(%s::text[]) AS t(name) JOIN pg_attribute a
        ON a.attrelid = to_regclass(quote_ident(t.name)) AND a.attname = 'takedownRef'
        ORDER BY 1
    )
"""
# Officially takedowns stand in `record` only.
_RECORDS_OF_OTHERS = ("actor_block", "follow", "like", "repost")


@dataclass(frozen=True, slots=True)
class TableForms:
    """The forms of one database; the default is the official one."""

    arrays: Mapping[str, frozenset[str]] = field(default_factory=dict)  # table -> columns
    unique_notifications: bool = False
    account_times: bool = False  # whether `actor` has the column ACCOUNT_TIME
    # Tables of records that an AppView of others takes down in their rows (`takedownRef`).
    taken_down: tuple[str, ...] = ()


def read_forms(query: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]) -> TableForms:
    """Return the forms of the tables that the search_path of a transaction leads to."""
    ((found, unique, times, taken_down),) = query(
        _READ, [sorted(LISTS["post"]), list(_RECORDS_OF_OTHERS)]
    )
    arrays: dict[str, frozenset[str]] = {}
    for table, column in found:
        arrays[table] = arrays.get(table, frozenset()) | {column}
    return TableForms(arrays, unique, times, tuple(taken_down))
