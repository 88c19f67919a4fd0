"""A relay for tests: serves a list of frames by cursor over a real WebSocket, and misbehaves."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import trio_websocket
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.configuration.endpoints import HostKey, parse_endpoint

KEY = PrivateKey.from_seed("k256", b"relay")
TIME = "2026-07-04T14:38:08.999Z"


def rev(seq: int) -> str:
    """Return the rev of the commit with a number; it rises with the numbers."""
    return tid_from(1_783_000_000_000_000 + seq)


Behaviour = Callable[["Relay", WebSocketConnection, int | None], Awaitable[None]]


@dataclass
class Relay:
    """Frames with rising seq; `behaviour` says what a new subscriber is given."""

    frames: list[tuple[int, bytes]] = field(default_factory=list)
    cursors: list[int | None] = field(default_factory=list)  # of each subscription so far
    behaviour: Behaviour | None = None
    reject_with: tuple[int, list[tuple[bytes, bytes]]] | None = None
    inclusive: bool = False  # whether the event of the cursor is sent again
    port: int = 0
    grown: trio.Event = field(default_factory=trio.Event)
    connections: set[trio.CancelScope] = field(default_factory=set)
    user_agents: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def key(self) -> HostKey:
        return parse_endpoint(self.url).key

    def add(self, *frames: tuple[int, bytes]) -> None:
        self.frames += frames
        self.grown.set()
        self.grown = trio.Event()

    def disconnect_all(self) -> None:
        for scope in self.connections:
            scope.cancel()

    async def serve(self, request: WebSocketRequest) -> None:
        found = re.search(r"[?&]cursor=(\d+)", request.path)
        cursor = int(found[1]) if found else None
        self.cursors.append(cursor)
        self.user_agents += [value for name, value in request.headers if name == b"user-agent"]
        if self.reject_with is not None:
            await request.reject(self.reject_with[0], extra_headers=list(self.reject_with[1]))
            return
        socket = await request.accept()
        with trio.CancelScope() as scope:
            self.connections.add(scope)
            try:
                await (self.behaviour or Relay.replay)(self, socket, cursor)
            except ConnectionClosed:
                pass
            finally:
                self.connections.discard(scope)

    async def replay(self, socket: WebSocketConnection, cursor: int | None) -> None:
        """Send what follows the cursor, then everything new."""
        position = len(self.frames)
        if cursor is not None:
            first = cursor if self.inclusive else cursor + 1
            position = sum(seq < first for seq, _ in self.frames)
        while True:
            while position < len(self.frames):
                await socket.send_message(self.frames[position][1])
                position += 1
            await self.grown.wait()


@asynccontextmanager
async def running(relay: Relay, port: int = 0) -> AsyncIterator[Relay]:
    """Serve a relay on loopback until the block ends."""
    async with trio.open_nursery() as nursery:
        server: Any = await nursery.start(
            lambda task_status: trio_websocket.serve_websocket(
                relay.serve, "127.0.0.1", port, None, disconnect_timeout=0.2,
                task_status=task_status,
            )
        )  # fmt: skip
        relay.port = server.port
        yield relay
        nursery.cancel_scope.cancel()


def like(seq: int, *, repo: str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", **changes: Any) -> bytes:
    """Return a commit frame that creates one like; keyword arguments replace fields."""
    record = {
        "$type": "app.bsky.feed.like",
        "createdAt": TIME,
        "subject": {"uri": f"at://{repo}/app.bsky.feed.post/{seq}", "cid": str(Cid.of(b"x"))},
    }
    return commit(seq, {f"app.bsky.feed.like/k{seq}": record}, repo=repo, **changes)


def commit(seq: int, records: dict[str, Any], *, repo: str, **changes: Any) -> bytes:
    """Return a commit frame that creates records; the tree that is signed is not in it."""
    blocks = {path: encode(record) for path, record in records.items()}
    root = sign_commit(repo, rev(seq), Cid.of(b"a tree"), KEY)
    car = [(Cid.of(block), block) for block in (root, *blocks.values())]
    body: dict[str, Any] = {
        "seq": seq, "repo": repo, "rev": rev(seq), "since": rev(seq - 1), "commit": Cid.of(root),
        "blocks": write_car([Cid.of(root)], car), "time": TIME, "tooBig": False,
        "rebase": False, "blobs": [],
        "ops": [
            {"action": "create", "path": path, "cid": Cid.of(block)}
            for path, block in blocks.items()
        ],
    } | changes  # fmt: skip
    return encode_frame("#commit", body)
