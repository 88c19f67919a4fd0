"""Many PDSes on loopback, most of which misbehave, each in its own way, and their directory.

What a client may do is watched from here: how many requests each host has at once and when.
"""

import time
from base64 import b32encode
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import sha256
from typing import Any, Literal

import trio

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.demo.simulator.http import (
    Handler,
    Request,
    SimulatedResponse,
    Upgrade,
    json_response,
    serve_connection,
    xrpc_error,
)

REV = "3lzzzzzzzzz2a"
_MOST_RECORDS = 14


@dataclass(frozen=True, slots=True)
class FleetAccount:
    """An account by its number; everything about it follows from that."""

    number: int

    @property
    def did(self) -> str:
        """Its DID."""
        digest = sha256(b"fleet%d" % self.number).digest()
        return "did:plc:" + b32encode(digest[:15]).decode().lower()

    @property
    def key(self) -> PrivateKey:
        """Its signing key."""
        return PrivateKey.from_seed("k256", b"fleet%d" % self.number)

    def records(self) -> dict[str, bytes]:
        """Return the blocks of its records by path."""
        count = 1 + self.number * 7919 % _MOST_RECORDS
        return {
            f"app.bsky.feed.like/{place:013d}": encode(
                {
                    "$type": "app.bsky.feed.like",
                    "subject": {
                        "uri": f"at://did:plc:{'a' * 24}/app.bsky.feed.post/{place:013d}",
                        "cid": str(Cid.of(b"%d" % place)),
                    },
                    "createdAt": f"2026-01-01T00:00:{place:02d}.000Z",
                }
            )
            for place in range(count)
        }

    def blocks(self, key: PrivateKey | None = None) -> tuple[Cid, dict[Cid, bytes]]:
        """Return root and blocks of its repo, signed with its own key or another."""
        records = self.records()
        tree = Tree.build({path: Cid.of(block) for path, block in records.items()})
        commit = sign_commit(self.did, REV, tree.root, key or self.key)
        root = Cid.of(commit)
        return root, {root: commit, **dict(tree.blocks())} | {
            Cid.of(block): block for block in records.values()
        }

    def car(self, key: PrivateKey | None = None) -> bytes:
        """Return its whole repo."""
        root, blocks = self.blocks(key)
        return write_car([root], blocks.items())

    def document(self, pds: str) -> dict[str, Any]:
        """Return its DID document."""
        return {
            "id": self.did,
            "alsoKnownAs": [f"at://fleet{self.number}.test"],
            "verificationMethod": [
                {
                    "id": f"{self.did}#atproto",
                    "type": "Multikey",
                    "controller": self.did,
                    "publicKeyMultibase": multibase(self.number),
                }
            ],
            "service": [
                {
                    "id": "#atproto_pds",
                    "type": "AtprotoPersonalDataServer",
                    "serviceEndpoint": pds,
                }
            ],
        }


@lru_cache(maxsize=10_000)
def multibase(number: int) -> str:
    """Return the public key of an account, which takes longest to make."""
    return FleetAccount(number).key.multibase


Behaviour = Literal[
    "healthy", "slow", "limited", "down_for_a_while", "redirecting",  # all of these end complete
    "broken", "resetting", "hanging", "looping", "endless", "lying", "forging", "cut", "gap",
    "varint", "bomb", "gone",
]  # fmt: skip
COMPLETE = frozenset({"healthy", "slow", "limited", "down_for_a_while", "redirecting"})
GONE = ("RepoNotFound", "RepoDeactivated", "RepoSuspended", "RepoTakendown")
CAR = "application/vnd.ipld.car"
DOWN_SECONDS = 3.0
WINDOW_SECONDS = 4  # of the limited host
WINDOW_REQUESTS = 160
_FORGER = PrivateKey.from_seed("k256", b"forger")


@dataclass(slots=True)
class FleetHost:
    """One host: its behaviour, and the requests that it got."""

    behaviour: Behaviour
    url: str = ""
    partner: str = ""  # where a redirecting host sends its clients
    in_flight: int = 0
    most_in_flight: int = 0
    times: list[float] = field(default_factory=list)  # of requests for repos
    refused: int = 0  # requests over the limit
    window: tuple[int, int] = (0, 0)  # the limited host's: which, and requests in it
    first: float | None = None

    def begin_epoch(self) -> None:
        """Forget requests in flight: the client was killed, and its connections with it."""
        self.in_flight = 0


