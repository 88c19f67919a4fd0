"""Documents of accounts that the roles share by way of Redis."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager

import pytest
import trio

from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.demo.simulator.accounts import did_document
from rsky_pipeline.network.directory import Directory, IdentityNotFoundError
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.streams import identities as module
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.identities import SharedIdentities
from rsky_pipeline.streams.names import IDENTITIES

A, B = (f"did:plc:{letter * 24}" for letter in "ab")
KEYS = [
    PrivateKey.from_seed("k256" if number % 2 else "p256", b"%d" % number) for number in range(4)
]


def document(did: str, number: int = 0, handle: str = "alice.test") -> DidDocument:
    key = KEYS[number].public
    return DidDocument(did, handle, "https://pds.test", key, "https://labels.test", key)


@contextmanager
def sharing(url: str) -> Iterator[SharedIdentities]:
    with closing(SharedIdentities(url, "test", lambda _: None)) as shared:
        yield shared


async def found(shared: SharedIdentities, did: str) -> DidDocument | None:
    answer = await shared.find(did)
    assert answer is not None
    return answer.document


async def test_another_worker_finds_what_was_put(clean_redis: str, store: Store) -> None:
    with sharing(clean_redis) as first, sharing(clean_redis) as second:
        before = await first.find(A)
        assert before is not None
        assert before.document is None
        first.put(document(A), before.time)
        await first.send()
        answer = await second.find(A)
        assert answer is not None
        assert answer.document == document(A)
        assert 0 <= answer.age < 60
        assert await found(second, B) is None
        assert 0 < store.call("PTTL", IDENTITIES[0]) <= module.SHARED_SECONDS * 1000


async def test_an_answer_from_before_an_account_was_forgotten_does_not_come_back(
    clean_redis: str,
) -> None:
    with sharing(clean_redis) as slow, sharing(clean_redis) as quick:
        asked = await slow.find(A)
        assert asked is not None
        await trio.sleep(0.002)
        quick.forget(A)
        again = await quick.find(A)  # which sends what was forgotten first
        assert again is not None
        assert again.time > asked.time
        slow.put(document(A, 0), asked.time)
        await slow.send()
        assert await found(slow, A) is None
        quick.put(document(A, 1), again.time)
        await quick.send()
        assert await found(slow, A) == document(A, 1)
        slow.put(document(A, 0), asked.time)
        await slow.send()
        assert await found(quick, A) == document(A, 1)


async def test_few_documents_are_shared_and_none_comes_back_with_its_note_gone(
    clean_redis: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SHARED", 3)
    dids = [f"did:plc:{number:024}" for number in range(20)]
    with sharing(clean_redis) as shared:
        old = await shared.find(A)
        assert old is not None
        await trio.sleep(0.002)
        shared.forget(A)
        for did in dids:
            answer = await shared.find(did)
            assert answer is not None
            shared.put(document(did), answer.time)
            await shared.send()
            assert await found(shared, did) == document(did)
        kept = [did for did in dids if await found(shared, did) is not None]
        assert kept == dids[-len(kept) :]
        assert 3 <= len(kept) <= 6
        shared.put(document(A), old.time)
        await shared.send()
        assert await found(shared, A) is None
        assert sum(store.call("HLEN", key) for key in IDENTITIES) <= 2 * (3 + 1)


async def test_large_and_unreadable_documents_are_not_shared(
    clean_redis: str, store: Store
) -> None:
    with sharing(clean_redis) as shared:
        answer = await shared.find(A)
        assert answer is not None
        shared.put(document(A, handle="a" * module.MAX_SHARED_BYTES), answer.time)
        await shared.send()
        assert await found(shared, A) is None
        for packed in (b"", b"x", b"[]", b"[2,1,1,1,1,1]", b"[1,1,1,null,null,null]",
                       b'[1,null,null,["k256","00"],null,null]',
                       b'[1,null,null,["x","00"],null,null]'):  # fmt: skip
            store.call("HSET", IDENTITIES[0], B, b"%d %s" % (answer.time, packed))
            assert await found(shared, B) is None


async def test_documents_are_shared_for_a_while(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sharing(clean_redis) as shared:
        answer = await shared.find(A)
        assert answer is not None
        shared.put(document(A), answer.time)
        await shared.send()
        monkeypatch.setattr(module, "SHARED_SECONDS", 0.001)
        await trio.sleep(0.005)
        assert await found(shared, A) is None


class Network:
    """Directories of several roles, and what they ask of the network."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.keys = {A: 0, B: 0}
        self._url = url
        monkeypatch.setattr(HttpClient, "get_json", self._answer)

    async def _answer(self, url: str, **_: object) -> object:
        did = url.rpartition("/")[2]
        did = did if did.startswith("did:") else "did:web:web.test"
        self.asked.append(did)
        if did not in self.keys:
            raise HttpError("status", "answered 404", status=404)
        return did_document(did, "alice.test", {"atproto": KEYS[self.keys[did]].multibase}, {})

    @asynccontextmanager
    async def role(self) -> AsyncIterator[Directory]:
        async with HttpClient(allow_private=True) as http, trio.open_nursery() as nursery:
            with sharing(self._url) as shared:
                nursery.start_soon(shared.run)
                yield Directory(http, "http://plc.test", forced_pause=0.0, shared=shared)
                nursery.cancel_scope.cancel()


async def test_a_document_is_asked_for_once_by_all_roles(
    clean_redis: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(clean_redis, monkeypatch)
    async with network.role() as one, network.role() as two, network.role() as three:
        first = await one.resolve(A)
        while store.call("HLEN", IDENTITIES[0]) < 2:
            await trio.sleep(0.01)
        assert await two.resolve(A) == first == await three.resolve(A)
    assert network.asked == [A]


async def test_a_rotated_key_is_found_past_all_caches(
    clean_redis: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(clean_redis, monkeypatch)
    async with network.role() as one, network.role() as two, network.role() as three:
        await one.resolve(A)
        while store.call("HLEN", IDENTITIES[0]) < 2:
            await trio.sleep(0.01)
        network.keys[A] = 1
        rotated = await two.resolve(A, force=True)
        assert rotated.signing_key == KEYS[1].public
        network.keys[A] = 2
        one.forget(A)  # as after an identity event
        assert (await one.resolve(A)).signing_key == KEYS[2].public
        while (await three.resolve(A)).signing_key != KEYS[2].public:
            await trio.sleep(0.01)
            three.forget(A)
    assert network.asked[:3] == [A, A, A]


async def test_absence_and_documents_of_strangers_hosts_are_not_shared(
    clean_redis: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(clean_redis, monkeypatch)
    web = "did:web:web.test"
    network.keys = {web: 0}
    async with network.role() as one, network.role() as two:
        for role in (one, two):
            with pytest.raises(IdentityNotFoundError):
                await role.resolve(A)
            await role.resolve(web)
            role.forget(web)
            await trio.sleep(3 * module.GATHER_SECONDS)
        assert store.call("HLEN", IDENTITIES[0]) == 1, "its beginning"
    assert network.asked == [A, web, A, web]


async def test_without_redis_everybody_asks_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network("redis://127.0.0.1:1", monkeypatch)
    async with network.role() as one, network.role() as two:
        for role in (one, two):
            await role.resolve(A)
            role.forget(A)
            await role.resolve(A)
    assert network.asked == [A] * 4
