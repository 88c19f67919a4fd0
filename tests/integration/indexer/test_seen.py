"""What accounts have seen: from the port to the row, by an indexer and real sockets."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import psycopg
import pytest
import trio

from rsky_pipeline.indexer.seen import PATH, Seen, store_seen
from rsky_pipeline.network.grpc import framed
from tests.integration.indexer.kit import Tables, did_of
from tests.integration.indexer.worker import Worker, eventually, indexing
from tests.integration.ingester.worker import free_port
from tests.unit.indexer.test_seen import request
from tests.unit.network.test_grpc import HEADERS, TOKEN, Answer, Client

ANN, BOB = did_of("ann"), did_of("bob")
COLUMNS = 'did, "lastSeenNotifs", "priorityNotifs"'
EARLY, LATE = "2026-01-01T00:00:00.000Z", "2026-02-01T00:00:00.000Z"


def rows(tables: Tables) -> list[tuple[str, str, bool]]:
    return sorted(tables.rows("actor_state", COLUMNS))


@pytest.mark.parametrize("order", [[EARLY, LATE], [LATE, EARLY], [LATE, LATE]])
@pytest.mark.parametrize("together", [True, False])
def test_the_latest_time_stands(tables: Tables, order: Sequence[str], together: bool) -> None:
    tables.database.execute(
        'INSERT INTO actor_state (did, "lastSeenNotifs", "priorityNotifs") VALUES (%s, \'\', true)',
        [BOB],
    )
    items = [Seen(did, at) for at in order for did in (BOB, ANN)]
    for batch in [items] if together else [[each] for each in items]:
        store_seen(tables.database, batch)
        store_seen(tables.database, batch)
    assert rows(tables) == sorted([(ANN, LATE, False), (BOB, LATE, True)])


@asynccontextmanager
async def serving(redis_url: str, database_url: str) -> AsyncIterator[tuple[Worker, int]]:
    port = free_port()
    async with indexing(redis_url, database_url, seen_port=port, seen_token=TOKEN) as worker:
        await worker.ready.wait()
        yield worker, port


async def ask(port: int, message: bytes, path: str = PATH, token: str = TOKEN) -> Answer:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        client = Client(stream)
        own = {":path": path, "authorization": f"Bearer {token}"}
        number = client.ask([framed(message)], {**HEADERS, **own})
        await client.send()
        return await client.answered(number)


async def test_bsync_is_answered_after_the_commit(clean_redis: str, tables: Tables) -> None:
    seconds = 1_767_225_600  # EARLY
    async with serving(clean_redis, tables.url) as (worker, port):
        answer = await ask(port, request(ANN.encode(), seconds))
        assert rows(tables) == [(ANN, EARLY, False)]
        assert (answer.status, answer.body) == ("0", framed(b""))
        assert (await ask(port, request(ANN.encode(), seconds - 5))).status == "0"
        assert (await ask(port, request(b"ann"))).status == "3"
        assert (await ask(port, b"", path="/bsky.Service/GetProfiles")).status == "12"
        assert (await ask(port, request(), token="other")).status == "16"
        results = {
            each: worker.metric("indexer_seen_requests_total", result=each)
            for each in ("stored", "invalid", "unknown_method", "denied")
        }
        assert results == {"stored": 2, "invalid": 1, "unknown_method": 1, "denied": 1}
    assert rows(tables) == [(ANN, EARLY, False)]
    with pytest.raises(OSError, match="connect"):
        await ask(port, request())


async def test_many_calls_share_transactions(clean_redis: str, tables: Tables) -> None:
    dids = [did_of(f"account{number}") for number in range(60)]
    async with (
        serving(clean_redis, tables.url) as (_, port),
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
    ):
        client, headers = Client(stream), {**HEADERS, ":path": PATH}
        numbers = [client.ask([framed(request(did.encode()))], headers) for did in dids]
        await client.send()
        answers = [await client.answered(number) for number in numbers]
    assert {each.status for each in answers} == {"0"}
    assert [did for did, *_ in rows(tables)] == sorted(dids)


async def test_without_the_database_a_call_fails_and_a_later_one_does_not(
    clean_redis: str, tables: Tables
) -> None:
    async with serving(clean_redis, tables.url) as (_, port):
        with psycopg.connect(tables.url) as other:
            other.execute("LOCK TABLE bsky.actor_state")
            assert (await ask(port, request())).status == "14"
        assert rows(tables) == []
        assert (await ask(port, request())).status == "0"
        assert len(rows(tables)) == 1


async def test_a_port_of_another_program_is_a_finding_until_it_is_free(
    clean_redis: str, tables: Tables
) -> None:
    (taken,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = taken.socket.getsockname()[1]
    async with indexing(clean_redis, tables.url, seen_port=port, seen_token=TOKEN) as worker:
        await worker.ready.wait()
        await eventually(lambda: "seen_port" in str(worker.health.get("reports")))
        (report,) = worker.health["reports"]
        assert (report["finding"], report["verdict"]) == ("seen_port", "fail")
        assert f"127.0.0.1:{port}" in report["figure"]
        await taken.aclose()
        await eventually(lambda: worker.health.get("reports") == [])
        assert (await ask(port, request())).status == "0"


async def test_calls_with_another_token_are_a_finding_until_one_has_ours(
    clean_redis: str, tables: Tables
) -> None:
    async with serving(clean_redis, tables.url) as (worker, port):
        assert (await ask(port, request(), token="other")).status == "16"
        await eventually(lambda: "seen_denied" in str(worker.health.get("reports")))
        (report,) = worker.health["reports"]
        assert (report["finding"], report["verdict"]) == ("seen_denied", "warn")
        assert (await ask(port, request())).status == "0"
        await eventually(lambda: worker.health.get("reports") == [])
