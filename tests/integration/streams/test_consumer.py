"""What a consumer takes, in which order, and what becomes of it."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import orjson
import pytest

from rsky_pipeline.streams import consumer as module
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consumer import Consumer, Delivery, Pending, Taken, Trial
from rsky_pipeline.streams.dead_letters import list_dead_letters
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.marks import report_loss, requested_since
from rsky_pipeline.streams.names import GAPS, TRIALS, WAITING_KEY
from rsky_pipeline.streams.waiting import count_waiting
from tests.integration.streams.support import (
    entries,
    ids,
    own_pending,
    reader,
    stored,
    values,
)


def consumer(name: str = "c", **options: Any) -> Consumer:
    options.setdefault("reclaim_idle_ms", 60_000)
    return Consumer("s", "g", name, **options)


def got(taken: Taken) -> list[int]:
    return values(taken.deliveries)


def deliver_again(store: Store, number: int, times: int) -> None:
    """Let an entry be delivered to the consumer `c` so many times more."""
    for _ in range(times):
        store.call("XCLAIM", "s", "g", "c", 0, stored(store)[number])


def fail_at(
    monkeypatch: pytest.MonkeyPatch, wanted: Callable[[tuple[Any, ...]], bool], number: int = 1
) -> None:
    """Let the connection break once, at the n-th of these commands and after the server did it."""
    original, seen = Store.call, 0

    def call(self: Store, *command: Any) -> Any:
        nonlocal seen
        reply = original(self, *command)
        seen += wanted(command)
        if wanted(command) and seen == number:
            raise StoreUnavailableError("gone")
        return reply

    monkeypatch.setattr(Store, "call", call)


def test_new_entries_are_held_until_they_end(store: Store) -> None:
    own = consumer()
    assert got(own.take(store, 10)) == []
    append(store, entries(5))
    first = own.take(store, 3)
    assert (got(first), first.more, first.size) == ([0, 1, 2], True, 3)
    second = own.take(store, 3)
    assert (got(second), second.more) == ([3, 4], False)
    assert sorted(own.held) == ids([*first.deliveries, *second.deliveries])
    one, two, three = first.deliveries
    four, five = second.deliveries
    assert own.acknowledge(store, [one.id]) == 1
    assert own.dead_letter(store, two, reason="bad", error="x" * 900, attempts=3)
    assert not own.dead_letter(store, two, reason="bad", error="", attempts=3)
    assert own.postpone(store, three, seconds=60, field=b"event", payload=b"7")
    own.release([four.id])
    assert own.held == [five.id]
    assert list(stored(store)) == [3, 4]
    assert count_waiting(store) == 1
    (letter,) = list_dead_letters(store, "s")
    assert (letter.reason, letter.attempts, len(letter.error)) == ("bad", 3, 500)


def test_the_next_life_takes_what_the_one_before_left(store: Store) -> None:
    append(store, entries(5))
    consumer().take(store, 3)
    own = consumer()
    assert (own.taken_up, own.recovered) == (False, False)
    taken = own.take(store, 2)
    assert (got(taken), taken.more) == ([0, 1], True)
    assert [item.deliveries for item in taken.deliveries] == [2, 2]
    rest = own.take(store, 10)
    assert got(rest) == [2]
    assert got(own.take(store, 10)) == [3, 4]
    assert (own.taken_up, own.recovered) == (True, False)
    own.acknowledge(store, ids([*taken.deliveries, *rest.deliveries]))
    assert (own.taken_up, own.recovered) == (True, True)


def test_a_suspicious_entry_is_alone(store: Store) -> None:
    append(store, entries(6))
    consumer().take(store, 5)
    deliver_again(store, 2, 1)
    own = consumer()
    before = own.take(store, 10)
    assert got(before) == [0, 1]
    assert got(own.take(store, 10)) == []  # not beside others
    own.acknowledge(store, ids(before.deliveries))
    alone = own.take(store, 10)
    assert got(alone) == [2]
    assert alone.deliveries[0].suspicious
    assert got(own.take(store, 10)) == []  # and nothing behind it
    own.acknowledge(store, ids(alone.deliveries))
    assert got(own.take(store, 10)) == [3, 4]
    assert got(own.take(store, 10)) == [5]


def test_entries_behind_a_deadly_one_do_not_become_suspicious(store: Store) -> None:
    append(store, entries(3))
    deadly = 1
    for _ in range(6):  # lives, each of which ends when it takes the deadly entry
        own = consumer()
        while deadly not in (found := got(own.take(store, 10))):
            assert found
            own.acknowledge(store, [stored(store)[number] for number in found])
    counts = [row.deliveries for row in reader(store, consumer="c").pending("-", 10)]
    assert counts == [6, 2]


def lives(store: Store, number: int, *, blameless: bool = False) -> Delivery:
    """Let so many workers end while they try the first entry; return it as the next one has it."""
    for _ in range(number):
        consumer(trial=Trial(blameless)).take(store, 10)
    (found, *_) = consumer(trial=Trial(blameless)).take(store, 10).deliveries
    return found


def test_whoever_is_killed_from_outside_makes_no_entry_guilty(store: Store) -> None:
    append(store, entries(2))
    found = lives(store, 8, blameless=True)
    assert (found.suspicious, found.deaths) == (True, 0)
    assert not found.crashes_workers(5)
    # An older program goes by the count alone, and would not bury it either.
    counts = [row.deliveries for row in reader(store, consumer="c").pending("-", 10)]
    assert counts == [3, 2]


def test_deaths_under_the_mark_count_and_one_that_ends_takes_its_mark_along(store: Store) -> None:
    append(store, entries(2))
    found = lives(store, 5)
    assert found.deaths == 3  # the first two were beside the other entry
    assert found.crashes_workers(5)
    own = consumer()
    (found,) = own.take(store, 10).deliveries
    assert own.dead_letter(store, found, reason="crashes_worker", error="", attempts=6)
    assert store.call("HLEN", TRIALS) == 0
    (found,) = own.take(store, 10).deliveries  # the neighbour
    assert found.deaths == 0
    own.acknowledge(store, [found.id])
    assert store.call("HLEN", TRIALS) == 0


def test_a_failed_connection_is_no_death(store: Store, clean_redis: str) -> None:
    append(store, entries(1))
    own = consumer()
    for number in range(9):
        with closing(connect(clean_redis, name=f"c{number}")) as connection:
            (found,) = own.take(connection, 10).deliveries
            own.release([found.id])
    assert found.deaths == 0


def test_the_worker_that_takes_over_counts_the_death(store: Store) -> None:
    append(store, entries(1))
    now = 0.0
    lives(store, 2)
    time.sleep(0.03)
    own = consumer("other", reclaim_idle_ms=10, clock=lambda: now, trial=Trial(blameless=True))
    own.take(store, 10)
    now = 1.0
    (found,) = own.take(store, 10).deliveries
    assert found.deaths == 1


def test_nothing_of_any_stream_is_tried_beside_a_suspicious_entry(store: Store) -> None:
    append(store, [Entry(stream, b"event", b"0") for stream in ("s", "t", "t")])
    for stream in ("s", "t"):
        for _ in range(2):
            Consumer(stream, "g", "c", reclaim_idle_ms=60_000).take(store, 1)
    trial = Trial()
    first, second = (
        Consumer(stream, "g", "c", reclaim_idle_ms=60_000, trial=trial) for stream in ("s", "t")
    )
    alone = first.take(store, 10).deliveries
    assert [item.suspicious for item in alone] == [True]
    assert second.take(store, 10).deliveries == []
    first.acknowledge(store, ids(alone))
    assert first.take(store, 10).deliveries == []
    alone = second.take(store, 10).deliveries
    assert [item.suspicious for item in alone] == [True]
    append(store, [Entry("s", b"event", b"1")])
    assert first.take(store, 10).deliveries == []
    second.acknowledge(store, ids(alone))
    assert len(second.take(store, 10).deliveries) == 1
    assert len(first.take(store, 10).deliveries) == 1


def test_a_suspicious_entry_of_a_dead_consumer_is_taken_alone(store: Store) -> None:
    append(store, entries(4))
    consumer("dead").take(store, 3)
    for number in (1, 2):
        store.call("XCLAIM", "s", "g", "dead", 0, stored(store)[number])
    now = 0.0
    own = consumer(reclaim_idle_ms=10, clock=lambda: now)
    assert got(own.take(store, 10)) == [3]
    time.sleep(0.03)
    now = 1.0
    for expected in ([0], [], []):
        assert got(own.take(store, 10)) == expected  # not beside others
    own.acknowledge(store, own.held)
    assert got(own.take(store, 10)) == [1]
    assert got(own.take(store, 10)) == []
    own.acknowledge(store, own.held)
    now = 2.0
    assert got(own.take(store, 10)) == [2]


def test_a_suspicious_entry_that_takes_long_is_not_waited_for(store: Store) -> None:
    now = 0.0
    append(store, entries(3))
    consumer().take(store, 3)
    deliver_again(store, 0, 1)
    own = consumer(alone_seconds=5.0, clock=lambda: now)
    assert got(own.take(store, 10)) == [0]
    assert got(own.take(store, 10)) == []
    now = 5.0
    assert got(own.take(store, 10)) == [1, 2]


def test_a_lost_reply_is_found_again_on_the_next_connection(
    store: Store, clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, entries(6))
    own = consumer()
    assert got(own.take(store, 2)) == [0, 1]
    fail_at(monkeypatch, lambda command: command[0] == "XREADGROUP")
    with pytest.raises(StoreUnavailableError):
        own.take(store, 2)
    with closing(connect(clean_redis, name="next")) as following:
        assert got(own.take(following, 10)) == [2, 3]
        assert got(own.take(following, 10)) == [4, 5]
    assert len(own.held) == 6


def test_entries_of_a_failed_take_are_not_held(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = consumer(pace_seconds=0.001, max_bytes=16_384)  # a page is two entries
    assert got(own.take(store, 10)) == []
    append(store, entries(3))
    fail_at(monkeypatch, lambda command: command[0] == "XREADGROUP", 2)
    with pytest.raises(StoreUnavailableError):
        own.take(store, 10)
    assert own.held == []
    assert got(own.take(store, 10)) + got(own.take(store, 10)) == [0, 1, 2]


def test_entries_that_come_close_together_are_taken_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, waits = 0.0, list[float]()

    def wait(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds
        append(store, entries(1, first=2))

    monkeypatch.setattr(time, "sleep", wait)
    own = consumer(pace_seconds=0.5, clock=lambda: now)
    append(store, entries(1))
    assert got(own.take(store, 3)) == [0]  # at once: the first one after a pause
    append(store, entries(1, first=1))
    now = 0.2
    assert got(own.take(store, 3)) == [1, 2]
    append(store, entries(4, first=3))
    now = 0.9
    assert got(own.take(store, 3)) == [3, 4, 5]
    assert got(own.take(store, 3)) == [6, 2]  # at once: the batch before was full
    assert waits == pytest.approx([0.3, 0.1])


def test_entries_of_a_dead_consumer_are_taken_over_and_held_ones_are_not(store: Store) -> None:
    append(store, entries(5))
    consumer("dead").take(store, 3)
    now = 0.0
    own = consumer("alive", reclaim_idle_ms=10, clock=lambda: now)
    assert got(own.take(store, 10)) == [3, 4]
    time.sleep(0.03)
    now = 1.0
    own.hold(store)
    assert got(own.take(store, 10)) == [0, 1, 2]
    assert own.reclaimed == 3
    time.sleep(0.03)
    now = 2.0
    assert got(own.take(store, 10)) == []


def test_an_entry_that_another_consumer_takes_over_meanwhile_is_left_to_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, entries(2))
    consumer().take(store, 2)
    time.sleep(0.03)
    original, other = Consumer._pending, reader(store, consumer="other")
    taken_over = False

    def pending(*args: Any, **options: Any) -> list[Pending]:
        nonlocal taken_over
        rows = original(*args, **options)
        if rows and not taken_over:
            taken_over = True
            other.claim(rows[:1], 0)
        return rows

    monkeypatch.setattr(Consumer, "_pending", pending)
    assert got(consumer().take(store, 10)) == [1]
    assert len(other.pending("-", 10, own=True)) == 1


def test_pending_entries_without_a_body_are_acknowledged(store: Store) -> None:
    append(store, entries(3))
    consumer().take(store, 3)
    store.call("XDEL", "s", stored(store)[1])
    own = consumer()
    assert got(own.take(store, 10)) == [0, 2]
    assert own.bodiless == 1
    assert len(reader(store, consumer="c").pending("-", 10)) == 2


def test_a_stream_that_was_deleted_is_begun_again(store: Store) -> None:
    own = consumer()
    own.take(store, 10)
    store.call("DEL", "s")
    assert got(own.take(store, 10)) == []
    append(store, entries(2))
    assert got(own.take(store, 10)) == [0, 1]


def observed(store: Store, own: Consumer) -> None:
    """Let a consumer look at its stream, as its worker does every few seconds."""
    own.observe(inspect(store, "s"))


def test_a_group_that_was_destroyed_begins_with_what_is_unfinished(store: Store) -> None:
    append(store, entries(6))
    own = consumer()
    taken = own.take(store, 4).deliveries
    own.acknowledge(store, ids(taken[:2]))
    observed(store, own)
    store.call("XGROUP", "DESTROY", "s", "g")
    assert got(own.take(store, 10)) == [2, 3, 4, 5]
    assert own.loss is None, "nothing is missing"


@pytest.mark.parametrize("command", [("DEL", "s"), ("FLUSHALL",)])
def test_a_stream_that_was_deleted_is_a_loss_since_its_oldest_unfinished_entry(
    store: Store, command: tuple[str, ...]
) -> None:
    append(store, entries(3))
    oldest = int(stored(store)[1].partition("-")[0]) / 1_000
    own = consumer()
    own.acknowledge(store, ids(own.take(store, 1).deliveries))
    observed(store, own)
    store.call(*command)
    append(store, entries(1, first=7))
    assert got(own.take(store, 10)) == [7]
    assert own.loss is not None
    assert own.loss.stream == "s"
    assert abs(own.loss.since - oldest) < 5
    # It is reported once, for all relays, and then found no more.
    assert report_loss(store, own, ["relay.test"]) is not None
    assert report_loss(store, own, ["relay.test"]) is None
    assert requested_since(store) == pytest.approx(oldest, abs=5)
    [(_, fields)] = store.call("XRANGE", GAPS, "-", "+")
    assert orjson.loads(fields[1])["kind"] == "redis_lost"


def test_nothing_is_trimmed_that_a_destroyed_group_has_not_read(store: Store) -> None:
    other = reader(store, group="other")
    append(store, entries(2))
    own = consumer()
    own.take(store, 1)
    other.acknowledge(ids(other.read_new(2, 0)))
    store.call("XGROUP", "DESTROY", "s", "g")
    assert own.clean(store) == 0
    assert got(own.take(store, 2)) == [0, 1]


def test_bytes_are_bounded(store: Store) -> None:
    append(store, [Entry("s", b"event", b" " * 10_000)] * 100)
    own = consumer(max_bytes=400_000, pace_seconds=0.001)
    taken = [own.take(store, 100) for _ in range(4)]
    assert len(own.held) == 100
    # The first page is a guess; afterwards a page is as many as fill half of the bound.
    assert [len(one.deliveries) for one in taken] == [48, 40, 12, 0]
    assert [one.more for one in taken] == [True, True, False, False]


def test_what_waits_for_something_else_is_forgiven(store: Store) -> None:
    append(store, entries(1))
    for _ in range(4):
        consumer().take(store, 1)
    own = consumer()
    assert own.take(store, 1).deliveries[0].deliveries == 5
    own.hold(store, forgive=True)
    assert [row.deliveries for row in reader(store, consumer="c").pending("-", 10)] == [1]


def test_names_of_dead_consumers_are_forgotten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, entries(3))
    consumer("idle").take(store, 1)
    consumer("holds").take(store, 1)
    (entry_id,) = (row.id for row in reader(store, consumer="idle").pending("-", 9, own=True))
    consumer("idle").acknowledge(store, [entry_id])
    own = consumer()
    own.take(store, 1)
    assert own.clean(store) == 0
    monkeypatch.setattr(module, "FORGOTTEN_CONSUMER_MS", 0)
    own.clean(store)
    rows = store.call("XINFO", "CONSUMERS", "s", "g")
    assert sorted(row[1] for row in rows) == [b"c", b"holds"]


def test_cleaning_removes_what_every_group_has_acknowledged(store: Store) -> None:
    other = reader(store, group="other")
    append(store, entries(3))
    own = consumer()
    own.acknowledge(store, ids(own.take(store, 2).deliveries))
    assert own.clean(store) == 0
    other.read_new(1, 0)
    other.acknowledge([stored(store)[0]])
    assert own.clean(store) == 1
    assert list(stored(store)) == [1, 2]


@pytest.mark.parametrize("target", ["s_dlq", WAITING_KEY])
def test_a_move_that_redis_refuses_leaves_its_entry_pending(store: Store, target: str) -> None:
    append(store, entries(3))
    own = consumer()
    one, two, three = own.take(store, 3).deliveries
    store.call("SET", target, "not what it should be")
    dead = own.dead_letter(store, one, reason="bad", error="", attempts=1)
    later = own.postpone(store, two, seconds=60, field=b"event", payload=b"7")
    assert (dead, later) == (target != "s_dlq", target == "s_dlq")
    refused = two.id if dead else one.id
    assert own.held == [three.id]
    assert own.acknowledge(store, [three.id]) == 1
    assert ids(own_pending(reader(store))) == [refused]
    store.call("DEL", target)
    assert own.dead_letter(store, one, reason="bad", error="", attempts=2) is (refused == one.id)


def test_a_user_who_may_end_nothing_keeps_all_entries_held(store: Store, clean_redis: str) -> None:
    append(store, entries(2))
    own = consumer()
    one, two = own.take(store, 2).deliveries
    store.call("ACL", "SETUSER", "reading", "on", ">secret", "~*", "+@all", "-evalsha")
    try:
        with closing(connect(clean_redis, name="reading")) as refused:
            refused.call("AUTH", "reading", "secret")
            with pytest.raises(StoreRejectedError):
                own.dead_letter(refused, one, reason="bad", error="", attempts=1)
            with pytest.raises(StoreRejectedError):
                own.postpone(refused, two, seconds=60, field=b"event", payload=b"7")
    finally:
        store.call("ACL", "DELUSER", "reading")
    assert sorted(own.held) == [one.id, two.id]
    assert own.dead_letter(store, one, reason="bad", error="", attempts=1)


def test_entries_of_a_key_that_is_no_stream_any_more_have_ended(store: Store) -> None:
    append(store, entries(3))
    own = consumer()
    one, two, three = own.take(store, 3).deliveries
    store.call("SET", "s", "not a stream")
    assert not own.dead_letter(store, one, reason="bad", error="", attempts=1)
    assert not own.postpone(store, two, seconds=60, field=b"event", payload=b"7")
    assert own.acknowledge(store, [three.id]) == 0
    assert own.held == []


def test_entries_of_a_group_that_is_gone_can_be_held_and_ended(store: Store) -> None:
    append(store, entries(2))
    own = consumer()
    one, two = own.take(store, 2).deliveries
    store.call("XGROUP", "DESTROY", "s", "g")
    own.hold(store)
    own.hold(store, forgive=True)
    own.clean(store)
    assert not own.postpone(store, one, seconds=60, field=b"event", payload=b"7")
    assert own.acknowledge(store, [two.id]) == 0
    assert got(own.take(store, 2)) == [0, 1]


def test_entries_that_the_only_group_left_has_not_read_are_kept(store: Store) -> None:
    append(store, entries(2))
    reader(store, group="other")
    own = consumer()
    one, two = own.take(store, 2).deliveries
    store.call("XGROUP", "DESTROY", "s", "g")
    assert own.acknowledge(store, [one.id]) == 0
    assert not own.dead_letter(store, two, reason="bad", error="", attempts=1)
    assert list(stored(store)) == [0, 1]
