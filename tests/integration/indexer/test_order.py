"""Order of arrival, repetition and batches do not matter, and workers may run side by side."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import TransactionConflictError
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import read_entry
from rsky_pipeline.indexer.core.labels import LabelRow, apply_labels
from tests.integration.indexer.kit import (
    Network,
    Put,
    Tables,
    did_of,
    notes_of,
    recounted,
    rev_of,
    state,
)
from tests.integration.indexer.snapshot import clear, differences, snapshot
from tests.integration.indexer.story import HISTORIC, PEOPLE, Story, Threads, Told


def pieces(events: Sequence[Told], chance: random.Random) -> list[Sequence[Told]]:
    """Cut events into batches of any size."""
    rest = list(events)
    found: list[Sequence[Told]] = []
    while rest:
        size = chance.choice((1, 2, 5, 20, len(rest)))
        found.append(rest[:size])
        rest = rest[size:]
    return found


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, print_blob=True, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(seed=st.integers(0, 2**32), workers=st.sampled_from((1, 3)), history=st.booleans())
def test_any_order_repetition_and_workers_end_in_the_same_rows(
    tables: Tables, seed: int, workers: int, history: bool
) -> None:
    """Exceptions by design are in `snapshot` (what is compared) and `story` (what happens)."""
    chance = random.Random(seed)
    historic = HISTORIC if history else None
    events = Story(chance, (*PEOPLE, HISTORIC) if history else PEOPLE).tell(45)
    clear(tables)
    work(tables.url, [[event] for event in events])
    expected = snapshot(tables, historic)
    recounted(tables)
    mixed = [*events, *chance.choices(events, k=15)]
    chance.shuffle(mixed)
    clear(tables)
    parts = [pieces(mixed[number::workers], chance) for number in range(workers)]
    in_parallel([partial(work, tables.url, part) for part in parts])
    assert differences(snapshot(tables, historic), expected) == {}
    recounted(tables)


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, print_blob=True, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(seed=st.integers(0, 2**32))
def test_rows_do_not_depend_on_how_events_fall_into_batches(tables: Tables, seed: int) -> None:
    """In order: edited gates, deleted ancestors, follows and lists that gates ask for, counts."""
    events = Threads(random.Random(seed)).tell(120)
    clear(tables)
    work(tables.url, [[event] for event in events])
    expected = snapshot(tables, exact=True)
    for size in (7, 100, len(events)):
        clear(tables)
        work(tables.url, [events[at : at + size] for at in range(0, len(events), size)])
        assert differences(snapshot(tables, exact=True), expected) == {}, size


def test_a_gate_judges_in_the_state_that_it_has_at_each_reply(tables: Tables, net: Network) -> None:
    root, follow = net.post("ann"), net.follow("ann", "cyd")
    gate = net.put("ann", "app.bsky.feed.threadgate", {"post": root.uri, "allow": []}, root.rkey)
    first = net.reply("bob", root)
    rule = {"$type": "app.bsky.feed.threadgate#followingRule"}
    opened = net.update(gate, {"post": root.uri, "allow": [rule]})
    second, third = net.reply("bob", root), net.reply("cyd", root)
    unfollow = net.delete(follow)
    fourth = net.reply("cyd", root)
    closed = net.delete(gate)
    fifth = net.reply("bob", root)
    tables.apply(root, follow, gate, first, opened, second, third, unfollow, fourth, closed, fifth)
    rows: dict[str, bool | None] = dict(
        tables.database.query('SELECT uri, "violatesThreadGate" FROM post')
    )
    judged = [rows[reply.uri] for reply in (first, second, third, fourth, fifth)]
    assert judged == [True, True, None, True, None]
    assert tables.counts(root)[1] == 2
    recounted(tables)


@pytest.mark.parametrize("stored", range(5))
@pytest.mark.parametrize("gone", range(4))
def test_a_reply_notifies_those_above_it_who_are_deleted_later(
    tables: Tables, net: Network, stored: int, gone: int
) -> None:
    """`stored` of the posts of a thread were written before; one above the reply goes after it."""
    thread = [net.post("ann")]
    for who in ("bob", "cyd", "dan", "eve"):
        thread.append(net.reply(who, thread[-1], thread[0]))
    deletion = net.delete(thread[gone])
    tables.apply_each(thread[:stored])
    tables.apply(*thread[stored:], deletion)
    notified = {row[0] for row in notes_of(tables, thread[-1])}
    assert notified == {did_of(who) for who in ("ann", "bob", "cyd", "dan")}


@pytest.mark.parametrize("stored", range(7))
def test_a_reply_is_accepted_through_one_that_is_deleted_later(
    tables: Tables, net: Network, stored: int
) -> None:
    """The root comes back: replies below it that waited for it are right, and stay so."""
    root = net.post("ann")
    gone = net.delete(root)
    first = net.reply("bob", root)
    second = net.reply("cyd", first, root)
    third = net.reply("dan", second, root)
    events = (root, gone, first, second, third, net.update(root, root.record), net.delete(second))
    tables.apply_each(events[:stored])
    tables.apply(*events[stored:])
    rows = tables.database.query('SELECT uri, "invalidReplyRoot" FROM post')
    assert dict(rows) == dict.fromkeys((root.uri, first.uri, third.uri))


def test_no_rows_of_zeros_are_left(tables: Tables, net: Network) -> None:
    post = net.post("ann")
    like, follow = net.like("bob", post), net.follow("bob", "ann")
    tables.apply_each([post, like, follow, net.delete(like), net.delete(follow), net.delete(post)])
    assert tables.rows("post_agg") == tables.rows("profile_agg") == []


def work(url: str, batches: Sequence[Sequence[Told]]) -> None:
    """Apply batches as a worker does, with a connection of its own."""
    with Database.connect(url, name="worker") as database:
        for batch in batches:
            labels = [event for event in batch if isinstance(event, LabelRow)]
            payloads = [
                event if isinstance(event, bytes) else event.payload
                for event in batch
                if not isinstance(event, LabelRow)
            ]
            readings = [read_entry({b"event": item}, registry.load()) for item in payloads]
            unconflicted(partial(apply_labels, database, labels))
            unconflicted(partial(apply_batch, database, readings, registry.load()))


def unconflicted(action: Callable[[], object]) -> None:
    for _ in range(30):
        try:
            action()
        except TransactionConflictError:
            time.sleep(random.uniform(0.0, 0.05))
            continue
        return
    pytest.fail("conflicts do not end")


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
    work(tables.url, [events])
    once = snapshot(tables)
    work(tables.url, [events, *([event] for event in events)])
    assert snapshot(tables) == once


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
