"""Reading a stream into batches while the store comes and goes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.entries import read_entry
from rsky_pipeline.indexer.stream_reader import Content, ReadRule, StreamReader
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consumer import Delivery
from rsky_pipeline.streams.errors import StoreUnavailable
from rsky_pipeline.streams.event import EVENT_FIELD, AccountEvent, encode_event

TIME = "2026-07-04T14:38:08.999Z"
RULE = ReadRule("s", "g", "c", max_events=10, claim_idle_ms=60_000)


@pytest.fixture
def store(clean_redis: str) -> Iterator[Store]:
    connection = connect(clean_redis, name="test")
    yield connection
    connection.close()


def read(delivery: Delivery) -> Content:
    return read_entry(delivery.fields, registry.load(), TIME)


def fail_read(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Break the connection at the given read for new entries."""
    seen = 0
    original = Store.call

    def call(self: Store, *command: Any) -> Any:
        nonlocal seen
        if command[0] == "XREADGROUP" and command[-1] == ">":
            seen += 1
            if seen == number:
                raise StoreUnavailable("gone")
        return original(self, *command)

    monkeypatch.setattr(Store, "call", call)


def test_entries_of_a_batch_that_was_never_returned_are_read_again(
    store: Store, clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = encode_event(AccountEvent(1, TIME, "did:plc:a", True, None))
    intake = StreamReader(RULE, partial(connect, clean_redis, name="intake"), read)
    assert intake.take().items == []
    append(store, [Entry("s", EVENT_FIELD, event)] * 3)
    fail_read(monkeypatch, 2)
    with pytest.raises(StoreUnavailable):
        intake.take()
    intake.disconnect()
    assert intake.held == []
    batch = intake.take()
    taken = list(batch.ids)
    while len(taken) < 3:
        taken += intake.take().ids
    assert len(set(taken)) == 3
    assert sorted(intake.held) == sorted(taken)
    intake.disconnect()
