"""The live task against relays that behave badly, and stores that do."""

import json
import time
from contextlib import closing
from typing import Any

import pytest
import trio
from trio_websocket import WebSocketConnection

from rsky_pipeline.atproto.frame import encode_error_frame, encode_frame
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.health.rules import NO_RELAY
from rsky_pipeline.ingester import follower, report, role, writer
from rsky_pipeline.ingester.clock import AskForTime
from rsky_pipeline.ingester.commits.validation import FUTURE_SECONDS
from rsky_pipeline.operations.cursors import set_cursor
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.streams.connection import connect
from tests.integration.ingester.relay import TIME, Relay, commit, like, running
from tests.integration.ingester.worker import (
    Ingester,
    entries,
    eventually,
    free_port,
    ingesting,
    value,
)
from tests.stores import redis_client

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


def likes(*seqs: int) -> list[tuple[int, bytes]]:
    return [(seq, like(seq)) for seq in seqs]


def written(url: str) -> list[int]:
    """Return the seq of every live event, in the order of the stream."""
    return [json.loads(entry[b"event"])["seq"] for entry in entries(url, "firehose_live")]


def cursor(url: str, relay: Relay) -> str | None:
    return value(url, f"firehose_live:cursor:127.0.0.1:{relay.port}")


def set_value(url: str, key: str, text: str) -> None:
    with redis_client(url) as client:
        client.set(key, text)


def total(ingester: Ingester, name: str, /, **labels: str) -> float:
    return ingester.metric(f"ingester_{name}_total", **labels)


async def test_starts_live_without_a_cursor_and_goes_on_from_the_stored_one(
    clean_redis: str,
) -> None:
    relay = Relay(likes(1, 2, 3))
    async with running(relay):
        async with ingesting(clean_redis, relay.url, initial_cursor="live") as ingester:
            await ingester.ready.wait()
            relay.add(*likes(4, 5))
            await eventually(lambda: cursor(clean_redis, relay) == "5")
        relay.add(*likes(6, 7))
        async with ingesting(clean_redis, relay.url, initial_cursor="oldest"):
            await eventually(lambda: cursor(clean_redis, relay) == "7")
    assert relay.cursors == [None, 5]
    assert written(clean_redis) == [4, 5, 6, 7]
    assert relay.user_agents[0].startswith(b"rsky-pipeline/")


async def test_an_initial_number_is_the_first_event_wanted(clean_redis: str) -> None:
    relay = Relay(likes(*range(1, 8)), inclusive=True)
    async with running(relay), ingesting(clean_redis, relay.url, initial_cursor=4):
        await eventually(lambda: cursor(clean_redis, relay) == "7")
    assert relay.cursors == [4]
    assert written(clean_redis) == [4, 5, 6, 7]


async def test_an_inclusive_relay_makes_no_duplicates(clean_redis: str) -> None:
    relay = Relay(likes(*range(1, 6)), inclusive=True)
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "5")
        relay.disconnect_all()
        await eventually(lambda: len(relay.cursors) == 2)
        relay.add(*likes(6))
        await eventually(lambda: cursor(clean_redis, relay) == "6")
        assert total(ingester, "duplicate_frames") == 1
        assert total(ingester, "disconnects", reason="closed") == 1
        assert total(ingester, "error_reasons", reason="connection") == 1
        assert ingester.metric("ingester_websocket_connections") == 1
    assert relay.cursors == [0, 5]
    assert written(clean_redis) == [1, 2, 3, 4, 5, 6]


async def test_a_relay_that_restarts_is_found_again(clean_redis: str) -> None:
    port = free_port()
    async with ingesting(clean_redis, f"ws://127.0.0.1:{port}") as ingester:
        first, second = Relay(likes(1, 2)), Relay(likes(*range(1, 6)))
        async with running(first, port):
            await eventually(lambda: cursor(clean_redis, first) == "2", 30)
            await eventually(lambda: ingester.metric("ingester_websocket_connections") == 1)
        await eventually(lambda: ingester.metric("ingester_websocket_connections") == 0)
        async with running(second, port):
            await eventually(lambda: cursor(clean_redis, second) == "5", 60)
            assert ingester.metric("ingester_websocket_connections") == 1
    assert second.cursors == [2]
    assert written(clean_redis) == [1, 2, 3, 4, 5]


