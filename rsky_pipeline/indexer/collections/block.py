"""app.bsky.graph.block: a row of `actor_block`."""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import Record, created_at, did
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, Rows


def _read(_put: Put, record: Record) -> Rows:
    return Rows(main=(did(record, "subject"), created_at(record)))


COLLECTION = Collection(
    nsid="app.bsky.graph.block",
    read=_read,
    table=CollectionTable(
        "actor_block",
        columns={"subjectDid": "varchar", "createdAt": "varchar"},
        unique=("creator", "subjectDid"),
    ),
)
