"""Settings of a PostgreSQL server that a promise or the speed of the pipeline rests on.

An entry is acknowledged after the commit of its rows, so a commit must survive a crash: `fsync` and
`full_page_writes` (`synchronous_commit` is what sessions ask for themselves). A restart at any
moment goes on where it was, so the address must lead to a server that takes writes.
"""

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.runtime.server_setting import ServerSetting

_SETTINGS = """
SELECT name, setting, unit FROM pg_settings WHERE name = ANY(%s)
"""
# Large tables that are vacuumed only after more than this part of them has changed.
_SELDOM_VACUUMED = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.reltuples >= %s
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND COALESCE(
        (SELECT o.option_value::float8 FROM pg_options_to_table(c.reloptions) o
         WHERE o.option_name = 'autovacuum_vacuum_scale_factor'),
        current_setting('autovacuum_vacuum_scale_factor')::float8
    ) > %s
ORDER BY c.reltuples DESC
"""
_WRITABLE = """
SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean
"""
# A commit must survive a crash of the server and of its machine: its entries are acknowledged
# afterwards, and are not delivered again.
_PROMISED = {
    "fsync": "a crash of the machine can destroy the database, and acknowledged events with it",
    "full_page_writes": "a crash of the machine can leave torn pages, and destroy the database",
}
LARGE_ROWS = 10_000_000  # of a table, beyond which autovacuum's default comes too late
MOST_VACUUM_FACTOR = 0.05
_NAMED = 3  # tables
ADVISED_WAL_MB = 20 * 1024
ADVISED_CHECKPOINT_SECONDS = 30 * 60
_WAL_ADVICE = (
    "each first change of a page after a checkpoint writes all of it; a large database then spends "
    "most of its time on that"
)

_UNPREPARED = ServerSetting(
    "advice", "max_prepared_statements", "0 or unknown to the pooler",
    "1000 (pgbouncer 1.22 or later)", "each batch has its statements planned anew",
)  # fmt: skip


def check_server(tx: Transaction) -> list[ServerSetting]:
    """Return unsuitable settings of the server, errors first."""
    names = [*_PROMISED, "wal_compression", "max_wal_size", "checkpoint_timeout"]
    found = {name: (setting, unit) for name, setting, unit in tx.query(_SETTINGS, [names])}
    bad = [
        ServerSetting("error", name, "off", "on", why)
        for name, why in _PROMISED.items()
        if found[name][0] == "off"
    ]
    is_standby, is_read_only = tx.query(_WRITABLE)[0]
    if is_standby:
        why = "a standby takes no writes: point database_url at the primary"
        bad.append(ServerSetting("error", "role", "standby", "primary", why))
    elif is_read_only:
        why = "nothing can be written: the server, the database or the role has this default"
        bad.append(ServerSetting("error", "default_transaction_read_only", "on", "off", why))
    compression = found["wal_compression"][0]
    if compression in {"on", "pglz"}:
        why = "compressing pages of the log this way takes more processor time than all of the rest"
        bad.append(ServerSetting("advice", "wal_compression", compression, "off (or lz4)", why))
    for name, least, wanted in (
        ("max_wal_size", ADVISED_WAL_MB, "20GB"),
        ("checkpoint_timeout", ADVISED_CHECKPOINT_SECONDS, "30min"),
    ):
        value, unit = found[name]
        if int(value) < least:
            bad.append(
                ServerSetting("advice", name, f"{value}{unit}", f"{wanted} or more", _WAL_ADVICE)
            )
    seldom = [name for (name,) in tx.query(_SELDOM_VACUUMED, [LARGE_ROWS, MOST_VACUUM_FACTOR])]
    if seldom:
        listed = ", ".join(seldom[:_NAMED])
        if more := len(seldom[_NAMED:]):
            listed += f" and {more} other{'s' if more > 1 else ''}"
        why = "dead rows pile up in large tables, and the cost of an event with them"
        found_at = f"more than {MOST_VACUUM_FACTOR} for {listed}"
        bad.append(ServerSetting("advice", "autovacuum_vacuum_scale_factor", found_at, "0.02", why))
    return bad


def check(url: str) -> list[ServerSetting]:
    """Return unsuitable settings of a server, errors first. Raises DatabaseError."""
    with Database.connect(url, name="db") as database:
        with database.transaction() as tx:
            found = check_server(tx)
        if database.pooled and not database.prepares:
            found.append(_UNPREPARED)
        return found


def advise(url: str) -> list[ServerSetting]:
    """Return settings that slow down a large database. Raises DatabaseError."""
    return [item for item in check(url) if item.severity == "advice"]
