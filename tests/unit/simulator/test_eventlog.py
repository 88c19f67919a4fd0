"""The log of a stream: ready frames on disk, seen when they are published."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage

from rsky_pipeline.demo.simulator.subscription import EventLog


@pytest.fixture
def log() -> Iterator[EventLog]:
    log = EventLog()
    yield log
    log.close()


def received(data: bytes) -> list[bytes]:
    """Return the messages that a WebSocket client reads."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    parts: list[bytes] = []
    found: list[bytes] = []
    for event in client.events():
        assert isinstance(event, BytesMessage)
        parts.append(bytes(event.data))
        if event.message_finished:
            found.append(b"".join(parts))
            parts = []
    return found


def test_nothing_is_seen_before_it_is_published(log: EventLog) -> None:
    for seq in (3, 4, 9):
        log.append(seq, b"%d" % seq)
    assert log.read(0).data == b""
    assert (log.published, log.newest_seq) == (0, 0)
    log.publish(2)
    assert received(log.read(0).data) == [b"3", b"4"]
    assert (log.published, log.newest_seq, log.appended) == (2, 4, 3)
    log.publish()
    assert received(log.read(2).data) == [b"9"]
    assert log.newest_seq == 9


def test_numbers_only_rise(log: EventLog) -> None:
    log.append(5, b"x")
    with pytest.raises(ValueError, match="does not follow"):
        log.append(5, b"y")


def test_a_cursor_finds_the_first_event_after_it(log: EventLog) -> None:
    for seq in (10, 20, 30):
        log.append(seq, b"x")
    log.publish()
    assert [log.index_after(seq) for seq in (0, 9, 10, 11, 29, 30, 31)] == [0, 0, 1, 1, 2, 3, 3]


def test_the_window_keeps_the_newest(log: EventLog) -> None:
    for seq in range(1, 11):
        log.append(seq, b"x")
    log.publish()
    log.expire(keep=4)
    assert log.seq_at(log.oldest_index) == 7
    log.expire(keep=100)
    assert log.seq_at(log.oldest_index) == 7, "what is gone does not come back"


@given(
    sizes=st.lists(st.sampled_from([0, 1, 125, 126, 127, 65_535, 65_536, 70_000]), max_size=12),
    limit=st.integers(1, 200_000),
)
@settings(max_examples=60, deadline=None)
def test_frames_of_any_size_are_read_whole_and_in_order(sizes: list[int], limit: int) -> None:
    log = EventLog()
    frames = [bytes([number]) * size for number, size in enumerate(sizes)]
    for seq, frame in enumerate(frames):
        log.append(seq + 1, frame)
    log.publish()
    assert list(log.frames()) == frames
    found: list[bytes] = []
    index = 0
    while (chunk := log.read(index, limit)).data:
        part = received(chunk.data)
        assert len(part) == chunk.next_index - index
        assert len(part) == 1 or len(chunk.data) <= limit
        found += part
        index = chunk.next_index
    assert found == frames
    log.close()
