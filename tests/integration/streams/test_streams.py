"""Streams on a real Valkey."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsky_pipeline.embedded import valkey
from rsky_pipeline.streams.append import Appended, CursorMove, Entry, append, read_cursor
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consume import Delivery, GroupReader
from rsky_pipeline.streams.dead_letters import dead_letter, list_dead_letters
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.trim import trim
from tests import stores


@pytest.fixture
def store(clean_redis: str) -> Iterator[Store]:
    connection = connect(clean_redis, name="test")
    yield connection
    connection.close()


def entries(count: int, stream: str = "s") -> list[Entry]:
    return [Entry(stream, b"event", b"%d" % number) for number in range(count)]


def reader(store: Store, group: str = "g", consumer: str = "c") -> GroupReader:
    result = GroupReader(store, "s", group, consumer)
    result.ensure()
    return result


def values(deliveries: list[Delivery]) -> list[bytes]:
    return [item.fields[b"event"] for item in deliveries if item.fields is not None]


def test_append_moves_the_cursor_with_the_data(store: Store) -> None:
    result = append(store, entries(3), cursor=CursorMove("k", None, "10"))
    assert result == Appended("appended", None, None, {"s": 3})
    assert read_cursor(store, "k") == "10"


def test_a_repeated_append_writes_nothing_twice(store: Store) -> None:
    move = CursorMove("k", None, "10")
    append(store, entries(3), cursor=move)
    assert append(store, entries(3), cursor=move) == Appended("appended", None, None, {"s": 3})


def test_a_cursor_that_went_back_is_reported(store: Store) -> None:
    append(store, entries(1), cursor=CursorMove("k", None, "10"))
    result = append(store, entries(1), cursor=CursorMove("k", "20", "30"))
    assert (result.status, result.stored_cursor) == ("cursor_moved", "10")
    assert store.call("XLEN", "s") == 1
    lost = append(store, entries(1), cursor=CursorMove("other", "20", "30"))
    assert (lost.status, lost.stored_cursor) == ("cursor_moved", None)


def test_above_the_mark_nothing_is_written(store: Store) -> None:
    append(store, entries(5), cursor=CursorMove("k", None, "1"))
    batch = [*entries(2, "other"), *entries(2)]
    result = append(
        store, batch, cursor=CursorMove("k", "1", "2"), high_water_marks={"s": 5, "other": 9}
    )
    assert (result.status, result.full_stream) == ("full", "s")
    assert read_cursor(store, "k") == "1"
    assert store.call("EXISTS", "other") == 0


def test_a_cursor_may_move_without_entries(store: Store) -> None:
    assert append(store, [], cursor=CursorMove("k", None, "4")).status == "appended"
    assert read_cursor(store, "k") == "4"


def test_own_pending_comes_back_after_a_restart(store: Store) -> None:
    append(store, entries(5))
    first = reader(store)
    taken = first.read_new(3, 0)
    again = reader(store).own_pending("0", 10)
    assert values(again) == values(taken) == [b"0", b"1", b"2"]
    assert [item.deliveries for item in again] == [2, 2, 2]
    assert reader(store).own_pending(again[-1].id, 10) == []
    assert first.pending_count() == 3
    assert first.acknowledge([item.id for item in again]) == 3
    assert store.call("XLEN", "s") == 2


def test_entries_of_a_dead_consumer_are_claimed(store: Store) -> None:
    append(store, entries(3))
    reader(store, consumer="dead").read_new(10, 0)
    time.sleep(0.02)
    claimed = reader(store, consumer="alive").claim_idle(10, "0-0", 10)
    assert values(claimed.deliveries) == [b"0", b"1", b"2"]
    assert claimed.next_start == "0-0"
    assert reader(store, consumer="dead").pending_count() == 0


def test_bodies_that_are_gone_are_reported_and_do_not_come_again(store: Store) -> None:
    append(store, entries(3))
    own = reader(store)
    taken = own.read_new(10, 0)
    store.call("XDEL", "s", taken[1].id)
    pending = own.own_pending("0", 10)
    assert [item.fields is None for item in pending] == [False, True, False]
    own.acknowledge([item.id for item in pending])
    assert own.own_pending("0", 10) == []
    append(store, entries(1))
    gone = own.read_new(10, 0)[0].id
    store.call("XDEL", "s", gone)
    claimed = reader(store, consumer="other").claim_idle(0, "0-0", 10)
    assert (claimed.deliveries, claimed.deleted) == ([], [gone])


def test_a_deleted_stream_is_read_again_from_its_beginning(store: Store) -> None:
    own = reader(store)
    store.call("DEL", "s")
    append(store, entries(2))
    assert own.read_new(10, 0) == []
    assert values(own.read_new(10, 0)) == [b"0", b"1"]


def test_acknowledging_keeps_what_another_group_wants(store: Store) -> None:
    append(store, entries(3))
    first, second = reader(store, "g1"), reader(store, "g2")
    first.acknowledge([item.id for item in first.read_new(10, 0)])
    assert store.call("XLEN", "s") == 3
    taken = second.read_new(2, 0)
    assert trim(store, "s").removed == 0
    second.acknowledge([taken[0].id])
    trimmed = trim(store, "s")
    assert (trimmed.removed, trimmed.floor, trimmed.blocked_by) == (1, taken[1].id, "g2")


@pytest.mark.parametrize("seed", range(5))
def test_trimming_never_takes_what_somebody_still_needs(store: Store, seed: int) -> None:
    choose = random.Random(seed)
    append(store, entries(60))
    readers = [reader(store, group, name) for group in ("g1", "g2") for name in ("a", "b")]
    held: dict[GroupReader, list[Delivery]] = {item: [] for item in readers}
    needed = {"g1": set(range(60)), "g2": set(range(60))}
    for _ in range(200):
        who = choose.choice(readers)
        if choose.random() < 0.4:
            held[who] += who.read_new(choose.randint(1, 8), 0)
        elif held[who]:
            item = held[who].pop(choose.randrange(len(held[who])))
            who.acknowledge([item.id])
            needed[who.group].discard(int(values([item])[0]))
        trim(store, "s")
        kept = {int(body[1]) for _, body in store.call("XRANGE", "s", "-", "+")}
        assert needed["g1"] | needed["g2"] <= kept
    for who in readers:
        held[who] += who.read_new(100, 0)
        who.acknowledge([item.id for item in held[who]])
    trim(store, "s")
    assert store.call("XLEN", "s") == 0


def test_a_stream_without_groups_is_not_trimmed(store: Store) -> None:
    append(store, entries(3))
    assert trim(store, "s").removed == 0
    assert trim(store, "missing").removed == 0


def test_a_dead_letter_keeps_the_entry_and_the_reason(store: Store) -> None:
    append(store, entries(2))
    own = reader(store)
    taken = own.read_new(10, 0)
    facts = {"reason": "bad", "error": "x" * 900, "attempts": 3}
    assert dead_letter(store, own, taken[0], **facts)  # type: ignore[arg-type]
    assert not dead_letter(store, own, taken[0], **facts)  # type: ignore[arg-type]
    (letter,) = list_dead_letters(store, "s")
    assert (letter.reason, letter.attempts, letter.source_id) == ("bad", 3, taken[0].id)
    assert len(letter.error) == 500
    assert letter.fields == {b"event": b"0"}
    assert store.call("XLEN", "s") == 1


def test_lag_counts_what_is_not_delivered(store: Store) -> None:
    append(store, entries(10))
    own = reader(store)
    taken = own.read_new(4, 0)
    own.acknowledge([item.id for item in taken[:3]])
    report = inspect(store, "s")
    assert (report.length, report.added) == (7, 10)
    assert [(group.pending, group.lag) for group in report.groups] == [(1, 6)]
    assert 0 <= report.groups[0].oldest_unacked_age_seconds < 60
    reader(store, "second")
    late = {group.name: group for group in inspect(store, "s").groups}["second"]
    assert (late.pending, late.lag) == (0, 7)
    assert inspect(store, "missing").length == 0


def test_a_lost_reply_does_not_append_twice(redis_url: str, clean_redis: str) -> None:
    path = Path(clean_redis.removeprefix("unix://"))
    with SwallowingProxy(path) as proxy:
        store = connect(proxy.url, name="test", timeout_seconds=0.5)
        append(store, [], cursor=CursorMove("warm", None, "1"))
        proxy.swallow.set()
        with pytest.raises(StoreUnavailable):
            append(store, entries(5), cursor=CursorMove("k", None, "9"))
        proxy.swallow.clear()
        result = append(store, entries(5), cursor=CursorMove("k", None, "9"))
        assert result == Appended("appended", None, None, {"s": 5})
        store.close()


def test_a_full_server_refuses_and_can_still_be_drained(store: Store) -> None:
    append(store, entries(10))
    own = reader(store)
    taken = own.read_new(10, 0)
    store.call("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreRejected):
            append(store, entries(1))
        assert own.acknowledge([item.id for item in taken]) == 10
        assert trim(store, "s").removed == 0
    finally:
        store.call("CONFIG", "SET", "maxmemory", "0")
    assert append(store, entries(1)).status == "appended"


def test_a_killed_server_loses_nothing_that_it_confirmed() -> None:
    with stores.scratch_directory() as folder:
        program = valkey.prepare(stores.scratch_settings(folder))
        process = program.start()
        stores.wait_until_it_answers(program, process)
        store = connect(program.url, name="test")
        append(store, entries(100), cursor=CursorMove("k", None, "5"))
        process.kill()
        process.wait()
        with pytest.raises(StoreUnavailable):
            append(store, entries(1), cursor=CursorMove("k", "5", "6"))
        with stores.running(valkey.prepare(stores.scratch_settings(folder))):
            assert read_cursor(store, "k") == "5"
            assert store.call("XLEN", "s") == 100
            assert append(store, entries(1), cursor=CursorMove("k", "5", "6")).lengths == {"s": 101}
        store.close()


class SwallowingProxy:
    """A TCP proxy that hands on requests and, while `swallow` is set, drops the replies."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.swallow = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = [self._listener]

    def __enter__(self) -> "SwallowingProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for item in self._sockets:
            with contextlib.suppress(OSError):  # the other side closed first
                item.shutdown(socket.SHUT_RDWR)
            item.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._target))
            self._sockets += (client, server)
            for source, sink, is_reply in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._pump, args=(source, sink, is_reply), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        try:
            while data := source.recv(65_536):
                if not (is_reply and self.swallow.is_set()):
                    sink.sendall(data)
        except OSError:
            return
