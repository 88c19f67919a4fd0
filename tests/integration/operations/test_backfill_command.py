"""`rsky-pipeline backfill` on a real Valkey, a real PostgreSQL and a host on loopback."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.backfiller.store import RepoOutcome, write_outcomes
from rsky_pipeline.cli import main
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.isolation import Isolation
from rsky_pipeline.ingester.listing.enumeration import LIST_REPOS, ListingProgress
from rsky_pipeline.network import listing as network_listing
from rsky_pipeline.network.listing import PAGE_REPOS
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.names import REPO_BACKFILL, REPO_BACKFILL_HIGH, REPO_BACKFILL_LOW
from rsky_pipeline.streams.repo_job import (
    REPO_FIELD,
    FetchReason,
    RepoJob,
    decode_repo_job,
    encode_repo_job,
)
from rsky_pipeline.streams.waiting import count_waiting
from tests.consumers import GroupReader
from tests.integration.backfiller.hosts import FakeHosts, Reply
from tests.integration.operations.entries import left
from tests.integration.streams.support import own_pending
from tests.stores import execute


def did(number: int) -> str:
    """Return an account's DID."""
    return f"did:plc:{tid_from(number * 1_000, 0)}{'a' * 11}"


class Commands:
    """Runs commands against the stores of a test."""

    def __init__(self, redis_url: str, database_url: str, run_dir: Path) -> None:
        self.flags = ("--redis-url", redis_url, "--database-url", database_url,
                      "--run-dir", str(run_dir), "--set", "allow_private_hosts=true")  # fmt: skip

    def run(self, *arguments: str) -> Result:
        """Return the result of `backfill ARGUMENTS`."""
        return CliRunner().invoke(main, ["backfill", *arguments, *self.flags])

    def json(self, *arguments: str) -> Any:
        """Return the document that a command prints."""
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture
def commands(clean_redis: str, schema_database: str, tmp_path: Path) -> Commands:
    return Commands(clean_redis, schema_database, tmp_path)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_listing, "SEARCH_SECONDS", 0.01)


def jobs(store: Store, stream: str = REPO_BACKFILL) -> list[RepoJob]:
    return [decode_repo_job(payload) for payload in left(store, stream)]


def dids(store: Store, stream: str = REPO_BACKFILL) -> list[str]:
    return [job.did for job in jobs(store, stream)]


def queue(store: Store, *found: RepoJob, stream: str = REPO_BACKFILL) -> None:
    append(store, [Entry(stream, REPO_FIELD, encode_repo_job(job)) for job in found])


def job(number: int, **fields: Any) -> RepoJob:
    return RepoJob(did(number), "", "", None, True, **fields)


def reader(store: Store, stream: str = REPO_BACKFILL) -> GroupReader:
    found = GroupReader(store, stream, "repo_backfill_group", "worker")
    found.ensure()
    return found


