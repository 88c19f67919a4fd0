"""`rsky-pipeline block` on a real Valkey, a real PostgreSQL and a host on loopback."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.database.selection import Block, lift_blocks, load_selection
from rsky_pipeline.operations import blocking
from rsky_pipeline.streams.repo_job import FetchReason, decode_repo_job
from rsky_pipeline.streams.selection import SELECTION
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import document
from tests.integration.indexer.conftest import net, tables
from tests.integration.indexer.kit import Network, Tables, did_of, recounted
from tests.integration.indexer.test_repo_commands import serve
from tests.integration.indexer.worker import entries
from tests.stores import redis_client

__all__ = ["net", "tables"]  # fixtures
Run = Callable[..., Result]
ANN, BOB, CYD = did_of("ann"), did_of("bob"), did_of("cyd")
OURS = blocking.TAKEDOWN
NUMERALS = "abcdefghijklmnopqrst"


class ListingHosts(FakeHosts):
    """Also lists repos."""

    listed: tuple[str, ...] | None = None

    def _answer(self, path: str) -> Any:
        if "listRepos" not in path or self.listed is None:
            return super()._answer(path)
        repos = [{"did": did, "head": "bafy", "rev": "3jzfcijpj2z2a", "active": did != CYD}
                 for did in self.listed]  # fmt: skip
        return 200, {}, json.dumps({"repos": repos}).encode()


@pytest.fixture
def hosts() -> Iterator[ListingHosts]:
    with ListingHosts() as running:
        yield running


@pytest.fixture
def run(
    clean_redis: str, tables: Tables, hosts: FakeHosts, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:  # fmt: skip
    monkeypatch.setattr(blocking, "TAKEN_UP_SECONDS", 0.0)
    flags = ["--redis-url", clean_redis, "--database-url", tables.url, "--plc-url", hosts.url,
             "--data-dir", str(tmp_path), "--set", "allow_private_hosts=true"]  # fmt: skip

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, *flags])

    return command


def listed(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("block", "list", "--json").stdout)["blocks"]
    return found


def jobs(redis_url: str) -> dict[str, FetchReason]:
    found = (decode_repo_job(entry[b"repo"]) for entry in entries(redis_url, "repo_backfill"))
    return {job.did: job.reason for job in found}


def published(redis_url: str) -> dict[str, Any]:
    with redis_client(redis_url) as client:
        found: dict[str, Any] = json.loads(client.hget(f"{SELECTION}firehose_group", "content"))
        return found


def taken_down(tables: Tables) -> dict[str, str | None]:
    return dict(tables.rows("actor", 'did, "takedownRef"'))


def test_accounts_are_blocked_listed_and_lifted(
    run: Run, tables: Tables, net: Network, clean_redis: str
) -> None:
    tables.apply(net.post("ann"))
    result = run("block", "add", ANN, f"at://{BOB}", "--reason", "a\nspammer\x1b[31m")
    assert result.exit_code == 0, result.output
    assert f"blocked {ANN}" in result.output
    assert published(clean_redis)["accounts"] == [ANN, BOB]
    found = {block["subject"]: block for block in listed(run)}
    assert found.keys() == {ANN, BOB}
    assert found[ANN]["kind"] == "account"
    assert found[ANN]["rows"] == "keep"
    assert found[ANN]["reason"] == "a spammer\\x1b[31m"
    assert found[ANN]["added_by"]
    assert "spammer" in run("block", "list").output
    again = run("block", "add", ANN)
    assert again.exit_code == 0
    assert f"{ANN} is blocked already" in again.output
    assert listed(run)[0]["reason"], "an empty reason leaves the one of before"
    assert taken_down(tables) == {ANN: None}
    result = run("block", "remove", ANN, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["queued"] == 1
    assert jobs(clean_redis) == {ANN: FetchReason.OPERATOR}
    assert [block["subject"] for block in listed(run)] == [BOB]
    assert published(clean_redis)["accounts"] == [BOB]
    checks = "SELECT did, forced FROM rsky_pipeline.handle_check WHERE forced"
    assert tables.database.query(checks) == [(ANN, True)]
    assert run("block", "remove", ANN).exit_code == 1
    assert run("block", "remove", BOB, "--no-repair").exit_code == 0
    assert run("block", "list").output == "nothing is blocked\n"
    assert jobs(clean_redis).keys() == {ANN}


def test_a_takedown_hides_and_is_lifted_where_it_is_ours(
    run: Run, tables: Tables, net: Network
) -> None:
    tables.apply(net.post("ann"), net.post("bob"))
    tables.database.execute("UPDATE actor SET \"takedownRef\" = 'T' WHERE did = %s", (BOB,))
    assert run("block", "add", ANN, BOB).exit_code == 0
    result = run("block", "add", ANN, BOB, "--rows", "takedown", "--json")
    assert json.loads(result.stdout)["hidden"] == 1
    assert taken_down(tables) == {ANN: OURS, BOB: "T"}
    again = run("block", "add", ANN, "--reason", "spam")
    assert f"{ANN} is blocked already" in again.output
    assert {block["rows"] for block in listed(run)} == {"takedown"}, "rows stay hidden"
    assert run("block", "remove", ANN, BOB).exit_code == 0
    assert taken_down(tables) == {ANN: None, BOB: "T"}


def test_a_purge_removes_rows_and_the_repo_comes_back_at_the_same_rev(
    run: Run, tables: Tables, net: Network
) -> None:
    hers, theirs = net.post("ann"), net.post("bob")
    like = net.like("ann", theirs)
    tables.apply(hers, theirs, like, net.like("bob", hers))
    assert run("block", "add", ANN, "--rows", "purge").exit_code == 2, "it asks"
    assert listed(run) == []
    assert run("block", "add", ANN, "--rows", "purge", "--yes").exit_code == 0
    assert {did for (did,) in tables.rows("record", "did")} == {BOB}
    assert tables.counts(theirs) == (0, 0, 0, 0)
    recounted(tables)
    lift_blocks(tables.database, [Block("account", ANN)])  # and the command was killed
    assert run("block", "add", ANN).exit_code == 0
    assert listed(run)[0]["rows"] == "purge", "its purge is still to be forgotten"
    assert run("block", "remove", ANN).exit_code == 0
    assert tables.database.query("SELECT FROM rsky_pipeline.repo_floor") == []
    tables.apply(hers, like)
    assert tables.counts(theirs) == (1, 0, 0, 0)
    assert tables.profile_counts("ann")[2] == 1
    recounted(tables)


def test_thousands_of_accounts_are_blocked_from_a_file(
    run: Run, tables: Tables, net: Network, tmp_path: Path
) -> None:
    tables.apply(net.post("ann"))
    file = tmp_path / "spam.csv"
    names = (f"spam{a}{b}{c}" for a in "abc" for b in NUMERALS for c in NUMERALS)
    file.write_text("did\n" + "".join(f"{did_of(name)}\n" for name in names))
    result = run("block", "add", "--file", str(file), ANN, "--rows", "takedown")
    assert result.exit_code == 0, result.output
    assert "blocked 1,181 more" in result.output
    assert len(load_selection(tables.database).accounts) == 1_201
    assert taken_down(tables) == {ANN: OURS}
    assert run("block", "remove", "--file", str(file), "--no-repair").exit_code == 0
    assert load_selection(tables.database).accounts == {ANN}


PURGE, ERASE = ("block", "add", ANN, "--rows", "purge", "--yes"), ("db", "purge", ANN, "--yes")


@pytest.mark.parametrize(
    "commands",
    [
        (ERASE, ("block", "add", ANN)),
        (ERASE, PURGE),
        (PURGE, ERASE),
        (ERASE, PURGE, PURGE),
        (ERASE, PURGE, ("block", "remove", ANN), PURGE),
    ],
)
def test_an_erasure_on_request_outlives_a_block(
    run: Run, tables: Tables, net: Network, commands: Sequence[tuple[str, ...]]
) -> None:
    hers = net.post("ann")
    tables.apply(hers)
    for words in commands:
        assert run(*words).exit_code == 0
    assert run("block", "remove", ANN).exit_code == 0
    tables.apply(hers)
    assert tables.rows("record") == []


def test_a_host_is_blocked_with_the_accounts_that_are_known(
    run: Run, tables: Tables, net: Network, hosts: ListingHosts, clean_redis: str
) -> None:
    """By its list, and by what was fetched from it; others keep their rows."""
    dan = net.post("dan")
    tables.apply(net.post("ann"), net.post("bob"), dan)
    sql = "INSERT INTO rsky_pipeline.backfill_repo (did, status, host) VALUES (%s, 'done', %s)"
    tables.database.execute(sql, (BOB, hosts.url))
    tables.database.execute(sql, (did_of("dan"), "https://other.example.com"))
    for did in (ANN, BOB, CYD):
        hosts.add(did, document(did), b"")
    liar = did_of("eve")  # it lists an account that lives elsewhere
    with FakeHosts() as other:
        other.add(liar, document(liar), b"")
        hosts.documents[liar] = other.documents[liar]
    tables.apply(net.post("eve"))
    hosts.listed = (ANN, CYD, liar)
    host = parse_endpoint(hosts.url).key
    result = run("block", "add", "--host", hosts.url, "--rows", "takedown", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["hidden"] == 2
    assert taken_down(tables) == {ANN: OURS, BOB: OURS, did_of("dan"): None, liar: None}
    assert published(clean_redis)["hosts"] == [host]
    assert load_selection(tables.database).queued.keys() == {ANN, BOB, CYD}
    (block,) = listed(run)
    assert (block["subject"], block["accounts"]) == (host, 3)
    assert run("block", "add", BOB, "--rows", "takedown").exit_code == 0
    hosts.listed = None
    result = run("block", "remove", "--host", host)
    assert result.exit_code == 1
    assert "does not list its repos" in result.output
    assert jobs(clean_redis).keys() == {ANN, CYD}
    assert taken_down(tables) == {ANN: None, BOB: OURS, did_of("dan"): None, liar: None}
    assert tables.database.query("SELECT FROM rsky_pipeline.blocked_account") == []


def test_a_collection_is_blocked_and_purged(
    run: Run, tables: Tables, net: Network, clean_redis: str
) -> None:
    post = net.post("ann")
    likes = [net.like("bob", post), net.like("bob", post), net.like("cyd", post)]
    tables.apply(post, *likes, net.follow("bob", "ann"))
    assert run("block", "add", "--collection", "app.bsky.feed.like").exit_code == 0
    assert len(tables.rows("like")) == 2
    purge = ("--rows", "purge", "--yes", "--json")
    result = run("block", "add", "--collection", "app.bsky.feed.like", *purge)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["records"], found["accounts"]) == (3, 2)
    assert tables.rows("like") == tables.rows("duplicate_record") == []
    assert len(tables.rows("record")) == 2
    assert tables.counts(post) == (0, 0, 0, 0)
    assert not [reason for reason, _ in tables.notified("ann") if reason == "like"]
    recounted(tables)
    assert run("block", "add", "--collection", "app.bsky.graph.*").exit_code == 0
    assert [block["subject"] for block in listed(run)] == ["app.bsky.feed.like", "app.bsky.graph.*"]
    assert run("block", "remove", "--collection", "app.bsky.feed.like").exit_code == 0
    assert jobs(clean_redis).keys() == {ANN, BOB, CYD}
    tables.apply(*likes)
    assert tables.counts(post) == (2, 0, 0, 0)


def test_a_lift_that_was_killed_is_repeated(
    run: Run, tables: Tables, net: Network, clean_redis: str
) -> None:
    tables.apply(net.post("ann"))
    assert run("block", "add", ANN, "--rows", "takedown").exit_code == 0
    lift_blocks(tables.database, [Block("account", ANN)])
    (block,) = listed(run)
    assert block["lifted"]
    assert f"repeat `rsky-pipeline block remove {ANN}" in run("block", "list").output
    assert run("block", "remove", ANN).exit_code == 0
    assert taken_down(tables) == {ANN: None}
    assert jobs(clean_redis).keys() == {ANN}
    assert listed(run) == []


def test_other_commands_say_that_an_account_is_blocked_or_erased(
    run: Run, tables: Tables, net: Network, hosts: ListingHosts, clean_redis: str
) -> None:
    """`index-repo`, `backfill add`, `db compare` and `trace`."""
    post = net.post("ann")
    serve(hosts, "ann", [post, net.like("ann", post)], 5)
    assert run("block", "add", ANN, "--collection", "app.bsky.feed.like").exit_code == 0
    result = run("index-repo", ANN)
    assert result.exit_code == 1
    assert "blocked: the account is blocked" in result.output
    result = run("backfill", "add", ANN, BOB, "--force")
    assert result.exit_code == 0, result.output
    assert "queued 1 (1 blocked)" in result.output
    assert jobs(clean_redis).keys() == {BOB}
    compared = run("db", "compare", ANN)
    assert compared.exit_code == 6
    assert f"{ANN}: it is blocked" in compared.output
    assert f"run `rsky-pipeline block remove {ANN}" in compared.output
    assert "run `rsky-pipeline index-repo" not in compared.output, "which is refused"
    found = json.loads(run("trace", ANN, "--json").stdout)
    assert found["verdict"]["state"] == "blocked"
    assert [block["subject"] for block in found["database"]["blocks"]] == [ANN]
    assert run("block", "remove", ANN, "--no-repair").exit_code == 0
    assert run("block", "add", "--host", hosts.url).exit_code in {0, 1}
    (remedy,) = json.loads(run("db", "compare", ANN, "--json").stdout)["repos"][0]["remedies"]
    host = parse_endpoint(hosts.url).key
    assert remedy.startswith(f"rsky-pipeline block remove --host {host}")
    assert run("block", "remove", "--host", hosts.url, "--no-repair").exit_code in {0, 1}
    assert run("index-repo", ANN).exit_code == 0
    assert tables.rows("record", "uri") == [(post.uri,)], "not the like"
    assert run("db", "compare", ANN).exit_code == 0
    assert run("block", "add", "--host", hosts.url).exit_code in {0, 1}
    assert "is blocked" in run("backfill", "add", "--pds", hosts.url).output
    assert run("block", "remove", "--host", hosts.url, "--no-repair").exit_code in {0, 1}
    assert run("db", "purge", ANN, "--yes").exit_code == 0
    for command in (("index-repo", ANN), ("backfill", "add", ANN), ("trace", ANN)):
        assert "erased up to" in run(*command).output, command
    compared = run("db", "compare", ANN)
    assert compared.exit_code == 0, "nothing brings it back, and nothing is to be repaired"
    assert f"{ANN} was erased up to" in compared.output
    assert "run `" not in compared.output


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("--host", "*.com"), ("--host", "a b"), ("--collection", "x"),
        ("--collection", "app.*"), ("--collection", "app.bsky.feed.post*"), ("did:plc:x",),
        (ANN, "--reason", "x" * 201),
        ("--collection", "app.bsky.feed.like", "--rows", "takedown"), (ANN, "--rows", "hide"),
    ],
)  # fmt: skip
def test_what_cannot_be_blocked_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("block", "add", *arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert listed(run) == []
