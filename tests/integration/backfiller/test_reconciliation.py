"""What the backfiller does with what is stored already: it removes, skips, waits and notes."""

from collections.abc import Iterator
from contextlib import closing

import pytest
import trio

from rsky_pipeline.database.connection import Database
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.repo_job import FetchReason
from tests.integration.backfiller.hosts import FakeHosts, refusal
from tests.integration.backfiller.kit import (
    Configure,
    backfiller,
    document,
    eventually,
    make_repo,
    output,
    queue,
    settled,
    waiting,
)

DID = "did:plc:a"
REV = "3jzfcijpj2z2a"  # of every made repo
OLDEST, OLDER, NEWER = "3jzfcijpizzzz", "3jzfcijpj2222", "3jzfcijpj2z2b"
LIKE = "app.bsky.feed.like"


@pytest.fixture
def database(schema_database: str) -> Iterator[Database]:
    """A connection of the test's own."""
    with closing(Database.connect(schema_database, name="test")) as connection:
        yield connection


def store_record(database: Database, rkey: str, rev: str | None, did: str = DID) -> None:
    database.execute(
        'INSERT INTO record (uri, cid, did, json, "indexedAt", rev) '
        "VALUES (%s, %s, %s, %s, %s, %s)",
        [f"at://{did}/{LIKE}/{rkey}", "bafy", did, "{}", "2026-01-01T00:00:00.000Z", rev],
    )


def outcome(database: Database, did: str = DID) -> tuple[object, ...]:
    ((status, reason, rev, records, deletes),) = database.query(
        "SELECT status, reason, rev, records, deletes FROM rsky_pipeline.backfill_repo "
        "WHERE did = %s",
        [did],
    )
    return status, reason, rev, records, deletes


async def test_rows_that_the_repo_no_longer_holds_are_deleted_unless_they_are_newer(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database
) -> None:
    hosts.add(DID, document(DID), make_repo(DID, 2)[0])
    for rkey, rev in (("00000", OLDER), ("old", OLDER), ("unknown", None), ("now", NEWER),
                      ("same", REV)):  # fmt: skip
        store_record(database, rkey, rev)
    store_record(database, "old", OLDER, "did:plc:ab")  # of another account
    async with backfiller(configure()) as running:
        queue(store, DID)
        await settled(store)
    assert running.value("deletes_queued_total") == 2
    events = output(store)
    deletes = [event for event in events if event["type"] == "delete"]
    assert [(event["rkey"], event["rev"]) for event in deletes] == [("old", REV), ("unknown", REV)]
    assert [event["type"] for event in events] == ["delete"] * 2 + ["create"] * 2 + ["repo"]
    assert events[-1]["complete"] is True
    assert outcome(database) == ("done", None, REV, 2, 2)


