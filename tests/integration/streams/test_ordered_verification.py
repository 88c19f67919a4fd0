"""What an ordered stop verifies in a real Redis."""

import json
import socket
from contextlib import closing
from dataclasses import replace

import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations.ordered.verified import outstanding, verify_stopped
from rsky_pipeline.runtime.health_document import CursorHealth, read_health
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.names import FIREHOSE_LIVE, LABEL_LIVE, cursor_key

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


def results(settings: Settings, role: str, *reported: CursorHealth) -> list[tuple[str, str]]:
    found = verify_stopped(settings, role, reported)
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
    host = settings.relays[0].key
    key = cursor_key(FIREHOSE_LIVE, host)
    told = CursorHealth(stream=FIREHOSE_LIVE, host=host, seq=7)
    with closing(connect(clean_redis, name="test")) as store:
        assert results(settings, "ingester")[0][0] == "note"
        add(store, 5)
        add(store, 999, kind="repo")  # somebody else's
        store.call("SET", key, "7")
        assert [result for result, _ in results(settings, "ingester", told)] == ["pass", "pass"]
        add(store, 8)
        assert [result for result, _ in results(settings, "ingester", told)] == ["pass", "fail"]
        store.call("SET", key, "8")
        add(store, 2**40)  # a number that its host did not go on from, or not yet
        assert [result for result, _ in results(settings, "ingester", told)] == ["pass", "pass"]
        store.call("SET", key, "6")
        assert [result for result, _ in results(settings, "ingester", told)] == ["fail", "fail"]


@pytest.mark.parametrize("text", ["", "7.5", "-1", "9" * 5_000, "\u0661", b"\xff"])
def test_a_cursor_that_is_no_number_fails_its_check(clean_redis: str, text: str | bytes) -> None:
    settings = settings_for(clean_redis)
    host = settings.relays[0].key
    with closing(connect(clean_redis, name="test")) as store:
        add(store, 5)
        store.call("SET", cursor_key(FIREHOSE_LIVE, host), text)
    for reported in ((), (CursorHealth(stream=FIREHOSE_LIVE, host=host, seq=7),)):
        [(result, sentence)] = results(settings, "ingester", *reported)
        assert result == "fail"
        assert sentence.startswith(f"{FIREHOSE_LIVE}: the cursor of {host} is unusable: ")


SPELLINGS = [
    "bsky.example",
    "wss://bsky.example",
    "Bsky.Example",
    "bsky.example.",
    "https://bsky.example:443/",
    "ws://127.0.0.1:2470",
    "ws://[::1]:2470",
]


@pytest.mark.parametrize("stream", [FIREHOSE_LIVE, LABEL_LIVE])
@pytest.mark.parametrize("written", SPELLINGS)
def test_a_cursor_behind_the_ingesters_report_fails_however_its_host_is_written(
    clean_redis: str, written: str, stream: str
) -> None:
    """The report is what the ingester sends: its hosts are those of its own settings."""
    hosts = {"relay_hosts": (written,)}
    if stream == LABEL_LIVE:
        hosts = {"relay_hosts": ("relay.example",), "labeler_hosts": (written,)}
    settings = replace(settings_for(clean_redis), **hosts)  # type: ignore[arg-type]
    [endpoint] = settings.labelers if stream == LABEL_LIVE else settings.relays
    reports = {seq: CursorHealth(stream=stream, host=endpoint.key, seq=seq) for seq in (100, 200)}
    with closing(connect(clean_redis, name="test")) as store:
        store.call("SET", cursor_key(stream, endpoint.key), "100")
    for seq, expected in ((100, "pass"), (200, "fail")):
        document = json.loads(json.dumps({"cursors": [reports[seq]]}))
        found = results(settings, "ingester", *read_health(document)["cursors"])
        assert [result for result, text in found if text.startswith(stream)] == [expected]


def test_a_report_of_the_version_before_is_understood(clean_redis: str) -> None:
    settings = replace(settings_for(clean_redis), relay_hosts=("ws://127.0.0.1:2470",))
    key = cursor_key(FIREHOSE_LIVE, settings.relays[0].key)
    old = read_health({"cursor[firehose_live:127.0.0.1:2470]": 200})["cursors"]
    with closing(connect(clean_redis, name="test")) as store:
        assert results(settings, "ingester", *old)[0][0] == "fail"  # stored nothing
        store.call("SET", key, "100")
        assert results(settings, "ingester", *old)[0][0] == "fail"
        store.call("SET", key, "200")
        assert results(settings, "ingester", *old)[0][0] == "pass"


def test_a_redis_that_does_not_answer_is_told_and_no_failure() -> None:
    settings = settings_for("unix:///nonexistent/valkey.sock")
    [(result, text)] = results(settings, "indexer")
    assert result == "note"
    assert text.startswith("not verified: unix:///nonexistent")
