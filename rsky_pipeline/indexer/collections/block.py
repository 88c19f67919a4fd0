"""app.bsky.graph.block: a row of `actor_block`."""

from rsky_pipeline.indexer.collections.shape import Collection, Put, Rows, Table
from rsky_pipeline.indexer.records import Record, created_at, did


def _read(_put: Put, record: Record) -> Rows:
    return Rows(main=(did(record, "subject"), created_at(record)))


COLLECTION = Collection(
    nsid="app.bsky.graph.block",
    read=_read,
    table=Table(
        "actor_block",
        columns={"subjectDid": "varchar", "createdAt": "varchar"},
        unique=("creator", "subjectDid"),
    ),
)
