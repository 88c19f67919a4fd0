"""A database as other indexers leave it is adopted, followed live and repaired; the rows are right.

The whole pipeline runs on a simulated network. It fills a database that the migrations of others
have made; then the rows are made wrong in every way that an other indexer is known to do it, and
everything of ours is removed.
"""

import json
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.configuration.sources import PREFIX
from rsky_pipeline.streams.names import FIREHOSE_LIVE, cursor_key
from tests.data import test_data
from tests.pipelines import Running, pipeline_on
from tests.stores import redis_client

ACCOUNTS, HISTORY, ROWS = 1_000, 150, 100_000
SECONDS = 1_800.0
NETWORK = (
    f"--accounts={ACCOUNTS}", f"--history={HISTORY}", "--rate=50", "--hold", "--calm", "--seed=7",
)  # fmt: skip
pytestmark = [pytest.mark.long, pytest.mark.timeout(3_600)]

# The time at which a gate came is not stored: few replies from before it are counted as well.
UNCERTAIN = {"gate_verdicts"}
# One row in N of a table, always the same ones.
SOME = "hashtext({}) % {} = 0"
# What wintermute leaves, for rows that its own indexer would have written otherwise.
FAULTS = {
    "rev_unknown": f"UPDATE record SET rev = NULL WHERE {SOME.format('uri', 5)}",
    "edited": f"""UPDATE post SET cid = 'old', text = 'before', langs = NULL, tags = NULL
        WHERE {SOME.format('uri', 7)}""",
    "embeds": "DELETE FROM post_embed_external; DELETE FROM post_embed_record",
    "gate_verdicts": """UPDATE post SET "invalidReplyRoot" = NULL, "violatesThreadGate" = NULL,
        "violatesEmbeddingRules" = NULL""",
    "gate_flags": """UPDATE post SET "hasThreadGate" = NULL, "hasPostGate" = NULL""",
    "lost_follow": f"""DELETE FROM duplicate_record;
        DELETE FROM follow WHERE {SOME.format('uri', 11)}""",
    "dates_post": f"""UPDATE post SET "createdAt" = replace("createdAt", 'Z', '000+00:00')
        WHERE {SOME.format('uri', 3)}""",
    "dates_like": f"""UPDATE "like" SET "createdAt" = replace("createdAt", 'Z', '+00:00')
        WHERE {SOME.format('uri', 3)}""",
    "unrecorded_like": """DELETE FROM record r USING "like" l WHERE r.uri = l.uri
        AND hashtext(l.uri) % 2 = 0""",
    "unrecorded_repost": "DELETE FROM record r USING repost l WHERE r.uri = l.uri",
    "unrecorded_follow": "DELETE FROM record r USING follow l WHERE r.uri = l.uri",
    "left_feed_item": """INSERT INTO feed_item (uri, cid, type, "postUri", "originatorDid",
        "sortAt") SELECT uri || 'x', cid, 'repost', subject, creator, "sortAt" FROM repost""",
    "actor_sync": "DELETE FROM actor_sync",
    # Also those without one: checks of ours that waited for them go with our tables.
    "handles": f"""UPDATE actor SET handle = NULL, "indexedAt" = '1970-01-01T00:00:00Z'
        WHERE handle IS NULL OR {SOME.format('did', 4)}""",
    "counts_post_agg": f"""UPDATE post_agg SET "likeCount" = "likeCount" + 3
        WHERE {SOME.format('uri', 3)}""",
    "counts_profile_agg": f"DELETE FROM profile_agg WHERE {SOME.format('did', 3)}",
}  # fmt: skip
# Which posts were deleted before is not known any more: reposts of them have feed items again. The
# AppView leaves out items without their post.
DELETED = "CREATE TABLE deleted_before AS SELECT uri FROM rsky_pipeline.tombstone"
KNOWN = """DELETE FROM feed_item
    WHERE type = 'repost' AND "postUri" IN (SELECT uri FROM deleted_before)"""
NOT_OURS = """DROP SCHEMA rsky_pipeline CASCADE; DELETE FROM op_thread_reply;
    DROP INDEX op_thread_reply_uri_idx"""


@pytest.fixture(params=["blacksky-wintermute", "blacksky-fork"])
def their_database(request: pytest.FixtureRequest, clean_database: str) -> str:
    """A database that somebody's migrations have made."""
    execute(clean_database, test_data(f"schemas/{request.param}.sql").read_text())
    return clean_database


def execute(url: str, script: str) -> None:
    with psycopg.connect(url, autocommit=True, options="-csearch_path=bsky") as connection:
        connection.execute(script.encode())


def adopt(running: Running, *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the report."""
    command = [sys.executable, "-P", "-m", "rsky_pipeline", "db", "adopt", "--json", *options]
    done = subprocess.run(
        command, env=running.environ, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, document


def test_it_is_adopted_under_live_events_and_every_row_is_right(
    their_database: str, clean_redis: str
) -> None:
    stores = {f"{PREFIX}DATABASE_URL": their_database, f"{PREFIX}REDIS_URL": clean_redis}
    with pipeline_on(*NETWORK, **stores) as running, redis_client(clean_redis) as redis:
        running.wait_until_indexed(SECONDS)
        running.simulation.control.release()
        running.wait_for(lambda: running.simulation.control.progress().seq > 1_000)
        running.process.end()
        _, report = adopt(running, "--dry-run")
        assert {each["name"] for each in report["wrong"]} <= UNCERTAIN
        assert report["rows"] > ROWS

        relay = parse_endpoint(running.simulation.relay).key
        theirs = int(redis.get(cursor_key(FIREHOSE_LIVE, relay)) or 0)
        assert theirs > 0
        redis.flushall()
        # Nothing analyses tables here, as autovacuum does: what is emptied now fills up again.
        execute(their_database, f"ANALYZE; {DELETED}")
        for fault in FAULTS.values():
            execute(their_database, fault)
        execute(their_database, NOT_OURS)
        execute(their_database, f"""
            CREATE TABLE IF NOT EXISTS sub_state (service text PRIMARY KEY, cursor bigint NOT NULL);
            INSERT INTO sub_state VALUES ('firehose:{relay}', {theirs});
            ALTER TABLE notification DISABLE TRIGGER notification_push_insert_notify
        """)  # fmt: skip

        code, report = adopt(running, "--dry-run")
        counted = {each["name"]: each for each in report["wrong"]}
        assert (code, report["origin"]) == (6, "wintermute")
        assert counted.keys() >= FAULTS.keys()
        code, report = adopt(running, "--apply", "--margin", "200")
        assert code == 0
        assert int(redis.get(cursor_key(FIREHOSE_LIVE, relay)) or 0) == max(0, theirs - 200)

        running.start_again()
        code, report = adopt(running, "--apply", "--repair", "--rate", "0")
        repaired = report["repaired"]["rebuilt"]
        assert (code, repaired["left"], repaired["damaged"]) == (0, 0, 0), repaired["examples"]
        running.simulation.control.stop()
        running.wait_until_indexed(SECONDS)
        execute(their_database, KNOWN)
        assert running.differences() == []
        assert running.observer.dead_letters() == {}
        _, report = adopt(running, "--dry-run")
        print(f"{report['rows']:,} rows; wrong before: "
              f"{ {name: each['estimate'] for name, each in counted.items()} }; "
              f"repaired: {repaired['rows']}; wrong now: {report['wrong']}")  # fmt: skip
        assert {each["name"] for each in report["wrong"]} <= UNCERTAIN