async def test_frames_out_of_order_are_dropped_and_counted(clean_redis: str) -> None:
    relay = Relay([*likes(1, 2), (2, like(2)), (1, like(1)), *likes(3)])
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "3")
        assert total(ingester, "duplicate_frames") == 2
    assert written(clean_redis) == [1, 2, 3]


async def test_garbage_is_kept_aside_and_the_stream_goes_on(clean_redis: str) -> None:
    async def serve(relay: Relay, socket: WebSocketConnection, cursor: int | None) -> None:
        await socket.send_message("a text")
        await socket.send_message(b"\xff\x00 no CBOR")
        await socket.send_message(b"")
        await socket.send_message(encode_frame("#commit", {"seq": 1}))
        await socket.send_message(encode_frame("#novelty", {"seq": 2, "did": DID}))
        await socket.send_message(encode_frame("#info", {"name": "OutdatedCursor"}))
        await socket.send_message(like(3))
        await socket.send_message(bytes(5 * 1024 * 1024 + 1))
        await socket.send_message(like(4))
        await trio.sleep_forever()

    relay = Relay(behaviour=serve)
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "4")
        assert len(relay.cursors) == 1
        assert total(ingester, "quarantined_frames") == 3
        assert total(ingester, "frames", type="undecodable") == 3
        assert total(ingester, "frames", type="unknown") == 1
        assert total(ingester, "error_reasons", reason="text_message") == 1
        assert total(ingester, "error_reasons", reason="oversize_message") == 1
        assert total(ingester, "info_frames", name="OutdatedCursor") == 1
        assert total(ingester, "errors") == 5
    kept = [json.loads(entry[b"frame"]) for entry in entries(clean_redis, "firehose_raw_dlq")]
    assert [item["host"] for item in kept] == [f"127.0.0.1:{relay.port}"] * 3
    assert all(item["reason"] and item["error"] for item in kept)
    assert written(clean_redis) == [3, 4]


async def test_an_unknown_frame_at_the_end_moves_the_cursor(clean_redis: str) -> None:
    relay = Relay([*likes(1), (2, encode_frame("#novelty", {"seq": 2, "x": True}))])
    async with running(relay), ingesting(clean_redis, relay.url):
        await eventually(lambda: cursor(clean_redis, relay) == "2")


async def test_filtered_commits_move_the_cursor_without_entries(clean_redis: str) -> None:
    other = {"com.example.thing/1": {"$type": "com.example.thing"}}
    relay = Relay([(seq, commit(seq, other, repo=DID)) for seq in range(1, 50)])
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "49")
        assert total(ingester, "firehose_filtered_operations") == 49
    assert entries(clean_redis, "firehose_live") == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [("ConsumerTooSlow", "consumer_too_slow"), ("Whatever", "error_frame")],
)
async def test_an_error_frame_means_reconnecting_from_the_cursor(
    clean_redis: str, error: str, reason: str
) -> None:
    async def fail_once(relay: Relay, socket: WebSocketConnection, cursor: int | None) -> None:
        await socket.send_message(like(1))
        await socket.send_message(like(2))
        await socket.send_message(encode_error_frame(error, "go away"))
        relay.behaviour = None
        await socket.aclose(1008)

    relay = Relay(likes(1, 2, 3), behaviour=fail_once)
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "3")
        assert total(ingester, "disconnects", reason=reason) == 1
        assert total(ingester, "frames", type="error") == 1
        assert total(ingester, "error_reasons", reason="error_frame") == 1
    assert relay.cursors == [0, 2]
    assert written(clean_redis) == [1, 2, 3]


