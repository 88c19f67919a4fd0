"""Copying a database into another one, of the same and of other releases of the AppView."""

from collections.abc import Iterator

import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.copying import DatabaseNotEmptyError, copy_database
from rsky_pipeline.database.errors import SchemaMismatchError
from rsky_pipeline.database.schema import appview_release, check, initialise
from tests.stores import execute, fresh_database

ROWS = """
INSERT INTO bsky.record (uri, cid, did, json, "indexedAt") VALUES
('at://a/x/1', 'c', 'a', '{}', '');
INSERT INTO bsky.actor_state (did, "lastSeenNotifs") VALUES ('did:plc:a', '2026');
INSERT INTO reference_list_opt_out (uri, cid, creator, "subjectUri", "createdAt", "indexedAt")
VALUES ('at://a/x/1', 'c', 'a', 'at://b/l/1', '2026', '2026');
INSERT INTO bsky.notification (did, author, "recordUri", "recordCid", reason, "sortAt")
VALUES ('b', 'a', 'at://a/x/1', 'c', 'like', '2026')
"""


@pytest.fixture
def target(database_server: str) -> Iterator[str]:
    with fresh_database(database_server) as url:
        yield url


def fill(url: str) -> None:
    with Database.connect(url, name="test") as database, database.transaction() as tx:
        tx.execute(ROWS)


def opt_outs(url: str) -> list[tuple[str]]:
    with Database.connect(url, name="test") as database:
        return [(str(uri),) for (uri,) in database.query("SELECT uri FROM reference_list_opt_out")]


@pytest.mark.parametrize("release", ["0.0.275", "0.0.276", "0.0.280"])
@pytest.mark.parametrize("is_there", [False, True])
def test_rows_and_bookkeeping_are_those_of_the_source(
    clean_database: str, target: str, release: str, is_there: bool
) -> None:
    initialise(clean_database, appview=release)
    fill(clean_database)
    if is_there:  # as the oldest release has it
        initialise(target)
    copied = copy_database(clean_database, target, "bsky", replace=False, tell=lambda _: None)
    assert {"bsky.record", "bsky.actor_state", "bsky.notification"} <= {one.name for one in copied}
    assert opt_outs(target) == [("at://a/x/1",)]
    assert appview_release(target) == appview_release(clean_database)
    assert check(target) == []
    execute(
        target,
        """INSERT INTO bsky.notification (did, author, "recordUri", "recordCid", reason,
        "sortAt") VALUES ('c', 'a', 'at://a/x/1', 'c', 'like', '2026')""",
    )  # its sequence goes on
    with pytest.raises(DatabaseNotEmptyError, match="--replace"):
        copy_database(clean_database, target, "bsky", replace=False, tell=lambda _: None)
    copy_database(clean_database, target, "bsky", replace=True, tell=lambda _: None)
    with Database.connect(target, name="test") as database:
        assert database.query("SELECT count(*) FROM notification") == [(1,)]


def test_what_is_of_other_programs_is_left_out_and_named(clean_database: str, target: str) -> None:
    initialise(clean_database)
    fill(clean_database)
    execute(clean_database, "CREATE SCHEMA bsync; CREATE TABLE bsync.operation (id int)")
    told: list[str] = []
    copy_database(clean_database, target, "bsky", replace=False, tell=told.append)
    assert [each for each in told if "left out" in each] == [
        "left out: the schema bsync, of another program"
    ]


def test_a_target_of_a_later_release_stays_as_it_is(clean_database: str, target: str) -> None:
    initialise(clean_database)
    fill(clean_database)
    initialise(target, appview="0.0.280")
    with pytest.raises(SchemaMismatchError, match=r"beyond release 0\.0\.275"):
        copy_database(clean_database, target, "bsky", replace=True, tell=lambda _: None)
    assert check(target) == []
    assert opt_outs(target) == []
