"""A commit that cannot be verified is put off: nothing of it is lost, deletions included."""

import json
from pathlib import Path

import trio

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import read_entry
from rsky_pipeline.ingester.commits.signatures import SignatureStatus
from rsky_pipeline.streams.append import append
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.event import EVENT_FIELD, encode_record_event
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import (
    KEY,
    backfiller,
    document,
    output,
    quick_settings,
)
from tests.unit.ingester.support import Converting

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
OLD_REV, REV = "3jzfcijpj2z2a", "3jzfcijpj2z2b"
TIME = "2026-07-04T14:38:08.999Z"
LIKE = {
    "$type": "app.bsky.feed.like",
    "subject": {"uri": "at://did:plc:b/app.bsky.feed.post/p", "cid": str(Cid.of(b"post"))},
    "createdAt": TIME,
}


def like(rkey: str) -> bytes:
    return encode_record_event(
        "create", seq=1, time=TIME, did=DID, commit=str(Cid.of(b"c")), rev=OLD_REV,
        collection="app.bsky.feed.like", rkey=rkey, cid=str(Cid.of(b"l")), record=LIKE,
    )  # fmt: skip


def commit_without_records() -> tuple[bytes, bytes]:
    """Return the CAR of an empty repo, and the frame of the commit that emptied it."""
    tree = Tree.build({})
    block = sign_commit(DID, REV, tree.root, KEY)
    root = Cid.of(block)
    car = write_car([root], [(root, block), *tree.blocks()])
    ops = [{"action": "delete", "path": "app.bsky.feed.like/gone", "cid": None}]
    body = {
        "seq": 2, "repo": DID, "rev": REV, "since": OLD_REV, "commit": root, "ops": ops,
        "blocks": car, "time": TIME, "tooBig": False, "blobs": [],
    }  # fmt: skip
    return car, encode_frame("#commit", body)


async def test_the_deletion_reaches_the_row(
    clean_redis: str, schema_database: str, tmp_path: Path
) -> None:
    database = Database.connect(schema_database, name="test")
    collections = registry.load()
    apply_batch(database, [read_entry({EVENT_FIELD: like("gone")}, collections)], collections)
    assert database.query('SELECT count(*) FROM "like"') == [(1,)]
    car, frame = commit_without_records()
    (put_off,) = Converting("signature").convert(frame, SignatureStatus.UNVERIFIED).entries
    store = connect(clean_redis, name="test")
    with FakeHosts() as hosts:
        hosts.add(DID, document(DID), car)
        async with backfiller(quick_settings(clean_redis, schema_database, hosts, tmp_path)):
            append(store, [put_off])
            with trio.fail_after(60):
                while store.call("XLEN", put_off.stream):
                    await trio.sleep(0.02)
    readings = [
        read_entry({EVENT_FIELD: json.dumps(event).encode()}, collections)
        for event in output(store)
    ]
    apply_batch(database, readings, collections)
    assert database.query('SELECT count(*) FROM "like"') == [(0,)]
    assert database.query("SELECT count(*) FROM record") == [(0,)]
    assert database.query('SELECT "likeCount" FROM post_agg') == []  # no rows of zeros
    late = read_entry({EVENT_FIELD: like("gone")}, collections)
    apply_batch(database, [late], collections)
    assert database.query("SELECT count(*) FROM record") == [(0,)]
    store.close()
    database.close()
