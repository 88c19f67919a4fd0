"""app.bsky.feed.generator: a row of `feed_generator`."""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import (
    Record,
    blob_cid,
    created_at,
    description_facets,
    did,
    optional_text,
    text,
)
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, Rows


def _read(_put: Put, record: Record) -> Rows:
    return Rows(
        main=(
            did(record, "did"),
            text(record, "displayName", 240),
            optional_text(record, "description", 3_000),
            description_facets(record),
            blob_cid(record, "avatar"),
            created_at(record),
        )
    )


COLLECTION = Collection(
    nsid="app.bsky.feed.generator",
    read=_read,
    table=CollectionTable(
        "feed_generator",
        columns={
            "feedDid": "varchar",
            "displayName": "varchar",
            "description": "varchar",
            "descriptionFacets": "varchar",
            "avatarCid": "varchar",
            "createdAt": "varchar",
        },
    ),
)
