"""Appending with a cursor: all or nothing, and never twice."""

import shutil
from contextlib import closing

import pytest

from rsky_pipeline.embedded import valkey
from rsky_pipeline.streams.append import Appended, CursorMove, Entry, append, read_cursor
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError
from tests import stores
from tests.integration.streams.support import UnreliableProxy, entries, memory_full, stored


def test_the_cursor_moves_with_the_data(store: Store) -> None:
    result = append(store, entries(3), cursor=CursorMove("k", None, "10"))
    assert result == Appended("appended", None, None, {"s": 3})
    assert read_cursor(store, "k") == "10"
    assert append(store, entries(2), cursor=CursorMove("k", "10", "12")).lengths == {"s": 5}


def test_several_streams_and_fields_keep_their_order(store: Store) -> None:
    batch = [
        Entry("a", b"event", b"1"), Entry("b", b"repo", b"2"), Entry("a", b"event", b"3"),
        Entry("a", b"labels", b"4"), Entry("b", b"repo", b"5"), Entry("a", b"event", b"\x00\xff"),
    ]  # fmt: skip
    assert append(store, batch).lengths == {"a": 4, "b": 2}
    found = {
        stream: [body for _, body in store.call("XRANGE", stream, "-", "+")] for stream in "ab"
    }
    assert found["b"] == [[b"repo", b"2"], [b"repo", b"5"]]
    assert found["a"] == [
        [b"event", b"1"], [b"event", b"3"], [b"labels", b"4"], [b"event", b"\x00\xff"],
    ]  # fmt: skip


def test_a_large_batch_arrives_whole(store: Store) -> None:
    assert append(store, entries(20_000), cursor=CursorMove("k", None, "1")).lengths == {
        "s": 20_000
    }
    assert list(stored(store)) == list(range(20_000))


def test_a_repeated_append_writes_nothing_twice(store: Store) -> None:
    move = CursorMove("k", None, "10")
    append(store, entries(3), cursor=move)
    assert append(store, entries(3), cursor=move) == Appended("appended", None, None, {"s": 3})
    # Also when the stream is full by now: what was written stays written.
    again = append(store, entries(3), cursor=move, high_water_marks={"s": 3})
    assert again == Appended("appended", None, None, {"s": 3})


def test_a_cursor_that_went_back_is_reported(store: Store) -> None:
    append(store, entries(1), cursor=CursorMove("k", None, "10"))
    result = append(store, entries(1), cursor=CursorMove("k", "20", "30"))
    assert (result.status, result.stored_cursor) == ("cursor_moved", "10")
    assert store.call("XLEN", "s") == 1
    assert read_cursor(store, "k") == "10"
    lost = append(store, entries(1), cursor=CursorMove("other", "20", "30"))
    assert (lost.status, lost.stored_cursor) == ("cursor_moved", None)
    assert store.call("EXISTS", "other") == 0


def test_above_the_mark_nothing_is_written(store: Store) -> None:
    append(store, entries(5), cursor=CursorMove("k", None, "1"))
    batch = [*entries(2, "other"), *entries(2)]
    move = CursorMove("k", "1", "2")
    result = append(store, batch, cursor=move, high_water_marks={"s": 5, "other": 9})
    assert (result.status, result.full_stream) == ("full", "s")
    assert read_cursor(store, "k") == "1"
    assert store.call("EXISTS", "other") == 0
    # Below the mark a whole batch is written, also one that ends above it.
    assert append(store, batch, cursor=move, high_water_marks={"s": 6}).status == "appended"


def test_a_cursor_may_move_without_entries(store: Store) -> None:
    assert append(store, [], cursor=CursorMove("k", None, "4")).status == "appended"
    assert read_cursor(store, "k") == "4"


def test_a_key_of_another_type_stops_the_batch_before_its_first_write(store: Store) -> None:
    store.call("SET", "text", "x")
    for batch in ([*entries(2), *entries(1, "text")], [*entries(1, "text"), *entries(2)]):
        with pytest.raises(StoreRejectedError, match="WRONGTYPE"):
            append(store, batch, cursor=CursorMove("k", None, "1"))
    store.call("XADD", "stream", "*", "a", "b")
    with pytest.raises(StoreRejectedError, match="WRONGTYPE"):
        append(store, entries(2), cursor=CursorMove("stream", None, "1"))
    assert store.call("EXISTS", "s", "k") == 0


def test_a_lost_reply_does_not_append_twice(clean_redis: str) -> None:
    with (
        UnreliableProxy(clean_redis) as proxy,
        closing(connect(proxy.url, name="test", timeout_seconds=1.0)) as store,
    ):
        append(store, [], cursor=CursorMove("warm", None, "1"))
        proxy.answering.clear()
        with pytest.raises(StoreUnavailableError):
            append(store, entries(5), cursor=CursorMove("k", None, "9"))
        proxy.answering.set()
        result = append(store, entries(5), cursor=CursorMove("k", None, "9"))
        assert result == Appended("appended", None, None, {"s": 5})


