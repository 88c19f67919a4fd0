"""A simulated network of real signed repos, with every signature checked."""

import json
from collections import Counter
from functools import partial
from typing import Any

import pytest

from rsky_pipeline.atproto.frame import CommitMessage, decode_frame
from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.demo.simulator.clock import Clock
from rsky_pipeline.demo.simulator.world import World
from tests.integration.ingester.worker import entries, eventually, ingesting, value
from tests.integration.simulator.kit import served

EVENTS = 1_500


@pytest.mark.slow
async def test_all_that_is_published_is_proven_and_written(clean_redis: str) -> None:
    world = World(3, 60, Clock())
    world.add_history(5)
    async with served(world) as network:
        network.network.prepare(EVENTS)
        relay, labeler = (parse_endpoint(url) for url in (network.urls.relay, network.urls.labeler))
        options: dict[str, Any] = {
            "verify": "signature", "plc_url": network.urls.plc, "enumerate_repos": True,
            "labeler_hosts": (network.urls.labeler,), "label_signatures": "require",
        }  # fmt: skip
        async with ingesting(clean_redis, network.urls.relay, **options) as ingester:
            await ingester.ready.wait()
            await network.network.publish(0, EVENTS)
            last = str(world.seq)
            key = f"firehose_live:cursor:{relay.key}"
            await eventually(lambda: value(clean_redis, key) == last, 60)
            await eventually(lambda: ingester.metric("ingester_backfill_complete") == 1)
            labels = str(network.network.labels.log.newest_seq)
            cursor = f"label_live:cursor:{labeler.key}"
            await eventually(lambda: value(clean_redis, cursor) == labels)
            await eventually(lambda: ingester.metric("ingester_firehose_messages_total") == EVENTS)
            proven = partial(ingester.metric, "ingester_label_verifications_total", verdict="valid")
            await eventually(
                lambda: 0 < proven() == ingester.metric("ingester_labels_written_total")
            )
        # Commits whose key was looked up are counted once a second, and at the end.
        verdicts = {
            verdict: ingester.metric("ingester_verifications_total", verdict=verdict)
            for verdict in ("valid", "forged", "unverified", "no_account")
        }
        assert ingester.metric("ingester_errors_total") == 0
        frames = [decode_frame(raw) for raw in network.network.events.log.frames()]
    kinds = Counter(type(message).__name__ for message in frames)
    commits = sum(isinstance(message, CommitMessage) for message in frames)
    assert 1_000 < verdicts["valid"] <= commits
    assert sum(verdicts.values()) == verdicts["valid"]
    written = [json.loads(entry[b"event"]) for entry in entries(clean_redis, "firehose_live")]
    expected = [
        (message.seq, op.path)
        for message in frames
        if isinstance(message, CommitMessage)
        for op in message.ops
        if op.path.startswith(("app.bsky.", "chat.bsky.", "com.germnetwork.declaration"))
    ]
    records = [event for event in written if "rkey" in event]
    assert [(e["seq"], f"{e['collection']}/{e['rkey']}") for e in records] == expected
    others = Counter(event["type"] for event in written if "rkey" not in event)
    assert others == {"identity": kinds["IdentityMessage"], "account": kinds["AccountMessage"]}
    jobs = [json.loads(entry[b"repo"]) for entry in entries(clean_redis, "repo_backfill")]
    listed = {job["did"] for job in jobs}
    assert listed >= {account.did for account in world.accounts if account.historic}


@pytest.mark.parametrize("kind", ["pds", "relay"])
async def test_of_a_pds_only_the_present_home_of_an_account_is_heard(
    clean_redis: str, kind: str
) -> None:
    """An account has moved: its old host deactivates it later, the new one has it as active.

    A relay has said so of the account's present host, and is heard.
    """
    old, new = World(3, 5, Clock()), World(4, 5, Clock())
    for world in (old, new):
        world.add_history(3)
    moved, stays = old.accounts[:2]
    async with served(old) as before, served(new) as after:
        old.moved[moved.did] = after.urls.pds
        new.announce(moved.did, None)
        old.announce(moved.did, "deactivated")
        old.announce(stays.did, "takendown")
        before.network.prepare(2)
        after.network.prepare(1)
        hosts = [getattr(network.urls, kind) for network in (before, after)]
        options: dict[str, Any] = {"verify": "none", "plc_url": before.urls.plc}
        async with ingesting(clean_redis, *hosts, **options) as ingester:
            await ingester.ready.wait()
            before.network.advance(2)
            after.network.advance(1)
            for network, host in zip((before, after), hosts, strict=True):
                key = f"firehose_live:cursor:{parse_endpoint(host).key}"
                last = str(network.network.events.log.newest_seq)
                await eventually(partial(_is_at, clean_redis, key, last))
        elsewhere = ingester.metric("ingester_account_events_elsewhere_total")
    written = [json.loads(entry[b"event"]) for entry in entries(clean_redis, "firehose_live")]
    found = {(event["did"], event["active"], event["status"]) for event in written}
    said = {(moved.did, True, None), (stays.did, False, "takendown")}
    untrue = {(moved.did, False, "deactivated")}
    assert found == (said if kind == "pds" else said | untrue)
    assert elsewhere == (1 if kind == "pds" else 0)


def _is_at(redis_url: str, key: str, last: str) -> bool:
    return value(redis_url, key) == last
