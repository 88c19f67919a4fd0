"""Entries that wait for their time outside of their streams."""

import time

from rsky_pipeline.streams.append import append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.names import WAITING_KEY
from rsky_pipeline.streams.waiting import (
    all_waiting,
    count_waiting,
    hurry_waiting,
    remove_waiting,
    wake,
)
from tests.integration.streams.support import (
    entries,
    memory_full,
    pending_count,
    reader,
    stored,
    values,
)


def test_a_postponed_entry_leaves_its_stream_and_comes_back_when_due(store: Store) -> None:
    group = reader(store)
    append(store, entries(3))
    first, second, _ = group.read_new(3, 0)
    assert group.postpone(first, seconds=0, field=b"event", payload=b"10 with spaces\n")
    assert group.postpone(second, seconds=600, field=b"event", payload=b"11")
    assert list(stored(store)) == [2]
    assert pending_count(group) == 1
    assert not group.postpone(first, seconds=0, field=b"event", payload=b"12")  # repeated
    assert count_waiting(store) == 2
    assert wake(store, ["s", "t"]) == 1
    (back,) = group.read_new(5, 0)
    assert back.fields == {b"event": b"10 with spaces\n"}
    assert wake(store, ["s"]) == 0


def test_a_full_server_takes_what_is_postponed(store: Store) -> None:
    group = reader(store)
    append(store, entries(1))
    (delivery,) = group.read_new(1, 0)
    with memory_full(store):
        assert group.postpone(delivery, seconds=0, field=b"event", payload=b"10")
    assert count_waiting(store) == 1


def test_what_waits_survives_and_can_be_listed_hurried_and_removed(store: Store) -> None:
    group = reader(store)
    append(store, entries(1_200))
    before = time.time()
    for delivery in group.read_new(1_200, 0):
        payload = (delivery.fields or {})[b"event"]
        group.postpone(delivery, seconds=600, field=b"event", payload=payload)
    assert store.call("XLEN", "s") == 0
    found = {int(item.payload): item for item in all_waiting(store)}
    assert sorted(found) == list(range(1_200))
    assert all(before + 590 < item.due < time.time() + 610 for item in found.values())
    assert hurry_waiting(store, [found[7], found[9]]) == 2
    assert wake(store, ["s"]) == 2
    assert sorted(values(group.read_new(5, 0))) == [7, 9]
    assert hurry_waiting(store, [found[7]]) == 0  # it waits no longer, and must not again
    assert remove_waiting(store, list(found.values())) == 1_198
    assert count_waiting(store) == 0


def test_what_names_no_stream_is_kept_for_the_first_one(store: Store) -> None:
    """Another program left it: the reader of that stream makes a dead letter of it."""
    odd = [b"gone field 1", b"nothing", b"\xff\xfe repo {}", b""]
    for member in (*odd, b"s event 10"):
        store.call("ZADD", WAITING_KEY, 0, member)
    assert {item.member for item in all_waiting(store)} == {b"s event 10", b"gone field 1"}
    assert wake(store, ["t", "s"]) == 5
    assert count_waiting(store) == 0
    kept = {fields[1] for _, fields in store.call("XRANGE", "t", "-", "+")}
    assert kept == set(odd)
    assert list(stored(store)) == [10]
