"""app.bsky.feed.repost: rows of `repost` and `feed_item`, a count, a notification.

Only the standing one of several reposts of a post by an account has a feed item (officially each
has, so that a feed shows the post several times).
"""

from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import Record
from rsky_pipeline.indexer.collections.reactions import notifications, read_reaction
from rsky_pipeline.indexer.collections.values import (
    CollectionTable,
    Count,
    Notification,
    Put,
    Rows,
    SideTable,
)

FEED_ITEM = {
    "cid": "varchar",
    "type": "varchar",
    "postUri": "varchar",
    "originatorDid": "varchar",
    "sortAt": "varchar",
}


def _read(put: Put, record: Record) -> Rows:
    row = read_reaction(record)
    item = (put.cid, "repost", row[0], put.did, put.sort_at(row[4]))
    return Rows(main=row, side={"feed_item": [item]}, looks_at=(row[0],))


def _notify(put: Put) -> list[Notification]:
    return notifications(put, "repost", "repost-via-repost")


COLLECTION = Collection(
    nsid="app.bsky.feed.repost",
    read=_read,
    table=CollectionTable(
        "repost",
        columns={
            "subject": "varchar",
            "subjectCid": "varchar",
            "via": "varchar",
            "viaCid": "varchar",
            "createdAt": "varchar",
        },
        unique=("creator", "subject"),
        counts=(Count("post_agg", "repostCount", by="subject"),),
    ),
    side=(SideTable("feed_item", owner="uri", columns=FEED_ITEM, skip_deleted="postUri"),),
    notify=_notify,
)
