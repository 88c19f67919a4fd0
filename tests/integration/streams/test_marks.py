"""What Redis notes of its database, where other writers left odd contents."""

import time

import pytest

from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.marks import (
    DATABASE_MARKS,
    MARGIN_SECONDS,
    READ_AGAIN,
    again_until,
    note_mark,
    note_positions,
    noted_marks,
    request_reading,
    requested_since,
    set_back,
)
from rsky_pipeline.streams.names import GAPS

ODD = [b"abc", b"", b"\xff", b"nan", b"-inf", "²".encode(), b"9" * 5_000]
HISTORY = "rsky_pipeline:cursor_history:k"


def test_odd_marks_are_not_ours(store: Store) -> None:
    note_mark(store, "g", "w", "s", 7)
    for number, value in enumerate([*ODD, b"%d" % (2**63 - 1), b"1.5", b"-1"]):
        store.call("HSET", DATABASE_MARKS + "g", f"s odd{number}", value)
    for name in (
        b"\xff\xfe",
        b"s \xff",
        b"s a\0b",
        b"s " + b"w" * 5_000,
        b"s",
    ):  # PostgreSQL refuses
        store.call("HSET", DATABASE_MARKS + "g", name, b"5")
    assert noted_marks(store, "g") == {("w", "s"): 7}


@pytest.mark.parametrize("value", ODD)
def test_a_request_without_a_readable_time_is_one_for_everything(
    store: Store, value: bytes
) -> None:
    store.call("HSET", READ_AGAIN, "since", value)
    assert requested_since(store) == 0.0
    request_reading(store, "database_lost", 50.0, None, ["relay"])
    assert requested_since(store) == 0.0
    assert store.call("XLEN", GAPS) == 1


@pytest.mark.parametrize("line", [*ODD, b"1 2 3", b"1", b"x 5", b"5 x"])
def test_odd_positions_are_left_out(store: Store, line: bytes) -> None:
    now = time.time()
    store.call("SET", "k", "90")
    note_positions(store, {"k": [(now - 2 * MARGIN_SECONDS, 40)]})
    store.call("LPUSH", HISTORY, line)
    store.call("RPUSH", HISTORY, line)
    store.call("HSET", READ_AGAIN, "k", line + b"x")
    assert again_until(store, "k") == -1
    assert set_back(store, "k", now) == 40
    assert again_until(store, "k") == 90


@pytest.mark.parametrize("cursor", ODD)
def test_an_odd_cursor_is_not_set_back(store: Store, cursor: bytes) -> None:
    store.call("SET", "k", cursor)
    note_positions(store, {"k": [(0.0, 40)]})
    assert set_back(store, "k", 1e9) is None
    assert store.call("GET", "k") == cursor