async def test_a_future_cursor_is_left_to_the_operator(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_OPERATOR_SECONDS", 0.3)

    async def refuse(relay: Relay, socket: WebSocketConnection, cursor: int | None) -> None:
        await socket.send_message(encode_error_frame("FutureCursor", "beyond the end"))
        await socket.aclose(1008)

    relay = Relay(likes(1, 2), behaviour=refuse)
    async with running(relay):
        key = f"firehose_live:cursor:127.0.0.1:{relay.port}"
        set_value(clean_redis, key, "900")
        async with ingesting(clean_redis, relay.url) as ingester:
            await eventually(lambda: len(relay.cursors) >= 2)
            assert set(relay.cursors) == {900}
            assert value(clean_redis, key) == "900"
            assert total(ingester, "disconnects", reason="future_cursor") >= 1
            assert total(ingester, "error_reasons", reason="future_cursor") >= 1


@pytest.mark.parametrize("decision", ["none", "oldest event", "initial position"])
async def test_a_relay_that_numbers_anew_leaves_a_gap_however_it_goes_on(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch, decision: str
) -> None:
    """Its numbers may have come to the old cursor before anybody decides; they order nothing."""
    monkeypatch.setattr(follower, "_OPERATOR_SECONDS", 0.3)
    full = False

    async def count_anew(relay: Relay, socket: WebSocketConnection, cursor: int | None) -> None:
        if cursor == 900 and not full:
            await socket.send_message(encode_error_frame("FutureCursor", "beyond the end"))
            await socket.aclose(1008)
            return
        await relay.replay(socket, cursor)

    def account(seq: int) -> bytes:
        return encode_frame("#account", {"seq": seq, "did": DID, "time": TIME, "active": True})

    relay = Relay([(3, account(3)), (901, account(901))], behaviour=count_anew)
    async with running(relay):
        set_value(clean_redis, f"firehose_live:cursor:{relay.key}", "900")
        async with ingesting(clean_redis, relay.url) as ingester:
            await eventually(lambda: total(ingester, "disconnects", reason="future_cursor") >= 1)
            with closing(connect(clean_redis, name="test")) as store:
                if decision != "none":
                    to = 0 if decision == "oldest event" else None
                    set_cursor(store, "firehose_live", relay.key, to, force=True)
            full = True
            await eventually(lambda: cursor(clean_redis, relay) in {"3", "901"})
            relay.add((902, account(902)), (903, account(903)))
            await eventually(lambda: cursor(clean_redis, relay) == "903")
        relay.add((904, account(904)))
        async with ingesting(clean_redis, relay.url):
            await eventually(lambda: cursor(clean_redis, relay) == "904")
    gaps = [json.loads(entry[b"gap"]) for entry in entries(clean_redis, "rsky_pipeline:gaps")]
    kind = "cursor_set" if decision == "initial position" else "cursor_refused"
    assert [(gap["host"], gap["kind"], gap["from_seq"]) for gap in gaps] == [(relay.key, kind, 900)]
    events = [json.loads(entry[b"event"]) for entry in entries(clean_redis, "firehose_live")]
    [numbering] = {event["relay"] for event in events}
    host, _, since = numbering.partition("#")
    assert (host, time.time() - 600 < int(since) < time.time() + 60) == (relay.key, True)
    assert {901, 904} <= {event["seq"] for event in events}


async def test_what_the_operator_decides_about_a_future_cursor_is_noticed(
    clean_redis: str,
) -> None:
    """While nothing is read nothing is written, so that only a look at the cursor can tell."""

    async def refuse(relay: Relay, socket: WebSocketConnection, cursor: int | None) -> None:
        if cursor is None or cursor < 10:
            await relay.replay(socket, cursor)
        await socket.send_message(encode_error_frame("FutureCursor", "beyond the end"))
        await socket.aclose(1008)

    relay = Relay(likes(1, 2), behaviour=refuse)
    async with running(relay):
        host = f"127.0.0.1:{relay.port}"
        set_value(clean_redis, f"firehose_live:cursor:{host}", "900")
        async with ingesting(clean_redis, relay.url) as ingester:
            await eventually(lambda: total(ingester, "disconnects", reason="future_cursor") == 1)
            with closing(connect(clean_redis, name="test")) as store:
                set_cursor(store, "firehose_live", relay.key, None, force=True)
            await eventually(lambda: cursor(clean_redis, relay) == "2")
    assert relay.cursors[0] == 900
    assert set(relay.cursors) == {900, 0}  # it may have tried again before the operator acted
    assert written(clean_redis) == [1, 2]


async def test_a_cursor_that_the_operator_has_replaced_is_no_problem_any_more(
    clean_redis: str,
) -> None:
    async def refuse_only_900(
        relay: Relay, socket: WebSocketConnection, cursor: int | None
    ) -> None:
        if cursor == 900:
            await socket.send_message(encode_error_frame("FutureCursor", "beyond the end"))
            await socket.aclose(1008)
            return
        await relay.replay(socket, cursor)

    relay = Relay(likes(1, 2), behaviour=refuse_only_900)
    async with running(relay):
        set_value(clean_redis, f"firehose_live:cursor:{relay.key}", "900")
        async with ingesting(clean_redis, relay.url) as ingester:
            await eventually(lambda: "900 does not fit" in (ingester.health.get("problem") or ""))
            await eventually(lambda: "no_relay" in found(ingester))
            assert f"`rsky-pipeline cursor reset {relay.key} --force`" in refused(ingester)
            with closing(connect(clean_redis, name="test")) as store:
                set_cursor(store, "firehose_live", relay.key, None, force=True)
            await eventually(lambda: cursor(clean_redis, relay) == "2")
            await eventually(lambda: ingester.health["problem"] is None)
            await eventually(lambda: found(ingester) == {})


async def test_a_labelers_cursor_that_does_not_fit_is_named_with_its_stream(
    clean_redis: str,
) -> None:
    async def refuse(relay: Relay, socket: WebSocketConnection, cursor: int | None) -> None:
        if cursor == 900:
            await socket.send_message(encode_error_frame("FutureCursor", "beyond the end"))
            await socket.aclose(1008)
            return
        await relay.replay(socket, cursor)

    labeler = Relay([], behaviour=refuse)
    async with running(labeler):
        set_value(clean_redis, f"label_live:cursor:{labeler.key}", "900")
        async with ingesting(clean_redis, labeler_hosts=(labeler.url,)) as ingester:
            await eventually(lambda: "cursor_refused" in found(ingester))
            advice = f"cursor reset {labeler.key} --stream label_live --force`"
            assert advice in refused(ingester)
            with closing(connect(clean_redis, name="test")) as store:
                set_cursor(store, "label_live", labeler.key, None, force=True)
            await eventually(lambda: "cursor_refused" not in found(ingester))


def found(ingester: Ingester) -> dict[str, str]:
    """Return the verdicts of what the ingester finds, by name."""
    return {each["finding"]: each["verdict"] for each in ingester.health.get("reports", ())}


def refused(ingester: Ingester) -> str:
    """Return the remedy for a cursor that is refused."""
    reports = ingester.health["reports"]
    return "".join(each["remedy"] for each in reports if each["finding"] == "cursor_refused")


async def test_a_cursor_that_is_set_back_is_noticed_while_nothing_comes(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "LOOK_SECONDS", 0.2)
    relay = Relay(likes(1, 2, 3))
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "3")
        with closing(connect(clean_redis, name="test")) as store:
            set_cursor(store, "firehose_live", relay.key, 1, force=False)
        await eventually(lambda: len(relay.cursors) == 2)
        await eventually(lambda: cursor(clean_redis, relay) == "3")
        assert total(ingester, "disconnects", reason="cursor_moved") == 1
    assert relay.cursors == [0, 1]
    assert written(clean_redis) == [1, 2, 3]  # what comes again was taken over before


