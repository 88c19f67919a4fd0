"""Order of arrival, repetition and batches do not matter, and workers may run side by side."""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import TransactionConflict
from rsky_pipeline.indexer.apply import apply_batch
from rsky_pipeline.indexer.collections import registry
from tests.integration.indexer.kit import (
    STATE_TABLES,
    Event,
    Network,
    Put,
    Tables,
    did_of,
    read,
    recounted,
    rev_of,
    state,
)

PEOPLE = ("ann", "bob", "cyd")


@dataclass
class Story:
    """Random people who post, quote, like, repost, follow, edit and delete."""

    chance: random.Random
    net: Network = field(default_factory=Network)
    events: list[Event] = field(default_factory=list)
    alive: list[Put] = field(default_factory=list)
    posts: list[Put] = field(default_factory=list)

    def tell(self, length: int) -> list[Event]:
        self._put(self.net.post("ann"))
        self._put(self.net.post("bob"))
        for _ in range(length):
            self._step()
        return self.events

    def _step(self) -> None:
        who = self.chance.choice(PEOPLE)
        choice = self.chance.random()
        if choice < 0.25:
            self._put(self.net.like(who, self.chance.choice(self.posts)))
        elif choice < 0.4:
            self._put(self.net.repost(who, self.chance.choice(self.posts)))
        elif choice < 0.55:
            self._put(self.net.follow(who, self.chance.choice(PEOPLE)))
        elif choice < 0.62:
            self._put(self.net.post(who, facets=[mention(self.chance.choice(PEOPLE))]))
        elif choice < 0.7:
            self._put(self.net.quote(who, self.chance.choice(self.posts)))
        elif choice < 0.8:
            self._edit()
        elif self.alive:
            gone = self.alive.pop(self.chance.randrange(len(self.alive)))
            self.events.append(self.net.delete(gone))

    def _edit(self) -> None:
        put = self.chance.choice(self.alive or self.posts)
        if put not in self.alive:
            return
        record = dict(put.record)
        if "text" in record:
            record["text"] = f"edited {len(self.events)}"
        elif isinstance(record["subject"], dict):
            record["subject"] = self.chance.choice(self.posts).reference
        self.events.append(self.net.update(put, record))

    def _put(self, put: Put) -> None:
        self.events.append(put)
        self.alive.append(put)
        if "text" in put.record:
            self.posts.append(put)


def mention(who: str) -> dict[str, object]:
    feature = {"$type": "app.bsky.richtext.facet#mention", "did": did_of(who)}
    return {"index": {"byteStart": 0, "byteEnd": 1}, "features": [feature]}


def clear(tables: Tables) -> None:
    names = (*STATE_TABLES, "notification", "actor", "op_thread_reply", "post_agg", "profile_agg")
    more = ", rsky_pipeline.tombstone, rsky_pipeline.handle_check, rsky_pipeline.account_event"
    quoted = ", ".join(f'"{name}"' for name in names)
    tables.database.execute(f"TRUNCATE {quoted}{more}")


def apply_in_pieces(tables: Tables, events: Sequence[Event], chance: random.Random) -> None:
    rest = list(events)
    while rest:
        size = chance.choice((1, 2, 5, len(rest)))
        tables.apply(*rest[:size])
        rest = rest[size:]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_any_order_and_repetition_ends_in_the_same_rows(tables: Tables, seed: int) -> None:
    chance = random.Random(seed)
    events = Story(chance).tell(25)
    clear(tables)
    tables.apply_each(events)
    expected = state(tables)
    recounted(tables)
    mixed = [*events, *chance.choices(events, k=10)]
    chance.shuffle(mixed)
    clear(tables)
    apply_in_pieces(tables, mixed, chance)
    assert state(tables) == expected
    recounted(tables)


def test_three_workers_with_overlapping_accounts_end_in_the_same_rows(tables: Tables) -> None:
    chance = random.Random(7)
    events = Story(chance).tell(300)
    tables.apply_each(events)
    expected = state(tables)
    clear(tables)
    mixed = [*events, *chance.choices(events, k=200)]
    chance.shuffle(mixed)
    parts = [mixed[number::3] for number in range(3)]
    in_parallel([partial(work, tables.url, part) for part in parts])
    assert state(tables) == expected
    recounted(tables)


def work(url: str, events: Sequence[Event]) -> None:
    database = Database.connect(url, name="worker")
    try:
        for start in range(0, len(events), 7):
            batch = read(events[start : start + 7])
            for _ in range(20):
                try:
                    apply_batch(database, batch, registry.load())
                    break
                except TransactionConflict:
                    continue
            else:
                pytest.fail("conflicts do not end")
    finally:
        database.close()


def in_parallel(jobs: Sequence[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - reported below, in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_replies_before_their_parents_are_valid_in_the_end(tables: Tables, net: Network) -> None:
    root = net.post("ann")
    first = net.reply("bob", root)
    second = net.reply("cyd", first, root)
    third = net.reply("ann", second, root)
    tables.apply_each([third, second, first, root])
    columns = 'uri, "invalidReplyRoot", "violatesThreadGate"'
    assert {row[1:] for row in tables.rows("post", columns)} == {(None, None)}
    recounted(tables)


def test_a_deletion_before_its_creation_wins(tables: Tables, net: Network) -> None:
    post = net.post("ann")
    like = net.like("bob", post)
    gone = net.delete(like)
    tables.apply_each([post, gone, like])
    assert tables.rows("like") == []
    assert tables.counts(post) == (0, 0, 0, 0)
    assert tables.notified() == []
    uris = tables.database.query("SELECT uri FROM rsky_pipeline.tombstone")
    assert uris == [(like.uri,)]


def test_applying_twice_changes_nothing(tables: Tables) -> None:
    events = Story(random.Random(3)).tell(60)
    tables.apply(*events)
    once = state(tables)
    tables.apply(*events)
    tables.apply_each(events)
    assert state(tables) == once


def test_history_after_live_changes_only_revs(tables: Tables) -> None:
    net = Network()
    post = net.post("ann")
    like = net.like("bob", post)
    tables.apply(post, like)
    live = state(tables)
    late = [
        Put(item.who, item.collection, item.rkey, 50, item.record, "create", history=True)
        for item in (post, like)
    ]
    applied = tables.apply(*late)
    assert applied.touched == 2
    for row in live["record"]:
        row["rev"] = rev_of(50)
    assert state(tables) == live


def test_old_history_does_not_undo_a_deletion(tables: Tables, net: Network) -> None:
    post = net.post("ann")
    gone = net.delete(post)
    late = Put("ann", post.collection, post.rkey, post.number, post.record, "create", history=True)
    tables.apply_each([post, gone, late])
    assert tables.rows("post") == []
