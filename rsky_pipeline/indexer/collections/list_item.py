"""app.bsky.graph.listitem: a row of `list_item`; only a list's owner can add to it."""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import (
    InvalidRecordError,
    Record,
    created_at,
    did,
    host,
    uri,
)
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, Rows


def _read(put: Put, record: Record) -> Rows:
    list_uri = uri(record, "list")
    if host(list_uri) != put.did:
        raise InvalidRecordError("foreign_list", "the list is somebody else's")
    return Rows(main=(did(record, "subject"), list_uri, created_at(record)))


COLLECTION = Collection(
    nsid="app.bsky.graph.listitem",
    read=_read,
    table=CollectionTable(
        "list_item",
        columns={"subjectDid": "varchar", "listUri": "varchar", "createdAt": "varchar"},
        unique=("listUri", "subjectDid"),
    ),
)
