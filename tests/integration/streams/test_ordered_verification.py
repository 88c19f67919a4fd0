"""What an ordered stop verifies in a real Redis."""

import json
import socket
from contextlib import closing
from dataclasses import replace

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations.ordered.verified import outstanding, verify_stopped
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.names import FIREHOSE_LIVE, cursor_key

OWN = f"{socket.gethostname()}-indexer-1"


def settings_for(url: str) -> Settings:
    return replace(Settings(), redis_url=url, relay_hosts=("relay.example",))


def add(store: Store, seq: int, kind: str = "create") -> None:
    store.call("XADD", FIREHOSE_LIVE, "*", "event", json.dumps({"type": kind, "seq": seq}))


def read(store: Store, consumer: str, count: int) -> list[bytes]:
    reply = store.call(
        "XREADGROUP", "GROUP", "firehose_group", consumer, "COUNT", count,
        "STREAMS", FIREHOSE_LIVE, ">",
    )  # fmt: skip
    [[_, entries]] = reply.items() if isinstance(reply, dict) else reply
    return [entry[0] for entry in entries]


def results(settings: Settings, role: str, **told: object) -> list[tuple[str, str]]:
    found = verify_stopped(settings, role, told)
    return [(finding.result, finding.text) for finding in found]


def test_a_consumer_is_drained_when_nothing_of_this_host_is_pending(clean_redis: str) -> None:
    settings = settings_for(clean_redis)
    with closing(connect(clean_redis, name="test")) as store:
        assert {result for result, _ in results(settings, "indexer")} == {"pass"}
        for seq in range(1, 6):
            add(store, seq)
        assert outstanding(settings, "indexer") == 5
        store.call("XGROUP", "CREATE", FIREHOSE_LIVE, "firehose_group", "0")
        mine = read(store, OWN, 2)
        read(store, "another-host-indexer-1", 1)
        assert outstanding(settings, "indexer") == 5
        result, text = results(settings, "indexer")[0]
        assert (result, text.split()[1]) == ("note", "2")
        store.call("XACK", FIREHOSE_LIVE, "firehose_group", *mine)
        assert results(settings, "indexer")[0][0] == "pass"  # the other host's is its own affair
        assert outstanding(settings, "indexer") == 3


def test_a_producer_is_flushed_when_the_cursor_covers_the_data(clean_redis: str) -> None:
    settings = settings_for(clean_redis)
    key = cursor_key(FIREHOSE_LIVE, "relay.example")
    told = {"cursor[firehose_live:relay.example]": 7}
    with closing(connect(clean_redis, name="test")) as store:
        assert results(settings, "ingester")[0][0] == "note"
        add(store, 5)
        add(store, 999, kind="repo")  # somebody else's
        store.call("SET", key, "7")
        assert [result for result, _ in results(settings, "ingester", **told)] == ["pass", "pass"]
        add(store, 8)
        assert [result for result, _ in results(settings, "ingester", **told)] == ["pass", "fail"]
        store.call("SET", key, "8")
        add(store, 2**40)  # a number that its host did not go on from, or not yet
        assert [result for result, _ in results(settings, "ingester", **told)] == ["pass", "pass"]
        store.call("SET", key, "6")
        assert [result for result, _ in results(settings, "ingester", **told)] == ["fail", "fail"]


def test_a_redis_that_does_not_answer_is_told_and_no_failure() -> None:
    settings = settings_for("unix:///nonexistent/valkey.sock")
    [(result, text)] = results(settings, "indexer")
    assert result == "note"
    assert text.startswith("not verified: unix:///nonexistent")
