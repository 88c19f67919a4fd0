"""An indexer as its worker process runs it, and streams to feed it from."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.indexer import role
from rsky_pipeline.observability.server import process_registry
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from tests.integration.indexer.kit import Event
from tests.stores import redis_client

GROUP = "firehose_group"


@dataclass
class Worker:
    """A running indexer."""

    context: WorkerContext
    ready: trio.Event
    ended: trio.Event
    health: dict[str, Any] = field(default_factory=dict)

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample; fails if it is not exported."""
        value = self.context.registry.get_sample_value(name, labels)
        assert value is not None, f"{name} {labels} is not exported"
        return value


@asynccontextmanager
async def indexing(
    redis_url: str, database_url: str, *, consumer: str = "test-indexer-1", **settings: Any
) -> AsyncIterator[Worker]:
    """Run an indexer until the block ends, then have it drain."""
    ready, ended, health = trio.Event(), trio.Event(), dict[str, Any]()

    def report(details: Mapping[str, Any]) -> None:
        health.update(details)

    context = WorkerContext(
        settings=Settings(redis_url=redis_url, database_url=database_url, **settings),
        role="indexer", instance=1, consumer=consumer, registry=process_registry(),
        ready=ready.set, activity=Health("indexer", 1).activity, health=report,
    )  # fmt: skip
    worker = Worker(context, ready, ended, health)

    async def run() -> None:
        try:
            await role.run(context)
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            yield worker
        finally:
            context.stopping.set()
            with trio.move_on_after(60, shield=True) as waiting:
                await ended.wait()
            nursery.cancel_scope.cancel()
        assert not waiting.cancelled_caught, "the indexer did not drain within 60 s"


def feed(redis_url: str, *events: Event, stream: str = FIREHOSE_LIVE) -> list[str]:
    """Append events to a stream; return their ids."""
    with redis_client(redis_url) as client, client.pipeline(transaction=False) as pipeline:
        for event in events:
            payload = event if isinstance(event, bytes) else event.payload
            pipeline.xadd(stream, {"event": payload})
        return [entry_id.decode() for entry_id in pipeline.execute()]


def entries(redis_url: str, stream: str) -> list[dict[bytes, bytes]]:
    """Return all entries of a stream."""
    with redis_client(redis_url) as client:
        return [fields for _, fields in client.xrange(stream)]


async def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fails after a while."""
    with trio.move_on_after(seconds) as scope:
        while not condition():
            await trio.sleep(0.02)
    assert not scope.cancelled_caught, "it did not happen in time"