class Fleet:
    """Hosts and the accounts on them; enter `serve`."""

    def __init__(self, hosts: dict[Behaviour, int] | list[tuple[Behaviour, int]]) -> None:
        self.hosts: list[FleetHost] = []
        self.accounts: dict[str, tuple[FleetAccount, FleetHost]] = {}
        self.plc_url = ""
        self.epoch = 0
        number = 0
        for behaviour, count in hosts.items() if isinstance(hosts, dict) else hosts:
            host = FleetHost(behaviour)
            self.hosts.append(host)
            for _ in range(count):
                account = FleetAccount(number)
                self.accounts[account.did] = (account, host)
                number += 1

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on loopback until cancelled."""
        async with trio.open_nursery() as nursery:
            for host in self.hosts:
                host.url = await _listen(nursery, partial(self._pds, host))
            self.plc_url = await _listen(nursery, self._plc)
            healthy = [host.url for host in self.hosts if host.behaviour == "healthy"]
            for host in self.hosts:
                host.partner = healthy[0] if healthy else host.url
            task_status.started()

    def client_was_killed(self) -> None:
        """Count requests in flight from zero again."""
        self.epoch += 1
        for host in self.hosts:
            host.begin_epoch()

    async def _plc(self, request: Request) -> SimulatedResponse | Upgrade:
        found = self.accounts.get(request.path.removeprefix("/"))
        if found is None:
            return json_response({"message": "not registered"}, 404)
        account, host = found
        return json_response(account.document(host.url))

    async def _pds(self, host: FleetHost, request: Request) -> SimulatedResponse | Upgrade:
        found = self.accounts.get(request.query.get("did", ""))
        if not request.path.endswith("sync.getRepo") or found is None:
            return xrpc_error(400, "RepoNotFound", "no such repo here")
        host.times.append(time.monotonic())
        with self._watched(host):
            await trio.sleep(0.005)  # so that requests at once are seen to be at once
            answer = await _behave(host, found[0])
        if isinstance(answer.body, AsyncIterator):
            return replace(answer, body=self._while_watched(host, answer.body))
        return answer

    async def _while_watched(
        self, host: FleetHost, body: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        with self._watched(host):
            async for part in body:
                yield part

    @contextmanager
    def _watched(self, host: FleetHost) -> Iterator[None]:
        epoch = self.epoch
        host.in_flight += 1
        host.most_in_flight = max(host.most_in_flight, host.in_flight)
        try:
            yield
        finally:
            if epoch == self.epoch:
                host.in_flight -= 1


async def _behave(host: FleetHost, account: FleetAccount) -> SimulatedResponse:
    match host.behaviour:
        case "healthy":
            return SimulatedResponse(200, account.car(), CAR)
        case "broken":
            return SimulatedResponse(500, b"<html>oops</html>", "text/html")
        case "hanging":
            await trio.sleep(600)
        case "gone":
            return xrpc_error(400, GONE[account.number % len(GONE)], "not here")
        case "limited" | "down_for_a_while":
            return _sometimes(host, account)
        case "redirecting":
            where = f"{host.partner}/xrpc/com.atproto.sync.getRepo?did={account.did}"
            return SimulatedResponse(302, b"", headers={"location": where})
        case "looping":
            where = f"{host.url}/xrpc/com.atproto.sync.getRepo?did={account.did}"
            return SimulatedResponse(302, b"", headers={"location": where})
        case "bomb":
            return SimulatedResponse(
                200, b"\x1f\x8b" + bytes(1_000), CAR, {"content-encoding": "gzip"}
            )
    return SimulatedResponse(200, _body(host.behaviour, account), CAR)


def _sometimes(host: FleetHost, account: FleetAccount) -> SimulatedResponse:
    now = time.time()
    if host.behaviour == "down_for_a_while":
        host.first = host.first or now
        if now - host.first < DOWN_SECONDS:
            return SimulatedResponse(503, b"starting", "text/plain")
        return SimulatedResponse(200, account.car(), CAR)
    window = int(now) // WINDOW_SECONDS
    count = host.window[1] + 1 if host.window[0] == window else 1
    host.window = (window, count)
    headers = {
        "ratelimit-limit": str(WINDOW_REQUESTS),
        "ratelimit-remaining": str(max(0, WINDOW_REQUESTS - count)),
        "ratelimit-reset": str((window + 1) * WINDOW_SECONDS),
    }
    if count > WINDOW_REQUESTS:
        host.refused += 1
        return SimulatedResponse(429, b"<html>slow down</html>", "text/html", headers)
    return SimulatedResponse(200, account.car(), CAR, headers)


async def _body(behaviour: Behaviour, account: FleetAccount) -> AsyncIterator[bytes]:
    root, blocks = account.blocks()
    car = write_car([root], blocks.items())
    match behaviour:
        case "slow":
            for start in range(0, len(car), 200):
                yield car[start : start + 200]
                await trio.sleep(0.05)
        case "resetting":
            yield car[: len(car) // 2]
            raise trio.BrokenResourceError
        case "endless":
            yield car
            block = bytes(60_000)
            more = write_car([root], [(Cid.of(block), block)])[len(write_car([root], [])) :]
            while True:
                yield more
        case "lying":
            yield FleetAccount(account.number + 1).car()
        case "forging":
            yield account.car(_FORGER)
        case "cut":
            yield car[:-20]
        case "gap":
            rest = [pair for pair in blocks.items() if pair[0] != root]
            yield write_car([root], [(root, blocks[root]), *rest[1:]])
        case "varint":
            yield car + b"\xff\xff\xff\xff\xff\xff\xff\x7f"


async def _listen(nursery: trio.Nursery, handler: Handler) -> str:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    serve = partial(serve_connection, handler=handler)
    await nursery.start(trio.serve_listeners, serve, listeners)
    return f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
