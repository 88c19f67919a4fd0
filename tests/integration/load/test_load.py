"""Loading files: what is skipped, refused, deleted, resumed, and what a bad one costs."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.car import read_car, write_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.database.schema import check
from rsky_pipeline.database.selection import Block, add_blocks, lift_blocks
from rsky_pipeline.indexer.core.rejected import RejectionFilter, list_rejections
from rsky_pipeline.operations.load import worker
from rsky_pipeline.operations.load.initial import finish, postpone
from rsky_pipeline.operations.load.outcome import CarFile, FileOutcome
from rsky_pipeline.operations.load.pool import LoadPool, LoadStoppedError
from rsky_pipeline.operations.load.run import scan, tasks
from rsky_pipeline.operations.load.worker import LoadOptions, serve
from rsky_pipeline.operations.recount import Scope, recount
from rsky_pipeline.repos.stored import have_older
from tests.data import test_data
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.load.kit import (
    differences,
    host,
    load,
    load_folder,
    load_one_by_one,
    rows,
    save,
    world,
)
from tests.stores import execute, fresh_database

DID = "did:plc:w4xbfzo7kqfes5zb7r6qv3rw"
KEY = PrivateKey.from_seed("k256", b"account")
REVS = ("3jzfcijpj2z2a", "3kzfcijpj2z2a")


def car(
    records: dict[str, dict[str, Any]], *, did: str = DID, rev: str = REVS[0], drop: str = ""
) -> bytes:
    """Return a repo; `drop` leaves out the block of one record."""
    blocks = {path: cbor.encode(record) for path, record in records.items()}
    tree = Tree.build({path: Cid.of(block) for path, block in blocks.items()})
    commit = sign_commit(did, rev, tree.root, KEY)
    kept = [(Cid.of(block), block) for path, block in blocks.items() if path != drop]
    return write_car([Cid.of(commit)], [(Cid.of(commit), commit), *tree.blocks(), *kept])


def follows(*names: str) -> dict[str, dict[str, Any]]:
    """Return follow records by path."""
    return {
        f"app.bsky.graph.follow/{name}": {
            "$type": "app.bsky.graph.follow",
            "subject": f"did:plc:{name}",
            "createdAt": "2023-01-01T00:00:00.000Z",
        }
        for name in names
    }


def command(url: str, folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run the command as a process of its own."""
    return subprocess.run(
        [*_command(url, folder), *options], check=False, capture_output=True, text=True, timeout=120
    )


def _command(url: str, folder: Path) -> list[str]:
    program = [sys.executable, "-m", "rsky_pipeline", "load", str(folder), "--jobs", "2", "--json"]
    return [*program, "--database-url", url]


