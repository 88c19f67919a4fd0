"""app.bsky.graph.listblock: a row of `list_block`."""

from rsky_pipeline.indexer.collections.shape import Collection, Put, Rows, Table
from rsky_pipeline.indexer.records import Record, created_at, uri


def _read(_put: Put, record: Record) -> Rows:
    return Rows(main=(uri(record, "subject"), created_at(record)))


COLLECTION = Collection(
    nsid="app.bsky.graph.listblock",
    read=_read,
    table=Table(
        "list_block",
        columns={"subjectUri": "varchar", "createdAt": "varchar"},
        unique=("creator", "subjectUri"),
    ),
)
