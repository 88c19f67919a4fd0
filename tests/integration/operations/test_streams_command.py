"""`rsky-pipeline streams` as an operator types it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.streams.connection import Store
from tests.integration.operations.entries import LIVE, commit, consumer, fill, left, post


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["streams", *arguments, "--redis-url", url])


def test_list_measures_every_stream(store: Store, clean_redis: str) -> None:
    fill(store, [post(number) for number in range(200)])
    consumer(store).read_new(50, 0)
    result = run(clean_redis, "list", "--window", "0.2s", "--json")
    assert result.exit_code == 0, result.output
    live = next(item for item in json.loads(result.stdout)["streams"] if item["name"] == LIVE)
    assert (live["length"], live["high_water_mark"], live["rate_in"]) == (200, 100_000, 0.0)
    assert live["groups"][0]["lag"] == 150
    assert live["groups"][0]["pending"] == 50
    assert live["groups"][0]["rate_out"] == 0.0
    size = live["memory_bytes"] / 200
    assert live["capacity"]["bytes_each"] == size
    text = run(clean_redis, "list", "--window", "0").stdout
    assert "firehose_group" in text
    assert "bytes an entry" in text


def test_inspect_shows_what_does_not_belong(store: Store, clean_redis: str) -> None:
    fill(store, [post(1), commit(2), b"no json", post(3)])
    result = run(clean_redis, "inspect", LIVE)
    assert "purge firehose_live --type repo" in result.stdout
    assert "app.bsky.feed.post" in result.stdout
    found = json.loads(run(clean_redis, "inspect", LIVE, "--json", "--count", "3").stdout)
    assert found["by_type"] == {"repo": 1, "unreadable": 1, "create": 1}
    assert found["polluting"] == 1
    oldest = run(clean_redis, "inspect", LIVE, "--json", "--count", "1", "--oldest").stdout
    assert json.loads(oldest)["by_type"] == {"create": 1}
    assert run(clean_redis, "inspect", "label_live").stdout.startswith("label_live: 0 entries")
    assert "nothing was ever added" in run(clean_redis, "inspect", "label_live").stdout
    store.call("XADD", "of_another_program", "*", "a", "b")
    assert "1 entries, 1 looked at" in run(clean_redis, "inspect", "of_another_program").stdout


def test_an_empty_stream_says_that_everything_was_done(store: Store, clean_redis: str) -> None:
    fill(store, [post(1), post(2)])
    consumer(store).read_new(2, 0)
    store.call("XTRIM", LIVE, "MAXLEN", 0)
    text = run(clean_redis, "inspect", LIVE).stdout
    assert "2 entries were added, the last at 20" in text
    assert "removed once every group has finished them" in text
    assert json.loads(run(clean_redis, "inspect", LIVE, "--json").stdout)["added"] == 2


@pytest.mark.parametrize(
    "command",
    [("inspect",), ("trim", "--maxlen", "0"), ("reset", "--force"), ("purge", "--type", "repo")],
)
def test_an_unknown_stream_is_refused_with_the_known_ones(
    command: tuple[str, ...], clean_redis: str
) -> None:
    result = run(clean_redis, command[0], "firehose_liv", *command[1:])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "no stream 'firehose_liv'" in result.stderr
    assert "firehose_live, " in result.stderr


def test_an_unknown_type_is_refused_with_the_known_ones(store: Store, clean_redis: str) -> None:
    fill(store, [post(1)])
    result = run(clean_redis, "purge", LIVE, "--type", "repo", "--type", "posts", "--force")
    assert result.exit_code == 2
    assert "no type 'posts'" in result.stderr
    assert " repo, " in result.stderr
    assert len(left(store)) == 1


def test_refusals_have_an_exit_code_and_a_remedy(store: Store, clean_redis: str) -> None:
    fill(store, [post(1), commit(2)])
    consumer(store)
    result = run(clean_redis, "trim", LIVE, "--maxlen", "0")
    assert result.exit_code == 1
    assert "kept, because consumers need them: 2 entries (1 create, 1 repo" in result.stderr
    result = run(clean_redis, "reset", LIVE)
    assert result.exit_code == 1
    assert "--force does it anyway" in result.stderr
    assert run(clean_redis, "trim", LIVE).exit_code == 2
    assert run(clean_redis, "trim", LIVE, "--keep", "soon").exit_code == 2
    assert run(clean_redis, "purge", LIVE, "--type", "create").exit_code == 1
    assert len(left(store)) == 2
    result = run(clean_redis, "purge", LIVE, "--type", "repo", "--json")
    assert (result.exit_code, json.loads(result.stdout)["removed"]) == (0, 1)
    result = run(clean_redis, "trim", LIVE, "--keep", "0s", "--force")
    assert result.exit_code == 0
    assert "without being finished: 1 entries (1 create; 1 unread by" in result.stdout
    assert left(store) == []


def test_groups_repair_tells_what_it_did(store: Store, clean_redis: str) -> None:
    assert run(clean_redis, "groups", "repair").stdout == "the groups are good\n"
    fill(store, [post(1)])
    found = json.loads(run(clean_redis, "groups", "repair", "--dry-run", "--json").stdout)
    assert [item["what"] for item in found["found"]] == ["missing_group"]
    result = run(clean_redis, "groups", "repair")
    assert result.exit_code == 0
    assert "repaired" in result.stdout
    consumer(store).read_new(1, 0)
    result = run(clean_redis, "groups", "repair", "--idle", "0")
    assert result.exit_code == 1
    assert "start a worker" in result.stdout


def test_a_store_that_is_away_is_one_line(tmp_path: Path) -> None:
    result = run(f"unix://{tmp_path}/none.sock", "list")
    assert result.exit_code == 69
    assert "check redis_url and the server" in result.stderr
    assert len(result.stderr.splitlines()) == 1
