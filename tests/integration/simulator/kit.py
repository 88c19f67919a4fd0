"""Simulated networks that are served, and clients to look at them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import trio
import trio_websocket

from rsky_pipeline.atproto.frame import Message, decode_frame
from rsky_pipeline.demo.simulator.clock import Clock
from rsky_pipeline.demo.simulator.faults import Hostility
from rsky_pipeline.demo.simulator.hosts import Urls
from rsky_pipeline.demo.simulator.network import Network, Ports
from rsky_pipeline.demo.simulator.recording import Recording
from rsky_pipeline.demo.simulator.subscription import StreamRules
from rsky_pipeline.demo.simulator.world import World


@dataclass(frozen=True, slots=True)
class Served:
    """A network, where it is, and a client."""

    network: Network
    urls: Urls
    client: httpx.AsyncClient

    @property
    def world(self) -> World:
        assert isinstance(self.network.source, World)
        return self.network.source

    async def get(self, url: str, **parameters: str | int) -> Any:
        """Return the JSON of an answer that is none of an error."""
        answer = await self.client.get(url, params=parameters)
        answer.raise_for_status()
        return answer.json()


@asynccontextmanager
async def served(
    source: World | Recording | None = None,
    rules: StreamRules | None = None,
    hostility: Hostility | None = None,
) -> AsyncIterator[Served]:
    """Serve a network until the block ends; nothing is published."""
    if source is None:
        source = World(1, 30, Clock())
        source.add_history(10)
    network = Network(source, rules, hostility)
    try:
        async with (
            trio.open_nursery() as nursery,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            urls = await nursery.start(network.serve, Ports())
            yield Served(network, urls, client)
            nursery.cancel_scope.cancel()
    finally:
        network.close()


@asynccontextmanager
async def subscribed(
    host: str, nsid: str, cursor: int | None = None
) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """Subscribe to a stream."""
    query = "" if cursor is None else f"?cursor={cursor}"
    address = host.removeprefix("http://")
    name, _, port = address.partition(":")
    with trio.fail_after(30):
        # The library leaves streams open that the server has ended: this one is ours to close.
        async with (
            await trio.open_tcp_stream(name, int(port)) as stream,
            trio.open_nursery() as tasks,
        ):
            socket = await trio_websocket.wrap_client_stream(
                tasks, stream, address, f"/xrpc/{nsid}{query}", max_message_size=6_000_000
            )
            yield socket
            tasks.cancel_scope.cancel()


async def messages(socket: trio_websocket.WebSocketConnection, count: int) -> list[Message]:
    """Return the next messages."""
    return [await message(socket) for _ in range(count)]


async def message(socket: trio_websocket.WebSocketConnection) -> Message:
    """Return the next message."""
    raw = await socket.get_message()
    assert isinstance(raw, bytes)
    return decode_frame(raw)


async def until_closed(socket: trio_websocket.WebSocketConnection) -> list[Message]:
    """Return what still comes before the connection ends."""
    found: list[Message] = []
    while True:
        try:
            found.append(await message(socket))
        except trio_websocket.ConnectionClosed:
            return found


def seqs(found: list[Message]) -> list[int]:
    """Return the numbers of messages."""
    return [message.seq for message in found]  # type: ignore[union-attr, misc]