async def test_very_many_rows_are_compared_in_pages(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("rsky_pipeline.repos.stored.PAGE_ROWS", 10)
    monkeypatch.setattr("rsky_pipeline.repos.stored.PAGE_PATHS", 7)
    monkeypatch.setattr("rsky_pipeline.repos.repo.LISTED_PATHS", 5)
    hosts.add(DID, document(DID), make_repo(DID, 40)[0])
    for number in range(0, 60, 2):
        store_record(database, f"{number:05d}", OLDER)
        store_record(database, f"{number:05d}-x", OLDER)
    async with backfiller(configure()):
        queue(store, DID)
        await settled(store)
    gone = {event["rkey"] for event in output(store) if event["type"] == "delete"}
    expected = {f"{number:05d}-x" for number in range(0, 60, 2)}
    assert gone == expected | {f"{number:05d}" for number in range(40, 60, 2)}


@pytest.mark.parametrize(
    ("floor", "newest", "wanted", "reason", "fetched"),
    [
        (REV, REV, REV, FetchReason.LISTED, False),
        (OLDER, REV, REV, FetchReason.LISTED, False),  # stored as a whole once, and followed since
        (OLDER, OLDER, REV, FetchReason.LISTED, True),
        (None, REV, REV, FetchReason.LISTED, True),  # followed, but never stored as a whole
        (REV, REV, "", FetchReason.LISTED, False),  # its PDS is asked
        (REV, REV, REV, FetchReason.SYNC, True),
        (REV, REV, "", FetchReason.OPERATOR, True),
        # Redis was lost, and with it commits below the newest one.
        (OLDER, REV, REV, FetchReason.UNSEEN, True),
        (OLDER, REV, "", FetchReason.REACTIVATED, True),
        # All that the PDS has is stored as a whole.
        (REV, REV, REV, FetchReason.UNSEEN, False),
        (REV, REV, "", FetchReason.REACTIVATED, False),
        (OLDER, OLDER, OLDER, FetchReason.UNSEEN, True),  # which is asked, and has more
    ],
)
async def test_a_repo_that_is_stored_at_its_rev_is_not_fetched_again(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database,
    floor: str | None, newest: str, wanted: str, reason: FetchReason, fetched: bool,
) -> None:  # fmt: skip
    hosts.add(DID, document(DID), make_repo(DID, 1)[0])
    if floor is not None:
        insert = "INSERT INTO rsky_pipeline.repo_floor (did, rev) VALUES (%s, %s)"
        database.execute(insert, [DID, floor])
    sync = 'INSERT INTO actor_sync (did, "commitCid", "repoRev") VALUES (%s, %s, %s)'
    database.execute(sync, [DID, "bafy", newest])
    async with backfiller(configure()) as running:
        queue(store, DID, rev=wanted, reason=reason)
        await settled(store)
        expected = "done" if fetched else "unchanged"  # counted a moment after the job is gone
        await eventually(lambda: running.value("outcomes_total", outcome=expected) == 1)
    assert any("getRepo" in path for path in hosts.requests) == fetched
    assert outcome(database)[:2] == ("done", None if fetched else "unchanged")


async def test_a_job_that_names_deletions_is_fetched_though_the_repo_is_current(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database
) -> None:
    """Waiting jobs of a repo become one: deletions of one with the reason of another."""
    hosts.add(DID, document(DID), make_repo(DID, 1)[0])
    set_floor(database, REV)
    async with backfiller(configure()) as running:
        queue(store, DID, deleted=(f"{LIKE}/gone",), reason=FetchReason.REACTIVATED)
        await eventually(lambda: running.value("outcomes_total", outcome="done") == 1)
    assert [event["type"] for event in output(store)] == ["delete", "create", "repo"]


async def test_a_repo_that_is_older_than_what_is_stored_does_not_win(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database
) -> None:
    hosts.add(DID, document(DID), make_repo(DID, 1)[0])
    sync = 'INSERT INTO actor_sync (did, "commitCid", "repoRev") VALUES (%s, %s, %s)'
    database.execute(sync, [DID, "bafy", NEWER])
    async with backfiller(configure()):
        queue(store, DID)
        await settled(store)
    assert output(store) == []
    assert outcome(database)[:2] == ("failed", "stale_repo")


async def test_an_unavailable_account_is_asked_again_by_a_new_job(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database
) -> None:
    hosts.add(DID, document(DID), make_repo(DID, 1)[0])
    hosts.replies[DID] = [lambda: refusal(400, "RepoDeactivated")]
    async with backfiller(configure()):
        queue(store, DID)
        await settled(store)
        assert outcome(database)[:3] == ("unavailable", "RepoDeactivated", None)
        queue(store, DID, reason=FetchReason.REACTIVATED)
        await settled(store)
    assert outcome(database)[:3] == ("done", None, REV)


async def test_a_repo_that_moves_while_it_is_fetched_is_fetched_from_its_new_host(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("rsky_pipeline.repos.fetch.FORCED_PAUSE_SECONDS", 0.0)
    hosts.add(DID, document(DID), make_repo(DID, 1)[0])
    with FakeHosts() as old:
        moved = hosts.documents[DID]
        old.add(DID, document(DID), b"")
        hosts.documents[DID] = old.documents[DID]

        def leave() -> tuple[int, dict[str, str], bytes]:
            hosts.documents[DID] = moved
            return refusal(400, "RepoNotFound")

        old.replies[DID] = [leave]
        async with backfiller(configure()) as running:
            queue(store, DID)
            await settled(store)
        assert running.value("repos_failed_total") == 0
    assert outcome(database)[:3] == ("done", None, REV)


@pytest.mark.parametrize(
    "code", ["RepoDeactivated", "RepoTakendown", "RepoSuspended", "RepoNotFound", "NotFound"]
)
@pytest.mark.parametrize("moves", [True, False])
async def test_what_the_old_host_says_right_after_a_look_up_is_not_final(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database,
    monkeypatch: pytest.MonkeyPatch, code: str, moves: bool,
) -> None:  # fmt: skip
    """The document was read just before the account moved, and cannot be read again so soon."""
    monkeypatch.setattr("rsky_pipeline.repos.fetch.FORCED_PAUSE_SECONDS", 0.3)
    hosts.add(DID, document(DID), make_repo(DID, 1)[0])
    with FakeHosts() as old:
        moved = hosts.documents[DID]
        old.add(DID, document(DID), b"")
        hosts.documents[DID] = old.documents[DID]

        def leave() -> tuple[int, dict[str, str], bytes]:
            if moves:
                hosts.documents[DID] = moved
            return refusal(400, code)

        old.replies[DID] = [leave] * 5
        async with backfiller(configure()):
            queue(store, DID, reason=FetchReason.BROKEN_CHAIN)
            await settled(store)
        assert len(old.replies[DID]) == (4 if moves else 3), "asked once more, and no oftener"
    found = outcome(database)[:3]
    assert found == (("done", None, REV) if moves else ("unavailable", code, None))


def set_floor(database: Database, rev: str) -> None:
    database.execute(
        "INSERT INTO rsky_pipeline.repo_floor (did, rev) VALUES (%s, %s) "
        "ON CONFLICT (did) DO UPDATE SET rev = EXCLUDED.rev",
        [DID, rev],
    )


@pytest.mark.parametrize("before", [None, OLDEST])
async def test_a_row_that_came_in_between_looking_and_the_floor_is_deleted_all_the_same(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database,
    monkeypatch: pytest.MonkeyPatch, before: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr("rsky_pipeline.backfiller.attempt.FIRST_LOOK_SECONDS", 0.01)
    monkeypatch.setattr("rsky_pipeline.backfiller.attempt.MOST_SECONDS", 0.05)
    hosts.add(DID, document(DID), make_repo(DID, 1)[0])
    if before is not None:  # it was stored as a whole once
        set_floor(database, before)
    async with backfiller(configure()) as running:
        queue(store, DID, rev=REV, reason=FetchReason.BROKEN_CHAIN)
        await eventually(lambda: bool(waiting(store, settling=True)))
        assert not any(event["type"] == "delete" for event in output(store))
        # An indexer that is behind applies an old live create, then the closing event.
        store_record(database, "late", OLDER)
        await eventually(lambda: any(job.settles > 2 for job in waiting(store, settling=True)))
        assert not any(event["type"] == "delete" for event in output(store))
        set_floor(database, REV)
        await eventually(lambda: running.value("deletes_queued_total") == 1)
        await settled(store)
        assert not waiting(store, settling=True)  # below the floor nothing can come any more
    deletes = [event for event in output(store) if event["type"] == "delete"]
    assert [(event["rkey"], event["rev"]) for event in deletes] == [("late", REV)]


@pytest.mark.parametrize(
    ("reason", "queued", "looks"),
    [
        (FetchReason.LISTED, None, False),
        (FetchReason.LISTED, REV, False),  # an attempt was killed before its job was finished
        (FetchReason.LISTED, OLDER, True),
        (FetchReason.UNSEEN, None, False),
        (FetchReason.OPERATOR, None, True),
        (FetchReason.GAP, None, True),
    ],
)
async def test_a_repo_is_looked_at_again_where_older_states_may_be_on_their_way(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database,
    reason: FetchReason, queued: str | None, looks: bool,
) -> None:  # fmt: skip
    hosts.add(DID, document(DID), make_repo(DID, 1)[0])
    if queued is not None:
        insert = "INSERT INTO rsky_pipeline.backfill_repo (did, status, rev) VALUES (%s, %s, %s)"
        database.execute(insert, [DID, "done", queued])
    async with backfiller(configure()) as running:
        queue(store, DID, rev=REV, reason=reason)
        await eventually(lambda: running.value("outcomes_total", outcome="done") == 1)
        found = waiting(store, settling=True)
        if looks:
            assert [(job.rev, job.deleted, job.forced) for job in found] == [(REV, (), True)]
            set_floor(database, REV)
        await eventually(lambda: not waiting(store, settling=True))
        await settled(store)
    assert len([path for path in hosts.requests if "getRepo" in path]) == 1
    assert outcome(database)[:3] == ("done", None, REV)


async def test_work_waits_while_the_database_is_away_and_nothing_is_skipped(
    store: Store, configure: Configure, hosts: FakeHosts, database: Database
) -> None:
    hosts.add(DID, document(DID), make_repo(DID, 1)[0])
    away = configure(database_url="postgresql://127.0.0.1:1/none")
    async with backfiller(away) as running:
        queue(store, DID)
        await eventually(lambda: running.value("database_errors_total") >= 2)
        await trio.sleep(0.1)
        assert output(store) == []
        running.context.escalated.set()
    assert store.call("XLEN", "repo_backfill") == 1
    async with backfiller(configure()):
        await settled(store)
    assert outcome(database)[:3] == ("done", None, REV)
