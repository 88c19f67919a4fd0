"""Documents are looked up no faster than the directory wants it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from rsky_pipeline.demo.simulator.http import (
    Request,
    SimulatedResponse,
    json_response,
    serve_connection,
)
from rsky_pipeline.network.directory import Directory
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.repos.hosts import HostRules, HostTurns
from rsky_pipeline.repos.identities import Identities
from rsky_pipeline.repos.repo import RepoError

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
OTHER = "did:plc:z72i7hdynmk6r22z27h6tvur"


class Plc:
    """A directory that says 429 as often as it is told, and then knows every account."""

    def __init__(self, refusals: int, **headers: str) -> None:
        self.refusals = refusals
        self.headers = headers
        self.asked = 0
        self.refused: set[str] = set()

    async def answer(self, request: Request) -> SimulatedResponse:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.refusals:
            self.refusals -= 1
            return SimulatedResponse(429, b"{}", "application/json", dict(self.headers))
        did = request.path.removeprefix("/")
        if did in self.refused:
            return SimulatedResponse(400, b"{}", "application/json", {})
        return json_response({"id": did, "alsoKnownAs": [], "verificationMethod": []})


@asynccontextmanager
async def identities(plc: Plc, patience: float = 5.0) -> AsyncIterator[Identities]:
    async with trio.open_nursery() as nursery, HttpClient(allow_private=True) as http:
        answer = partial(serve_connection, handler=plc.answer)
        listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        hosts = HostTurns(HostRules(concurrency=4, rate=100.0, patience=patience))
        yield Identities(Directory(http, url), url, hosts, hosts)
        nursery.cancel_scope.cancel()


async def test_a_directory_that_refuses_for_the_rate_is_left_alone_as_long_as_it_says() -> None:
    plc = Plc(1, **{"Retry-After": "60"})
    async with identities(plc, patience=0.2) as known:
        with pytest.raises(RepoError) as refused:
            await known.document(DID)
        assert (refused.value.kind, refused.value.retry_after) == ("rate_limited", 60)
        with pytest.raises(RepoError) as parked:
            await known.document(OTHER)
        assert parked.value.kind == "rate_limited"
    assert plc.asked == 1


async def test_a_short_pause_is_waited_for_and_nothing_is_remembered_as_missing() -> None:
    plc = Plc(1, **{"Retry-After": "1"})
    async with identities(plc) as known:
        with pytest.raises(RepoError):
            await known.document(DID)
        began = trio.current_time()
        assert (await known.document(DID)).did == DID
        assert trio.current_time() - began > 0.5
        await known.document(DID)
    assert plc.asked == 2


async def test_dids_that_the_directory_refuses_do_not_park_it() -> None:
    plc = Plc(0)
    plc.refused = {f"did:plc:{number}" for number in range(8)}
    async with identities(plc, patience=0.2) as known:
        for did in sorted(plc.refused):
            with pytest.raises(RepoError) as refused:
                await known.document(did)
            assert (refused.value.kind, refused.value.reason) == ("transient", "did_unavailable")
        assert (await known.document(DID)).did == DID
