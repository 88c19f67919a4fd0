"""When an ingester is ready, and what it says while it follows no relay."""

import logging
from collections.abc import Sequence

import trio

from rsky_pipeline.ingester.live import Follower
from rsky_pipeline.runtime.context import WorkerContext

_log = logging.getLogger(__name__)

# How long the roles that consume our streams wait for a relay to answer. They have work to do
# without one, and a relay may be away for hours.
PATIENCE_SECONDS = 10.0
NO_RELAY = "no relay is connected"


async def report_ready(context: WorkerContext, relays: Sequence[Follower]) -> None:
    """Report ready once every relay was tried and one is connected, or when that takes too long.

    Without a connection the worker is ready and degraded: it goes on trying, and says so.
    """
    with trio.move_on_after(PATIENCE_SECONDS):
        for follower in relays:
            await follower.attempted.wait()
        if relays:
            await _first_connection(relays)
    if degradation(relays) is not None:
        _log.warning(
            "ready, but no relay can be reached; still trying",
            extra={"relays": ", ".join(follower.feed.endpoint.key for follower in relays)},
        )
    context.ready()


def degradation(relays: Sequence[Follower]) -> str | None:
    """Return what is missing for the worker to do all of its work, or None."""
    if relays and not any(follower.connected for follower in relays):
        return NO_RELAY
    return None


async def _first_connection(relays: Sequence[Follower]) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(follower: Follower) -> None:
            await follower.was_connected.wait()
            nursery.cancel_scope.cancel()

        for follower in relays:
            nursery.start_soon(wait, follower)
