"""The whole role: labelers, listings, health, and metrics that all exist and all move."""

import json
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry
from trio_websocket import WebSocketConnection

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.frame import decode_frame, encode_error_frame, encode_frame
from rsky_pipeline.configuration.endpoints import Endpoint, HostKey
from rsky_pipeline.ingester import role
from rsky_pipeline.ingester.commits import signatures
from rsky_pipeline.network import listing as network_listing
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.network.listing import ListedRepo, Page
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.health_document import CursorHealth
from tests.integration.ingester.relay import TIME, Relay, commit, like, running
from tests.integration.ingester.test_live import DID, cursor, likes
from tests.integration.ingester.worker import (
    Ingester,
    entries,
    eventually,
    free_port,
    ingesting,
    value,
)
from tests.stores import redis_client

ORIGINAL_NAMES = {
    f"ingester_{name}"
    for name in (
        "firehose_events_total", "firehose_create_events_total", "firehose_update_events_total",
        "firehose_delete_events_total", "firehose_filtered_operations_total",
        "stream_events_total", "errors_total", "labeler_events_total", "labels_written_total",
        "backfill_repos_fetched_total", "backfill_repos_written_total",
        "backfill_fetch_errors_total", "backfill_cursor_skips_total", "firehose_live_length",
        "firehose_backfill_length", "label_live_length", "repo_backfill_length",
        "backpressure_active", "websocket_connections", "events_in_memory", "backfill_complete",
        "firehose_messages_total",
    )
}  # fmt: skip


# Seen to move in test_enumeration, where a day passes at once, and in test_simulated.
MOVED_ELSEWHERE = {
    "ingester_listing_stuck",
    "ingester_listing_hole_retries_total",
    "ingester_label_verifications_total",
    "ingester_blocked_events_total",  # in test_blocks
    "ingester_bsync_answers_total",  # these in test_bsync
    "ingester_bsync_operations_total",
    "ingester_bsync_late_operations_total",
}


