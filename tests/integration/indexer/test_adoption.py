"""Taking over databases of others: their form and faults are named, and repaired."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.cli.run import _prepare_database
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.schema import check, initialise
from rsky_pipeline.indexer.collections.post import FINISHED_COLUMNS
from rsky_pipeline.operations import adoption, wrong_rows
from rsky_pipeline.operations.recount import Scope, recount
from rsky_pipeline.operations.wrong_rows import KINDS
from tests.data import test_data
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.indexer.kit import Event, Network, Put, Tables, did_of, mention, state
from tests.integration.indexer.test_repo_commands import serve
from tests.stores import execute, redis_client

Run = Callable[..., Result]
PEOPLE = ("ann", "bob", "cyd")
RELAY, LABELER = "relay.example.com", "labels.example.com"


def load(url: str, dump: str) -> None:
    """Make a database as somebody's migrations have left it."""
    script = test_data(f"schemas/{dump}.sql").read_text()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script.encode())


@pytest.fixture
def hosts() -> Iterator[FakeHosts]:
    with FakeHosts() as running:
        yield running


@pytest.fixture
def adopt(clean_database: str, clean_redis: str, hosts: FakeHosts, tmp_path: Path) -> Run:
    def command(*arguments: str) -> Result:
        return CliRunner().invoke(main, [
            "db", "adopt", *arguments, "--database-url", clean_database, "--plc-url", hosts.url,
            "--redis-url", clean_redis, "--data-dir", str(tmp_path), "--relay-hosts", RELAY,
            "--labeler-hosts", LABELER, "--set", "allow_private_hosts=true",
            "--set", "backfiller_host_rate=1000",
        ])  # fmt: skip

    return command


@pytest.mark.parametrize(
    ("dump", "origin", "release"),
    [
        ("official-58", "official", "0.0.275"),
        ("official-59", "official", "0.0.276"),
        ("official-61", "official", "0.0.278"),
        ("blacksky-fork", "fork", None),
        ("blacksky-wintermute", "wintermute", None),
    ],
)
def test_a_database_is_recognised_and_left_as_it_is_in_a_dry_run(
    clean_database: str, adopt: Run, dump: str, origin: str, release: str | None
) -> None:
    load(clean_database, dump)
    found = adopt("--dry-run", "--json")
    assert found.exit_code == 6, found.output
    document = json.loads(found.stdout)
    assert (document["origin"], document["release"]) == (origin, release)
    assert document["usable"]
    assert not document["blocking"]
    assert document["done"] == []
    with psycopg.connect(clean_database) as connection:
        sql = "SELECT count(*) FROM pg_namespace WHERE nspname = 'rsky_pipeline'"
        assert connection.execute(sql).fetchone() == (0,)
    assert adopt("--apply").exit_code == 0
    assert [each for each in check(clean_database) if each.severity == "error"] == []
    again = json.loads(adopt("--apply", "--json").stdout)
    assert again["done"] == []
    assert {each["name"] for each in again["steps"]} <= {"trigger"}


def test_what_cannot_be_taken_over_is_left_alone(clean_database: str, adopt: Run) -> None:
    found = adopt("--apply", "--json")
    assert (found.exit_code, json.loads(found.stdout)["origin"]) == (6, "empty")
    load(clean_database, "official-54")
    found = adopt("--apply", "--json")
    document = json.loads(found.stdout)
    assert (found.exit_code, document["origin"]) == (6, "official")
    assert {each["subject"] for each in document["blocking"]} == {
        "table bsky.op_thread_reply", "table bsky.post_embed_gallery_image"
    }  # fmt: skip
    assert document["done"] == document["steps"] == []
    execute(clean_database, "DROP TABLE bsky.kysely_migration")
    found = adopt("--apply", "--json")
    assert (found.exit_code, json.loads(found.stdout)["origin"]) == (6, "unknown")


def test_a_database_of_the_rust_services_is_recognised(clean_database: str, adopt: Run) -> None:
    load(clean_database, "official-58")
    execute(clean_database, "ALTER TABLE bsky.record ADD COLUMN rev varchar NOT NULL")
    execute(clean_database, "ALTER TABLE bsky.post ALTER langs TYPE varchar[] USING NULL")
    found = adopt("--apply")
    assert found.exit_code == 0, found.output
    assert "origin: rust services" in found.stdout
    assert "go on as they are" in found.stdout


