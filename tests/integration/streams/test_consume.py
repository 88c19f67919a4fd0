"""Reading in groups: nothing is lost, whatever happens to a consumer or to the stream."""

import threading
import time
from contextlib import closing

import pytest

from rsky_pipeline.streams.append import append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consumer import Claimed
from rsky_pipeline.streams.errors import StoreUnavailableError
from tests.integration.streams.support import (
    UnreliableProxy,
    entries,
    ids,
    memory_full,
    own_pending,
    pending_count,
    reader,
    stored,
    values,
)


def test_new_entries_come_once(store: Store) -> None:
    append(store, entries(5))
    assert values(reader(store, consumer="a").read_new(3, 0)) == [0, 1, 2]
    assert values(reader(store, consumer="b").read_new(3, 0)) == [3, 4]
    assert reader(store).read_new(3, 0) == []


def test_a_read_waits_for_an_entry(store: Store, clean_redis: str) -> None:
    own = reader(store)
    started = time.monotonic()
    assert own.read_new(10, 200) == []
    assert time.monotonic() - started >= 0.2
    with closing(connect(clean_redis, name="writer")) as writer:
        timer = threading.Timer(0.1, append, (writer, entries(1)))
        timer.start()
        assert values(own.read_new(10, 5_000)) == [0]
        timer.join()
    with pytest.raises(ValueError, match="block_ms 10000 exceeds"):
        own.read_new(1, 10_000)


def test_own_pending_comes_back_after_a_restart(store: Store) -> None:
    append(store, entries(5))
    first = reader(store)
    taken = first.read_new(3, 0)
    page = own_pending(reader(store), 2)
    rest = own_pending(reader(store), start=f"({page[-1].id}")
    assert ids([*page, *rest]) == ids(taken)
    assert values([*page, *rest]) == [0, 1, 2]
    assert [item.deliveries for item in (*page, *rest)] == [2, 2, 2]
    assert own_pending(reader(store), start=f"({rest[-1].id}") == []
    assert pending_count(first) == 3
    assert first.acknowledge(ids(taken)) == 3
    assert first.acknowledge(ids(taken)) == 0
    assert list(stored(store)) == [3, 4]


def test_entries_of_a_dead_consumer_are_claimed_page_by_page(store: Store) -> None:
    append(store, entries(5))
    dead = reader(store, consumer="dead")
    dead.read_new(10, 0)
    alive = reader(store, consumer="alive")
    assert alive.claim_idle(60_000, "0-0", 10) == Claimed("0-0", [], [])
    time.sleep(0.01)
    start, found = "0-0", []
    for _ in range(3):
        page = alive.claim_idle(10, start, 2)
        start = page.next_start
        found += page.deliveries
    assert start == "0-0"
    assert values(found) == [0, 1, 2, 3, 4]
    assert {item.deliveries for item in found} == {2}
    assert (pending_count(dead), pending_count(alive)) == (0, 5)


def test_a_consumer_does_not_claim_what_it_works_on(store: Store) -> None:
    append(store, entries(3))
    own = reader(store)
    taken = own.read_new(10, 0)
    assert values(own.claim_idle(0, "0-0", 10, held={taken[0].id, taken[1].id}).deliveries) == [2]
    # What it lost sight of comes back to it, and what was delivered more often comes alone.
    page = own.claim_idle(0, "0-0", 10)
    assert values(page.deliveries) == [0, 1]
    assert values(own.claim_idle(0, page.next_start, 10).deliveries) == [2]


@pytest.mark.parametrize(("forgive", "deliveries"), [(False, 3), (True, 2)])
def test_held_entries_are_not_taken_away(store: Store, forgive: bool, deliveries: int) -> None:
    append(store, entries(2_500))
    own, other = reader(store), reader(store, consumer="other")
    taken = own.read_new(2_500, 0)
    own_pending(own, 2_500)
    hour = 3_600_000
    store.call("XCLAIM", "s", "g", "c", 0, *ids(taken), "IDLE", hour, "JUSTID")
    own.hold(ids(taken), forgive=forgive)
    assert other.claim_idle(hour, "0-0", 10) == Claimed("0-0", [], [])
    again = own_pending(own, 2_500)
    assert {item.deliveries for item in again} == {deliveries}
    assert ids(again) == ids(taken)


def test_holding_does_not_bring_back_what_is_done(store: Store) -> None:
    append(store, entries(2))
    own = reader(store)
    taken = own.read_new(10, 0)
    own.acknowledge([taken[0].id])
    own.hold(ids(taken))
    own.hold([])
    assert ids(own_pending(own)) == [taken[1].id]


