"""Cleaning streams: what is removed, what stays, and what is said about it."""

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsky_pipeline.operations.cleaning import RemovalRefusedError, purge, reset, trim
from rsky_pipeline.streams.connection import Store, connect
from tests.integration.operations.entries import (
    LIVE,
    commit,
    consumer,
    fill,
    left,
    phantoms,
    post,
)
from tests.integration.streams.support import pending_count


def polluted(store: Store, count: int = 1_300) -> list[bytes]:
    """Fill the live stream with posts, a commit after each; return the posts."""
    posts = [post(number) for number in range(count)]
    fill(store, [each for n, one in enumerate(posts) for each in (one, commit(n))])
    return posts


def test_purge_removes_only_the_polluting_entries(store: Store) -> None:
    posts = polluted(store)
    reader = consumer(store)
    reader.read_new(600, 0)
    seen: list[int] = []

    cut = purge(store, LIVE, ["repo"], on_progress=lambda looked_at, removed: seen.append(removed))

    assert left(store) == posts
    assert (cut.looked_at, cut.removed) == (2_600, 1_300)
    assert cut.by_type == {"repo": 1_300}
    assert cut.lost.pending == {"firehose_group": 300}
    assert cut.lost.unread == {"firehose_group": 1_000}
    assert seen[-1] == 1_300
    assert len(seen) > 2
    assert phantoms(store) == 0
    assert pending_count(reader) == 300
    assert purge(store, LIVE, ["repo"]).removed == 0


def test_purge_goes_on_after_an_interruption(store: Store) -> None:
    posts = polluted(store)

    class Interrupted(Exception):
        pass

    def stop(looked_at: int, removed: int) -> None:
        if removed >= 500:
            raise Interrupted

    with pytest.raises(Interrupted):
        purge(store, LIVE, ["repo"], on_progress=stop)
    middle = store.call("XRANGE", LIVE, "-", "+", "COUNT", 500)[-1][0]
    before = len(left(store))
    cut = purge(store, LIVE, ["repo"], after=middle.decode())
    assert before == 2_100
    assert cut.removed == 800
    assert left(store) == posts


def test_a_dry_run_counts_and_removes_nothing(store: Store) -> None:
    polluted(store, 10)
    consumer(store)
    for cut in (
        purge(store, LIVE, ["repo"], dry_run=True),
        trim(store, LIVE, maxlen=10, force=True, dry_run=True),
        trim(store, LIVE, maxlen=10, dry_run=True),
    ):
        assert (cut.lost.entries or cut.kept.entries) == 10
    assert len(left(store)) == 20


def test_what_is_work_is_not_purged_without_force(store: Store) -> None:
    fill(store, [commit(1)], "firehose_backfill")
    polluted(store, 2)
    for stream, kind in (("firehose_backfill", "repo"), (LIVE, "create")):
        with pytest.raises(RemovalRefusedError, match=kind):
            purge(store, stream, [kind])
    assert purge(store, LIVE, ["create"], force=True).removed == 2
    assert left(store) == [commit(0), commit(1)]


def test_purge_beside_a_producer_and_a_consumer(store: Store, clean_redis: str) -> None:
    posts = polluted(store, 2_000)
    stop, got = threading.Event(), list[bytes]()

    def consume() -> None:
        own = connect(clean_redis, name="consumer")
        reader = consumer(own)
        ended = False
        while not ended:
            ended = stop.is_set()  # before reading: the last entry comes before it is set
            while batch := reader.read_new(50, 50):
                got.extend(item.fields[b"event"] for item in batch if item.fields)
                reader.acknowledge([item.id for item in batch])
        own.close()

    thread = threading.Thread(target=consume)
    thread.start()
    added = []
    for number in range(5_000, 5_200):
        purge(store, LIVE, ["repo"])
        added.append(post(number))
        fill(store, [added[-1]])
    stop.set()
    thread.join()
    assert [payload for payload in got if b'"type":"create"' in payload] == posts + added
    assert len(left(store)) == 0


def test_trim_keeps_what_somebody_needs(store: Store) -> None:
    fill(store, [post(number) for number in range(10)])
    first, second = consumer(store, group="a"), consumer(store, group="b")
    first.acknowledge([item.id for item in first.read_new(8, 0)])
    taken = second.read_new(6, 0)
    second.acknowledge([item.id for item in taken if item.id != taken[1].id])

    cut = trim(store, LIVE, maxlen=0)

    assert left(store) == [post(number) for number in (1, 6, 7, 8, 9)]
    assert cut.removed == 5
    assert (cut.kept.entries, cut.lost.entries) == (5, 0)
    assert cut.kept.pending == {"b": 1}
    assert cut.kept.unread == {"b": 4, "a": 2}


