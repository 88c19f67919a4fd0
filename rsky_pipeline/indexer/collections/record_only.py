"""Collections without a table: the AppView reads them from `record`."""

from rsky_pipeline.indexer.collections.declaration import Collection, record_only

COLLECTIONS = tuple(
    Collection(nsid, record_only)
    for nsid in (
        "app.bsky.actor.status",
        "app.bsky.notification.declaration",
        "chat.bsky.actor.declaration",
        "com.germnetwork.declaration",
    )
)
