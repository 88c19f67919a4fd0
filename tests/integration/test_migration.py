"""An account that moves to another host: the database follows, whatever the old host says."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.backfiller import role as backfiller
from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.simulator.accounts import RepoStatus
from rsky_pipeline.demo.simulator.clock import Clock
from rsky_pipeline.demo.simulator.compare import compare
from rsky_pipeline.demo.simulator.hosts import SimulatedHosts, Stream, Urls
from rsky_pipeline.demo.simulator.http import serve_connection
from rsky_pipeline.demo.simulator.state import state_of
from rsky_pipeline.demo.simulator.subscription import EventLog, StreamRules
from rsky_pipeline.demo.simulator.truth import truth
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.indexer import role as indexer
from rsky_pipeline.ingester import role as ingester
from rsky_pipeline.observability.server import process_registry
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import RESYNC_LATER, STREAMS
from rsky_pipeline.streams.waiting import count_waiting
from tests.integration.ingester.worker import eventually, value
from tests.integration.simulator.kit import Served, served

ROLES = {"indexer": indexer.run, "backfiller": backfiller.run, "ingester": ingester.run}


class Parting(World):
    """A world of which the first host goes on serving what an account had when it left."""

    def __init__(self, seed: int, accounts: int, clock: Clock) -> None:
        super().__init__(seed, accounts, clock)
        self.left: dict[str, tuple[RepoStatus, bytes]] = {}

    def leave(self, did: str) -> None:
        status = super().status(did)
        assert status is not None
        self.left[did] = status, super().car(did)

    def status(self, did: str) -> RepoStatus | None:
        return self.left[did][0] if did in self.left else super().status(did)

    def car(self, did: str) -> bytes:
        return self.left[did][1] if did in self.left else super().car(did)


@dataclass
class NewHost:
    """What the other host serves: the same accounts, as they really are."""

    world: Parting

    @property
    def handles(self) -> Mapping[str, str]:
        return self.world.handles

    def document(self, did: str, pds: str, labeler: str) -> dict[str, Any] | None:
        return self.world.document(did, pds, labeler)

    def status(self, did: str) -> RepoStatus | None:
        return World.status(self.world, did) if did in self.world.moved else None

    def statuses(self) -> Sequence[RepoStatus]:
        return ()

    def car(self, did: str) -> bytes:
        return World.car(self.world, did)


@asynccontextmanager
async def another_host(world: Parting) -> AsyncIterator[tuple[SimulatedHosts, str]]:
    """Serve a PDS until the block ends."""
    nothing = (Stream(EventLog(), StreamRules()), Stream(EventLog(), StreamRules()))
    hosts = SimulatedHosts(NewHost(world), Urls("", "", "", ""), *nothing)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    answer = partial(serve_connection, handler=hosts.pds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        yield hosts, f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
    for stream in nothing:
        stream.log.close()


@asynccontextmanager
async def pipeline(settings: Settings) -> AsyncIterator[dict[str, CollectorRegistry]]:
    """Run all roles in this process until the block ends."""
    registries = {name: process_registry() for name in ROLES}
    contexts = [
        WorkerContext(
            settings, name, 1, f"test-{name}-1", registries[name], trio.Event().set,
            Health(name, 1).activity, lambda _: None,
        )
        for name in ROLES
    ]  # fmt: skip
    async with trio.open_nursery() as nursery:
        for context in contexts:
            nursery.start_soon(ROLES[context.role], context)
        yield registries
        for context in contexts:
            context.stopping.set()


def publish(network: Served, events: int = 0, *, without: str = "") -> int:
    """Publish events, and what is in the middle; one commit of an account is kept back."""
    world, log = network.world, network.network.events.log
    while events > 0 or world.is_in_the_middle:
        events -= 1
        frame = world.step()
        if without and without.encode() in frame and b"#commit" in frame[:20]:
            without = ""
            continue
        log.append(world.seq, frame)
    log.publish()
    return world.seq


@pytest.mark.slow
async def test_the_database_follows_an_account_to_its_new_host(
    clean_redis: str, schema_database: str, tmp_path: Path
) -> None:
    world = Parting(9, 30, Clock())
    world.add_history(8)
    async with served(world) as network, another_host(world) as (new_host, url):
        relay = network.urls.relay
        settings = Settings(
            redis_url=clean_redis, database_url=schema_database, data_dir=tmp_path,
            relay_hosts=(relay,), labeler_hosts=(), plc_url=network.urls.plc,
            handle_resolver_url=network.urls.pds, allow_private_hosts=True,
            initial_cursor="oldest", verify="full", resync_pause_seconds=1,
            backfiller_retry_initial_ms=10, backfiller_retry_max_ms=200,
            backfiller_host_rate=1_000,
        )  # fmt: skip
        key = f"firehose_live:cursor:{parse_endpoint(relay).key}"
        with closing(connect(clean_redis, name="test")) as store:

            def idle() -> bool:
                open_entries = sum(
                    group.lag + group.pending
                    for stream in STREAMS for group in inspect(store, stream).groups
                )  # fmt: skip
                return not open_entries + count_waiting(store) + store.call("XLEN", RESYNC_LATER)

            async def indexed(last: int) -> None:
                await eventually(lambda: value(clean_redis, key) == str(last), 60)
                await eventually(lambda: idle() and idle(), 60)

            async with pipeline(settings) as registries:
                last = publish(network, 300)
                await indexed(last)
                # Everybody has looked this account up at its old host by now.
                account = next(each for each in world.accounts if each.historic and each.active)
                did = account.did
                world.leave(did)
                world.migrate(account, url)
                last = publish(network, without=did)
                await indexed(last)
                assert new_host.downloads >= 1
                last = publish(network, 200)
                await indexed(last)
                with Database.connect(schema_database, name="test") as database:
                    pending = "SELECT count(*) FROM rsky_pipeline.handle_check"
                    await eventually(lambda: database.query(pending) == [(0,)], 30)
                verdicts = {
                    verdict: registries["ingester"].get_sample_value(
                        "ingester_verifications_total", {"verdict": verdict}
                    )
                    for verdict in ("forged", "unverified", "no_account")
                }
                changes = registries["ingester"].get_sample_value(
                    "ingester_key_changes_total", {"announced": "yes"}
                )
        expected = truth(state_of(world), handles=True)
    assert verdicts == {"forged": 0, "unverified": 0, "no_account": 0}
    assert changes == 1
    found = compare(schema_database, settings.database_schema, expected)
    # No labeler is followed here.
    assert [each for each in found if each.differences and each.name != "label"] == []
    with Database.connect(schema_database, name="test") as database:
        [[rev]] = database.query('SELECT "repoRev" FROM actor_sync WHERE did = %s', [did])
    assert rev > world.left[did][0].rev