async def test_a_relay_far_below_the_cursor_is_noticed(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_OPERATOR_SECONDS", 0.3)

    async def ignore_the_cursor(
        relay: Relay, socket: WebSocketConnection, cursor: int | None
    ) -> None:
        for seq in range(1, 1_200):
            await socket.send_message(like(seq))

    relay = Relay(behaviour=ignore_the_cursor)
    async with running(relay):
        key = f"firehose_live:cursor:127.0.0.1:{relay.port}"
        set_value(clean_redis, key, "900000")
        async with ingesting(clean_redis, relay.url) as ingester:
            await eventually(lambda: total(ingester, "disconnects", reason="future_cursor") >= 1)
            assert value(clean_redis, key) == "900000"
    assert written(clean_redis) == []


async def test_a_stored_cursor_that_is_no_number_is_not_overwritten(clean_redis: str) -> None:
    relay = Relay(likes(1))
    async with running(relay):
        key = f"firehose_live:cursor:127.0.0.1:{relay.port}"
        set_value(clean_redis, key, "soon")
        async with ingesting(clean_redis, relay.url) as ingester:
            await eventually(lambda: total(ingester, "error_reasons", reason="invalid_cursor") == 1)
            assert not ingester.ready.is_set()
    assert value(clean_redis, key) == "soon"
    assert relay.cursors == []


async def test_a_silent_relay_is_reconnected(clean_redis: str) -> None:
    async def stall(relay: Relay, socket: WebSocketConnection, cursor: int | None) -> None:
        await socket.send_message(like(1))
        relay.behaviour = None
        await trio.sleep_forever()

    relay = Relay(likes(1, 2), behaviour=stall)
    settings = {"ingester_idle_timeout_seconds": 1}
    async with running(relay), ingesting(clean_redis, relay.url, **settings) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "2")
        assert total(ingester, "disconnects", reason="idle") == 1
    assert relay.cursors[:2] == [0, 1]
    assert written(clean_redis) == [1, 2]


