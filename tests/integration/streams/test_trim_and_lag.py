"""Trimming takes only what nobody wants, and lag is what really waits."""

import time
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.health.self_check import watch
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.streams.append import append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consumer import trim
from rsky_pipeline.streams.errors import StoreUnavailableError
from rsky_pipeline.streams.lag import MAX_COUNTED, GroupReport, collect, inspect
from rsky_pipeline.streams.scan import discard
from tests.integration.streams.support import (
    entries,
    ids,
    memory_full,
    own_pending,
    reader,
    stored,
)


def group(store: Store, name: str = "g") -> GroupReport:
    found = inspect(store, "s").group(name)
    assert found is not None
    return found


def test_trimming_stops_at_the_slowest_group(store: Store) -> None:
    append(store, entries(5))
    first, second = reader(store, "g1"), reader(store, "g2")
    first.acknowledge(ids(first.read_new(10, 0)))
    taken = second.read_new(3, 0)
    assert trim(store, "s") == 0
    second.acknowledge([taken[0].id, taken[2].id])
    assert trim(store, "s") == 1
    second.acknowledge([taken[1].id])
    assert trim(store, "s") == 2
    assert list(stored(store)) == [3, 4]


def test_trimming_keeps_what_a_group_was_set_back_to(store: Store) -> None:
    append(store, entries(5))
    first, second = reader(store, "g1"), reader(store, "g2")
    first.acknowledge(ids(first.read_new(10, 0)))
    taken = second.read_new(10, 0)
    second.acknowledge(ids(taken[:4]))
    # The operator wants the second group to read again, while its last entry is still pending.
    store.call("XGROUP", "SETID", "s", "g2", taken[1].id)
    assert trim(store, "s") == 2
    assert list(stored(store)) == [2, 3, 4]


def test_a_stream_without_groups_is_not_trimmed(store: Store) -> None:
    append(store, entries(3))
    assert trim(store, "s") == 0
    assert trim(store, "missing") == 0
    assert len(stored(store)) == 3


def test_a_long_stream_is_trimmed_to_the_last_entry(store: Store) -> None:
    append(store, entries(25_010))
    first, second = reader(store, "g1"), reader(store, "g2")
    for own in (first, second):
        own.acknowledge(ids(own.read_new(25_007, 0)))
    with memory_full(store):
        assert trim(store, "s") == 25_007
    assert list(stored(store)) == [25_007, 25_008, 25_009]


def test_ids_are_compared_as_numbers(store: Store) -> None:
    for number, entry_id in enumerate(("5-8", "5-9", "5-10")):
        store.call("XADD", "s", entry_id, "event", number)
    first, second = reader(store, "g1"), reader(store, "g2")
    first.acknowledge(ids(first.read_new(1, 0)))
    second.acknowledge(ids(second.read_new(2, 0)))
    assert trim(store, "s") == 1
    assert list(stored(store)) == [1, 2]


def test_ids_beyond_exact_numbers_are_not_trimmed_too_far(store: Store) -> None:
    inexact = 2**55 + 5  # which a double rounds up to 2**55 + 8
    for number in range(2):
        store.call("XADD", "s", f"5-{inexact + number}", "event", number)
    for own in (reader(store, "g1"), reader(store, "g2")):
        own.acknowledge(ids(own.read_new(1, 0)))
    trim(store, "s")
    assert 1 in stored(store)


def test_lag_counts_what_is_not_delivered(store: Store) -> None:
    append(store, entries(10))
    own = reader(store)
    taken = own.read_new(4, 0)
    own.acknowledge(ids(taken[:3]))
    report = inspect(store, "s")
    assert (report.length, report.first_id) == (7, taken[3].id)
    found = group(store)
    assert (found.pending, found.lag, found.last_delivered_id) == (1, 6, taken[3].id)
    assert found.consumers == 1
    reader(store, "second")
    assert (group(store, "second").pending, group(store, "second").lag) == (0, 7)


def test_a_missing_stream_is_empty(store: Store) -> None:
    report = inspect(store, "missing")
    assert (report.length, report.added, report.first_id, report.groups) == (0, 0, None, ())
    assert report.group("g") is None


