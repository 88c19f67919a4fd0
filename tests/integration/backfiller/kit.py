"""What the tests of the backfiller share."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.backfiller.role import run
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.server import process_registry
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.dead_letters import DeadLetter, list_dead_letters
from rsky_pipeline.streams.names import REPO_STREAMS
from rsky_pipeline.streams.repo_job import (
    REPO_FIELD,
    FetchReason,
    RepoJob,
    decode_repo_job,
    encode_repo_job,
)
from rsky_pipeline.streams.waiting import all_waiting
from tests.integration.backfiller.hosts import FakeHosts

Configure = Callable[..., Settings]
KEY = PrivateKey.from_seed("k256", b"account")


def document(did: str, key: PrivateKey = KEY) -> dict[str, Any]:
    method = {
        "id": f"{did}#atproto",
        "type": "Multikey",
        "controller": did,
        "publicKeyMultibase": key.multibase,
    }
    return {"id": did, "alsoKnownAs": ["at://a.test"], "verificationMethod": [method]}


def make_repo(
    did: str, count: int, key: PrivateKey = KEY, rev: str = "3jzfcijpj2z2a"
) -> tuple[bytes, set[str]]:
    """Return the CAR of a repo of likes and foreign records, and the rkeys of the likes."""
    records = {}
    for number in range(count):
        record = encode({"$type": "app.bsky.feed.like", "n": number})
        records[f"app.bsky.feed.like/{number:05d}"] = record
    records["com.example.other/1"] = encode({"n": 0})
    tree = Tree.build({path: Cid.of(record) for path, record in records.items()})
    commit = sign_commit(did, rev, tree.root, key)
    blocks = [(Cid.of(commit), commit), *tree.blocks()]
    blocks += [(Cid.of(record), record) for record in records.values()]
    return write_car([Cid.of(commit)], blocks), {f"{number:05d}" for number in range(count)}


class Running:
    """A backfiller in the test's own process."""

    def __init__(self, configured: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = process_registry()
        self.health = Health("backfiller", 1, clock)
        self.ready = trio.Event()
        self.context = WorkerContext(
            configured, "backfiller", 1, "test-backfiller-1", self.registry,
            self._ready, self.health.activity, self.health.report,
        )  # fmt: skip

    def _ready(self) -> None:
        self.health.state = "ready"
        self.ready.set()

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"backfiller_{name}", labels) or 0.0


@asynccontextmanager
async def backfiller(
    configured: Settings, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Running]:
    running = Running(configured, clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, running.context)
        with trio.fail_after(60):
            await running.ready.wait()
        yield running
        running.context.stopping.set()


def queue(
    store: Store,
    *dids: str,
    rev: str = "",
    deleted: tuple[str, ...] = (),
    reason: FetchReason = FetchReason.LISTED,
) -> None:
    jobs = [
        encode_repo_job(RepoJob(did, "https://relay.test", rev, None, True, deleted, reason))
        for did in dids
    ]
    append(store, [Entry("repo_backfill", REPO_FIELD, job) for job in jobs])


def quick_settings(redis_url: str, database_url: str, hosts: FakeHosts, folder: Path) -> Settings:
    """Return settings for hosts on loopback, quick to try again."""
    return Settings(
        redis_url=redis_url,
        database_url=database_url,
        data_dir=folder,
        plc_url=hosts.url,
        allow_private_hosts=True,
        backfiller_retry_initial_ms=10,
        backfiller_retry_max_ms=50,
        backfiller_max_attempts=3,
        backfiller_host_patience_hours=0,
        backfiller_http_timeout_seconds=5,
        backfiller_host_rate=1_000,
    )


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.02)


async def settled(store: Store, seconds: float = 60.0) -> None:
    """Wait until no job is queued, in work or waiting, but for those that wait for an indexer.

    A worker counts a job after it has finished it in Redis: read its metrics once it has ended.
    """
    with trio.fail_after(seconds):
        while any(store.call("XLEN", name) for name in REPO_STREAMS) or waiting(store):
            await trio.sleep(0.02)


def waiting(store: Store, *, settling: bool = False) -> list[RepoJob]:
    """Return the jobs that wait for another attempt, or for what they queued to be stored."""
    jobs = [decode_repo_job(entry.payload) for entry in all_waiting(store)]
    return [job for job in jobs if bool(job.settles) is settling]


def output(store: Store) -> list[dict[str, Any]]:
    return [json.loads(body[1]) for _, body in store.call("XRANGE", "firehose_backfill", "-", "+")]


def letters(store: Store) -> list[DeadLetter]:
    return list_dead_letters(store, "repo_backfill")
