"""The probe of the rev guard on a real database, and what it says where the guard is broken."""

import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.embedded.locations import resolve_directories
from rsky_pipeline.indexer.core import plan
from rsky_pipeline.operations.verification.outside import check_database
from rsky_pipeline.operations.verification.probe import probe_rev_guard
from tests.stores import execute

COUNT = "SELECT (SELECT count(*) FROM record) + (SELECT count(*) FROM actor)"


def test_the_guard_holds_and_nothing_is_left_behind(schema_database: str) -> None:
    with Database.connect(schema_database, name="test") as database:
        assert probe_rev_guard(database) == []
        assert database.query(COUNT)[0][0] == 0
        assert database.query("SELECT count(*) FROM rsky_pipeline.tombstone")[0][0] == 0
    found = {
        c.check: c.status
        for c in check_database(
            Settings(database_url=schema_database, redis_url="redis://127.0.0.1:1")
        )
    }
    assert found.pop("pairing") == "skip"  # there is no Redis
    assert found == {"schema": "pass", "rev_guard": "pass", "deleted_stays_deleted": "pass"}


def test_a_broken_guard_is_noticed(schema_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second incident: updates without a look at the rev."""
    monkeypatch.setattr(plan, "_is_stale", lambda *_: False)
    found = {
        c.check: c
        for c in check_database(
            Settings(database_url=schema_database, redis_url="redis://127.0.0.1:1")
        )
    }
    assert found["rev_guard"].status == "fail"
    assert "after the update of rev 3 there is (3, 'state 3'), not (5, 'state 5')" in (
        found["rev_guard"].figure
    )


def test_a_writer_that_brings_deleted_records_back_is_noticed(schema_database: str) -> None:
    execute(schema_database, "INSERT INTO rsky_pipeline.tombstone (uri, did, rev) "
            "VALUES ('at://a/b/c', 'a', '3l5')")  # fmt: skip
    execute(schema_database, 'INSERT INTO bsky.record (uri, cid, did, json, "indexedAt", rev) '
            "VALUES ('at://a/b/c', 'c', 'a', '{}', 'x', '3l4')")  # fmt: skip
    found = {
        c.check: c
        for c in check_database(
            Settings(database_url=schema_database, redis_url="redis://127.0.0.1:1")
        )
    }
    assert found["deleted_stays_deleted"].status == "fail"


def test_a_database_that_is_away_is_a_failed_check() -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    (found,) = check_database(resolve_directories(Settings(database_url=url)))
    assert (found.check, found.status) == ("database", "fail")
