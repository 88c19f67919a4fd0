"""Rows that other writers left without a record, and records that say the same as they do."""

from typing import Any

import pytest

from rsky_pipeline.indexer.collections import registry
from tests.integration.indexer.kit import Event, Network, Put, Tables, did_of, recounted


def left_by_others(tables: Tables, like: Put) -> None:
    """Have a like stand as another writer left it: counted, and without its record."""
    tables.apply(like)
    tables.database.execute("DELETE FROM record WHERE uri = %s", (like.uri,))
    tables.database.execute("DELETE FROM notification")


def standing(tables: Tables) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in tables.rows("like", "uri, subject")]


def waiting(tables: Tables) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in tables.rows("duplicate_record", 'uri, "duplicateOf"')]


@pytest.mark.parametrize("together", [True, False])
def test_an_older_duplicate_displaces_a_row_without_its_record(
    tables: Tables, net: Network, together: bool
) -> None:
    post = net.post("ann")
    older, newer = net.like("bob", post), net.like("bob", post)
    tables.apply(post)
    left_by_others(tables, newer)
    if together:
        tables.apply(older, newer)
    else:
        tables.apply_each([newer, older])
    assert standing(tables) == [(older.uri, post.uri)]
    assert waiting(tables) == [(newer.uri, older.uri)]
    records = tables.rows("record", "uri", f"did = '{did_of('bob')}'")
    assert records == [(older.uri,), (newer.uri,)]
    assert tables.counts(post) == (1, 0, 0, 0)
    recounted(tables)


PAIRS: dict[str, dict[str, Any]] = {
    "app.bsky.feed.repost": {},
    "app.bsky.graph.follow": {"subject": did_of("ann")},
    "app.bsky.graph.block": {"subject": did_of("ann")},
    "app.bsky.graph.listblock": {"subject": f"at://{did_of('ann')}/app.bsky.graph.list/1"},
    "app.bsky.graph.referencelistoptout": {
        "subject": f"at://{did_of('ann')}/app.bsky.graph.list/1"
    },
    "app.bsky.graph.listitem": {
        "subject": did_of("ann"), "list": f"at://{did_of('bob')}/app.bsky.graph.list/1",
    },
    "app.bsky.graph.verification": {
        "subject": did_of("ann"), "handle": "ann.test", "displayName": "ann",
    },
}  # fmt: skip


@pytest.mark.parametrize("nsid", PAIRS)
@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_rows_without_records_and_duplicates_of_every_kind(
    tables: Tables, net: Network, nsid: str, backwards: bool, alone: bool
) -> None:
    """Also where the record of the row never comes: then nobody can tell what it says."""
    post = net.post("ann")
    record = PAIRS[nsid] or {"subject": post.reference}
    older, newer = net.put("bob", nsid, record), net.put("bob", nsid, record)
    tables.apply(post)
    left_by_others(tables, newer)
    events = [older] if alone else [newer, older] if backwards else [older, newer]
    tables.apply(*events)
    table = registry.load()[nsid].table
    assert table is not None
    assert tables.rows(table.name, "uri") == [(older.uri,)]
    assert waiting(tables) == [(newer.uri, older.uri)]
    recounted(tables)
    tables.apply(net.delete(older))
    assert tables.rows(table.name, "uri") == ([] if alone else [(newer.uri,)])
    recounted(tables)


def test_a_row_without_its_record_goes_when_the_record_says_something_else(
    tables: Tables, net: Network
) -> None:
    """The record likes another post than its row does, and an older record likes that one too."""
    one, two = net.post("ann"), net.post("ann")
    older, newer = net.like("bob", two), net.like("bob", one)
    also = net.like("bob", one)
    tables.apply(one, two)
    tables.apply(newer, also)
    tables.database.execute("DELETE FROM record WHERE uri = %s", (newer.uri,))
    moved = net.update(newer, {"subject": two.reference})
    tables.apply(older, moved)
    assert standing(tables) == [(older.uri, two.uri), (also.uri, one.uri)]
    assert waiting(tables) == [(newer.uri, older.uri)]
    assert (tables.counts(one), tables.counts(two)) == ((1, 0, 0, 0), (1, 0, 0, 0))
    recounted(tables)


def test_a_younger_record_stands_when_the_row_before_it_moves_away(
    tables: Tables, net: Network
) -> None:
    """The row that would be in its way is of a record that turns out to like something else."""
    one, two = net.post("ann"), net.post("ann")
    older, younger = net.like("bob", one), net.like("bob", one)
    tables.apply(one, two)
    left_by_others(tables, older)
    moved = net.update(older, {"subject": two.reference})
    tables.apply(younger, moved)
    assert standing(tables) == [(older.uri, two.uri), (younger.uri, one.uri)]
    assert waiting(tables) == []
    assert (tables.counts(one), tables.counts(two)) == ((1, 0, 0, 0), (1, 0, 0, 0))
    recounted(tables)


def test_a_reply_without_its_record_was_counted_by_its_writer(tables: Tables, net: Network) -> None:
    post = net.post("ann")
    reply = net.reply("bob", post)
    tables.apply(post, reply)
    tables.database.execute("DELETE FROM record WHERE uri = %s", (reply.uri,))
    tables.apply(net.update(reply, {"text": "again", "reply": reply.record["reply"]}))
    assert tables.counts(post) == (0, 1, 0, 0)
    recounted(tables)


@pytest.mark.parametrize("together", [True, False])
def test_a_record_that_is_deleted_or_changed_waits_no_more(
    tables: Tables, net: Network, together: bool
) -> None:
    post, other = net.post("bob"), net.post("bob")
    first, second, third = (net.like("ann", post) for _ in range(3))
    tables.apply(post, other, first, second, third)
    assert tables.rows("duplicate_record", "uri") == [(second.uri,), (third.uri,)]
    events: list[Event] = [net.delete(second), net.update(third, {"subject": other.reference})]
    if together:
        tables.apply(*events)
    else:
        tables.apply_each(events)
    assert tables.rows("duplicate_record") == []
    assert tables.rows("like", "uri, subject") == [(first.uri, post.uri), (third.uri, other.uri)]
