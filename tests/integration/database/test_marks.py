"""Whether a database has every transaction that was acknowledged."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.marks import DatabaseLoss, find_loss, heal_marks, raise_mark

ONE, TWO, NEW = ("indexer-1", "live"), ("indexer-1", "labels"), ("indexer-2", "live")


@pytest.fixture
def database(schema_database: str) -> Iterator[Database]:
    with Database.connect(schema_database, name="test") as connection:
        yield connection


def applied(database: Database, key: tuple[str, str], *reached: float) -> None:
    for moment in reached:
        with database.transaction() as tx:
            raise_mark(tx, *key, moment)


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_what_was_acknowledged_and_is_not_there_is_a_loss(database: Database) -> None:
    applied(database, ONE, 100.0, 200.0)
    applied(database, TWO, 50.0)
    assert find_loss(database, {}) is None
    assert find_loss(database, {ONE: 2, TWO: 1}) is None
    assert find_loss(database, {ONE: 1}) is None, "not acknowledged yet"
    assert find_loss(database, {ONE: 3, TWO: 1}) == DatabaseLoss(1, at(200))
    assert find_loss(database, {ONE: 4, TWO: 2}) == DatabaseLoss(3, at(50)), "the oldest"


def test_a_worker_that_was_new_began_after_all_that_the_others_show(database: Database) -> None:
    assert find_loss(database, {NEW: 5}) == DatabaseLoss(5, None)
    applied(database, ONE, 100.0)
    applied(database, TWO, 50.0)
    assert find_loss(database, {ONE: 1, NEW: 5}) == DatabaseLoss(5, at(50))
    assert find_loss(database, {ONE: 2, NEW: 5}) == DatabaseLoss(6, at(50))


def test_a_loss_is_found_once_and_no_number_goes_down(database: Database) -> None:
    applied(database, ONE, 100.0, 200.0)
    heal_marks(database, {ONE: 1, NEW: 5})
    assert find_loss(database, {ONE: 2, NEW: 5}) is None
