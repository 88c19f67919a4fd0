"""app.bsky.graph.list: a row of `list`. Its items are records of their own and stay without it."""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import (
    Record,
    blob_cid,
    created_at,
    description_facets,
    optional_text,
    text,
)
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, Rows


def _read(_put: Put, record: Record) -> Rows:
    return Rows(
        main=(
            text(record, "name", 64, min_bytes=1),
            text(record, "purpose", 1_000),
            optional_text(record, "description", 3_000),
            description_facets(record),
            blob_cid(record, "avatar"),
            created_at(record),
        )
    )


COLLECTION = Collection(
    nsid="app.bsky.graph.list",
    read=_read,
    table=CollectionTable(
        "list",
        columns={
            "name": "varchar",
            "purpose": "varchar",
            "description": "varchar",
            "descriptionFacets": "varchar",
            "avatarCid": "varchar",
            "createdAt": "varchar",
        },
    ),
)
