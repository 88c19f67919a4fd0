"""Statements are prepared once a connection, whatever the batches bring."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.repos.stored import have_older, stored_revs
from tests.integration.indexer.kit import Network, Tables, did_of, rev_of

PREPARED = "SELECT name FROM pg_prepared_statements"
STATEMENTS = "SELECT statement FROM pg_prepared_statements"


def names(tables: Tables) -> set[str]:
    """Return the statements that the connection has prepared."""
    return {name for (name,) in tables.database.query(PREPARED)}


def whole(plan: Sequence[str]) -> list[str]:
    """Return what reads or joins a whole table in a plan; that of mutes is only asked for any."""
    scans = [line for line, below in pairwise([*plan, ""])
             if "Scan " in line and "Function Scan" not in line and "Index Cond" not in below
             and "Bitmap Heap" not in line and "CTE Scan" not in line and "WorkTable" not in line
             and "Subquery Scan" not in line
             and "thread_mute" not in line]  # fmt: skip
    return scans + [line for line in plan if "Hash Cond" in line or "Merge Cond" in line]


def test_new_accounts_do_not_make_the_server_forget(tables: Tables, net: Network) -> None:
    """The library forgets all statements after a ROLLBACK."""
    for number in range(10):
        tables.apply(net.post(f"early{number}"), net.post("always"))
    before = names(tables)
    tables.apply(net.post("late"), net.post("always"))
    assert len(before) > 10
    assert before <= names(tables)


def test_more_statements_stay_than_a_batch_has(tables: Tables) -> None:
    """A batch with all kinds of records has more than the library's usual number."""
    for number in range(300):
        for _ in range(7):
            tables.database.query(f"SELECT {number}, %b::text", ["x"])
    assert len(names(tables)) >= 300


@pytest.fixture
def fresh(schema_database: str) -> Iterator[Tables]:
    """A database with the schema on a server that thinks reading by key is expensive."""
    with Database.connect(schema_database, name="test") as database:
        ((version, name),) = database.query(
            "SELECT current_setting('server_version_num')::int, current_database()"
        )
        if version < 160_000:
            pytest.skip("PostgreSQL before 16 does not tell generic plans")
        database.execute(f'ALTER DATABASE "{name}" SET random_page_cost = 4')  # its usual value
    made = Tables(schema_database)
    yield made
    made.database.close()


def test_no_plan_reads_a_whole_table(fresh: Tables, net: Network) -> None:
    """Plans that were made for empty tables are kept while these grow."""
    for number in range(10):
        root = net.post("root")
        reply, quote = net.reply(f"other{number}", root), net.quote("quoting", root)
        repost, follow = net.repost("other", root), net.follow("other", "root")
        likes = [net.like("liking", root), net.like("liking", root)]
        fresh.apply(root, reply, quote, repost, *likes, follow)
        fresh.apply(net.update(root, {"text": "edited"}), net.delete(reply), net.delete(likes[0]))
        fresh.apply(net.delete(root), net.delete(follow), net.delete(repost), net.delete(quote))
        stored_revs(fresh.database, [did_of("root")])
        have_older(fresh.database, [(did_of("root"), rev_of(number))])
    statements = [text for (text,) in fresh.database.query(STATEMENTS)]
    assert len(statements) > 40
    fresh.database.execute("TRUNCATE post_agg, profile_agg")  # as a first batch finds them
    for statement in statements:
        rows = fresh.database.query(f"EXPLAIN (GENERIC_PLAN) {statement}")
        plan = [row[0] for row in rows]
        assert not whole(plan), "\n".join([statement, *plan])
