"""app.bsky.labeler.service: a row of `labeler` for the rkey `self`, the only one in use."""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import Record, created_at
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, Rows


def _read(put: Put, record: Record) -> Rows:
    return Rows(main=(created_at(record),)) if put.rkey == "self" else Rows()


COLLECTION = Collection(
    nsid="app.bsky.labeler.service",
    read=_read,
    only_rkey="self",
    table=CollectionTable("labeler", columns={"createdAt": "varchar"}),
)
