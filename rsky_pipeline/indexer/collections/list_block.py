"""app.bsky.graph.listblock: a row of `list_block`."""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import Record, created_at, uri
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, Rows


def _read(_put: Put, record: Record) -> Rows:
    return Rows(main=(uri(record, "subject"), created_at(record)))


COLLECTION = Collection(
    nsid="app.bsky.graph.listblock",
    read=_read,
    table=CollectionTable(
        "list_block",
        columns={"subjectUri": "varchar", "createdAt": "varchar"},
        unique=("creator", "subjectUri"),
    ),
)
