"""Keys on a cluster: which a command has, and where they are after a fail-over or a move."""

import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

import rsky_pipeline
from rsky_pipeline.streams.append import CursorMove, append
from rsky_pipeline.streams.commands import TAG, with_tag
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consumer import Consumer
from rsky_pipeline.streams.errors import StoreUnavailableError
from rsky_pipeline.streams.waiting import all_waiting, wake
from tests.clusters import Cluster, running_cluster, running_node
from tests.integration.streams.support import entries
from tests.real.servers import free_port
from tests.stores import redis_client

# One of each kind of command that the package sends, and the keys that it has.
COMMANDS: Sequence[tuple[Sequence[str | bytes | int], Sequence[str]]] = (
    (("DEL", "k", "l"), ("k", "l")),
    (("EXISTS", "k"), ("k",)),
    (("EXPIRE", "k", 1), ("k",)),
    (("GET", "k"), ("k",)),
    (("HDEL", "k", "a"), ("k",)),
    (("HGET", "k", "a"), ("k",)),
    (("HGETALL", "k"), ("k",)),
    (("HMGET", "k", "a", "b"), ("k",)),
    (("HSCAN", "k", 0, "COUNT", 5), ("k",)),
    (("HSET", "k", "a", "b"), ("k",)),
    (("HSETNX", "k", "a", "b"), ("k",)),
    (("HVALS", "k"), ("k",)),
    (("LLEN", "k"), ("k",)),
    (("LRANGE", b"k", 0, -1), ("k",)),
    (("LTRIM", "k", 0, -1), ("k",)),
    (("MEMORY", "USAGE", "k"), ("k",)),
    (("PEXPIRE", "k", 1), ("k",)),
    (("PTTL", "k"), ("k",)),
    (("RPUSH", "k", "a"), ("k",)),
    (("SADD", "k", "a"), ("k",)),
    (("SET", "k", "a"), ("k",)),
    (("SSCAN", "k", 0), ("k",)),
    (("TYPE", "k"), ("k",)),
    (("UNLINK", b"k", "l"), ("k", "l")),
    (("XADD", "k", "*", "a", "b"), ("k",)),
    (("XAUTOCLAIM", "k", "g", "c", 1, "0"), ("k",)),
    (("XCLAIM", "k", "g", "c", 1, "1-1"), ("k",)),
    (("XDEL", "k", "1-1"), ("k",)),
    (("XGROUP", "CREATE", "k", "g", "0", "MKSTREAM"), ("k",)),
    (("XINFO", "STREAM", "k"), ("k",)),
    (("XLEN", "k"), ("k",)),
    (("XPENDING", "k", "g"), ("k",)),
    (("XRANGE", "k", "-", "+"), ("k",)),
    (("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", "k", ">"), ("k",)),
    (("XREVRANGE", "k", "+", "-"), ("k",)),
    (("XSETID", "k", "1-1"), ("k",)),
    (("ZADD", "k", 1, "a"), ("k",)),
    (("ZCARD", "k"), ("k",)),
    (("ZREM", "k", "a"), ("k",)),
    (("ZSCAN", "k", 0), ("k",)),
)
_WITHOUT = {"ACL", "CLIENT", "CONFIG", "INFO", "PING", "SCAN", "TIME"}
_CALL = re.compile(r'(?:\.call|_newer|_scanned)\(\s*(?:\w+, )?\(?"([A-Z]{3,})"')


@pytest.mark.parametrize(
    ("command", "keys"), COMMANDS, ids=[str(name) for (name, *_), _ in COMMANDS]
)
def test_the_keys_of_a_command_have_the_tag(
    command: Sequence[str | bytes | int], keys: Sequence[str], redis_url: str
) -> None:
    with redis_client(redis_url) as client:
        client.response_callbacks.clear()
        found = client.execute_command("COMMAND", "GETKEYS", *with_tag(command))
    assert found == [f"{TAG}{key}".encode() for key in keys]
    untagged = [
        word.removeprefix(TAG) if isinstance(word, str)
        else word.removeprefix(TAG.encode()) if isinstance(word, bytes) else word
        for word in with_tag(command)
    ]  # fmt: skip
    assert untagged == list(command)


