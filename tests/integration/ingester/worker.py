"""Running the ingester role in the test's own event loop, against a real store."""

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
import trio.lowlevel

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.ingester import role
from rsky_pipeline.observability.server import process_registry
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Health
from tests.stores import redis_client


@dataclass
class Ingester:
    """A running ingester and what it says of itself."""

    context: WorkerContext
    ready: trio.Event
    ended: trio.Event
    health: dict[str, Any]
    activities: Health

    def metric(self, name: str, /, **labels: str) -> float:
        """Return a sample; fails if it is not exported."""
        value = self.context.registry.get_sample_value(name, labels)
        assert value is not None, f"{name} {labels} is not exported"
        return value


@asynccontextmanager
async def ingesting(redis_url: str, *relays: str, **settings: Any) -> AsyncIterator[Ingester]:
    """Run an ingester until the block ends, then have it drain."""
    base: dict[str, Any] = {
        "enumerate_repos": False, "initial_cursor": "oldest", "allow_private_hosts": True,
        "label_signatures": "none",
        "verify": "none",
    }  # fmt: skip
    chosen = Settings(redis_url=redis_url, relay_hosts=relays, **(base | settings))
    ready, health = trio.Event(), dict[str, Any]()
    activities = Health("ingester", 1)

    def report(details: Mapping[str, Any]) -> None:
        health.update(details)

    context = WorkerContext(
        settings=chosen, role="ingester", instance=1, consumer="test-ingester-1",
        registry=process_registry(), ready=ready.set, activity=activities.activity,
        health=report,
    )  # fmt: skip
    ingester = Ingester(context, ready, trio.Event(), health, activities)

    async def run() -> None:
        await role.run(context)
        ingester.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        while context.registry.get_sample_value("ingester_errors_total") is None:
            await trio.lowlevel.checkpoint()
        try:
            yield ingester
        finally:
            context.stopping.set()
            with trio.move_on_after(60, shield=True) as waiting:
                await ingester.ended.wait()
            nursery.cancel_scope.cancel()
        assert not waiting.cancelled_caught, "the ingester did not drain within 60 s"


async def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fails after a while."""
    with trio.move_on_after(seconds) as scope:
        while not condition():
            await trio.sleep(0.02)
    assert not scope.cancelled_caught, "it did not happen in time"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def entries(redis_url: str, stream: str) -> list[dict[bytes, bytes]]:
    """Return all entries of a stream."""
    with redis_client(redis_url) as client:
        found: Any = client.xrange(stream)
    return [fields for _, fields in found]


def value(redis_url: str, key: str) -> str | None:
    """Return a plain key."""
    with redis_client(redis_url) as client:
        found: Any = client.get(key)
    return None if found is None else found.decode()
