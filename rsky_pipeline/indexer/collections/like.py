"""app.bsky.feed.like: a row of `like`, a count on its subject, a notification to its author."""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import Record
from rsky_pipeline.indexer.collections.reactions import notifications, read_reaction
from rsky_pipeline.indexer.collections.values import CollectionTable, Count, Notification, Put, Rows


def _read(_put: Put, record: Record) -> Rows:
    return Rows(main=read_reaction(record))


def _notify(put: Put) -> list[Notification]:
    return notifications(put, "like", "like-via-repost")


COLLECTION = Collection(
    nsid="app.bsky.feed.like",
    read=_read,
    table=CollectionTable(
        "like",
        columns={
            "subject": "varchar",
            "subjectCid": "varchar",
            "via": "varchar",
            "viaCid": "varchar",
            "createdAt": "varchar",
        },
        unique=("subject", "creator"),
        counts=(Count("post_agg", "likeCount", by="subject"),),
    ),
    notify=_notify,
)
