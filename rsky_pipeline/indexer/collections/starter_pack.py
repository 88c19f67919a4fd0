"""app.bsky.graph.starterpack: a row of `starter_pack`."""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import Record, created_at, text, uri
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, Rows


def _read(_put: Put, record: Record) -> Rows:
    uri(record, "list")
    return Rows(main=(text(record, "name", 500, min_bytes=1), created_at(record)))


COLLECTION = Collection(
    nsid="app.bsky.graph.starterpack",
    read=_read,
    table=CollectionTable("starter_pack", columns={"name": "varchar", "createdAt": "varchar"}),
)
