"""Gaps on their way from Redis to PostgreSQL, and what is noted of their repair."""

from contextlib import closing
from functools import partial

import orjson
import pytest
import trio
import trio.lowlevel

from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.ingester.listing import gap_repair
from rsky_pipeline.ingester.listing.gap_repair import (
    GapRepair,
    claim,
    list_gaps,
    move_gaps,
    note,
    repair_marks,
)
from rsky_pipeline.network.listing import Page
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.dead_letters import list_dead_letters
from rsky_pipeline.streams.gap import GAP_FIELD
from rsky_pipeline.streams.names import GAPS
from tests.integration.ingester.worker import eventually

GAP = {
    "host": "relay.example", "kind": "outdated_cursor", "from_seq": 1, "to_seq": 9,
    "from_time": None, "to_time": None,
}  # fmt: skip


def test_a_gap_that_cannot_be_stored_holds_up_no_other(
    clean_redis: str, schema_database: str
) -> None:
    store = connect(clean_redis, name="test")
    gaps = [GAP, {**GAP, "host": "a\0b"}, {**GAP, "to_seq": 2**64 - 1}]
    for gap in [*gaps, *[GAP] * 120]:
        store.call("XADD", GAPS, "*", GAP_FIELD, orjson.dumps(gap))
    store.call("XADD", GAPS, "*", GAP_FIELD, b"no JSON")
    open_database = partial(Database.connect, schema_database, name="test")
    assert move_gaps(store, open_database) == 122
    assert store.call("XLEN", GAPS) == 0
    letters = list_dead_letters(store, GAPS)
    assert [letter.fields[GAP_FIELD] for letter in letters[1:]] == [b"no JSON"]
    assert [letter.reason for letter in letters] == ["bad_data", "internal_error"]
    assert move_gaps(store, open_database) == 0
    with open_database() as database:
        rows = list_gaps(database)
        assert {row.host for row in rows} == {"relay.example"}
        assert {row.to_seq for row in rows} == {9, 2**63 - 1}
    store.close()


async def test_a_gap_that_somebody_lists_is_repaired_at_once(
    clean_redis: str, schema_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gaps list` moves a gap before the ingester does."""
    monkeypatch.setattr(gap_repair, "_CHECK_SECONDS", 0.05)
    open_database = partial(Database.connect, schema_database, name="test")
    links = (
        Link(lambda: connect(clean_redis, name="test"), purpose="test"),
        Link(open_database, purpose="test"),
    )

    async def list_nothing(endpoint: Endpoint, position: str | None, limit: int) -> Page:
        await trio.lowlevel.checkpoint()
        return Page((), None)

    repair = GapRepair(*links, open_database, list_nothing, repair_marks(Settings()), patient=True)
    watch = partial(repair.watch, [parse_endpoint("relay.example")], repair=True)
    with closing(connect(clean_redis, name="test")) as store, open_database() as database:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(0.3)  # it has found nothing to do
            store.call("XADD", GAPS, "*", GAP_FIELD, orjson.dumps(GAP))
            move_gaps(store, open_database)
            await eventually(lambda: [row.status for row in list_gaps(database)] == ["repaired"])
            nursery.cancel_scope.cancel()
    for link in links:
        link.close()


def test_many_gaps_that_cannot_be_read_hold_up_none_that_can(
    clean_redis: str, schema_database: str
) -> None:
    store = connect(clean_redis, name="test")
    for _ in range(120):
        store.call("XADD", GAPS, "*", GAP_FIELD, b"no JSON")
    store.call("XADD", GAPS, "*", GAP_FIELD, orjson.dumps(GAP))
    assert move_gaps(store, partial(Database.connect, schema_database, name="test")) == 1
    assert store.call("XLEN", GAPS) == 0
    assert len(list_dead_letters(store, GAPS, count=1_000)) == 120
    store.close()


def test_what_a_host_says_is_noted_as_far_as_it_can_be(
    clean_redis: str, schema_database: str
) -> None:
    store = connect(clean_redis, name="test")
    store.call("XADD", GAPS, "*", GAP_FIELD, orjson.dumps(GAP))
    open_database = partial(Database.connect, schema_database, name="test")
    move_gaps(store, open_database)
    store.close()
    with open_database() as database:
        gap = claim(database, ["relay.example"])
        assert gap is not None
        note(database, gap, "failed", listed=1, queued=0, cursor="a\0b", error="bad\0" * 900)
        (row,) = list_gaps(database)
        assert row.list_cursor is None
        assert row.error is not None
        assert row.error.startswith("bad\ufffdbad")
        note(database, gap, "repairing", listed=1, queued=0, cursor="did:plc:a")
        assert list_gaps(database)[0].list_cursor == "did:plc:a"
