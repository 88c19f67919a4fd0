"""Repos of blocked accounts and hosts are not fetched, and are once the block is lifted."""

from collections.abc import Iterator

import pytest

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.selection import Block, add_blocks, lift_blocks
from rsky_pipeline.repos import fetch
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.repo_job import FetchReason
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import (
    Configure,
    backfiller,
    document,
    letters,
    make_repo,
    output,
    queue,
    settled,
)

DID = "did:plc:a"
ACCOUNT = Block("account", DID)


@pytest.fixture
def database(schema_database: str) -> Iterator[Database]:
    with Database.connect(schema_database, name="test") as connection:
        yield connection


def fetched(hosts: FakeHosts) -> list[str]:
    return [path for path in hosts.requests if "getRepo" in path or "getLatestCommit" in path]


def outcome(database: Database) -> tuple[object, ...]:
    rows = database.query("SELECT status, reason, host FROM rsky_pipeline.backfill_repo")
    (row,) = rows
    return tuple(row)


@pytest.mark.parametrize("kind", ["account", "host"])
@pytest.mark.parametrize("reason", [FetchReason.LISTED, FetchReason.OPERATOR])
async def test_a_blocked_repo_is_fetched_only_once_the_block_is_lifted(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database, kind: str,
    reason: FetchReason,
) -> None:  # fmt: skip
    car, _ = make_repo(DID, 3)
    hosts.add(DID, document(DID), car)
    block = ACCOUNT if kind == "account" else Block("host", parse_endpoint(hosts.url).key)
    async with backfiller(configure()) as running:
        add_blocks(database, [block])
        queue(store, DID, reason=reason, deleted=("app.bsky.feed.like/x",))
        await settled(store)
        assert fetched(hosts) == []
        if kind == "account":
            assert hosts.requests == [], "nor is the directory asked"
        assert outcome(database)[:2] == ("unavailable", "blocked")
        lift_blocks(database, [block])
        queue(store, DID, reason=reason)
        await settled(store)
    assert letters(store) == []
    assert [event["type"] for event in output(store)] == ["create"] * 3 + ["repo"]
    assert outcome(database)[0] == "done"
    assert running.value("blocked_repos_total", kind=kind) == 1
    assert running.value("outcomes_total", outcome="blocked") == 1
    assert running.value("repos_failed_total") == 0


async def test_an_account_that_has_left_a_blocked_host_is_fetched(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its document of before is still at hand."""
    monkeypatch.setattr(fetch, "FORCED_PAUSE_SECONDS", 0.0)
    car, _ = make_repo(DID, 3)
    with FakeHosts() as other:
        other.add(DID, document(DID), car)
        hosts.documents[DID] = other.documents[DID]
        async with backfiller(configure()):
            queue(store, DID)
            await settled(store)
            add_blocks(database, [Block("host", parse_endpoint(other.url).key)])
            hosts.add(DID, document(DID), car)
            queue(store, DID, reason=FetchReason.OPERATOR)
            await settled(store)
    assert outcome(database) == ("done", None, hosts.url)
    assert len(fetched(hosts)) == 1
