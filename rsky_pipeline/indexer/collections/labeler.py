"""app.bsky.labeler.service: a row of `labeler` for the rkey `self`, the only one in use."""

from rsky_pipeline.indexer.collections.shape import Collection, Put, Rows, Table
from rsky_pipeline.indexer.records import Record, created_at


def _read(put: Put, record: Record) -> Rows:
    return Rows(main=(created_at(record),)) if put.rkey == "self" else Rows()


COLLECTION = Collection(
    nsid="app.bsky.labeler.service",
    read=_read,
    only_rkey="self",
    table=Table("labeler", columns={"createdAt": "varchar"}),
)
