"""What is wrong is named with a remedy, and the remedy removes it: `db compare`, `--rebuild`."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.cli import main
from rsky_pipeline.database.bulk import quoted
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import TransactionConflictError
from rsky_pipeline.indexer.accounts.actors import lock_actors
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.values import Delete
from rsky_pipeline.observability.build import build
from rsky_pipeline.operations import rebuild as rebuild_module
from rsky_pipeline.operations.derived_rows import RowDifference
from rsky_pipeline.operations.rebuild import Rebuild, Report, write_again
from rsky_pipeline.operations.recount import Drift
from tests.data import test_data
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.indexer.kit import Event, Network, Put, Tables, did_of, mention, recounted
from tests.integration.indexer.snapshot import Snapshot, differences, snapshot
from tests.integration.indexer.test_compare import accounts
from tests.integration.indexer.test_compare import differences as compared
from tests.integration.indexer.test_recorded import check_official, feed, read_all
from tests.integration.indexer.test_repo_commands import serve
from tests.stores import redis_client

Run = Callable[..., Result]


@pytest.fixture
def hosts() -> Iterator[FakeHosts]:
    with FakeHosts() as running:
        yield running


@pytest.fixture
def folder() -> Path:
    return test_data("recorded")


def options(tables: Tables, hosts: FakeHosts, folder: Path) -> list[str]:
    return [
        "--database-url", tables.url, "--plc-url", hosts.url, "--data-dir", str(folder),
        "--set", "allow_private_hosts=true", "--set", "backfiller_host_rate=1000",
    ]  # fmt: skip


@pytest.fixture
def run(tables: Tables, hosts: FakeHosts, tmp_path: Path) -> Run:
    def command(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, *options(tables, hosts, tmp_path)])

    return command


def tell(net: Network) -> list[Put]:
    """Return what ann has written, with rows in nearly every table; others answer."""
    hers, theirs = net.post("ann"), net.post("bob")
    blob = {"$type": "blob", "ref": Cid.of(b"cat", RAW), "mimeType": "image/png", "size": 3}
    image = {"image": blob, "alt": "a cat"}
    return [
        hers, theirs,
        net.put("ann", "app.bsky.actor.profile", {"displayName": "ann"}, "self"),
        net.post("ann", "look", langs=["en"], facets=mention("cyd"),
                 embed={"$type": "app.bsky.embed.images", "images": [image]}),
        net.reply("ann", theirs), net.reply("ann", hers), net.quote("ann", theirs),
        net.like("ann", theirs), net.like("ann", theirs), net.repost("ann", theirs),
        net.follow("ann", "bob"), net.reply("bob", hers), net.like("bob", hers),
        net.put("ann", "app.bsky.feed.threadgate", {"post": hers.uri}, hers.rkey),
        net.put("ann", "app.bsky.graph.verification",
                {"subject": did_of("bob"), "handle": "bob.test", "displayName": "bob"}),
    ]  # fmt: skip


ANN = did_of("ann")
ANNS_LIKE = "FROM \"like\" WHERE creator = '{ann}'"
# What somebody does to the tables, and the table that is to be named for it.
TROUBLES = {
    "a deleted like": (f"DELETE {ANNS_LIKE}", "like"),
    "a changed text": ("UPDATE post SET text = 'x' WHERE creator = '{ann}'", "post"),
    "a deleted profile": ("DELETE FROM profile", "profile"),
    "a deleted post": ("DELETE FROM post WHERE uri = '{post}'", "post"),
    "an emptied record": ("UPDATE record SET json = '{{}}' WHERE uri = '{post}'", "record"),
    "a record that is no JSON": ("UPDATE record SET json = '{{' WHERE uri = '{post}'", "record"),
    "a record with another CID": (
        "UPDATE record SET cid = (SELECT max(cid) FROM record) WHERE uri = '{post}'",
        "record",
    ),
    "a deleted record": ("DELETE FROM record WHERE uri = '{post}'", "post"),
    "a wrong count": ("UPDATE profile_agg SET \"postsCount\" = 9 WHERE did = '{ann}'", "count"),
    "a missing count": ("DELETE FROM profile_agg WHERE did = '{ann}'", "count"),
    "a missing notification": (
        "DELETE FROM notification WHERE author = '{ann}' AND reason = 'like'",
        "notification",
    ),
    "missing notifications": (
        "DELETE FROM notification WHERE author = '{ann}' AND reason <> 'verified'",
        "notification",
    ),
    "a notification twice": (
        """INSERT INTO notification (did, "recordUri", "recordCid", author, reason, "sortAt")
        SELECT did, "recordUri", "recordCid", author, reason, "sortAt"
        FROM notification WHERE author = '{ann}' AND reason = 'follow'""",
        "notification",
    ),
    "a false notification": (
        "UPDATE notification SET did = '{ann}' WHERE author = '{ann}' AND reason = 'repost'",
        "notification",
    ),
    "an extra like": (
        f"""INSERT INTO "like" (uri, cid, creator, subject, "subjectCid", "createdAt", "indexedAt")
        SELECT uri || 'x', cid, creator, subject || 'x', "subjectCid", "createdAt", "indexedAt"
        {ANNS_LIKE}""",
        "like",
    ),
    "an extra post": (
        """INSERT INTO post (uri, cid, creator, text, "createdAt", "indexedAt")
        SELECT uri || 'x', cid, creator, text, "createdAt", "indexedAt" FROM post
        WHERE uri = '{post}'""",
        "post",
    ),
    "a deleted duplicate": ("DELETE FROM duplicate_record", "duplicate_record"),
    "a duplicate that stands": (
        """UPDATE "like" SET uri = d.uri, cid = d.cid FROM duplicate_record d
        WHERE creator = '{ann}'""",
        "like",
    ),
    "a missing image": ("DELETE FROM post_embed_image", "post_embed_image"),
    "an image too many": (
        """INSERT INTO post_embed_image SELECT "postUri", '7', "imageCid", alt
        FROM post_embed_image""",
        "post_embed_image",
    ),
    "a missing quote": ("DELETE FROM quote", "quote"),
    "missing feed items": ("DELETE FROM feed_item WHERE \"originatorDid\" = '{ann}'", "feed_item"),
    "a false feed item": (
        "UPDATE feed_item SET \"postUri\" = 'x' WHERE type = 'repost'",
        "feed_item",
    ),
    "a missing place in a thread": ("DELETE FROM op_thread_reply", "op_thread_reply"),
    "a place too many in a thread": (
        """INSERT INTO op_thread_reply SELECT (jsonb_populate_record(
            t, jsonb_build_object('uri', '{post}'))).* FROM op_thread_reply t LIMIT 1""",
        "op_thread_reply",
    ),
    "a flag that is missing": (
        "UPDATE post SET \"hasThreadGate\" = NULL WHERE creator = '{ann}'",
        "post",
    ),
    "a flag too many": ("UPDATE post SET \"hasPostGate\" = true WHERE creator = '{ann}'", "post"),
    "a false violation": (
        """UPDATE post SET "violatesThreadGate" = true, "violatesEmbeddingRules" = true,
        "invalidReplyRoot" = true WHERE creator = '{ann}'""",
        "post",
    ),
    "a deleted gate": ("DELETE FROM thread_gate", "thread_gate"),
    "a deleted follow": ("DELETE FROM follow", "follow"),
    "a false follow": ("UPDATE follow SET \"subjectDid\" = '{ann}'", "follow"),
    "a deleted verification": ("DELETE FROM verification", "verification"),
}


SEEN_AGAIN = {"a record with another CID", "a deleted record"}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_each_trouble_is_named_and_its_remedy_removes_it(
    run: Run, tables: Tables, hosts: FakeHosts, net: Network, trouble: str
) -> None:
    told = tell(net)
    tables.apply_each(told)
    serve(hosts, "ann", [put for put in told if put.who == "ann"], 40)
    assert run("index-repo", ANN).exit_code == 0
    tables.database.execute("DELETE FROM rsky_pipeline.repo_floor")  # as if all had come live
    tables.database.execute("DELETE FROM rsky_pipeline.backfill_repo")
    for put in told:
        sql = "UPDATE record SET rev = %s WHERE uri = %s"
        tables.database.execute(sql, (put.rkey if put.rkey != "self" else told[2].rkey, put.uri))
    assert run("db", "compare", ANN).exit_code == 0, run("db", "compare", ANN).output
    right = snapshot(tables, exact=True)
    sql, table = TROUBLES[trouble]
    tables.database.execute(sql.format(ann=ANN, post=told[3].uri))
    before = run("db", "compare", ANN, "--json")
    assert before.exit_code == 6, before.output
    (found,) = json.loads(before.stdout)["repos"]
    assert found["differences"] > 0
    named = set(found["rows"]) | ({"count"} if found["counts"] else set())
    assert table in named | {"record" for of in found["collections"].values() if of["different"]}
    assert found["remedies"]
    for remedy in found["remedies"]:
        done = run(*remedy.split(" ")[1:])
        assert done.exit_code == 0, (remedy, done.output)
    after = run("db", "compare", ANN)
    assert after.exit_code == 0, after.output
    assert run("db", "recount", "--all").exit_code == 0
    recounted(tables)
    for each in ("rebuild", "rejected_record", "repo_floor"):
        right.pop(each, None)
    if trouble in SEEN_AGAIN:
        return  # when it was first seen is lost with it
    now = snapshot(tables, exact=True)
    assert not (wrong := real_differences(now, right)), wrong


def real_differences(now: Snapshot, right: Snapshot) -> dict[str, Any]:
    """Compare without ids, revs, what the repo itself left, and a NULL that says the same."""
    ours, theirs = plain(now), plain(right)
    return {
        table: rows for table, rows in differences(ours, theirs).items()
        if table not in {"rebuild", "repo_floor", "actor_sync", "handle_check"}
    }  # fmt: skip


def loaded(text: str) -> Any:
    """Return a record without the order of its keys, which differs between events and repos."""
    return json.dumps(json.loads(text), sort_keys=True)


def plain(found: Snapshot) -> Snapshot:
    flags = ("hasThreadGate", "hasPostGate", "invalidReplyRoot", "violatesThreadGate",
             "violatesEmbeddingRules")  # fmt: skip
    return {
        name: sorted(
            (
                {
                    key: bool(value) if key in flags else loaded(value) if key == "json" else value
                    for key, value in row.items()
                    if key not in {"id", "rev"}
                }
                for row in rows
            ),
            key=repr,
        )
        for name, rows in found.items()
    }


def test_a_rebuild_is_for_one_collection_if_asked(run: Run, tables: Tables, net: Network) -> None:
    tables.apply_each(tell(net))
    tables.database.execute('DELETE FROM "like"')
    tables.database.execute("DELETE FROM follow")
    follows = ("--collection", "app.bsky.graph.follow")
    result = run("index-repo", "--rebuild", "--all", *follows, "--json")
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout)
    assert done["rows"] == {"follow missing": 1}
    assert tables.rows("like") == []
    assert run("index-repo", "--rebuild", "--all").exit_code == 0
    assert len(tables.rows("like")) == 2
    assert run("db", "recount", "--all", "--dry-run").exit_code == 0
    assert run("index-repo", "--rebuild", "--all", "--collection", "x.y.z").exit_code == 2
    assert run("index-repo", "--all").exit_code == 2
    assert run("index-repo", "--rebuild", ANN, "--all").exit_code == 2
    assert run("index-repo", ANN, *follows).exit_code == 2


@pytest.mark.parametrize(
    ("made", "whole", "newest", "is_news"),
    [
        (-1, None, 0, True),
        (-1, -2, -1, True),
        (-1, -1, 0, False),  # it came with the repo
        (-1, 0, 0, False),
        (-1, None, -2, False),  # above every commit that was applied as a whole
        (-30, None, 0, False),  # it came late, from history or another indexer
        (5, None, 6, False),
    ],
)
def test_nobody_is_notified_of_what_may_have_been_no_news(
    run: Run, tables: Tables, net: Network, made: int, whole: int | None, newest: int, is_news: bool
) -> None:
    """The revs are so many minutes later than the record was indexed."""
    like = unnotified_like(tables, net, made, whole, newest)
    assert run("index-repo", "--rebuild", ANN).exit_code == 0
    assert tables.notified("bob") == [("like", like.uri)] * is_news


def test_a_rebuild_that_is_to_notify_nobody_writes_only_the_row(
    tables: Tables, net: Network
) -> None:
    like = unnotified_like(tables, net, -1, None, 0)
    tables.database.execute('DELETE FROM "like"')
    everything = registry.load()
    Rebuild(tables.database, "x", everything, everything, 0, notify=False).rebuild(ANN)
    assert tables.rows("like", "uri") == [(like.uri,)]
    assert tables.notified("bob") == []


def test_damaged_records_are_counted_and_left(run: Run, tables: Tables, net: Network) -> None:
    post = net.post("ann")
    tables.apply(post)
    tables.database.execute("UPDATE record SET json = '{}'")
    result = run("index-repo", "--rebuild", ANN, "--json")
    done = json.loads(result.stdout)
    assert (done["damaged"], done["left"], done["written"]) == (1, 0, 0)


def test_what_rows_count_is_counted_with_them(run: Run, tables: Tables, net: Network) -> None:
    post = net.post("bob")
    tables.apply(post, net.like("ann", post))
    tables.database.execute('DELETE FROM "like"')
    tables.database.execute("DELETE FROM post_agg")
    assert run("index-repo", "--rebuild", ANN).exit_code == 0
    assert tables.counts(post) == (1, 0, 0, 0)


def test_a_rebuild_goes_on_behind_the_accounts_that_are_done(
    tables: Tables, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_module, "SAVE_SECONDS", 0.0)
    tables.apply(net.post("ann"), net.post("bob"), net.post("cyd"))
    everything = registry.load()

    def begin() -> Rebuild:
        return Rebuild(tables.database, "x", everything, everything, 0)

    def killed(report: Report) -> None:
        if report.accounts == 2:
            raise KeyboardInterrupt

    first = begin()
    with pytest.raises(KeyboardInterrupt):
        first.run(first.accounts(), killed)
    again = begin()
    assert list(again.accounts()) == [did_of("cyd")]
    again.run(again.accounts(), lambda _: None)
    assert again.report.accounts == 3
    assert not begin().resumed


def test_a_rebuild_that_another_version_began_begins_anew(
    tables: Tables, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.apply(net.post("ann"), net.post("bob"))
    everything = registry.load()
    first = Rebuild(tables.database, "x", everything, everything, 0)
    first.report.accounts = 1
    first.after = min(ANN, did_of("bob"))
    first.save()
    assert Rebuild(tables.database, "x", everything, everything, 0).resumed
    fixed = replace(build(), version="9.9.9")
    monkeypatch.setattr(rebuild_module, "build", lambda: fixed)
    again = Rebuild(tables.database, "x", everything, everything, 0)
    assert (again.outdated, again.resumed, again.report.accounts) == (True, False, 0)
    assert sorted(again.accounts()) == sorted([ANN, did_of("bob")])


def test_an_account_in_a_batch_is_waited_for(tables: Tables, net: Network) -> None:
    post = net.post("ann")
    tables.apply(post)
    with (
        tables.database.transaction() as batch,
        Database.connect(tables.url, name="rebuild", lock_timeout_ms=200) as other,
    ):
        lock_actors(batch, {ANN})
        with pytest.raises(TransactionConflictError):
            write_again(other, ANN, [post.uri], registry.load())


def unnotified_like(tables: Tables, net: Network, made: int, whole: int | None, newest: int) -> Put:
    """Return a like whose notification is gone, and whose revs are so many minutes later."""

    def rev(minutes: int) -> str:
        return tid_from(1_767_225_600_000_000 + minutes * 60_000_000)

    post = net.post("bob")
    like = net.like("ann", post)
    tables.apply(post, like)
    database = tables.database
    assert tables.notified("bob") == [("like", like.uri)]
    database.execute("DELETE FROM notification")
    database.execute(
        """UPDATE record SET rev = %s, "indexedAt" = '2026-01-01T00:00:00.000Z' WHERE uri = %s""",
        [rev(made), like.uri],
    )
    database.execute(
        """UPDATE "like" SET "indexedAt" = '2026-01-01T00:00:00.000Z' WHERE uri = %s""", [like.uri]
    )
    database.execute('UPDATE actor_sync SET "repoRev" = %s WHERE did = %s', [rev(newest), ANN])
    if whole is not None:
        sql = "INSERT INTO rsky_pipeline.repo_floor (did, rev) VALUES (%s, %s)"
        database.execute(sql, [ANN, rev(whole)])
    return like


# One per cent of the rows of every derived table, and at least this many.
LEAST = 3
KEYS = {
    "like": ("uri",), "repost": ("uri",), "follow": ("uri",), "post": ("uri",),
    "profile": ("uri",), "actor_block": ("uri",), "list": ("uri",), "list_item": ("uri",),
    "list_block": ("uri",), "feed_generator": ("uri",), "starter_pack": ("uri",),
    "labeler": ("uri",), "thread_gate": ("uri",), "post_gate": ("uri",), "feed_item": ("uri",),
    "quote": ("uri",), "post_embed_image": ("postUri", "position"),
    "post_embed_external": ("postUri",), "post_embed_video": ("postUri",),
    "post_embed_record": ("postUri", "embedUri"), "duplicate_record": ("uri",),
    "post_agg": ("uri",), "profile_agg": ("did",), "verification": ("uri",),
    "op_thread_reply": ("uri",), "notification": ("id",),
}  # fmt: skip
# The column that names the record of a row, where that is not its first key.
OWNERS = {"notification": "recordUri"}
# A row of zeros says the same as none. Counts of posts that are gone are of no account any more:
# `db recount --all` looks at them.
TELLING = {
    "post_agg": '"likeCount" + "replyCount" + "repostCount" + "quoteCount" > 0 AND EXISTS ('
    "SELECT FROM record WHERE record.uri = post_agg.uri)",
    "profile_agg": '"followersCount" + "followsCount" + "postsCount" > 0',
}
# Who was to be notified is not known of every record afterwards; a notification too many always is.
TWICE = """
INSERT INTO notification (did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt")
SELECT did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt"
FROM notification WHERE id = %s
"""
FALSE = {
    "cid": "'bafyfalse'", "text": "'false'", "createdAt": "'1980-01-01T00:00:00.000Z'",
    "likeCount": '"likeCount" + 7', "followersCount": '"followersCount" + 7', "alt": "'false'",
    "embedCid": "'bafyfalse'", "title": "'false'",
}  # fmt: skip


def falsify(tables: Tables, chance: random.Random, deleted_later: set[str]) -> set[tuple[str, str]]:
    """Delete or change rows at random; return the table and the record, or account, of each.

    A place in a thread outlives its post. One that is lost comes back only while the post is there.
    """
    done: set[tuple[str, str]] = set()
    for table, keys in KEYS.items():
        owner = OWNERS.get(table, keys[0])
        which = f'SELECT {quoted([*keys, owner])} FROM "{table}" WHERE {TELLING.get(table, "true")}'
        rows = sorted(tables.database.query(which))
        if table == "op_thread_reply":
            rows = [row for row in rows if row[-1] not in deleted_later]
        chosen = chance.sample(rows, min(len(rows), max(LEAST, len(rows) // 100)))
        sql = "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
        columns = {row[0] for row in tables.database.query(sql, (table,))} & set(FALSE)
        where = " AND ".join(f'"{key}" = %s' for key in keys)
        for *key, record in chosen:
            done.add((table, str(record)))
            if table == "notification":
                tables.database.execute(TWICE, key)
            elif not columns or chance.random() < 0.5:
                tables.database.execute(f'DELETE FROM "{table}" WHERE {where}', key)
            else:
                column = chance.choice(sorted(columns))
                value = FALSE[column]
                tables.database.execute(
                    f'UPDATE "{table}" SET "{column}" = {value} WHERE {where}', key
                )
    return done


@pytest.mark.timeout(600)
def test_one_per_cent_of_all_rows_is_named_and_rebuilt_under_live_events(
    run: Run,
    tables: Tables,
    hosts: FakeHosts,
    tmp_path: Path,
    folder: Path,
) -> None:
    """With a rebuild that is killed; the rows end as the official ones."""
    readings = read_all(folder)
    cut = len(readings) * 3 // 4
    feed(tables, readings, 1_000)
    right = plain(snapshot(tables, exact=True))
    execute_all(tables, "TRUNCATE")
    feed(tables, readings[:cut], 1_000)
    chance = random.Random(17)
    later = {one.change.uri for one in readings[cut:] if isinstance(one.change, Delete)}
    falsified = falsify(tables, chance, later)
    assert len({table for table, _ in falsified}) > 15
    # Counts of accounts that are gone stay as well, where others reacted.
    counted = {owner.removeprefix("at://").partition("/")[0] for _, owner in falsified}
    named = {
        (one.table, one.uri if isinstance(one, RowDifference) else one.key)
        for one in compared(tables, {*accounts(tables), *counted}, limit=None)
        if isinstance(one, RowDifference | Drift)
    }
    assert falsified <= named, sorted(falsified - named)
    command = [sys.executable, "-m", "rsky_pipeline", "index-repo", "--rebuild", "--all",
               "--json", *options(tables, hosts, tmp_path), "--rate"]  # fmt: skip
    live = iter([readings[at : at + 40] for at in range(cut, len(readings), 40)])
    slowly, quickly = [*command, "200"], [*command, "3000"]
    process = subprocess.Popen(slowly, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    written = "SELECT FROM rsky_pipeline.rebuild WHERE (report ->> 'written')::int > 0"
    while not tables.database.query(written):
        assert process.poll() is None, process.communicate()
        if some := next(live, None):
            feed(tables, some, 40)
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (before,) = tables.database.query("SELECT report FROM rsky_pipeline.rebuild")
    assert before[0]["written"] > 0
    process = subprocess.Popen(quickly, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and (some := next(live, None)):
        feed(tables, some, 40)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()[-2_000:]
    report = json.loads(out)
    assert report["left"] == report["damaged"] == report["failed"] == 0
    assert report["written"] > before[0]["written"]
    assert not tables.database.query("SELECT FROM rsky_pipeline.rebuild")
    for some in live:
        feed(tables, some, 40)
    assert run("db", "recount", "--all").exit_code == 0
    assert not compared(tables, accounts(tables))
    recounted(tables)
    now = plain(snapshot(tables, exact=True))
    wrong = differences(now, right)
    assert not wrong, {table: rows[:4] for table, rows in wrong.items()}
    check_official(tables, folder, readings)


def execute_all(tables: Tables, verb: str) -> None:
    names = tables.database.query(
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_schema IN ('bsky', 'rsky_pipeline') AND table_type = 'BASE TABLE' "
        "AND table_name !~ '^kysely|^schema|migration|^view_param|^installation'"
    )
    every = ", ".join(f'{schema}."{name}"' for schema, name in names)
    tables.database.execute(f"{verb} {every}")


def test_a_live_event_between_comparison_and_writing_leaves_nothing(
    run: Run, tables: Tables, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody emptied a table; of three likes of one post the one that stood is taken back."""
    post = net.post("bob")
    likes = [net.like("ann", post) for _ in range(3)]
    tables.apply(post, *likes)
    tables.database.execute('TRUNCATE "like"')
    late, write = [net.delete(likes[0])], Rebuild._write

    def after_a_deletion(self: Rebuild, *arguments: Any) -> None:
        tables.apply(*late)
        late.clear()
        write(self, *arguments)

    monkeypatch.setattr(Rebuild, "_write", after_a_deletion)
    result = run("index-repo", "--rebuild", ANN)
    assert result.exit_code == 0, result.output
    assert tables.rows("like", "uri") == [(likes[1].uri,)]


def test_applying_live_events_beside_a_rebuild_of_the_same_account(
    run: Run, tables: Tables, net: Network
) -> None:
    told = tell(net)
    tables.apply_each(told)
    tables.database.execute('DELETE FROM "like" WHERE creator = %s', (ANN,))
    later: Sequence[Event] = [net.delete(told[7]), net.update(told[3], {"text": "later"})]
    tables.apply(*later)
    assert run("index-repo", "--rebuild", ANN).exit_code == 0
    assert [row[0] for row in tables.rows("like", "uri", f"creator = '{ANN}'")] == [told[8].uri]
    assert ("later",) in tables.rows("post", "text")
    assert not compared(tables, [ANN])
    recounted(tables)


def test_an_account_is_erased_on_request(
    run: Run, tables: Tables, net: Network, clean_redis: str
) -> None:
    """Its rows and dead letters go and do not return; what others wrote stays."""
    told = tell(net)
    tables.apply_each(told)
    sql = "UPDATE \"like\" SET uri = uri || 'x' WHERE creator = %s"  # without a record
    tables.database.execute(sql, (ANN,))
    with redis_client(clean_redis) as client:
        for who in (b"ann", b"bob"):
            letter = {b"event": b'{"did":"%b"}' % did_of(who.decode()).encode(), b"reason": b"x"}
            client.xadd("firehose_live_dlq", letter)
    redis = ("--redis-url", clean_redis)
    wanted = run("db", "purge", ANN, "--dry-run", "--json", *redis)
    assert wanted.exit_code == 6, wanted.output
    found = json.loads(wanted.stdout)
    assert found["rows"][ANN]["record"] == len([put for put in told if put.who == "ann"])
    assert found["letters"] == {"firehose_live_dlq": 1}
    assert run("db", "purge", ANN, *redis).exit_code == 2, "it asks"
    assert run("db", "purge", ANN, "--yes", *redis).exit_code == 0
    assert run("db", "purge", ANN, "--dry-run", *redis).exit_code == 0
    assert tables.rows("actor", "did", f"did = '{ANN}'") == []
    assert tables.rows("notification", "id", f"'{ANN}' IN (did, author)") == []
    for table in ("post", "like", "repost", "follow", "profile", "verification"):
        assert tables.rows(table, "uri", f"creator = '{ANN}'") == []
    theirs = {put.uri for put in told if put.who == "bob"}
    assert {row[0] for row in tables.rows("record", "uri")} == theirs
    with redis_client(clean_redis) as client:
        assert client.xlen("firehose_live_dlq") == 1
    now = snapshot(tables, exact=True)
    tables.apply_each(told)
    assert snapshot(tables, exact=True) == now, "what came before stays without effect"
    recounted(tables)