def test_a_newer_file_updates_and_deletes_and_an_older_one_changes_nothing(
    schema_database: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.car"
    file.write_bytes(car(follows("ann", "bob")))
    (first,) = load_folder(schema_database, tmp_path)
    assert (first.status, first.records, first.rev) == ("loaded", 2, REVS[0])
    file.write_bytes(car(follows("bob", "cyd"), rev=REVS[1]))
    (second,) = load_folder(schema_database, tmp_path)
    assert (second.status, second.deletes) == ("loaded", 1)
    newest = rows(schema_database)
    followed = {json.loads(row)["subjectDid"] for row in newest["bsky.follow"]}
    assert followed == {"did:plc:bob", "did:plc:cyd"}
    file.write_bytes(car(follows("ann", "bob")))
    load_folder(schema_database, tmp_path)
    assert differences(rows(schema_database), newest) == {}


def test_rows_go_that_are_older_than_the_file_and_not_in_it(
    schema_database: str, tmp_path: Path
) -> None:
    """Also such without a rev; neither newer ones nor those of collections that nobody indexes."""
    before = {
        "app.bsky.graph.follow/old": REVS[0], "app.bsky.graph.follow/unknown": None,
        "app.bsky.graph.follow/same": REVS[1], "app.bsky.graph.follow/newer": "7777777777777",
        "com.example.other/1": None,
    }  # fmt: skip
    with Database.connect(schema_database, name="test") as database:
        for path, rev in before.items():
            database.execute(
                'INSERT INTO record (uri, cid, did, json, "indexedAt", rev) '
                "VALUES (%s, 'c', %s, '{}', '2023-01-01T00:00:00.000Z', %s)",
                [f"at://{DID}/{path}", DID, rev],
            )
        (tmp_path / "a.car").write_bytes(car(follows("ann"), rev=REVS[1]))
        (outcome,) = load_folder(schema_database, tmp_path)
        assert (outcome.status, outcome.deletes) == ("loaded", 2)
        left = {uri.rpartition("/")[2] for (uri,) in database.query("SELECT uri FROM record")}
    assert left == {"ann", "same", "newer", "1"}


def test_two_files_of_one_account_end_in_the_newer_state(
    schema_database: str, tmp_path: Path
) -> None:
    (tmp_path / "a.car").write_bytes(car(follows("ann", "bob")))
    (tmp_path / "b.car").write_bytes(car(follows("bob"), rev=REVS[1]))
    outcomes = load_folder(schema_database, tmp_path)
    assert [outcome.status for outcome in outcomes] == ["loaded", "loaded"]
    assert len(rows(schema_database)["bsky.follow"]) == 1


def test_an_older_state_that_comes_while_a_repo_is_written_goes(
    schema_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an indexer beside the load may store it, after the load looked at the rows."""
    for name, repo in (("old", follows("ann", "bob")), ("new", follows("bob", "cyd"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.car").write_bytes(car(repo, rev=REVS[name == "new"]))

    def look(database: Database, repos: Sequence[tuple[str, str]]) -> list[bool]:
        found = have_older(database, repos)
        monkeypatch.undo()
        late = threading.Thread(target=load_folder, args=(schema_database, tmp_path / "old"))
        late.start()
        late.join()
        return found

    monkeypatch.setattr(worker, "have_older", look)
    (outcome,) = load_folder(schema_database, tmp_path / "new")
    assert (outcome.status, outcome.deletes) == ("loaded", 1)
    followed = {json.loads(row)["subjectDid"] for row in rows(schema_database)["bsky.follow"]}
    assert followed == {"did:plc:bob", "did:plc:cyd"}


def test_a_record_that_cannot_be_stored_costs_itself(schema_database: str, tmp_path: Path) -> None:
    execute(schema_database, "ALTER TABLE bsky.follow ADD CHECK (\"subjectDid\" <> 'did:plc:bob')")
    bad = follows("bad") | follows("ann", "bob")
    bad["app.bsky.graph.follow/bad"]["subject"] = "no did"
    (tmp_path / "a.car").write_bytes(car(bad))
    (outcome,) = load_folder(schema_database, tmp_path)
    assert (outcome.status, outcome.records) == ("loaded", 1)
    assert outcome.refused == {"invalid_did": 1, "bad_data": 1}
    assert len(rows(schema_database)["bsky.actor_sync"]) == 1


REFUSE = """
CREATE FUNCTION bsky.refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'out of order' USING ERRCODE = 'XX000'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION bsky.refuse();
"""


def test_a_repo_that_cannot_be_closed_is_not_loaded(schema_database: str, tmp_path: Path) -> None:
    execute(schema_database, REFUSE.format("rsky_pipeline.repo_floor"))
    (tmp_path / "a.car").write_bytes(car(follows("ann", "bob")))
    (outcome,) = load_folder(schema_database, tmp_path)
    assert (outcome.status, outcome.reason) == ("failed", "internal_error")
    assert "out of order (SQLSTATE XX000)" in (outcome.error or "")
    execute(schema_database, "DROP TRIGGER refuse ON rsky_pipeline.repo_floor")
    (outcome,) = load_folder(schema_database, tmp_path)
    assert (outcome.status, outcome.records, outcome.refused) == ("loaded", 2, {})


def test_a_server_that_refuses_every_statement_ends_the_load(
    schema_database: str, tmp_path: Path
) -> None:
    """However few records each task has: no more than a few files are given up, as failed."""
    execute(schema_database, REFUSE.format("bsky.record"))
    execute(schema_database, REFUSE.format("rsky_pipeline.repo_floor").split(";\n", 1)[1])
    for number in range(20):
        repo = car(follows("ann", "bob"), did=f"did:plc:{number:024}")
        (tmp_path / f"{number:02}.car").write_bytes(repo)
    outcomes: list[FileOutcome] = []
    with pytest.raises(DatabaseError, match="out of order"):
        load_one_by_one(schema_database, tmp_path, outcomes)
    assert len(outcomes) == 3  # three entries each: the fourth file makes ten in a row
    assert {outcome.status for outcome in outcomes} == {"failed"}


async def test_what_is_refused_depends_on_validation_and_can_be_listed(
    schema_database: str, tmp_path: Path
) -> None:
    """A datetime without a zone passes the lenient rule of the read path, and not the strict."""
    records = follows("ann", "bob")
    records["app.bsky.graph.follow/bob"]["createdAt"] = "2023-01-01T00:00:00"
    (tmp_path / "a.car").write_bytes(car(records))
    task = json.dumps([asdict(file) for file in scan(tmp_path)]) + "\n"
    answers: list[dict[str, Any]] = []
    for validation in ("strict", "lenient"):
        execute(schema_database, "DELETE FROM rsky_pipeline.repo_floor")
        chosen = Settings(database_url=schema_database, validation=validation)
        await serve(chosen, LoadOptions(verify=False), io.StringIO(task), answers.append)
        with Database.connect(schema_database, name="test") as database:
            listed = list_rejections(database, RejectionFilter(), 10)
        found = [(item.rejection.uri.rpartition("/")[2], item.rejection.reason) for item in listed]
        assert found == ([("bob", "invalid_datetime")] if validation == "strict" else [])
    assert [answer.get("records") for answer in answers] == [1, None, 2, None]
    assert answers[0]["refused"] == {"invalid_datetime": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"nonsense", "invalid_car"),
        (b"", "invalid_car"),
        (car(follows("ann", "bob"))[:-10], "invalid_car"),
        (car(follows("ann", "bob"), drop="app.bsky.graph.follow/bob"), "incomplete"),
    ],
)
def test_a_bad_file_costs_itself(
    schema_database: str, tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "a.car").write_bytes(content)
    (tmp_path / "b.car").write_bytes(car(follows("ann")))
    bad, good = load_folder(schema_database, tmp_path)
    assert (bad.status, bad.reason) == ("failed", reason)
    assert good.status == "loaded"
    with Database.connect(schema_database, name="test") as database:
        noted = database.query("SELECT status, reason FROM rsky_pipeline.load_file ORDER BY path")
    assert noted == [("failed", reason), ("loaded", None)]


def test_fixtures_that_must_be_rejected_are(schema_database: str, tmp_path: Path) -> None:
    expected = {"indigo/repos/fakermaker.repo.car": "invalid_commit",
                "indigo/repos/paul_staging.repo.car": "invalid_commit",
                "indigo/repos/repo_slice.car": "invalid_commit",
                "mst-test-suite/cars/exhaustive_001.car": "invalid_commit"}  # fmt: skip
    for name in expected:
        (tmp_path / Path(name).name).write_bytes(test_data(f"fixtures/{name}").read_bytes())
    for name in ("rsky/valid_repo.car", "repo-stream/empty.car", "jetstream/corpus/repo.car"):
        (tmp_path / Path(name).name).write_bytes(test_data(f"fixtures/{name}").read_bytes())
    outcomes = {Path(each.path).name: each for each in load_folder(schema_database, tmp_path)}
    for name in expected:
        assert outcomes[Path(name).name].status == "failed"
    assert outcomes["valid_repo.car"].rev == "3lhmydhwizp2d"
    assert outcomes["empty.car"].status == outcomes["repo.car"].status == "loaded"


@pytest.mark.slow
def test_the_command_verifies_signatures_reports_and_resumes(
    schema_database: str, tmp_path: Path
) -> None:
    made = world(30, 10)
    count = save(made, tmp_path)
    (tmp_path / "stranger.car").write_bytes(car(follows("ann")))
    with FakeHosts() as hosts:
        host(made, hosts)
        plc = ("--plc-url", hosts.url, "--set", "allow_private_hosts=true")
        dry = command(schema_database, tmp_path, *plc, "--dry-run")
        assert json.loads(dry.stdout)["files"]["loaded"] == count, dry.stderr
        assert rows(schema_database)["bsky.record"] == []
        first = command(schema_database, tmp_path, *plc)
        document = json.loads(first.stdout)
        assert first.returncode == 1
        assert document["files"]["loaded"] == count
        assert document["failed_by_reason"] == {"did_not_found": 1}
        assert document["records"] == len(rows(schema_database)["bsky.record"])
        # Somebody else's key, and another content under the same name.
        method = {"id": "#atproto", "type": "Multikey", "controller": DID}
        key = PrivateKey.from_seed("p256", b"other").multibase
        hosts.documents[DID] = {"id": DID, "verificationMethod": [method | {
            "publicKeyMultibase": key}]}  # fmt: skip
        again = json.loads(command(schema_database, tmp_path, *plc, "--retry-failed").stdout)
        assert again["failed_by_reason"] == {"bad_signature": 1}
        assert again["files"]["skipped"] == count
    trusted = command(schema_database, tmp_path, "--no-verify-signatures", "--retry-failed")
    assert trusted.returncode == 0, trusted.stderr
    assert json.loads(trusted.stdout)["files"]["loaded"] == 1


def indexes(url: str) -> list[tuple[Any, ...]]:
    """Return the definitions of all indexes."""
    with Database.connect(url, name="test") as database:
        return database.query("SELECT indexdef FROM pg_indexes ORDER BY indexdef")


def wrong_counts(url: str) -> list[object]:
    """Return the counts that differ from their rows."""
    with Database.connect(url, name="test") as database:
        batches = recount(database, Scope(), repair=False)
        return [drift for batch in batches for drift in batch.drifts]


def test_a_first_load_counts_and_builds_indexes_from_all_rows(
    schema_database: str, database_server: str, schema_template: str, tmp_path: Path
) -> None:
    """Somebody who counts as always works beside it, as an indexer does."""
    save(world(30, 60, seed=11), tmp_path)
    files, before = list(scan(tmp_path)), indexes(schema_database)
    some = len(files) // 2
    with fresh_database(database_server, schema_template) as other:
        load(other, files)
        expected = rows(other)
    with (
        Database.connect(schema_database, name="test") as database,
        Database.connect(schema_database, name="test") as second,
    ):
        assert postpone(database)
        assert postpone(database), "an interrupted one goes on"
        with pytest.raises(LoadStoppedError, match="another load"):
            postpone(second)
        missing = [item.subject for item in check(schema_database)]
        assert any("like_creator_cursor_idx" in subject for subject in missing)
        load(schema_database, files[:some], counting=False)
        load(schema_database, files[some:])
        assert len(wrong_counts(schema_database)) > 10
        made = next(sql for (sql,) in before if "like_creator_cursor_idx" in sql)
        database.execute(made)
        finish(database)
    with Database.connect(schema_database, name="test") as database:
        assert not postpone(database), "the tables have rows"
    assert indexes(schema_database) == before
    assert wrong_counts(schema_database) == []
    assert check(schema_database) == []
    assert differences(rows(schema_database), expected) == {}


def test_all_are_counted_after_those_who_have_counted_and_not_committed(
    schema_database: str,
) -> None:
    like = (
        'INSERT INTO "like" (uri, cid, creator, subject, "subjectCid", "createdAt", "indexedAt") '
        "VALUES (%s, 'c', %s, 'at://post', 'c', '2023', '2023')"
    )
    with (
        Database.connect(schema_database, name="test") as database,
        Database.connect(schema_database, name="test") as other,
        Database.connect(schema_database, name="test") as observer,
    ):
        assert postpone(database)
        other.execute(like, ["at://a/1", "a"])
        finishing = threading.Thread(target=finish, args=(database,))
        with other.transaction() as tx:
            tx.execute(like, ["at://b/1", "b"])
            tx.execute("INSERT INTO post_agg (uri, \"likeCount\") VALUES ('at://post', 1)")
            finishing.start()
            while not observer.query("SELECT FROM pg_locks WHERE NOT granted"):
                time.sleep(0.01)
        finishing.join()
        assert observer.query('SELECT uri, "likeCount" FROM post_agg') == [("at://post", 2)]


@pytest.mark.slow
def test_a_killed_load_goes_on_and_ends_in_exact_rows(
    schema_database: str, database_server: str, schema_template: str, tmp_path: Path
) -> None:
    made = world(60, 120, seed=9)
    count = save(made, tmp_path)
    with fresh_database(database_server, schema_template) as other:
        load_folder(other, tmp_path)
        expected = rows(other)
    before = indexes(schema_database)
    options = [*_command(schema_database, tmp_path), "--no-verify-signatures"]
    with Database.connect(schema_database, name="test") as database:
        process = subprocess.Popen(options, stdout=subprocess.DEVNULL, start_new_session=True)
        while not database.query("SELECT count(*) FROM record")[0][0]:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # Its processes end by themselves: at the latest when their task is done.
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%load'"
        while database.query(sessions)[0][0]:
            time.sleep(0.05)
        assert database.query("SELECT FROM rsky_pipeline.load_postponed")
    result = command(schema_database, tmp_path, "--no-verify-signatures")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)["files"]
    assert document["loaded"] + document["skipped"] + document["current"] == count
    assert differences(rows(schema_database), expected) == {}
    assert wrong_counts(schema_database) == []
    assert indexes(schema_database) == before


DYING = """
import json, os, sys
for line in sys.stdin:
    for file in json.loads(line):
        if "deadly" in file["path"]:
            os.kill(os.getpid(), 9)
        print(json.dumps(file | {"status": "loaded"}))
    print(json.dumps({"done": True}), flush=True)
"""


def test_a_file_that_kills_its_process_costs_itself() -> None:
    crashed: list[FileOutcome] = []
    program = (sys.executable, "-c", DYING)
    pool = LoadPool(Settings(), LoadOptions(), 2, crashed.append, program)
    files = [CarFile("deadly" if number == 5 else str(number), 1, 1) for number in range(20)]
    outcomes = {each.path: each for each in pool.run(iter([files[:10], files[10:]]))}
    assert len(outcomes) == 20
    assert [path for path, each in outcomes.items() if each.status == "failed"] == ["deadly"]
    assert outcomes["deadly"].reason == "crashes_worker"
    assert [each.path for each in crashed] == ["deadly"]


def test_files_are_found_below_the_folder_and_put_together(tmp_path: Path) -> None:
    for name, size in (("b/x.car", 10), ("a.car", 3), ("b/other.txt", 1), ("z.car", 13_000_000)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    found = list(scan(tmp_path))
    assert [Path(file.path).name for file in found] == ["a.car", "x.car", "z.car"]
    assert [len(task) for task in tasks(found)] == [2, 1]
    assert read_car(car({})).roots


async def test_blocked_accounts_and_collections_are_not_loaded(
    schema_database: str, tmp_path: Path
) -> None:
    """The file of a blocked account fails, so that it is loaded once the block is lifted."""
    records = {f"app.bsky.feed.like/{n}": {"$type": "app.bsky.feed.like"} for n in range(2)}
    (tmp_path / "a.car").write_bytes(car(records))
    likes, account = Block("collection", "app.bsky.feed.like"), Block("account", DID)
    with Database.connect(schema_database, name="test") as database:
        add_blocks(database, [likes, account])
        files = [asdict(file) for file in scan(tmp_path)]
        settings, answers = Settings(database_url=schema_database), list[dict[str, Any]]()

        async def load() -> dict[str, Any]:
            answers.clear()
            lines = io.StringIO(json.dumps(files) + "\n")
            await serve(settings, LoadOptions(verify=False), lines, answers.append)
            return answers[0]

        outcome = await load()
        assert (outcome["status"], outcome["reason"]) == ("failed", "blocked")
        lift_blocks(database, [account])
        outcome = await load()
        assert (outcome["status"], outcome["records"]) == ("loaded", 0)
        assert database.query("SELECT FROM record") == []