class Listing(FakeHosts):
    """A host that lists accounts; it fails when `broken`."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.broken_after = 10**9
        self.broken_at: int | None = None
        self.repos_listed = [
            {"did": did(number), "rev": tid_from(number, 0), "active": number != 7}
            for number in range(count)
        ]

    def _answer(self, path: str) -> Reply:
        from urllib.parse import parse_qs, urlsplit

        self.requests.append(path)
        if len(self.requests) > self.broken_after:
            return 500, {}, b"{}"
        query = parse_qs(urlsplit(path).query)
        start, limit = int(query.get("cursor", ["0"])[0]), int(query["limit"][0])
        if start == self.broken_at:
            return 500, {}, b"{}"
        page = self.repos_listed[start : start + limit]
        body: dict[str, Any] = {"repos": page}
        if start + limit < len(self.repos_listed):
            body["cursor"] = str(start + limit)
        return 200, {}, json.dumps(body).encode()


def test_accounts_are_queued_once_and_valid(commands: Commands, store: Store) -> None:
    result = commands.run("add", did(1), did(2), did(1), "nonsense", "did:example:x")
    assert result.exit_code == 1
    assert result.stdout == "queued 2 (1 named twice, 2 no DID)\n"
    assert "nonsense" in result.stderr
    assert commands.run("add", "did:plc:zzz").exit_code == 2
    assert dids(store) == [did(1), did(2)]
    again = commands.json("add", did(2), did(3))
    assert (again["queued"], again["already_queued"]) == (1, 1)
    # What is queued for later is no reason against now.
    urgent = commands.json("add", did(2), "--priority", "high", "--force")
    assert urgent["queued"] == 1
    assert [(each.did, each.forced) for each in jobs(store, REPO_BACKFILL_HIGH)] == [(did(2), True)]
    assert commands.json("add", did(2), "--priority", "low")["already_queued"] == 1
    assert dids(store, REPO_BACKFILL_LOW) == []


def test_nothing_valid_and_contradictions_are_wrong_usage(commands: Commands) -> None:
    assert commands.run("add", "nonsense").exit_code == 2
    assert commands.run("add").exit_code == 2
    assert commands.run("add", did(1), "--pds", "x.test").exit_code == 2
    assert commands.run("cancel").exit_code == 2


def test_a_file_with_or_without_a_header(commands: Commands, store: Store, tmp_path: Path) -> None:
    plain, table = tmp_path / "plain.txt", tmp_path / "table.csv"
    plain.write_text(f"# accounts\n{did(1)}\n\n{did(2)}\nwhatever\n")
    table.write_text(f'\ufeffhandle,did\nann,{did(3)}\n"b,ob",{did(4)}\nshort\n')
    document = commands.json("add", "--file", str(plain))
    assert (document["queued"], document["invalid_examples"]) == (2, ["whatever"])
    assert commands.json("add", "--file", str(table))["queued"] == 2
    assert dids(store) == [did(number) for number in (1, 2, 3, 4)]


def test_at_the_mark_it_stops_and_goes_on(commands: Commands, store: Store, tmp_path: Path) -> None:
    accounts = tmp_path / "accounts"
    accounts.write_text("\n".join(did(number) for number in range(1_200)))
    options = ("add", "--file", str(accounts), "--set", "repo_high_water_mark=600")
    result = commands.run(*options, "--no-wait")
    assert result.exit_code == 1
    assert "high-water mark" in result.stderr
    assert len(dids(store)) == 1_000
    store.call("DEL", REPO_BACKFILL)
    assert commands.json(*options, "--no-wait")["queued"] == 1_000


def test_a_pds_is_listed_and_an_interrupted_listing_goes_on(
    commands: Commands, store: Store
) -> None:
    count = 2 * PAGE_REPOS + 10
    with Listing(count) as pds:
        pds.broken_after = 2
        result = commands.run("add", "--pds", pds.url)
        assert result.exit_code == 69
        assert "repeat the command to go on" in result.stderr
        assert len(dids(store)) == 2 * PAGE_REPOS - 1  # one is inactive
        pds.broken_after = 10**9
        document = commands.json("add", "--pds", pds.url)
        assert (document["queued"], document["pages"], document["complete"]) == (10, 1, True)
        assert jobs(store)[-1].rev == tid_from(count - 1, 0)
        assert commands.json("add", "--pds", pds.url)["queued"] == 0  # all are queued already
        assert len(set(dids(store))) == len(dids(store)) == count - 1


def test_a_page_that_the_host_cannot_list_is_stepped_over_and_reported(
    commands: Commands, store: Store
) -> None:
    with Listing(3 * PAGE_REPOS) as pds:
        pds.broken_at = 1_000
        result = commands.run("add", "--pds", pds.url, "--json")
        assert result.exit_code == 1
        document = json.loads(result.stdout)
        assert (document["complete"], document["unlistable"]) == (True, ["1000 to 1001"])
        assert "could not list the accounts with cursors 1000 to 1001" in result.stderr
        expected = {did(number) for number in range(3 * PAGE_REPOS) if number not in {7, 1_000}}
        assert set(dids(store)) == expected
        pds.broken_at = None
        again = commands.json("add", "--pds", pds.url, "--restart")
        assert (again["queued"], again["unlistable"]) == (1, [])
    assert set(dids(store)) == expected | {did(1_000)}


def test_accounts_of_a_collection_are_asked_of_the_relay(commands: Commands, store: Store) -> None:
    with Listing(5) as relay:
        result = commands.json("add", "--collection", "app.bsky.feed.post", "--relay", relay.url,
                               "--priority", "low")  # fmt: skip
        assert result["queued"] == 5
        assert "listReposByCollection?collection=app.bsky.feed.post" in relay.requests[0]
    assert len(dids(store, REPO_BACKFILL_LOW)) == 5


def test_status_adds_up_streams_and_table(
    commands: Commands, store: Store, schema_database: str
) -> None:
    queue(store, *(job(number) for number in range(5)))
    reader(store).read_new(2, 0)
    queue(store, job(9), stream=REPO_BACKFILL_LOW)
    with Database.connect(schema_database, name="test") as database:
        outcomes = [
            RepoOutcome(did(20), "done", rev="r", records=70),
            RepoOutcome(did(21), "done", records=30),
            RepoOutcome(did(22), "failed", "invalid", "bad_signature", "no"),
            RepoOutcome(did(23), "unavailable", "permanent", "RepoDeactivated"),
        ]  # fmt: skip
        write_outcomes(database, outcomes, Isolation(lambda outcome: outcome.did))
    found = commands.json("status")
    assert found["queued"] == {REPO_BACKFILL_HIGH: 0, REPO_BACKFILL: 3, REPO_BACKFILL_LOW: 1}
    assert (found["running"], found["left"]) == (2, 6)
    assert (found["repos"]["done"], found["repos"]["failed"], found["records"]) == (2, 1, 100)
    assert found["repos"]["by_reason"]["failed"] == {"bad_signature": 1}
    assert found["records_per_second"] > 0
    assert found["eta_seconds"] > 0
    text = commands.run("status").stdout
    assert "RepoDeactivated" in text
    assert "held by workers" in text


def test_retry_takes_letters_and_what_the_table_gave_up(
    commands: Commands, store: Store, schema_database: str
) -> None:
    queue(store, *(job(number) for number in range(3)))
    own = reader(store)
    for number, item in enumerate(own.read_new(3, 0)):
        reason = "bad_signature" if number else "timeout"
        own.dead_letter(item, reason=reason, error="x", attempts=3)
    with Database.connect(schema_database, name="test") as database:
        outcomes = [
            RepoOutcome(did(1), "failed", "invalid", "bad_signature"),
            RepoOutcome(did(5), "failed", "invalid", "bad_signature"),
            RepoOutcome(did(6), "unavailable", "permanent", "RepoNotFound"),
        ]  # fmt: skip
        write_outcomes(database, outcomes, Isolation(lambda outcome: outcome.did))
    found = commands.json("retry", "--reason", "bad_signature")
    assert (found["letters"], found["given_up"], found["total"]) == (2, 1, 3)
    assert sorted(dids(store)) == sorted([did(1), did(2), did(5)])
    assert commands.json("retry", "--reason", "RepoNotFound")["given_up"] == 1
    assert commands.json("retry", "--did", did(0))["letters"] == 1
    assert commands.json("retry")["total"] == 0  # they are queued already


def test_cancel_takes_what_nobody_has_begun_and_nothing_else(
    commands: Commands, store: Store, schema_database: str
) -> None:
    queue(store, *(job(number) for number in range(6)))
    queue(store, job(9, reason=FetchReason.UNSEEN), job(7, reason=FetchReason.SYNC))
    queue(store, job(8, deleted=("app.bsky.feed.post/1",)))
    own = reader(store)
    first, second = own.read_new(2, 0)
    body = encode_repo_job(job(1))
    own.postpone(second, seconds=600, field=REPO_FIELD, payload=body)
    assert commands.json("cancel", did(3)) == {"cancelled": 1, "running": 0, "resyncs": 0}
    assert did(3) not in dids(store)
    assert commands.json("cancel", "--all") == {"cancelled": 5, "running": 1, "resyncs": 2}
    assert dids(store) == [did(0), did(7), did(8)]
    assert count_waiting(store) == 0
    assert [item.id for item in own_pending(own)] == [first.id]
    with Database.connect(schema_database, name="test") as database:
        rows = database.query("SELECT did, status FROM rsky_pipeline.backfill_repo ORDER BY did")
    assert rows == sorted((did(number), "cancelled") for number in (1, 2, 3, 4, 5, 9))
    assert commands.json("cancel", "--all", "--resyncs")["cancelled"] == 2
    assert own.acknowledge([first.id]) == 1


def test_the_command_as_a_process_ends_with_69_without_redis() -> None:
    command = [sys.executable, "-m", "rsky_pipeline", "backfill", "add", did(1)]
    result = subprocess.run(
        [*command, "--redis-url", "redis://127.0.0.1:1"],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 69
    assert len(result.stderr.splitlines()) == 1


def test_a_stored_repo_that_is_added_says_so_and_names_force(
    commands: Commands, store: Store, schema_database: str
) -> None:
    execute(
        schema_database,
        f"INSERT INTO rsky_pipeline.repo_floor (did, rev) VALUES ('{did(1)}', '3l2222222222z')",
    )
    result = commands.run("add", did(1), did(2))
    assert result.exit_code == 0
    assert result.stdout == "queued 2 (1 stored already)\n"
    assert "--force fetches them anyway" in result.stderr
    assert "--force" not in commands.run("add", did(1), "--force").stderr
    away = ("--database-url", "postgresql://127.0.0.1:1/x")  # only Redis is needed
    result = commands.run("add", did(3), *away)
    assert (result.exit_code, result.stdout) == (0, "queued 1\n")


def test_no_time_is_left_known_while_relays_list_repos(
    commands: Commands, store: Store, schema_database: str
) -> None:
    execute(
        schema_database,
        "INSERT INTO rsky_pipeline.backfill_repo (did, status, records) "
        "SELECT 'did:plc:' || n, 'done', 3 FROM generate_series(1, 100) n",
    )
    queue(store, job(1))
    flags = ("--set", "relay_hosts=relay.test", "--set", "enumerate_repos=true")
    listing = ListingProgress(began=1, repos=460)
    listing.save(store, LIST_REPOS, "relay.test")
    found = commands.json("status", *flags)
    assert found["listing"] == {"repos": 460, "ended": False}
    assert (found["eta_seconds"], found["queue_seconds"]) == (None, 0)
    shown = commands.run("status", *flags).stdout
    assert "time left unknown: relays are still listing repos (460 so far); 0s for" in shown
    listing.ended = 2
    listing.save(store, LIST_REPOS, "relay.test")
    found = commands.json("status", *flags)
    assert (found["listing"]["ended"], found["eta_seconds"]) == (True, 0)
    found = commands.json("status", "--set", "enumerate_repos=false")
    assert found["listing"]["ended"] is None