def test_missing_indexes_are_given_as_sql(clean_database: str, adopt: Run) -> None:
    load(clean_database, "official-61")
    execute(clean_database, "DROP INDEX bsky.notification_record_idx")
    steps = json.loads(adopt("--dry-run", "--json").stdout)["steps"]
    (step,) = [each for each in steps if each["by"] == "operator"]
    assert step["sql"].startswith("CREATE INDEX CONCURRENTLY notification_record_idx ON notifica")
    assert step["seconds"] is not None
    execute(clean_database, f"SET search_path TO bsky; {step['sql'].replace('CONCURRENTLY', '')}")
    steps = json.loads(adopt("--dry-run", "--json").stdout)["steps"]
    assert [each for each in steps if each["by"] == "operator"] == []


def test_an_index_of_ours_that_takes_long_is_left_to_the_operator(
    clean_database: str, adopt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(clean_database, "official-58")
    monkeypatch.setattr(adoption, "LARGE_SECONDS", -1.0)
    steps = {
        each["name"]: each for each in json.loads(adopt("--dry-run", "--json").stdout)["steps"]
    }
    refused = adopt("--apply")
    assert refused.exit_code == 1
    assert "make our index first" in refused.output
    execute(clean_database, steps["index_first"]["sql"].replace("ON ", "ON bsky."))
    monkeypatch.setattr(adoption, "LARGE_SECONDS", 0.0)
    assert adopt("--apply").exit_code == 0
    assert [each for each in check(clean_database) if each.severity != "note"] == []


def test_a_start_names_triggers_before_anything_is_written(
    clean_database: str, clean_redis: str, caplog: pytest.LogCaptureFixture
) -> None:
    load(clean_database, "blacksky-fork")
    settings = Settings(redis_url=clean_redis, database_url=clean_database)
    assert _prepare_database(settings)
    found = [record for record in caplog.records if hasattr(record, "trigger")]
    assert [record.__dict__["trigger"] for record in found] == [
        "trigger bsky.notification.notification_push_insert_notify"
    ]
    caplog.clear()
    assert not _prepare_database(settings)
    assert not [record for record in caplog.records if hasattr(record, "trigger")]


def test_cursors_are_taken_over_where_we_have_none(
    clean_database: str, clean_redis: str, adopt: Run
) -> None:
    load(clean_database, "blacksky-wintermute")
    execute(clean_database, f"""
        INSERT INTO bsky.sub_state VALUES ('firehose:{RELAY}', 9000000),
        ('labels:wss://{LABELER}', 700), ('firehose:other.example.com', 5),
        ('firehose:a b', 5), ('labels:{RELAY}', -1), ('backfill_enum:{RELAY}', 3)
    """)  # fmt: skip
    document = json.loads(adopt("--apply", "--json", "--margin", "1000000").stdout)
    found = {(each["stream"], each["host"]): each for each in document["cursors"]}
    assert found["firehose_live", RELAY]["ours"] == 8_000_000
    assert found["label_live", LABELER]["ours"] == 0
    assert "relay_hosts does not name it" in found["firehose_live", "other.example.com"]["remark"]
    assert found["firehose_live", "a b"]["ours"] is None
    assert found["label_live", RELAY]["remark"] == "it is no sequence number"
    assert len(found) == 5
    with redis_client(clean_redis) as client:
        assert client.get(f"firehose_live:cursor:{RELAY}") == b"8000000"
        client.set(f"firehose_live:cursor:{RELAY}", "8500000")
        document = json.loads(adopt("--apply", "--json").stdout)
        assert client.get(f"firehose_live:cursor:{RELAY}") == b"8500000"
    remarks = {each["remark"] for each in document["cursors"]}
    assert "ours is at 8500000 already" in remarks


def tell(net: Network) -> dict[str, Put]:
    """Return records that each kind of fault can be shown at."""
    post, hers = net.post("ann", langs=["en"], tags=["a", "b"]), net.post("bob")
    gate = net.put("ann", "app.bsky.feed.threadgate", {"post": post.uri, "allow": []}, post.rkey)
    link = {"uri": "https://example.com", "title": "t", "description": "d"}
    pack = f"at://{did_of('bob')}/app.bsky.graph.starterpack/1"
    theirs = net.put("bob", "app.bsky.graph.list", {"name": "l", "purpose":
                     "app.bsky.graph.defs#curatelist"})  # fmt: skip
    return {
        "post": post, "hers": hers, "gate": gate, "list": theirs,
        "refused": net.reply("bob", post), "own": net.reply("ann", post),
        "external": net.post("ann", embed={"$type": "app.bsky.embed.external", "external": link}),
        "quote": net.quote("ann", hers, facets=mention("cyd")),
        "mention": net.post("ann", facets=mention("cyd")),
        "like": net.like("cyd", hers), "again": net.like("cyd", hers),
        "repost": net.repost("ann", hers), "follow": net.follow("cyd", "bob"),
        "block": net.put("cyd", "app.bsky.graph.block", {"subject": did_of("dan")}),
        "item": net.put("bob", "app.bsky.graph.listitem",
                        {"list": theirs.uri, "subject": did_of("ann")}),
        "profile": net.put("ann", "app.bsky.actor.profile", {"displayName": "a",
                           "joinedViaStarterPack": {"uri": pack, "cid": post.cid}}, "self"),
    }  # fmt: skip


# What another indexer has left, by the kind under which it is counted.
FAULTS = {
    "rev_unknown": "UPDATE record SET rev = NULL WHERE did = '{bob}'",
    "padded_bytes": """UPDATE record
        SET json = replace(json, '"text":', '"x":{{"$bytes":"AQ=="}},"text":')
        WHERE uri = '{mention}'""",
    "lost_follow": "DELETE FROM follow",
    "lost_like": "DELETE FROM duplicate_record",
    "edited": "UPDATE post SET cid = 'old', text = 'before', langs = NULL WHERE uri = '{post}'",
    # With a mention that was not notified, as one of the repair would be.
    "embeds": """DELETE FROM post_embed_external; DELETE FROM post_embed_record;
        DELETE FROM notification WHERE reason = 'mention'""",
    "gate_verdicts": 'UPDATE post SET "violatesThreadGate" = NULL',
    "gate_flags": 'UPDATE post SET "hasThreadGate" = NULL',
    "own_threads": "DELETE FROM op_thread_reply",
    "dates_post": """UPDATE post SET "createdAt" = replace("createdAt", '.000Z', '+00:00')
        WHERE uri = '{quote}'""",
    "unrecorded_repost": "DELETE FROM record WHERE uri = '{repost}'",
    "unrecorded_actor_block": "DELETE FROM record WHERE uri = '{block}'",
    "left_feed_item": """INSERT INTO feed_item VALUES ('{repost}x', 'c', 'repost', '{hers}',
        '{ann}', '2020-01-01T00:00:00.000Z')""",
    "orphaned_feed_item": """INSERT INTO feed_item
        VALUES ('at://did:plc:gonelongago/app.bsky.feed.repost/1', 'c', 'repost', '{hers}',
        'did:plc:gonelongago', '2020-01-01T00:00:00.000Z')""",
    "joined": 'UPDATE profile SET "joinedViaStarterPackUri" = NULL',
    "profile_keys": """INSERT INTO profile (uri, cid, creator, "createdAt", "indexedAt")
        VALUES ('at://{ann}/app.bsky.actor.profile/other', 'c', '{ann}', '', '')""",
    "labeler_keys": """INSERT INTO labeler (uri, cid, creator, "createdAt", "indexedAt")
        VALUES ('at://{ann}/app.bsky.labeler.service/other', 'c', '{ann}', '', '')""",
    "foreign_thread_gate": """INSERT INTO thread_gate
        (uri, cid, creator, "postUri", "createdAt", "indexedAt")
        VALUES ('at://{bob}/app.bsky.feed.threadgate/1', 'c', '{bob}', '{quote}', '', '')""",
    "foreign_list_item": """INSERT INTO list_item
        (uri, cid, creator, "subjectDid", "listUri", "createdAt", "indexedAt")
        VALUES ('at://{ann}/app.bsky.graph.listitem/1', 'c', '{ann}', '{bob}', '{list}', '', '')""",
    "actor_sync": "DELETE FROM actor_sync",
    "handles": """UPDATE actor SET "indexedAt" = '1970-01-01T00:00:00Z' WHERE did = '{cyd}'""",
    "deleted": """INSERT INTO actor (did, "indexedAt", "upstreamStatus")
        VALUES ('did:plc:gone', '2026-01-01T00:00:00.000Z', 'deleted');
        INSERT INTO record VALUES ('at://did:plc:gone/app.bsky.feed.like/1', 'c',
        'did:plc:gone', '{{}}', '')""",
    "left_post_embed_image": """INSERT INTO post_embed_image
        VALUES ('at://did:plc:gone/app.bsky.feed.post/1', '0', 'c', 'alt')""",
    "left_quote": """INSERT INTO quote (uri, cid, subject, "subjectCid", "createdAt", "indexedAt")
        VALUES ('at://did:plc:gone/app.bsky.feed.post/1', 'c', '{hers}', 'c', '', '')""",
    "left_notification": """INSERT INTO notification
        (did, "recordUri", "recordCid", author, reason, "sortAt")
        VALUES ('{bob}', 'at://did:plc:gone/app.bsky.feed.like/2', 'c', 'did:plc:gone', 'like', '')
        """,
    "expiries": """INSERT INTO label (src, uri, cid, val, neg, cts, exp)
        VALUES ('{ann}', '{bob}', '', 'spam', false, '2026-01-01', 'never')""",
    "counts_post_agg": 'UPDATE post_agg SET "likeCount" = 70',
    "counts_profile_agg": "DELETE FROM profile_agg",
}  # fmt: skip
# Of an account that nobody serves any more, and what no repair by account finds.
LEFT = {
    "rev_unknown", "lost_like", "actor_sync", "deleted", "handles",
    "left_post_embed_image", "left_quote", "left_notification", "expiries", "orphaned_feed_item",
}  # fmt: skip


def damage(url: str, told: Mapping[str, Put]) -> None:
    names = {name: put.uri for name, put in told.items()} | {who: did_of(who) for who in PEOPLE}
    with psycopg.connect(url, autocommit=True, options="-csearch_path=bsky") as connection:
        for fault in FAULTS.values():
            connection.execute(fault.format(**names).encode())


# Of arrival, of the fork, or (the commit of a repo) of how a test serves it.
UNCOMPARED = (
    "indexedAt", "rev", "takedownRef", "id", "deletedAt", "via", "viaCid", "commitCid", "repoRev",
)  # fmt: skip


def comparable(tables: Tables) -> dict[str, Any]:
    """Return rows without times of arrival, and without what only the other indexer has."""
    found = state(tables)
    del found["actor"]
    for table, rows in found.items():
        kept = [row for row in rows if "did:plc:gone" not in str(row)]
        for row in kept:
            for name in UNCOMPARED:
                row.pop(name, None)
            row.update({name: bool(row[name]) for name in FINISHED_COLUMNS if name in row})
            if table == "record":
                row["json"] = json.loads(row["json"])
        found[table] = sorted(kept, key=repr)
    return found


@pytest.mark.parametrize("dump", ["blacksky-fork", "blacksky-wintermute"])
def test_every_fault_is_counted_and_repaired_and_nobody_notified(
    clean_database: str, adopt: Run, tables: Tables, net: Network, hosts: FakeHosts, dump: str
) -> None:
    load(clean_database, dump)
    initialise(clean_database)
    told = tell(net)
    other = Tables(clean_database)
    for each in (tables, other):
        each.apply_each(told.values())
    assert comparable(other) == comparable(tables)
    other.database.close()
    execute(clean_database, "DROP SCHEMA rsky_pipeline CASCADE")
    execute(clean_database, "DROP INDEX bsky.op_thread_reply_uri_idx")
    damage(clean_database, told)
    for who in PEOPLE:
        records = [put for put in told.values() if put.who == who]
        serve(hosts, who, records, max(put.number for put in records))

    found = adopt("--dry-run", "--json")
    assert found.exit_code == 6, found.output
    document = json.loads(found.stdout)
    counted = {each["name"]: each for each in document["wrong"]}
    assert counted.keys() >= FAULTS.keys()
    assert all(each["exact"] for each in counted.values())
    assert counted["edited"]["wrong"] == 1
    assert counted["rev_unknown"]["wrong"] == 5
    (trigger,) = [each for each in document["steps"] if each["name"] == "trigger"]
    refused = adopt("--apply", "--repair")
    assert refused.exit_code == 1
    assert "notification_push_insert_notify" in refused.output
    execute(clean_database, f"SET search_path TO bsky; {trigger['sql']}")

    other = Tables(clean_database)
    other.database.execute("""UPDATE "like" SET "takedownRef" = 'them', "createdAt" = 'x'""")
    before = other.rows("notification", 'did, "recordUri", reason')
    done = adopt("--apply", "--repair", "--rate", "0", "--json")
    rebuilt = json.loads(done.stdout)["repaired"]["rebuilt"]
    assert (done.exit_code, rebuilt["failed"], rebuilt["left"]) == (1, 1, 0)  # nobody has its repo
    assert "did:plc:gone" in rebuilt["examples"][0]
    assert other.rows("notification", 'did, "recordUri", reason') == before
    assert other.rows("like", '"takedownRef", "createdAt" = \'x\'') == [("them", False)]
    assert other.rows("handle_check", "did", f"did = '{did_of('cyd')}'")
    assert other.rows("deletion_check", "did") == [("did:plc:gone",)]
    after = json.loads(adopt("--dry-run", "--json").stdout)
    assert {each["name"] for each in after["wrong"]} <= LEFT
    assert {each["wrong"] for each in after["wrong"]} <= {1, 2}
    assert "rebuild" in {each["name"] for each in after["steps"]}  # an account could not be fetched
    for step in after["steps"]:
        if step["sql"].startswith("DELETE"):
            other.database.execute(step["sql"])
    assert all(chunk.keys for chunk in recount(other.database, Scope(), repair=True))
    later: list[Event] = [
        net.update(told["post"], {"text": "edited", "langs": ["pt", "en"]}),
        net.delete(told["like"]), net.delete(told["follow"]), net.like("ann", told["hers"]),
        net.reply("bob", told["post"]), net.delete(told["quote"]),
    ]  # fmt: skip
    for each in (tables, other):
        each.apply_each(later)
    found_at_last, expected = comparable(other), comparable(tables)
    del found_at_last["notification"], expected["notification"]
    assert found_at_last == expected
    other.database.close()


def test_every_kind_can_be_counted(adopt: Run, clean_database: str) -> None:
    load(clean_database, "official-61")
    document = json.loads(adopt("--dry-run", "--json").stdout)
    assert document["wrong"] == []
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_large_tables_are_counted_by_samples(
    clean_database: str, adopt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(clean_database, "official-61")
    initialise(clean_database)
    execute(clean_database, """
        INSERT INTO bsky.actor (did, "indexedAt") SELECT 'did:plc:' || n, CASE n % 2
        WHEN 0 THEN '1970-01-01T00:00:00Z' ELSE '2026-01-01T00:00:00.000Z' END
        FROM generate_series(1, 4000) n
    """)  # fmt: skip
    execute(
        clean_database,
        """
        INSERT INTO bsky.profile_agg (did, "postsCount") SELECT did, 1 FROM bsky.actor
    """,
    )
    for analysed in (False, True):
        if analysed:
            execute(clean_database, "ANALYZE")
        monkeypatch.setattr(wrong_rows, "EXACT_ROWS", 1_000)
        monkeypatch.setattr(wrong_rows, "SAMPLE_ROWS", 500)
        wrong = json.loads(adopt("--dry-run", "--json").stdout)["wrong"]
        found = {each["name"]: each for each in wrong}
        assert found.keys() == {"handles", "counts_profile_agg"}
        assert not any(each["exact"] for each in wrong)
        assert abs(found["handles"]["estimate"] - 2_000) < 200
        assert found["handles"]["seen"] < 4_000
        assert abs(found["counts_profile_agg"]["estimate"] - 4_000) < 200
