"""Statements are prepared once a connection, whatever the batches bring."""

import pytest

from tests.integration.indexer.kit import Network, Tables

PREPARED = "SELECT name FROM pg_prepared_statements"
STATEMENTS = "SELECT statement FROM pg_prepared_statements"


def names(tables: Tables) -> set[str]:
    """Return the statements that the connection has prepared."""
    return {name for (name,) in tables.database.query(PREPARED)}


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


def test_no_plan_reads_a_whole_table(tables: Tables, net: Network) -> None:
    """Plans that were made for empty tables are kept while these grow."""
    if tables.database.query("SELECT current_setting('server_version_num')::int < 160000") == [
        (True,)
    ]:
        pytest.skip("PostgreSQL before 16 does not tell generic plans")
    for number in range(10):
        root = net.post("root")
        reply = net.reply(f"other{number}", root)
        quote, repost = net.quote("quoting", root), net.repost("other", root)
        likes = [net.like("liking", root), net.like("liking", root)]
        follow = net.follow("other", "root")
        tables.apply(root, reply, quote, repost, *likes, follow)
        tables.apply(net.update(root, {"text": "edited"}), net.delete(reply), net.delete(likes[0]))
        tables.apply(net.delete(root), net.delete(follow), net.delete(repost), net.delete(quote))
    statements = [text for (text,) in tables.database.query(STATEMENTS)]
    assert len(statements) > 40
    for statement in statements:
        rows = tables.database.query(f"EXPLAIN (GENERIC_PLAN) {statement}")
        plan = "\n".join(row[0] for row in rows)
        assert "Seq Scan" not in plan, plan
        assert "Hash" not in plan.replace("HashAggregate", ""), plan
