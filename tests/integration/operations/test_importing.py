"""From the embedded stores to others, with everything that they hold."""

import json
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.database.schema import check, initialise
from rsky_pipeline.embedded import postgres, valkey
from tests.stores import execute, redis_client, running, scratch_directory, scratch_settings

POST = "at://did:plc:w4xbfzo7kqfes5zb7r6qv3rw/app.bsky.feed.post/3m4ra7cs75s2z"


def seed(directory: Path) -> None:
    """Fill embedded stores, and stop them."""
    settings = scratch_settings(directory)
    with running(postgres.prepare(settings)) as store:
        initialise(store.url, "bsky")
        execute(
            store.url,
            'INSERT INTO bsky.record (uri, cid, did, json, "indexedAt", rev) '
            f"SELECT '{POST}' || n, 'c', 'did:plc:x', '{{\"text\": \"\u00e4\"}}', 't', 'r' "
            "FROM generate_series(1, 3000) n",
        )
        execute(
            store.url,
            'INSERT INTO bsky.notification (did, "recordUri", "recordCid", author, reason, '
            f"\"sortAt\") SELECT 'd', '{POST}', 'c', 'a', 'like', 't' FROM generate_series(1, 5)",
        )
        execute(
            store.url, "INSERT INTO rsky_pipeline.tombstone (uri, did, rev) VALUES ('u', 'd', 'r')"
        )
    with running(valkey.prepare(settings)) as store, redis_client(store.url) as client:
        for number in range(1, 1_201):
            client.xadd("firehose_live", {"event": json.dumps({"seq": number})}, id=f"{number}-7")
        client.xtrim("firehose_live", 1_100, approximate=False)
        client.xgroup_create("firehose_live", "firehose_group", 0)
        client.xreadgroup("firehose_group", "me", {"firehose_live": ">"}, count=300)
        client.xack("firehose_live", "firehose_group", *[f"{n}-7" for n in range(101, 201)])
        client.xadd("label_live", {"event": "x"}, id="9-0")
        client.xgroup_create("label_live", "firehose_group", 0)
        client.xreadgroup("firehose_group", "me", {"label_live": ">"})
        client.xack("label_live", "firehose_group", "9-0")
        client.xdel("label_live", "9-0")
        client.set("rsky_pipeline:text", b"\x00\xff")
        client.set("rsky_pipeline:passing", "x", ex=3_600)
        client.hset("rsky_pipeline:states", mapping={f"d{n}": "v" * 50 for n in range(2_000)})
        client.zadd("rsky_pipeline:repos_waiting", {"a": 1.5, "b": 1e15})
        client.rpush("rsky_pipeline:list", *range(1_100))


def bring(directory: Path, redis: str, database: str, *options: str) -> Result:
    urls = ["--redis-url", redis, "--database-url", database, "--data-dir", str(directory)]
    return CliRunner().invoke(main, ["stores", "import", "--json", *urls, *options])


def check_copy(redis: str, database: str) -> None:
    """Look for everything that `seed` has made."""
    assert [item for item in check(database, "bsky") if item.severity == "error"] == []
    with psycopg.connect(database, autocommit=True) as connection:

        def value(query: str) -> object:
            row = connection.execute(query.encode()).fetchone()
            return row[0] if row else None

        assert value("SELECT count(*) FROM bsky.record") == 3_000
        assert value("SELECT json::jsonb->>'text' FROM bsky.record LIMIT 1") == "\u00e4"
        assert value("SELECT count(*) FROM rsky_pipeline.tombstone") == 1
        assert value("SELECT nextval('bsky.notification_id_seq')") == 6
        assert value("SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'") == 1
        assert value("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%trgm%'") == 3
    with redis_client(redis) as client:
        assert client.xlen("firehose_live") == 1_100
        facts = client.xinfo_stream("firehose_live")
        assert (facts["last-generated-id"], facts["first-entry"][0]) == (b"1200-7", b"101-7")
        if "entries-added" in facts:
            assert facts["entries-added"] == 1_200
        # From the first entry that was not acknowledged: 101 to 200 were.
        [(_, entries)] = client.xreadgroup("firehose_group", "me", {"firehose_live": ">"}, count=1)
        assert entries[0][0] == b"201-7"
        assert client.xlen("label_live") == 0
        assert client.xinfo_stream("label_live")["last-generated-id"] == b"9-0"
        assert client.get("rsky_pipeline:text") == b"\x00\xff"
        assert 3_500 < client.ttl("rsky_pipeline:passing") <= 3_600
        assert len(client.hgetall("rsky_pipeline:states")) == 2_000
        waiting = client.zrange("rsky_pipeline:repos_waiting", 0, -1, withscores=True)
        assert waiting == [(b"a", 1.5), (b"b", 1e15)]
        assert [int(each) for each in client.lrange("rsky_pipeline:list", 0, -1)] == [*range(1_100)]


def test_embedded_stores_are_copied_into_others(clean_redis: str, clean_database: str) -> None:
    with scratch_directory() as directory:
        seed(directory)
        result = bring(directory, clean_redis, clean_database)
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert document["rows"]["bsky.record"] == 3_000, document
        assert document["keys"] == {"stream": 2, "string": 2, "hash": 1, "zset": 1, "list": 1}
        check_copy(clean_redis, clean_database)
        # Nothing that is there is overwritten by mistake.
        again = bring(directory, clean_redis, clean_database)
        assert again.exit_code == 1
        assert "has rows already" in again.stderr
        assert "--replace" in again.stderr
        again = bring(directory, clean_redis, clean_database, "--replace", "--yes")
        assert again.exit_code == 0, again.output
        check_copy(clean_redis, clean_database)


def test_there_must_be_something_to_copy_and_a_place(tmp_path: Path, clean_redis: str) -> None:
    arguments = ["stores", "import", "--data-dir", str(tmp_path)]
    assert CliRunner().invoke(main, arguments).exit_code == 2
    result = CliRunner().invoke(main, [*arguments, "--redis-url", clean_redis])
    assert (result.exit_code, "there are no embedded stores" in result.stderr) == (1, True)


@pytest.mark.parametrize("id_", [(b"5-3", b"5-2"), (b"5-0", b"4-18446744073709551615")])
def test_the_id_before_an_id(id_: tuple[bytes, bytes]) -> None:
    from rsky_pipeline.streams.copying import _before

    assert _before(id_[0]) == id_[1]
