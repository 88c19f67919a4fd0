"""app.bsky.graph.starterpack: a row of `starter_pack`."""

from rsky_pipeline.indexer.collections.shape import Collection, Put, Rows, Table
from rsky_pipeline.indexer.records import Record, created_at, text, uri


def _read(_put: Put, record: Record) -> Rows:
    uri(record, "list")
    return Rows(main=(text(record, "name", 500, min_bytes=1), created_at(record)))


COLLECTION = Collection(
    nsid="app.bsky.graph.starterpack",
    read=_read,
    table=Table("starter_pack", columns={"name": "varchar", "createdAt": "varchar"}),
)
