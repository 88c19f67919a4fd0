"""An ingester behind a relay that lies in every way it can: each lie is seen, none is written."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.demo.simulator.clock import Clock
from rsky_pipeline.demo.simulator.faults import FAULTS, Hostility
from rsky_pipeline.demo.simulator.state import state_of
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.ingester import role
from tests.hostile import EVIDENCE, RATES, unseen
from tests.integration.ingester.worker import Ingester, entries, eventually, ingesting, value
from tests.integration.simulator.kit import served

RATE, EVENTS = 500, 1_800


def series(ingester: Ingester, name: str) -> float:
    """Return a sample by its name with labels, as Prometheus writes it."""
    plain, _, labels = name.partition("{")
    pairs = [pair.split("=") for pair in labels.rstrip("}").split(",") if pair]
    return ingester.metric(plain, **{key: text.strip('"') for key, text in pairs})


def lines(records: list[Any]) -> list[Mapping[str, Any]]:
    return [{**vars(record), "msg": record.getMessage()} for record in records]


@pytest.mark.slow
async def test_every_fault_is_seen_and_nothing_forged_is_written(
    clean_redis: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(role, "FORCED_PAUSE_SECONDS", 0.5)
    caplog.set_level("INFO", "rsky_pipeline")
    world = World(11, 40, Clock())
    world.deletes_accounts = False
    hostility = Hostility(11)
    hostility.set_rates(RATES | {"future": 0.3})
    async with served(world, hostility=hostility) as network:
        options: dict[str, Any] = {
            "verify": "full", "plc_url": network.urls.plc, "ingester_idle_timeout_seconds": 3,
        }  # fmt: skip
        async with ingesting(clean_redis, network.urls.relay, **options) as ingester:
            await ingester.ready.wait()
            await network.network.publish(RATE, EVENTS)
            key = f"firehose_live:cursor:{parse_endpoint(network.urls.relay).key}"
            last = str(network.network.events.log.newest_seq)
            await eventually(lambda: value(clean_redis, key) == last, 60)
            network.network.events.subscribers.fall_silent(3_600)
            idle = EVIDENCE["silence"].series
            await eventually(lambda: series(ingester, idle) > 0)
            faults = {name: hostility.counts[name] for name in FAULTS} | {"silence": 1}
            found = {item.series: series(ingester, item.series) for item in EVIDENCE.values()}
    assert unseen(faults, found.__getitem__, lines(caplog.records)) == []
    made = [json.loads(entry[b"event"]) for entry in entries(clean_redis, "firehose_live")]
    assert len([event for event in made if "rkey" in event]) > EVENTS / 3
    assert not [event for event in made if "forged" in json.dumps(event)]
    # What was written last of each record is what stands, unless its repo is to be fetched.
    jobs = [
        json.loads(entry[b"repo"])["did"]
        for stream in ("repo_backfill_high", "rsky_pipeline:resync_later")
        for entry in entries(clean_redis, stream)
    ]
    told: dict[str, str | None] = {}
    for event in made:
        if "rkey" in event:
            told[f"at://{event['did']}/{event['collection']}/{event['rkey']}"] = event.get("cid")
    standing = {uri: item.cid for uri, item in state_of(world).records.items()}
    untold = {
        uri.split("/")[2]
        for uri in standing.keys() | told.keys()
        if told.get(uri) != standing.get(uri) and "/app.bsky." in uri
    }
    assert untold <= set(jobs)
    assert len(set(jobs)) > 10
