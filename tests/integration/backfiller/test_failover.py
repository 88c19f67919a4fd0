"""Redis fails over while repos are in flight: the new primary may lack what the old one took."""

from typing import Any

import psycopg

from rsky_pipeline.streams.connection import Store
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import (
    Configure,
    backfiller,
    document,
    eventually,
    letters,
    make_repo,
    output,
    queue,
    settled,
)

DID = "did:plc:a"
HELD = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'stored'"


def fail_over(store: Store) -> list[dict[str, Any]]:
    """Promote a server that never received the events of the backfiller; return these."""
    lost = output(store)
    store.call("REPLICAOF", "127.0.0.1", "1")
    store.call("REPLICAOF", "NO", "ONE")
    store.call("DEL", "firehose_backfill")
    return lost


async def test_a_repo_whose_events_are_lost_is_not_acknowledged(
    store: Store, configure: Configure, hosts: FakeHosts, schema_database: str
) -> None:
    car, _ = make_repo(DID, 3)
    hosts.add(DID, document(DID), car)
    with psycopg.connect(schema_database) as other:
        async with backfiller(configure()):
            other.execute("LOCK TABLE rsky_pipeline.backfill_repo IN SHARE MODE")
            queue(store, DID)
            with psycopg.connect(schema_database, autocommit=True) as watch:
                await eventually(lambda: watch.execute(HELD).fetchall() == [(1,)])
            lost = fail_over(store)
            other.commit()
            await settled(store)
    assert [event["type"] for event in output(store)] == ["create"] * 3 + ["repo"]
    assert output(store)[-1]["rev"] == lost[-1]["rev"]
    assert letters(store) == []


async def test_a_repo_is_not_closed_whose_first_records_are_lost(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    car, rkeys = make_repo(DID, 1_600)
    hosts.add(DID, document(DID), car)
    async with backfiller(configure(backfill_high_water_mark=400)) as running:
        queue(store, DID)
        await eventually(lambda: running.value("backpressure_waits_total") > 0)
        assert {event["type"] for event in fail_over(store)} == {"create"}
        seen: list[dict[str, Any]] = []

        def drained() -> bool:
            if events := output(store):  # then nothing is added before it is emptied
                seen.extend(events)
                store.call("DEL", "firehose_backfill")
            return not store.call("XLEN", "repo_backfill")

        await eventually(drained)
    assert {event["rkey"] for event in seen[:-1]} == rkeys
    assert [event["type"] for event in seen] == ["create"] * 1_600 + ["repo"]


async def test_a_fail_over_that_loses_nothing_ends_well(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    for number in range(20):
        did = f"did:plc:{number}"
        hosts.add(did, document(did), make_repo(did, 2)[0])
    async with backfiller(configure()) as running:
        queue(store, *hosts.repos)
        await eventually(lambda: len(output(store)) >= 9)
        store.call("REPLICAOF", "127.0.0.1", "1")
        store.call("REPLICAOF", "NO", "ONE")
        await settled(store)
    assert {event["did"] for event in output(store) if event["type"] == "repo"} == {*hosts.repos}
    assert running.value("outcomes_total", outcome="failed") == 0
    assert letters(store) == []
