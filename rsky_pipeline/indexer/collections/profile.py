"""app.bsky.actor.profile: a row of `profile` for the rkey `self`; other rkeys keep the record only.

A profile without createdAt gets the time at which it was seen. Pinned posts are read from the
record by the AppView, so both columns stay NULL as they do officially.
"""

from rsky_pipeline.atproto.datetimes import EPOCH, normalize
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import (
    InvalidRecordError,
    Record,
    blob_cid,
    host,
    optional_reference,
    optional_text,
)
from rsky_pipeline.indexer.collections.values import CollectionTable, Notification, Put, Rows


def _read(put: Put, record: Record) -> Rows:
    if put.rkey != "self":
        return Rows()
    created = record.get("createdAt")
    if created is not None and not isinstance(created, str):
        raise InvalidRecordError("wrong_type", "createdAt is not a text")
    return Rows(
        main=(
            optional_text(record, "displayName", 640),
            optional_text(record, "description", 2_560),
            blob_cid(record, "avatar"),
            blob_cid(record, "banner"),
            optional_reference(record, "joinedViaStarterPack")[0],
            put.indexed_at if created is None else normalize(created) or EPOCH,
        )
    )


def _notify(put: Put) -> list[Notification]:
    starter_pack = put.rows.main[4] if put.rows.main else None
    if starter_pack is None:
        return []
    return [Notification(host(starter_pack), "starterpack-joined", starter_pack, put.indexed_at)]


COLLECTION = Collection(
    nsid="app.bsky.actor.profile",
    read=_read,
    only_rkey="self",
    table=CollectionTable(
        "profile",
        columns={
            "displayName": "varchar",
            "description": "varchar",
            "avatarCid": "varchar",
            "bannerCid": "varchar",
            "joinedViaStarterPackUri": "varchar",
            "createdAt": "varchar",
        },
    ),
    notify=_notify,
    renotify=False,  # joining happens once, editing a profile often
)
