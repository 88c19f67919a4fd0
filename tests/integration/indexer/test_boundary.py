"""Whatever looking up one account raises, it is looked up later, and the others now."""

from typing import Any

import pytest

from tests.breaking import PARTS, break_part
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import document
from tests.integration.indexer.kit import Tables
from tests.integration.indexer.worker import eventually, indexing

GOOD = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
ASK = "INSERT INTO rsky_pipeline.{} (did) SELECT * FROM unnest(%b::text[])"


def waiting(tables: Tables, table: str) -> list[tuple[Any, ...]]:
    query = f"SELECT did, attempts, requested_at > now() FROM rsky_pipeline.{table}"
    return tables.database.query(query)


@pytest.mark.parametrize("part", PARTS)
async def test_an_account_whose_look_up_raises_is_looked_up_later(
    clean_redis: str, tables: Tables, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    break_part(monkeypatch, part)
    bad = PARTS[part]
    for table in ("handle_check", "deletion_check"):
        tables.database.execute(ASK.format(table), [[bad, GOOD]])
    with FakeHosts() as hosts:
        hosts.add(bad, document(bad), b"")
        hosts.documents[GOOD] = document(GOOD) | {"alsoKnownAs": []}
        options: dict[str, Any] = {"plc_url": hosts.url, "allow_private_hosts": True}
        async with indexing(clean_redis, tables.url, **options) as worker:
            for table in ("handle_check", "deletion_check"):
                await eventually(lambda table=table: waiting(tables, table) == [(bad, 1, True)])  # type: ignore[misc]
            assert not worker.ended.is_set()
            assert worker.metric("indexer_refused_total", reason="internal_error") >= 2
        # Nothing of it is taken back at the next start: it is not due yet.
        async with indexing(clean_redis, tables.url, **options) as worker:
            await worker.ready.wait()
            assert waiting(tables, "handle_check") == [(bad, 1, True)]


@pytest.mark.parametrize(
    "endpoint",
    ["https://pds.example-host.com.", "https://a..b", "https://.", f"https://{'a' * 64}.com",
     "https://x:99999", "https://a\0b.com", "https://größe.de"],
)  # fmt: skip
async def test_an_odd_host_of_a_deleted_account_stops_nobody(
    clean_redis: str, tables: Tables, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    async def nobody(*_: object, **__: object) -> object:
        raise OSError("no such name")

    monkeypatch.setattr("trio.socket.getaddrinfo", nobody)
    odd = "did:plc:oddoddoddoddoddoddoddodd"
    tables.database.execute(ASK.format("deletion_check"), [[odd, GOOD]])
    with FakeHosts() as hosts:
        hosts.add(odd, document(odd), b"")
        hosts.documents[odd]["service"][0]["serviceEndpoint"] = endpoint
        async with indexing(clean_redis, tables.url, plc_url=hosts.url) as worker:
            await eventually(
                lambda: all(attempts for _, attempts, _ in waiting(tables, "deletion_check"))
            )
            assert not worker.ended.is_set()
            assert worker.metric("indexer_refused_total", reason="internal_error") == 0