def test_bodies_that_are_gone_are_reported_and_do_not_come_again(store: Store) -> None:
    append(store, entries(3))
    own = reader(store)
    taken = own.read_new(10, 0)
    store.call("XDEL", "s", taken[1].id)
    claimed = own.claim(own.pending("-", 10, own=True), 0)
    assert (values(claimed.deliveries), claimed.deleted) == ([0, 2], [taken[1].id])
    assert values(own_pending(own)) == [0, 2]
    assert pending_count(own) == 2


def test_bodies_that_are_gone_are_not_claimed_for_ever(store: Store) -> None:
    append(store, entries(5))
    taken = reader(store, consumer="dead").read_new(10, 0)
    store.call("XTRIM", "s", "MINID", taken[2].id)
    other = reader(store, consumer="other")
    claimed = other.claim_idle(0, "0-0", 10)
    assert (values(claimed.deliveries), claimed.deleted) == ([2, 3, 4], ids(taken[:2]))
    assert other.claim_idle(0, "0-0", 10, held=ids(claimed.deliveries)) == Claimed("0-0", [], [])
    assert pending_count(other) == 3


def test_a_deleted_stream_is_read_again_from_its_beginning(store: Store) -> None:
    own = reader(store)
    store.call("DEL", "s")
    append(store, entries(2))
    assert own.read_new(10, 0) == []
    assert values(own.read_new(10, 0)) == [0, 1]
    store.call("XGROUP", "DESTROY", "s", "g")
    assert own.claim_idle(0, "0-0", 10) == Claimed("0-0", [], [])
    assert values(own.read_new(10, 0)) == [0, 1]
    store.call("DEL", "s")
    assert own_pending(own) == []
    assert own.acknowledge(["1-1"]) == 0


def test_a_stream_deleted_under_a_waiting_read(store: Store, clean_redis: str) -> None:
    own = reader(store)
    with closing(connect(clean_redis, name="other")) as other:
        timer = threading.Timer(0.1, other.call, ("DEL", "s"))
        timer.start()
        assert own.read_new(10, 3_000) == []
        timer.join()
        append(other, entries(1))
        assert values(own.read_new(10, 100) or own.read_new(10, 100)) == [0]


def test_acknowledging_keeps_what_another_group_wants(store: Store) -> None:
    append(store, entries(3))
    first, second = reader(store, "g1"), reader(store, "g2")
    taken = first.read_new(10, 0)
    assert first.acknowledge(ids(taken)) == 3
    assert list(stored(store)) == [0, 1, 2]
    # Our group is gone: the one that is left has not read these.
    store.call("XGROUP", "DESTROY", "s", "g1")
    assert first.acknowledge(ids(taken)) == 0
    assert values(second.read_new(10, 0)) == [0, 1, 2]


def test_a_full_server_can_still_be_drained(store: Store) -> None:
    append(store, entries(10))
    own = reader(store)
    taken = own.read_new(10, 0)
    with memory_full(store):
        assert own.acknowledge(ids(taken)) == 10
    assert store.call("XLEN", "s") == 0


def test_entries_of_a_lost_reply_are_found_again(clean_redis: str) -> None:
    with (
        UnreliableProxy(clean_redis) as proxy,
        closing(connect(proxy.url, name="test", timeout_seconds=1.0)) as store,
    ):
        append(store, entries(3))
        own = reader(store)
        proxy.answering.clear()
        with pytest.raises(StoreUnavailableError):
            own.read_new(2, 0)
        proxy.answering.set()
        assert values(own.read_new(10, 0)) == [2]
        assert values(own_pending(own)) == [0, 1, 2]


def test_consumers_that_are_gone_are_forgotten_once_they_hold_nothing(store: Store) -> None:
    append(store, entries(3))
    own, idle = reader(store), reader(store, consumer="idle")
    own.read_new(1, 0)
    reader(store, consumer="holding").read_new(1, 0)
    # Before Redis 7 a consumer exists from its first entry on.
    assert idle.acknowledge([delivery.id for delivery in idle.read_new(1, 0)]) == 1
    time.sleep(0.02)
    assert own.remove_idle_consumers(60_000) == []
    assert own.remove_idle_consumers(10) == ["idle"]
    assert pending_count(own) == 1
    assert pending_count(reader(store, consumer="holding")) == 1
    store.call("DEL", "s")
    assert own.remove_idle_consumers(0) == []
