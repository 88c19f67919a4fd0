"""Tables in another form than the official one: written as they are, and read back alike."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from rsky_pipeline.database.schema import check
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.labels import LabelRow
from rsky_pipeline.operations.verification.probe import probe_rev_guard
from tests.integration.indexer.kit import (
    Network,
    Tables,
    account,
    did_of,
    read,
    state,
    time_of,
)
from tests.integration.indexer.story import Story
from tests.integration.indexer.test_compare import accounts, differences
from tests.stores import execute, fresh_database

ARRAYS = """
ALTER TABLE bsky.post ALTER langs TYPE varchar[] USING NULL, ALTER tags TYPE varchar[] USING NULL
"""
UNIQUE = """
CREATE UNIQUE INDEX notification_deduped_unique_idx ON bsky.notification (did, "recordUri", reason)
"""
TIMES = 'ALTER TABLE bsky.actor ADD COLUMN "accountEventAt" timestamptz'


@pytest.fixture
def formed(database_server: str, schema_template: str) -> Iterator[Tables]:
    """A database whose tables another indexer has changed."""
    with fresh_database(database_server, schema_template) as url:
        for change in (ARRAYS, UNIQUE, TIMES):
            execute(url, change)
        assert [each for each in check(url) if each.severity != "note"] == []
        made = Tables(url)
        yield made
        made.database.close()


def comparable(tables: Tables) -> dict[str, Any]:
    found = state(tables)
    for row in found["actor"]:
        row.pop("accountEventAt", None)
    found["actor"].sort(key=lambda row: str(row["did"]))
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1, 50])
def test_the_same_events_make_the_same_rows(
    tables: Tables, formed: Tables, seed: int, size: int
) -> None:
    told = Story(random.Random(seed), ("ann", "bob", "cyd")).tell(100)
    events = [event for event in told if not isinstance(event, LabelRow)]
    for start in range(0, len(events), size):
        for each in (tables, formed):
            each.apply_any(*events[start : start + size])
    assert comparable(formed) == comparable(tables)
    assert not (found := differences(formed, accounts(formed))), "\n".join(map(str, found))


LISTS: list[Any] = [None, [], ["en"], ["en", "de-AT", "pt"], ['say "hi", {you}', "NULL", "\\ä'"]]


@pytest.mark.parametrize("bulk", [False, True])
def test_lists_are_written_as_arrays_and_read_back(
    formed: Tables, net: Network, bulk: bool
) -> None:
    posts = [net.post("ann", **({} if tags is None else {"tags": tags})) for tags in LISTS]
    apply_batch(formed.database, read(posts), registry.load(), bulk=bulk)
    rows = dict(formed.rows("post", "uri, tags"))
    assert [rows[post.uri] for post in posts] == [tags or None for tags in LISTS]
    assert differences(formed, [did_of("ann")]) == []
    formed.database.execute("UPDATE post SET tags = '{other}'")
    assert len(differences(formed, [did_of("ann")])) == len(LISTS)


def test_the_probe_of_verify_works_on_them(formed: Tables) -> None:
    assert probe_rev_guard(formed.database) == []


def test_a_type_that_changes_while_we_write_is_noticed(tables: Tables, net: Network) -> None:
    tables.apply(net.post("ann", langs=["en"]))
    execute(tables.url, ARRAYS)
    execute(tables.url, UNIQUE)
    post = net.post("bob", langs=["de"])
    with pytest.raises(Exception, match=r"cached plan|character varying"):
        tables.apply(post)
    tables.apply(post)
    assert tables.rows("post", "langs", f"uri = '{post.uri}'") == [(["de"],)]


def test_a_notification_that_is_there_stays(formed: Tables, net: Network) -> None:
    post = net.post("bob")
    like = net.like("ann", post)
    theirs = (did_of("bob"), like.uri, "old", did_of("ann"), "like", "1999")
    formed.database.execute(
        'INSERT INTO notification (did, "recordUri", "recordCid", author, reason, "sortAt") '
        "VALUES (%s, %s, %s, %s, %s, %s)", theirs,
    )  # fmt: skip
    formed.apply(post, like, net.repost("ann", post))
    found = formed.rows("notification", 'reason, "recordCid"')
    assert [reason for reason, _ in found] == ["like", "repost"]
    assert ("like", "old") in found


def test_a_unique_index_that_is_made_while_we_write_is_respected(
    tables: Tables, net: Network
) -> None:
    post = net.post("bob")
    like = net.like("ann", post)
    tables.apply(post, net.like("cyd", post))
    execute(tables.url, UNIQUE)
    tables.database.execute(
        'INSERT INTO notification (did, "recordUri", "recordCid", author, reason, "sortAt") '
        "VALUES (%s, %s, '', '', 'like', '')", (did_of("bob"), like.uri),
    )  # fmt: skip
    tables.apply(like)
    assert len(tables.notified("bob")) == 2


def test_an_account_event_that_another_indexer_overtook_is_left_out(formed: Tables) -> None:
    sql = 'INSERT INTO actor (did, "indexedAt", "upstreamStatus", "accountEventAt") VALUES '
    formed.database.execute(f"{sql} (%s, '', 'suspended', %s)", (did_of("ann"), time_of(5)))
    formed.database.execute(f"{sql} (%s, '', 'suspended', NULL)", (did_of("bob"),))

    def statuses() -> dict[str, tuple[Any, ...]]:
        columns = 'did, "upstreamStatus", extract(epoch FROM "accountEventAt")::int8 % 100'
        return {row[0][8:11]: row[1:] for row in formed.rows("actor", columns)}

    formed.apply(account("ann", 4, active=True), account("bob", 4, active=True))
    four = statuses()["bob"][1]
    assert statuses() == {"ann": ("suspended", four + 1), "bob": (None, four)}
    formed.apply(account("ann", 6, active=True), account("bob", 3, active=False))
    assert statuses() == {"ann": (None, four + 2), "bob": (None, four)}