def label_frame(seq: int, value: str = "spam") -> bytes:
    label = {"ver": 1, "src": DID, "uri": DID, "val": value, "cts": TIME, "sig": b"\x00" * 64}
    return encode_frame("#labels", {"seq": seq, "labels": [label, label | {"neg": True}]})


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Return the largest value of every sample name of the ingester, whatever its labels."""
    found: dict[str, float] = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name.startswith("ingester_") and not sample.name.endswith("_created"):
                found[sample.name] = max(sample.value, found.get(sample.name, 0.0))
    return found


async def test_everything_is_exported_at_zero_from_the_start(clean_redis: str) -> None:
    down = f"ws://127.0.0.1:{free_port()}"
    async with ingesting(clean_redis, down, labeler_hosts=(down,)) as ingester:
        found = samples(ingester.context.registry)
        assert found.keys() >= ORIGINAL_NAMES
        declared = {sample for sample in samples(_all_declared()) if "_length" not in sample}
        assert found.keys() >= declared
        host = down.removeprefix("ws://")
        assert ingester.metric("ingester_cursor_seq", stream="firehose_live", host=host) == 0
        assert ingester.metric("ingester_disconnects_total", reason="idle") == 0
        assert ingester.metric("ingester_error_reasons_total", reason="other") == 0


def _all_declared() -> CollectorRegistry:
    registry = CollectorRegistry()
    IngesterMetrics(registry, disconnect_reasons=["closed"], relays=["h"], labelers=["l"],
                    resync_reasons=["sync"])  # fmt: skip
    return registry


async def test_labels_are_followed_from_the_beginning_and_from_the_cursor(
    clean_redis: str,
) -> None:
    labeler = Relay([(seq, label_frame(seq)) for seq in (1, 2)])
    async with running(labeler):
        key = f"label_live:cursor:127.0.0.1:{labeler.port}"
        options: dict[str, Any] = {"labeler_hosts": (labeler.url,), "initial_cursor": "live"}
        async with ingesting(clean_redis, **options) as ingester:
            await eventually(lambda: value(clean_redis, key) == "2")
            await eventually(lambda: ingester.metric("ingester_labels_written_total") == 4)
            assert ingester.metric("ingester_labeler_events_total") == 2
            assert ingester.metric("ingester_firehose_messages_total") == 0
        labeler.add((3, label_frame(3)), (4, encode_frame("#info", {"name": "OutdatedCursor"})))
        async with ingesting(clean_redis, **options) as ingester:
            await eventually(lambda: value(clean_redis, key) == "3")
            await eventually(
                lambda: ingester.metric("ingester_info_frames_total", name="OutdatedCursor") == 1
            )
    assert labeler.cursors == [0, 2]
    frames = [json.loads(entry[b"labels"]) for entry in entries(clean_redis, "label_live")]
    assert [frame["seq"] for frame in frames] == [1, 2, 3]
    assert frames[0]["labels"] == [
        {"src": DID, "uri": DID, "cid": None, "val": "spam", "neg": neg, "cts": TIME, "exp": None}
        for neg in (None, True)
    ]


async def test_a_full_label_stream_does_not_hold_up_the_firehose(clean_redis: str) -> None:
    labeler, relay = Relay([(1, label_frame(1))]), Relay(likes(*range(1, 21)))
    with redis_client(clean_redis) as client:
        for _ in range(50):
            client.xadd("label_live", {"labels": "{}"})
    options: dict[str, Any] = {"live_high_water_mark": 50}
    async with running(labeler), running(relay):
        options["labeler_hosts"] = (labeler.url,)
        async with ingesting(clean_redis, relay.url, **options):
            await eventually(lambda: cursor(clean_redis, relay) == "20")
            assert value(clean_redis, f"label_live:cursor:127.0.0.1:{labeler.port}") is None


async def test_health_tells_what_an_operator_asks_for(clean_redis: str) -> None:
    relay = Relay(likes(*range(1, 11)))
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        await ingester.ready.wait()
        stored = CursorHealth(
            stream="firehose_live", host=HostKey(f"127.0.0.1:{relay.port}"), seq=10
        )
        await eventually(lambda: ingester.health.get("cursors") == [stored])
        assert ingester.health["connected_relays"] == ingester.health["relays"] == 1
        assert ingester.health["lag_seconds"] > 1_000
        assert ingester.health["held_up"] is False
        assert ingester.health["events_in_memory"] == 0
        assert [each.name for each in ingester.activities.activities] == ["writing"]
        await eventually(lambda: "rate" in ingester.health)


class FakeList:
    """Stands for listRepos: fails at first, then lists three repos and one that it cannot."""

    def __init__(self) -> None:
        self.requests = 0

    async def __call__(
        self, http: HttpClient, endpoint: Endpoint, cursor: str | None, limit: int
    ) -> Page:
        await trio.lowlevel.checkpoint()
        self.requests += 1
        if cursor is None:
            return Page(
                (
                    ListedRepo(DID, "3mptbypluud2a", True, None),
                    ListedRepo(DID, "3mptbypluud2a", False, "deactivated"),
                ),
                "1",
            )
        if cursor == "1":
            raise HttpError("status", "500", status=500)
        return Page((), None)


async def misbehave(relay: Relay, socket: WebSocketConnection, cursor: int | None) -> None:
    """Send one of everything, and an error at the end."""
    info = encode_frame("#info", {"name": "OutdatedCursor"})
    identity = encode_frame("#identity", {"seq": 6, "did": DID, "time": TIME})
    update = {"action": "update", "path": "app.bsky.feed.like/x", "cid": Cid.of(b"missing")}
    delete = {"action": "delete", "path": "app.bsky.feed.like/k1", "cid": None}
    frames = [
        like(1), like(1), b"\xff", info, like(2, tooBig=True),
        commit(3, {"com.example.x/a": {}}, repo=DID), like(4, ops=[update]),
        like(5, ops=[delete]), identity,
        like(7, ops=[update | {"cid": cid} for cid in [Cid.of(encode_like(7))]]),
    ]  # fmt: skip
    for frame in frames:
        await socket.send_message(frame)
    await socket.send_message(encode_error_frame("ConsumerTooSlow", "bye"))
    relay.behaviour = None
    await socket.aclose()


def encode_like(seq: int) -> bytes:
    """Return the record block of `like(seq)`."""
    message: Any = decode_frame(like(seq))
    block: bytes = read_car(message.blocks).blocks[message.ops[0].cid]
    return block


async def note_maxima(ingester: Ingester, into: dict[str, float]) -> None:
    while True:
        for name, sample in samples(ingester.context.registry).items():
            into[name] = max(sample, into.get(name, 0.0))
        await trio.sleep(0.01)


# What these show takes several relays, or a stored cursor: test_relays.py sees them move. Others
# take a lie of a relay, or an account that changes its key: test_hostile.py. Or one that moves:
# tests/unit/ingester/test_homes.py.
ELSEWHERE = {
    "ingester_relay_leads", "ingester_relay_behind_seconds", "ingester_relay_stalled",
    "ingester_gaps_total", "ingester_replayed_frames_total",
    "ingester_seq_jumps_total", "ingester_key_changes_total", "ingester_resyncs_owed_total",
    "ingester_account_events_elsewhere_total",
    "ingester_connected_seconds_total",
}  # fmt: skip


@pytest.mark.slow
async def test_every_metric_moves(clean_redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "list_repos", FakeList())
    monkeypatch.setattr(role, "MAX_EVENTS", 100)
    monkeypatch.setattr(signatures, "DIRECTORY_SECONDS", 1.0)
    monkeypatch.setattr(network_listing, "Backoff", lambda: Backoff(base=0.01, cap=0.02))
    relay = Relay(likes(*range(8, 3_000)), behaviour=misbehave)
    labeler = Relay([(1, label_frame(1))])
    seen: dict[str, float] = {}
    async with running(relay), running(labeler), trio.open_nursery() as nursery:
        options: dict[str, Any] = {
            "labeler_hosts": (labeler.url,), "live_high_water_mark": 50, "enumerate_repos": True,
            "ingester_batch_size": 20, "verify": "signature",
            "plc_url": f"http://127.0.0.1:{free_port()}",
        }  # fmt: skip
        # Without a directory nothing can be proven: every commit has its repo fetched.
        async with ingesting(clean_redis, relay.url, **options) as ingester:
            nursery.start_soon(note_maxima, ingester, seen)
            await eventually(lambda: seen.get("ingester_verifications_total"), 30)
            await eventually(lambda: seen.get("ingester_backfill_complete"), 60)
        options |= {"verify": "none", "enumerate_repos": False}
        with redis_client(clean_redis) as client:
            client.delete(f"firehose_live:cursor:127.0.0.1:{relay.port}")
        relay.behaviour = misbehave
        async with ingesting(clean_redis, relay.url, **options) as ingester:
            nursery.start_soon(note_maxima, ingester, seen)
            await eventually(lambda: seen.get("ingester_backpressure_active"), 30)
            await eventually(lambda: len(entries(clean_redis, "firehose_live")) >= 50)
            with redis_client(clean_redis) as client:
                client.xadd("firehose_backfill", {"event": "{}"})
                client.xtrim("firehose_live", maxlen=0, approximate=False)
            await eventually(lambda: seen.get("ingester_backpressure_seconds_total"), 30)
            await eventually(lambda: seen.get("ingester_firehose_backfill_length"), 30)
        nursery.cancel_scope.cancel()
    unmoved = {name for name, sample in seen.items() if not sample}
    assert unmoved - ELSEWHERE == MOVED_ELSEWHERE
    assert len(seen) > 35