async def test_a_quiet_relay_is_left_alone(clean_redis: str) -> None:
    relay = Relay()
    settings = {"ingester_idle_timeout_seconds": 1}
    async with running(relay), ingesting(clean_redis, relay.url, **settings) as ingester:
        await ingester.ready.wait()
        await trio.sleep(7.0)
        # Asked again after 2 s, and then after 4 more.
        assert total(ingester, "disconnects", reason="idle") <= 2
        host = f"127.0.0.1:{relay.port}"
        assert ingester.metric("ingester_relay_stalled", host=host) == 0
        assert ingester.health["problem"] is None
        await eventually(lambda: ingester.metric("ingester_connected_seconds_total", host=host) > 0)
        relay.add(*likes(1))
        await eventually(lambda: cursor(clean_redis, relay) == "1")


async def test_retry_after_is_honoured(clean_redis: str) -> None:
    relay = Relay(likes(1), reject_with=(429, [(b"Retry-After", b"2")]))
    began = trio.current_time()
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        await eventually(lambda: relay.cursors)
        relay.reject_with = None
        await eventually(lambda: cursor(clean_redis, relay) == "1")
        # Of its own it would have come back after less than a second.
        assert trio.current_time() - began >= 2.0
        assert total(ingester, "disconnects", reason="rate_limited") >= 1
        assert ingester.ready.is_set()


async def test_one_relay_that_is_down_does_not_keep_the_other_from_working(
    clean_redis: str,
) -> None:
    relay = Relay(likes(1))
    async with running(relay), ingesting(clean_redis, "ws://127.0.0.1:9", relay.url) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "1")
        await ingester.ready.wait()
        await eventually(lambda: ingester.health.get("connected_relays") == 1)
        assert total(ingester, "disconnects", reason="connect_failed") >= 1
        assert ingester.health["relays"] == 2


async def test_it_is_not_ready_before_a_socket_is_open(clean_redis: str) -> None:
    async with ingesting(clean_redis, "ws://127.0.0.1:9") as ingester:
        await eventually(lambda: total(ingester, "disconnects", reason="connect_failed") >= 1)
        await trio.sleep(0.1)
        assert not ingester.ready.is_set()


