"""The sessions of others whose locks statements of the pipeline wait for."""

from rsky_pipeline.database.connection import Database
from rsky_pipeline.health.rules import STORE_SECONDS
from rsky_pipeline.runtime.errors import printable

_MAX_QUERY = 100  # characters that are shown
# A role without pg_read_all_stats sees the process ids of others, and not their queries. A prepared
# transaction has no process: its id is 0.
_BLOCKERS = """
SELECT p.pid, count(DISTINCT a.pid), max(extract(epoch FROM now() - a.query_start))::int,
    max(b.usename::text), max(b.application_name), max(b.state), max(b.query),
    max(extract(epoch FROM now() - b.xact_start))::int
FROM pg_stat_activity a
CROSS JOIN LATERAL unnest(pg_blocking_pids(a.pid)) AS p(pid)
LEFT JOIN pg_stat_activity b ON b.pid = p.pid
WHERE a.datname = current_database() AND a.wait_event_type = 'Lock'
    AND a.application_name LIKE 'rsky-pipeline %%'
    AND now() - a.query_start > make_interval(secs => %s)
    AND coalesce(b.application_name, '') NOT LIKE 'rsky-pipeline %%'
GROUP BY p.pid ORDER BY p.pid
"""


def blockers(database: Database) -> list[str]:
    """Describe sessions of others that keep statements of this program waiting for a lock.

    Each with its process id, so that an operator may end it. Sessions that wait for each other
    within the pipeline are left out. Raises DatabaseError.
    """
    found = []
    for pid, waiting, seconds, user, program, state, query, age in database.query(
        _BLOCKERS, [STORE_SECONDS]
    ):
        held = "a prepared transaction (see pg_prepared_xacts)"
        if pid:
            who = ", ".join(text for text in (user, program, state) if text)
            text = " ".join(str(query or "").split())[:_MAX_QUERY]
            since = f" for {age} s" if age is not None else ""
            held = f"pid {pid} ({who}), in a transaction{since}: {text}"
        one = "1 statement waits" if waiting == 1 else f"{waiting} statements wait"
        found.append(printable(f"{one} for {seconds} s; blocked by {held}"))
    return found
