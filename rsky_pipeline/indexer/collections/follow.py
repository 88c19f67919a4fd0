"""app.bsky.graph.follow: a row of `follow`, counts of both accounts, a notification."""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import Record, created_at, did
from rsky_pipeline.indexer.collections.values import CollectionTable, Count, Notification, Put, Rows


def _read(_put: Put, record: Record) -> Rows:
    return Rows(main=(did(record, "subject"), created_at(record)))


def _notify(put: Put) -> list[Notification]:
    assert put.rows.main is not None
    subject, created = put.rows.main
    return [Notification(subject, "follow", None, put.sort_at(created))]


COLLECTION = Collection(
    nsid="app.bsky.graph.follow",
    read=_read,
    table=CollectionTable(
        "follow",
        columns={"subjectDid": "varchar", "createdAt": "varchar"},
        unique=("creator", "subjectDid"),
        counts=(
            Count("profile_agg", "followersCount", by="subjectDid"),
            Count("profile_agg", "followsCount", by="creator"),
        ),
    ),
    notify=_notify,
)