async def test_a_relay_that_is_down_holds_readiness_back_for_a_moment_only(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(follower, "Backoff", lambda: Backoff(base=0.05, cap=0.1))
    port = free_port()
    async with ingesting(clean_redis, f"ws://127.0.0.1:{port}") as ingester:
        with trio.fail_after(60):
            await ingester.ready.wait()
        await eventually(lambda: ingester.health.get("degraded") == NO_RELAY.title)
        relay = Relay(likes(1))
        async with running(relay, port):
            await eventually(lambda: cursor(clean_redis, relay) == "1")
            await eventually(lambda: ingester.health.get("degraded") is None)


async def test_without_relays_it_is_ready_and_waits(clean_redis: str) -> None:
    async with ingesting(clean_redis) as ingester:
        await ingester.ready.wait()
        assert not ingester.ended.is_set()


async def test_what_was_read_is_written_on_the_way_out(clean_redis: str) -> None:
    relay = Relay(likes(*range(1, 31)))
    slow = {"ingester_batch_timeout_ms": 60_000}
    async with running(relay):
        async with ingesting(clean_redis, relay.url, **slow) as ingester:
            await eventually(lambda: total(ingester, "firehose_messages") == 30)
            assert written(clean_redis) == []
            assert ingester.metric("ingester_events_in_memory") == 30
            assert ingester.metric("ingester_bytes_in_memory") > 3_000
        assert ingester.ended.is_set()
        assert written(clean_redis) == list(range(1, 31))
        assert cursor(clean_redis, relay) == "30"


async def test_identity_account_and_sync_frames(clean_redis: str) -> None:
    def body(seq: int, **more: Any) -> dict[str, Any]:
        return {"seq": seq, "did": DID, "time": TIME, **more}

    relay = Relay(
        [
            (1, encode_frame("#identity", body(1))),
            (2, encode_frame("#identity", body(2, handle="alice.test"))),
            (3, encode_frame("#account", body(3, active=False, status="takendown"))),
            (4, encode_frame("#account", body(4, active=True))),
            (5, encode_frame("#sync", body(5, rev="3mptbypluud2a", blocks=b""))),
        ]
    )
    async with running(relay), ingesting(clean_redis, relay.url):
        await eventually(lambda: cursor(clean_redis, relay) == "5")
    found = [json.loads(entry[b"event"]) for entry in entries(clean_redis, "firehose_live")]
    host = relay.url.removeprefix("ws://")  # within one relay the order of the stream decides
    assert found == [
        {"type": "identity", "seq": 1, "time": TIME, "did": DID, "handle": None},
        {"type": "identity", "seq": 2, "time": TIME, "did": DID, "handle": "alice.test"},
        {"type": "account", "seq": 3, "time": TIME, "did": DID, "active": False,
         "status": "takendown", "relay": host},
        {"type": "account", "seq": 4, "time": TIME, "did": DID, "active": True, "status": None,
         "relay": host},
    ]  # fmt: skip
    [job] = entries(clean_redis, "repo_backfill_high")
    assert json.loads(job[b"repo"]) == {
        "did": DID, "host": relay.url.replace("ws:", "http:"), "rev": "3mptbypluud2a",
        "status": None, "active": True, "reason": "sync",
    }  # fmt: skip


async def test_while_our_clock_is_behind_nobody_is_judged_and_nothing_is_lost(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing has to be retried when it is right again."""
    right_at = time.time() + 3.0

    def answers(_: object) -> AskForTime:
        async def ask() -> float | None:
            await trio.lowlevel.checkpoint()
            return 3_600.0 if time.time() < right_at else None

        return ask

    monkeypatch.setattr(follower, "CLOCK_SECONDS", 0.2)
    monkeypatch.setattr(role, "time_of_redis", answers)
    late = tid_from(int((right_at + FUTURE_SECONDS - 0.5) * 1e6))  # from then on it is no future
    relay = Relay(
        [
            (seq, like(seq, repo=f"did:plc:{letter * 24}", rev=late))
            for seq, letter in enumerate("abcdefghijkl", 1)
        ]
    )
    options: dict[str, Any] = {"plc_url": "http://127.0.0.1:1"}
    async with running(relay), ingesting(clean_redis, relay.url, **options) as ingester:
        await eventually(lambda: total(ingester, "disconnects", reason="clock") > 1)
        assert entries(clean_redis, "firehose_raw_dlq") == []
        await eventually(lambda: cursor(clean_redis, relay) == "12")
        assert total(ingester, "error_reasons", reason="future_rev") == 0
    assert len(entries(clean_redis, "firehose_live")) == 12