def test_age_is_that_of_the_oldest_unfinished_entry(store: Store) -> None:
    own = reader(store)
    assert group(store).oldest_unacked_age_seconds == 0.0
    an_hour_ago = int((time.time() - 3_600) * 1_000)
    store.call("XADD", "s", f"{an_hour_ago}-0", "event", "0")
    append(store, entries(1))
    assert 3_600 <= group(store).oldest_unacked_age_seconds < 7_200
    (old,) = own.read_new(1, 0)
    assert 3_600 <= group(store).oldest_unacked_age_seconds < 7_200
    own.acknowledge([old.id])
    assert group(store).oldest_unacked_age_seconds < 3_600
    own.acknowledge(ids(own.read_new(1, 0)))
    assert group(store).oldest_unacked_age_seconds == 0.0


def test_undelivered_entries_that_were_deleted_are_no_lag(store: Store) -> None:
    append(store, entries(10))
    own = reader(store)
    own.acknowledge(ids(own.read_new(2, 0)))
    kept = stored(store)
    store.call("XDEL", "s", kept[5], kept[9])
    assert group(store).lag == 6
    store.call("XTRIM", "s", "MAXLEN", 0)
    assert (group(store).lag, group(store).oldest_unacked_age_seconds) == (0, 0.0)


def test_an_unknown_lag_of_many_is_bounded_from_above(store: Store) -> None:
    append(store, entries(MAX_COUNTED + 1_000))
    own = reader(store)
    own.read_new(10, 0)
    store.call("XDEL", "s", stored(store)[500])
    assert MAX_COUNTED + 989 <= group(store).lag <= MAX_COUNTED + 999


def watched(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_the_gauges_follow_the_streams(store: Store) -> None:
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, "ingester", {"firehose_live": ("g", "late")})
    append(store, entries(3, "firehose_live"))
    store.call("XGROUP", "CREATE", "firehose_live", "g", "0")
    store.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", "firehose_live", ">")
    append(store, entries(2, "firehose_live_dlq"))
    time.sleep(0.01)
    watch(store, metrics, ("firehose_live", "label_live"))
    assert watched(registry, "rsky_stream_length", stream="firehose_live") == 3
    assert watched(registry, "ingester_firehose_live_length") == 3
    assert watched(registry, "rsky_stream_dead_letters", stream="firehose_live") == 2
    for name, lag, pending in (("g", 2, 1), ("late", 3, 0)):
        labels = {"stream": "firehose_live", "group": name}
        assert watched(registry, "rsky_stream_group_lag", **labels) == lag
        assert watched(registry, "rsky_stream_group_pending", **labels) == pending
        oldest = watched(registry, "rsky_stream_oldest_unacked_seconds", **labels)
        assert oldest is not None
        assert oldest > 0
    store.call("FLUSHALL")
    watch(store, metrics, ("firehose_live",))
    labels = {"stream": "firehose_live", "group": "g"}
    assert watched(registry, "rsky_stream_length", stream="firehose_live") == 0
    assert watched(registry, "rsky_stream_group_lag", **labels) == 0
    assert watched(registry, "rsky_stream_group_pending", **labels) == 0


def test_gauges_stay_when_the_server_is_away(store: Store) -> None:
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, "indexer", {"s": ("g",)})
    append(store, entries(3))
    watch(store, metrics, ("s",))
    with closing(connect("redis://127.0.0.1:1", name="nowhere")) as nowhere:
        with pytest.raises(StoreUnavailableError):
            watch(nowhere, metrics, ("s",))
        with pytest.raises(StoreUnavailableError):
            collect(nowhere, ("s",))
    assert watched(registry, "rsky_stream_length", stream="s") == 3


def test_groups_and_consumers_of_other_programs_may_have_any_name(store: Store) -> None:
    append(store, entries(3))
    own = reader(store)
    own.read_new(1, 0)
    store.call("XGROUP", "CREATE", "s", b"\xff\xfe", "0")
    store.call("XREADGROUP", "GROUP", b"\xff\xfe", b"\xfc", "COUNT", "2", "STREAMS", "s", ">")
    store.call("XREADGROUP", "GROUP", "g", b"\xfd", "COUNT", "1", "STREAMS", "s", ">")
    found = {one.name: (one.pending, one.lag) for one in inspect(store, "s").groups}
    assert found == {"g": (2, 1), "\\xff\\xfe": (2, 1)}
    (state,) = discard(store, "s", ids(own_pending(own))[:1], "look").unfinished[:1]
    assert state.state == "pending"
    watch(store, StreamMetrics(CollectorRegistry(), "indexer", {"s": ("g",)}), ["s"])