def test_a_forced_trim_says_exactly_what_is_lost(store: Store) -> None:
    fill(store, [post(1), commit(2), post(3), post(4)])
    reader = consumer(store)
    ids = [item.id for item in reader.read_new(2, 0)]

    cut = trim(store, LIVE, maxlen=1, force=True)

    assert left(store) == [post(4)]
    lost = cut.lost.document()
    assert lost["entries"] == 3
    assert lost["by_type"] == {"create": 2, "repo": 1}
    assert lost["pending_by_group"] == {"firehose_group": 2}
    assert lost["unread_by_group"] == {"firehose_group": 1}
    assert lost["first_id"] == ids[0]
    assert lost["first_time"].startswith("20")
    assert phantoms(store) == 0
    assert len(reader.read_new(10, 0)) == 1


def test_trim_by_age_is_by_the_servers_clock(store: Store) -> None:
    now = int(store.call("TIME")[0]) * 1_000
    for age in (7_200, 3_700, 3_500, 1):
        store.call("XADD", LIVE, f"{now - age * 1000}-0", "event", post(age))
    consumer(store)
    cut = trim(store, LIVE, keep_seconds=3_600, force=True)
    assert cut.removed == 2
    assert left(store) == [post(3_500), post(1)]


def test_reset_refuses_first_and_removes_all_when_forced(store: Store) -> None:
    fill(store, [post(number) for number in range(1_200)])
    reader = consumer(store)
    reader.acknowledge([item.id for item in reader.read_new(100, 0)])
    with pytest.raises(
        RemovalRefusedError, match=r"1,100 entries \(1,100 create; 1,100 unread by firehose"
    ):
        reset(store, LIVE)
    assert len(left(store)) == 1_100
    position = store.call("XINFO", "STREAM", LIVE)
    cut = reset(store, LIVE, force=True)
    assert (cut.removed, cut.lost.entries) == (1_100, 1_100)
    assert left(store) == []
    assert store.call("XINFO", "STREAM", LIVE)[7] == position[7]  # the last generated id
    fill(store, [post(1)])
    assert len(reader.read_new(10, 0)) == 1
    assert reset(store, LIVE, dry_run=True).kept.entries == 1


def test_nobody_has_read_a_stream_without_groups(store: Store) -> None:
    fill(store, [post(1)])
    cut = trim(store, LIVE, maxlen=0)
    assert cut.kept.document()["unread_by_group"] == {"anybody": 1}
    with pytest.raises(RemovalRefusedError, match="no stream nothing"):
        trim(store, "nothing", maxlen=0)


@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    kinds=st.lists(st.sampled_from([post, commit]), min_size=1, max_size=40),
    delivered=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    acknowledged=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 39))),
    maxlen=st.integers(0, 40),
    force=st.booleans(),
)
def test_a_trim_takes_nothing_from_anybody_unless_forced(
    store: Store,
    kinds: list[Callable[[int], bytes]],
    delivered: list[int],
    acknowledged: set[tuple[int, int]],
    maxlen: int,
    force: bool,
) -> None:
    store.call("FLUSHALL")
    payloads = [make(number) for number, make in enumerate(kinds)]
    fill(store, payloads)
    readers = [consumer(store, group=f"g{number}") for number in range(len(delivered))]
    needed = set[int]()
    for number, (reader, count) in enumerate(zip(readers, delivered, strict=True)):
        got = reader.read_new(count, 0) if count else []
        done = [n for n in range(len(got)) if (number, n) in acknowledged]
        for n in done:
            store.call("XACK", LIVE, reader.group, got[n].id)
        needed |= set(range(len(payloads))) - set(done)
    cut = trim(store, LIVE, maxlen=maxlen, force=force)
    oldest = set(range(max(0, len(payloads) - maxlen)))
    gone = oldest if force else oldest - needed
    assert left(store) == [one for n, one in enumerate(payloads) if n not in gone]
    assert cut.lost.entries == (len(oldest & needed) if force else 0)
    assert cut.kept.entries == (0 if force else len(oldest & needed))
    assert not any(phantoms(store, group=reader.group) for reader in readers)


def test_time_is_told_in_order(store: Store) -> None:
    fill(store, [post(1)])
    time.sleep(0.005)
    fill(store, [post(2)])
    consumer(store)
    kept = trim(store, LIVE, maxlen=0).kept.document()
    assert kept["first_time"] < kept["last_time"]
