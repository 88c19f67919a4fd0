"""app.bsky.feed.threadgate and .postgate: rows of their tables, and a flag on the post.

The AppView reads the gate's record only where the flag is set. `post` sets it for gates that came
before their post.
"""

from rsky_pipeline.indexer.collections.declaration import Changes, Collection
from rsky_pipeline.indexer.collections.fields import (
    InvalidRecordError,
    Record,
    created_at,
    host,
    uri,
)
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, Rows


def _read(put: Put, record: Record) -> Rows:
    post = uri(record, "post")
    if host(post) != put.did or post.rpartition("/")[2] != put.rkey:
        raise InvalidRecordError("foreign_post", "a gate has the account and the rkey of its post")
    return Rows(main=(post, created_at(record)), leaves_trace=True)


def _flag(changes: Changes, column: str) -> None:
    closed = sorted(put.rows.main[0] for put in changes.inserted if put.rows.main)
    closed += sorted(put.rows.main[0] for put in changes.updated if put.rows.main)
    opened = sorted({str(row["postUri"]) for row in changes.removed} - set(closed))
    for uris, value in ((opened, False), (closed, True)):
        if uris:
            changes.tx.execute(
                f'UPDATE post SET "{column}" = %s WHERE uri = ANY(%b::text[])', (value, uris)
            )


def _finish_thread_gates(changes: Changes) -> None:
    _flag(changes, "hasThreadGate")


def _finish_post_gates(changes: Changes) -> None:
    _flag(changes, "hasPostGate")


_COLUMNS = {"postUri": "varchar", "createdAt": "varchar"}

COLLECTIONS = (
    Collection(
        nsid="app.bsky.feed.threadgate",
        read=_read,
        table=CollectionTable("thread_gate", columns=_COLUMNS, unique=("postUri",)),
        looked_at=True,
        finish=_finish_thread_gates,
    ),
    Collection(
        nsid="app.bsky.feed.postgate",
        read=_read,
        table=CollectionTable("post_gate", columns=_COLUMNS, unique=("postUri",)),
        looked_at=True,
        finish=_finish_post_gates,
    ),
)
