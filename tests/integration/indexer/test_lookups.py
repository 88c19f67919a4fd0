"""When handles are looked at again, and what becomes of accounts that are said to be deleted."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer.accounts.actors import KnownActor, due_handles
from rsky_pipeline.indexer.accounts.checks import (
    MAX_RETRY_SECONDS,
    RETRY_SECONDS,
    LookupUnknownError,
    wait_seconds,
)
from rsky_pipeline.indexer.accounts.deletions import DeletionChecks, Hosted
from rsky_pipeline.indexer.accounts.lookups import Lookup
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import read_entry
from rsky_pipeline.network.directory import Directory
from rsky_pipeline.network.handles import Handles
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.observability.indexer import IndexerMetrics
from tests.integration.backfiller.hosts import FakeHosts, refusal
from tests.integration.backfiller.kit import document
from tests.integration.indexer.kit import (
    STATE_TABLES,
    Network,
    Tables,
    account,
    did_of,
    identity,
    recounted,
    repo,
    rev_of,
)

NOON = "2026-05-02T12:00:00.000Z"


@pytest.mark.parametrize(
    ("has_handle", "looked_at", "happens", "due"),
    [
        (True, "2026-05-01T12:00:00.000Z", NOON, False),  # exactly 24 hours are not more
        (True, "2026-05-01T11:59:59.999Z", NOON, True),
        (False, "2026-05-02T11:00:00.000Z", NOON, False),
        (False, "2026-05-02T10:59:59.999Z", NOON, True),
        (True, "2026-05-01T11:00:00.000Z", "2026-05-02T10:00:00.000Z", False),  # event time counts
        (True, "2026-05-02T11:00:00.000Z", "2999-01-01T00:00:00.000Z", False),  # at most now
        (False, "2026-05-02T10:00:00.000Z", "0000-01-01T00:00:00.000Z", False),
    ],
)
def test_handles_are_due_by_the_official_times(
    has_handle: bool, looked_at: str, happens: str, due: bool
) -> None:
    known = [KnownActor("did:plc:a", has_handle, looked_at), KnownActor("did:plc:b", False, "2000")]
    found = due_handles(known, {"did:plc:a": happens}, "2026-05-02T12:00:00.000Z")
    assert found == (["did:plc:a"] if due else [])


def test_only_live_events_of_an_old_look_ask_again(tables: Tables, net: Network) -> None:
    tables.apply(net.post("ann"))
    tables.database.execute("DELETE FROM rsky_pipeline.handle_check")
    tables.apply(net.post("ann"))
    tables.apply(repo("ann", 30), Network(history=True).post("ann"))
    assert tables.database.query("SELECT did FROM rsky_pipeline.handle_check") == []
    tables.database.execute("UPDATE actor SET \"indexedAt\" = '2020-01-01T00:00:00.000Z'")
    tables.apply(net.post("ann"))
    tables.database.execute(
        "UPDATE rsky_pipeline.handle_check SET attempts = 3, requested_at = now() + '1 hour'"
    )
    tables.apply(net.post("ann"))
    rows = tables.database.query(
        "SELECT forced, attempts, requested_at > now() FROM rsky_pipeline.handle_check"
    )
    assert rows == [(False, 3, True)], "an event does not shorten a back-off"


def test_pauses_grow_up_to_a_day() -> None:
    assert RETRY_SECONDS * 0.75 <= wait_seconds(0) <= RETRY_SECONDS
    assert 4 * RETRY_SECONDS * 0.75 <= wait_seconds(2) <= 4 * RETRY_SECONDS
    assert MAX_RETRY_SECONDS * 0.75 <= wait_seconds(1_000) <= MAX_RETRY_SECONDS


async def check_deletions(
    tables: Tables, answer: Hosted | type[LookupUnknownError] | None
) -> IndexerMetrics:
    async def find_host(_did: str) -> Hosted | None:
        if answer is LookupUnknownError:
            raise LookupUnknownError("nobody answers")
        assert not isinstance(answer, type)
        return answer

    metrics = IndexerMetrics(CollectorRegistry(), ["firehose_live"], [])
    checks = DeletionChecks(
        lambda: Database.connect(tables.url, name="d"), find_host, registry.load(), metrics
    )
    while await checks.work_once():
        pass
    checks.close()
    return metrics


def status(tables: Tables) -> list[tuple[Any, ...]]:
    return tables.rows("actor", '"upstreamStatus"', f"did = '{did_of('ann')}'")


async def test_an_account_is_purged_when_its_host_says_it_is_gone(
    tables: Tables, net: Network
) -> None:
    post, hers = net.post("ann"), net.post("bob")
    reply = net.reply("ann", post)
    events = [post, hers, reply, net.like("ann", hers), net.follow("ann", "bob")]
    tables.apply(*events, account("ann", 20, active=False, status="deleted"))
    assert status(tables) == [("deleted",)]
    assert len(tables.rows("post")) == 3, "a relay's word alone destroys nothing"
    await check_deletions(tables, LookupUnknownError)
    assert status(tables) == [("deleted",)]
    tables.database.execute("UPDATE rsky_pipeline.deletion_check SET requested_at = now()")
    await check_deletions(tables, None)
    assert status(tables) == []
    for table in ("record", "post", "feed_item", "like", "follow", "op_thread_reply"):
        rows = tables.rows(table, "uri")
        assert not [row for row in rows if did_of("ann") in row[0]], table
    assert tables.counts(hers) == (0, 0, 0, 0)
    recounted(tables)
    tables.apply(*events)
    assert {row[0] for row in tables.rows("post", "creator")} == {did_of("bob")}, "nothing returns"
    assert tables.rows("op_thread_reply") == []


@pytest.mark.parametrize("hosted", [None, "deactivated"])
async def test_a_host_that_still_has_the_account_wins(
    tables: Tables, net: Network, hosted: str | None
) -> None:
    tables.apply(net.post("ann"), account("ann", 20, active=False, status="deleted"))
    await check_deletions(tables, Hosted(hosted))
    assert status(tables) == [(hosted,)]
    assert len(tables.rows("post")) == 1
    assert tables.database.query("SELECT * FROM rsky_pipeline.deletion_check") == []


async def test_an_account_that_came_back_meanwhile_is_kept(tables: Tables, net: Network) -> None:
    tables.apply(net.post("ann"), account("ann", 20, active=False, status="deleted"))
    tables.apply(account("ann", 21, active=True))
    await check_deletions(tables, None)
    assert len(tables.rows("post")) == 1


OLD = {
    "live": lambda net: net.post("ann"),
    "edited": lambda net: net.update(net.post("ann"), {"text": "edited"}),
    "like": lambda net: net.like("ann", net.post("bob")),
    "of a collection that nobody indexes": lambda net: net.put("ann", "app.bsky.never.heard", {}),
    "deleted": lambda net: net.delete(net.like("ann", net.post("bob"))),
    "history": lambda _: Network(history=True).post("ann"),
    "closing": lambda _: repo("ann", 11),
    "complete": lambda _: repo("ann", 11, complete=True),
    "identity": lambda _: identity("ann", 12),
    "active": lambda _: account("ann", 13, active=True),
    "the deletion again": lambda _: account("ann", 20, active=False, status="deleted"),
}


@pytest.mark.parametrize("late", [pytest.param(make, id=name) for name, make in OLD.items()])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("returned", [True, False])
async def test_an_event_of_before_the_deletion_leaves_nothing_after_the_purge(
    tables: Tables, net: Network, late: Any, known: bool, returned: bool
) -> None:
    """Pending entries of a killed worker come late, and history that waits in its stream.

    `known`: something of the account was indexed. `returned`: it has come back meanwhile.
    """
    if known:
        tables.apply(net.post("ann"))
    event = late(net)
    tables.apply(account("ann", 20, active=False, status="deleted"))
    await check_deletions(tables, None)
    if returned:
        tables.apply(account("ann", 30, active=True))
    before = everything(tables)
    tables.apply(event)
    tables.apply(event, net.post("bob"))
    tables.apply(repo("bob", 5), event)
    after = everything(tables)
    if returned:  # one more look at a handle does no harm
        del before["handle_check"], after["handle_check"]
    assert after == before


@pytest.mark.parametrize("history", [True, False])
async def test_a_refused_record_of_before_the_deletion_makes_no_account(
    tables: Tables, history: bool
) -> None:
    tables.apply(account("ann", 20, active=False, status="deleted"))
    await check_deletions(tables, None)
    bad = Network(history=history).put("ann", "app.bsky.feed.like", {"subject": "nothing"})
    reading = read_entry({b"event": bad.payload}, registry.load())
    assert reading.refused is not None
    apply_batch(tables.database, [reading], registry.load())
    assert everything(tables) == {}


async def test_a_deleted_post_stays_deleted_for_others_after_the_purge(
    tables: Tables, net: Network
) -> None:
    """A repost of a deleted post is no feed item, whenever its deletion came."""
    post = net.post("ann")
    deletion, repost = net.delete(post), net.repost("bob", post)
    tables.apply(account("ann", 20, active=False, status="deleted"))
    await check_deletions(tables, None)
    tables.apply(deletion)
    assert everything(tables) == {}
    tables.apply(repost)
    assert tables.rows("feed_item") == []


async def test_a_post_that_was_deleted_before_its_account_stays_deleted_for_others(
    tables: Tables, net: Network
) -> None:
    post = net.post("ann")
    tables.apply(post, net.delete(post), account("ann", 20, active=False, status="deleted"))
    await check_deletions(tables, None)
    tables.apply(net.repost("bob", post))
    assert tables.rows("feed_item") == []


@pytest.mark.parametrize(
    "late",
    [
        lambda _: account("ann", 21, active=True),
        lambda _: identity("ann", 21),
        lambda net: net.put("ann", "app.bsky.feed.post", {"text": "back"}, number=21),
        lambda _: repo("ann", 21),
    ],
)
@pytest.mark.parametrize("old", OLD.values(), ids=OLD.keys())
async def test_an_account_comes_back_with_what_is_newer(
    tables: Tables, net: Network, late: Any, old: Any
) -> None:
    event = old(net)
    tables.apply(account("ann", 20, active=False, status="deleted"))
    await check_deletions(tables, None)
    tables.apply(event, late(net))
    assert [row[0] for row in tables.rows("actor", "did")] == [did_of("ann")]
    revs = {row["rev"] for row in tables.dicts("record")}
    revs.update(row["repoRev"] for row in tables.dicts("actor_sync"))
    assert revs <= {rev_of(21)}


def everything(tables: Tables) -> dict[str, list[Any]]:
    """Return the rows of an account in the tables where a late event could leave one."""
    found: dict[str, list[Any]] = {
        table: [row for row in tables.dicts(table) if did_of("ann") in str(row)]
        for table in (*STATE_TABLES, "actor", "op_thread_reply", "notification")
    }
    for table in ("handle_check", "deletion_check", "rejected_record"):
        query = f"SELECT row_to_json(t) FROM rsky_pipeline.{table} t WHERE did = %s"
        found[table] = tables.database.query(query, (did_of("ann"),))
    return {table: rows for table, rows in found.items() if rows}


async def test_what_hosts_say_of_an_account() -> None:
    settings = Settings(allow_private_hosts=True)
    did = did_of("ann")
    with FakeHosts() as hosts:
        async with HttpClient(allow_private=True, silence_seconds=5.0) as http:
            directory = Directory(http, hosts.url, allow_private=settings.allow_private_hosts)
            lookup = Lookup(http, directory, Handles(http, allow_private=True))
            assert await lookup.find_host(did) is None, "no such DID"
            hosts.add(did, document(did), b"")
            del hosts.repos[did]
            assert await lookup.find_host(did) is None, "the PDS has no such repo"
            hosts.replies[did] = [lambda: refusal(400, "RepoDeactivated")]
            assert await lookup.find_host(did) == Hosted("deactivated")
            body = b'{"cid": "x", "rev": "3jzfcijpj2z2a"}'
            hosts.replies[did] = [lambda: (200, {}, body)]
            assert await lookup.find_host(did) == Hosted(None)
            hosts.replies[did] = [lambda: refusal(500, "InternalServerError")]
            with pytest.raises(LookupUnknownError):
                await lookup.find_host(did)