def test_a_full_server_refuses_the_whole_batch(store: Store) -> None:
    with memory_full(store), pytest.raises(StoreUnavailableError, match="memory is full"):
        append(store, entries(3), cursor=CursorMove("k", None, "1"))
    assert store.call("EXISTS", "s", "k") == 0
    assert append(store, entries(3), cursor=CursorMove("k", None, "1")).status == "appended"


def test_a_server_that_came_back_with_older_data_is_noticed() -> None:
    with stores.scratch_directory() as folder:
        settings = stores.scratch_settings(folder)
        with (
            stores.running(valkey.prepare(settings)) as program,
            closing(connect(program.url, name="test")) as store,
        ):
            append(store, entries(3), cursor=CursorMove("k", None, "3"))
        shutil.copytree(folder, f"{folder}-older")
        with (
            stores.running(valkey.prepare(settings)) as program,
            closing(connect(program.url, name="test")) as store,
        ):
            append(store, entries(3, first=3), cursor=CursorMove("k", "3", "6"))
        shutil.rmtree(folder)
        shutil.move(f"{folder}-older", folder)
        with (
            stores.running(valkey.prepare(settings)) as program,
            closing(connect(program.url, name="test")) as store,
        ):
            result = append(store, entries(3, first=6), cursor=CursorMove("k", "6", "9"))
            assert (result.status, result.stored_cursor) == ("cursor_moved", "3")
            append(store, entries(6, first=3), cursor=CursorMove("k", "3", "9"))
            assert list(stored(store)) == list(range(9))


def test_several_cursors_move_together_or_not_at_all(store: Store) -> None:
    first = [CursorMove("a", None, "1"), CursorMove("b", None, "7")]
    assert append(store, entries(1), cursors=first).status == "appended"
    assert append(store, entries(1), cursors=first).lengths == {"s": 1}  # a repeated try
    wrong = [CursorMove("a", "1", "2"), CursorMove("b", "6", "8")]
    result = append(store, entries(1), cursors=wrong)
    assert (result.status, result.moved_key, result.stored_cursor) == ("cursor_moved", "b", "7")
    store.call("SET", "a", "2")
    result = append(
        store, entries(1), cursors=[CursorMove("a", "1", "2"), CursorMove("b", "7", "8")]
    )
    assert (result.status, result.moved_key, result.stored_cursor) == ("cursor_moved", "a", "2")
    assert (read_cursor(store, "a"), read_cursor(store, "b")) == ("2", "7")
    assert store.call("XLEN", "s") == 1


def test_fields_are_set_with_the_entries_and_only_with_them(store: Store) -> None:
    move = CursorMove("k", None, "1")
    append(
        store, entries(1), cursor=move, hashes={"h": {b"\x00": b"1", b"x": b"2"}, "g": {b"y": b"3"}}
    )
    assert store.call("HGETALL", "h") == [b"\x00", b"1", b"x", b"2"]
    assert store.call("HGETALL", "g") == [b"y", b"3"]
    again = {"h": {b"\x00": b"9"}}
    append(store, entries(1), cursor=move, hashes=again)
    append(store, entries(1), cursor=CursorMove("k", "5", "6"), hashes=again)
    append(store, entries(1), hashes=again, high_water_marks={"s": 1})
    assert store.call("HGET", "h", b"\x00") == b"1"
    append(store, [], cursor=CursorMove("k", "1", "2"), hashes={"h": {b"\x00": b""}})
    assert store.call("HGETALL", "h") == [b"x", b"2"]


def test_a_hash_of_another_type_stops_the_batch_before_its_first_write(store: Store) -> None:
    store.call("SET", "text", "x")
    hashes = {"h": {b"a": b"b"}, "text": {b"a": b"b"}}
    with pytest.raises(StoreRejectedError, match="WRONGTYPE"):
        append(store, entries(1), cursor=CursorMove("k", None, "1"), hashes=hashes)
    assert store.call("EXISTS", "s", "k", "h") == 0


def test_a_cursor_that_stays_must_be_the_stored_one(store: Store) -> None:
    append(store, [], cursor=CursorMove("b", None, "7"))
    moves = [CursorMove("a", None, "1"), CursorMove("b", "7", "7"), CursorMove("c", None, None)]
    assert append(store, entries(1), cursors=moves).status == "appended"
    assert append(store, entries(1), cursors=moves).lengths == {"s": 1}
    assert store.call("EXISTS", "c") == 0
    store.call("SET", "b", "6")
    result = append(store, entries(1), cursors=[CursorMove("a", "1", "2"), moves[1]])
    assert (result.status, result.moved_key, result.stored_cursor) == ("cursor_moved", "b", "6")
    assert read_cursor(store, "a") == "1"


def test_entries_that_move_no_cursor_are_not_lost_with_a_cursor(store: Store) -> None:
    append(store, entries(1), cursor=CursorMove("k", None, "10"))
    result = append(store, entries(1), cursor=CursorMove("k", "20", "20"))
    assert (result.status, result.stored_cursor) == ("cursor_moved", "10")
    assert store.call("XLEN", "s") == 1
