"""Account events of hosts that are PDSes: only an account's present home is heard."""

import json
from functools import partial

import pytest
import trio
import trio.testing

from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint
from rsky_pipeline.ingester.commits.homes import (
    AGAIN_SECONDS,
    DESCRIBE_SERVER,
    AccountHomes,
    describer,
)
from rsky_pipeline.ingester.commits.signatures import SignatureVerifier
from rsky_pipeline.network.directory import IdentityNotFoundError, IdentityUnavailableError
from rsky_pipeline.network.http import HttpClient, HttpError
from tests.integration.backfiller.hosts import FakeHosts, Reply, refusal
from tests.unit.ingester.claims import DID, TIME, Accounts, Written, identity
from tests.unit.ingester.support import Converting

OLD, NEW = "https://old.example", "https://new.example"


class Directory(Accounts):
    """A directory that knows where accounts live."""

    def __init__(self, pds: str | Exception | None) -> None:
        super().__init__()
        self.pds = pds

    async def resolve(self, did: str, force: bool = False) -> DidDocument:
        await super().resolve(did, force)
        if isinstance(self.pds, Exception):
            raise self.pds
        return DidDocument(did, None, self.pds, None)


def account(seq: int, active: bool = False) -> bytes:
    body = {"seq": seq, "did": DID, "time": TIME, "active": active, "status": "deactivated"}
    return encode_frame("#account", body)


def homes_of(pds: str | Exception | None, servers: dict[str, str | Exception]) -> AccountHomes:
    async def describe(endpoint: Endpoint) -> str:
        await trio.lowlevel.checkpoint()
        found = servers.get(endpoint.http_url(), HttpError("timeout", "silent"))
        if isinstance(found, Exception):
            raise found
        return found

    return AccountHomes(parse_endpoint(OLD), Directory(pds), describe)


async def test_of_many_events_at_once_one_asks_each_server() -> None:
    asked: list[str] = []

    async def describe(endpoint: Endpoint) -> str:
        asked.append(endpoint.http_url())
        await trio.sleep(0.01)
        return f"did:web:{endpoint.host}"

    homes = AccountHomes(parse_endpoint(OLD), Directory(NEW), describe)
    heard: list[bool] = []

    async def hear() -> None:
        heard.append(await homes.hears(DID))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(hear)
    assert heard == [False] * 50
    assert asked == [OLD, NEW]


async def test_a_server_that_did_not_answer_is_asked_again_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    servers: dict[str, str | Exception] = {OLD: HttpError("timeout", "silent")}
    homes = homes_of(NEW, servers)
    assert await homes.hears(DID)
    servers.update({OLD: "did:web:old", NEW: "did:web:new"})
    await trio.sleep(AGAIN_SECONDS)
    assert not await homes.hears(DID)
    servers[OLD] = ""  # for a day what it said is known
    await trio.sleep(AGAIN_SECONDS)
    assert not await homes.hears(DID)


SILENT = HttpError("timeout", "silent")


@pytest.mark.parametrize(
    ("pds", "servers", "heard"),
    [
        pytest.param(NEW, {OLD: "did:web:old", NEW: "did:web:new"}, False, id="moved"),
        pytest.param(OLD, {OLD: "did:web:old"}, True, id="at home"),
        pytest.param("https://OLD.example:443", {OLD: "did:web:old"}, True, id="other spelling"),
        pytest.param(NEW, {OLD: ""}, True, id="relay"),
        pytest.param(NEW, {OLD: SILENT}, True, id="nobody knows what it is"),
        pytest.param(NEW, {OLD: "did:web:x", NEW: "did:web:x"}, True, id="two names of one"),
        pytest.param(NEW, {OLD: "did:web:old", NEW: SILENT}, True, id="the other one is down"),
        pytest.param(NEW, {OLD: "did:web:old", NEW: ""}, False, id="the other one is no PDS"),
        pytest.param(None, {OLD: "did:web:old"}, True, id="no PDS is named"),
        pytest.param("https://a b", {OLD: "did:web:old"}, True, id="unreadable"),
        pytest.param(IdentityNotFoundError("gone"), {OLD: "did:web:old"}, True, id="no document"),
        pytest.param(IdentityUnavailableError("x"), {OLD: "did:web:old"}, True, id="no answer"),
    ],
)
async def test_a_pds_is_heard_about_the_accounts_that_live_there(
    pds: str | Exception | None, servers: dict[str, str | Exception], heard: bool
) -> None:
    assert await homes_of(pds, servers).hears(DID) is heard


async def test_a_directory_that_hangs_holds_up_nobody_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hanging = homes_of(NEW, {OLD: "did:web:old", NEW: "did:web:new"})
    assert isinstance(hanging._directory, Directory)
    hanging._directory.slow[DID] = trio.Event()
    assert await hanging.hears(DID)


@pytest.mark.parametrize("relay", [True, False])
async def test_events_of_a_pds_that_an_account_has_left_are_not_written(relay: bool) -> None:
    found = homes_of(NEW, {OLD: "" if relay else "did:web:old", NEW: "did:web:new"})
    made, written = Converting(relay="old.example"), Written()
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, SignatureVerifier(Accounts()), homes=found)
        await intake.take([account(1), identity(2), account(3, active=True)])
    assert written.seqs == [1, 2, 3], "in order, and the cursor covers them"
    kinds = [json.loads(entry.payload)["type"] for one in written.frames for entry in one.entries]
    assert kinds == (["account", "identity", "account"] if relay else ["identity"])
    assert made.counters.elsewhere == (0 if relay else 2)
    assert found.hears_all is relay


def reply(status: int, body: bytes) -> Reply:
    return status, {}, body


async def test_what_a_server_says_of_itself() -> None:
    with FakeHosts() as hosts:
        here = parse_endpoint(hosts.url)
        async with HttpClient(allow_private=True, silence_seconds=5.0) as http:
            describe = describer(http, here)
            for answer, expected in (
                (b'{"did": "did:web:x", "availableUserDomains": []}', "did:web:x"),
                (b'{"did": "did:web:x"}', ""), (b"[]", ""), (b"<html>", ""),
            ):  # fmt: skip
                hosts.replies[""] = [partial(reply, 200, answer)]
                assert await describe(here) == expected
            for status in (400, 404, 501):
                hosts.replies[""] = [partial(refusal, status, "MethodNotImplemented")]
                assert await describe(here) == ""
            for status in (429, 500, 503):
                hosts.replies[""] = [partial(refusal, status, "Busy")] * 5
                with pytest.raises(HttpError):
                    await describe(here)
            assert set(hosts.requests) == {DESCRIBE_SERVER}
