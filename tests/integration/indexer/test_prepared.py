"""Statements are prepared once a connection, whatever the batches bring."""

from tests.integration.indexer.kit import Network, Tables

PREPARED = "SELECT name FROM pg_prepared_statements"


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