def test_every_command_of_the_package_is_tried() -> None:
    sources = "".join(path.read_text() for path in Path(rsky_pipeline.__path__[0]).rglob("*.py"))
    called = set(_CALL.findall(sources))
    assert len(called) > 30
    assert called <= {name for (name, *_), _ in COMMANDS} | _WITHOUT


def url_of(cluster: Cluster) -> str:
    return "redis://" + ",".join(f"127.0.0.1:{port}" for port in cluster.ports)


def opened(cluster: Cluster) -> Store:
    return connect(url_of(cluster), name="test", timeout_seconds=5)


def written(store: Store, number: int) -> None:
    move = CursorMove("cursor", str(number - 1) if number else None, str(number))
    assert append(store, entries(1, stream="s"), cursor=move).status == "appended"


def test_a_cluster_looks_like_one_server() -> None:
    with running_cluster(1) as cluster, closing(opened(cluster)) as store:
        written(store, 0)
        assert store.on_cluster
        assert store.address() == ("127.0.0.1", cluster.owner())
        assert set(store.call("SCAN", 0, "COUNT", 100)[1]) == {b"s", b"cursor"}
        assert store.call("SCAN", 0, "MATCH", "c*", "COUNT", 100)[1] == [b"cursor"]
        full = append(store, entries(1, stream="s"), high_water_marks={"s": 1})
        assert (full.status, full.full_stream) == ("full", "s")
        consumer = Consumer("s", "g", "c", reclaim_idle_ms=60_000)
        [delivery] = consumer.take(store, 5).deliveries
        assert consumer.postpone(store, delivery, seconds=0, field=b"repo", payload=b"x")
        assert [item.stream for item in all_waiting(store)] == ["s"]
        assert wake(store, ["other", "s"]) == 1
        assert store.call("XLEN", "s") == 1
        with cluster.client(cluster.owner()) as node:
            assert {key.decode() for key in node.keys("*")} == {f"{TAG}s", f"{TAG}cursor"}


def test_the_keys_are_found_after_a_move_and_a_fail_over() -> None:
    """No batch is lost or stored twice, by a caller who repeats each on a new connection."""
    with running_cluster(3, 1) as cluster:
        first, replica = cluster.ports[0], cluster.ports[3]
        assert cluster.owner() != first
        store = on_and_on(cluster, opened(cluster), 0)
        cluster.move(first)
        store = on_and_on(cluster, store, 20)
        assert store.address() == ("127.0.0.1", first)
        history = store.history()
        with cluster.client(first) as node:
            os.kill(int(node.info("server")["process_id"]), signal.SIGKILL)
        store = on_and_on(cluster, store, 40)
        assert store.address() == ("127.0.0.1", replica)
        assert store.call("XLEN", "s") == 60
        assert store.history() != history
        store.close()


def on_and_on(cluster: Cluster, store: Store, first: int) -> Store:
    """Write twenty batches, each until it is written; return the connection of the last."""
    deadline, count = time.monotonic() + 60, first
    while count < first + 20:
        assert time.monotonic() < deadline
        try:
            written(store, count)
            count += 1
        except StoreUnavailableError:
            store.close()
            time.sleep(0.05)
            store = opened(cluster)
    return store


def test_of_several_servers_the_primary_is_used() -> None:
    with running_node("--cluster-enabled", "no") as first:
        with running_node("--cluster-enabled", "no") as second:
            with redis_client(f"redis://127.0.0.1:{first}") as client:
                client.execute_command("REPLICAOF", "127.0.0.1", second)
            url = f"redis://127.0.0.1:{free_port()},127.0.0.1:{first},127.0.0.1:{second}"
            with closing(connect(url, name="test")) as store:
                assert store.address() == ("127.0.0.1", second)
                assert not store.on_cluster
        with (
            closing(connect(url, name="test")) as store,
            pytest.raises(StoreUnavailableError, match=r"none of the servers.*it is a replica"),
        ):
            store.ping()
