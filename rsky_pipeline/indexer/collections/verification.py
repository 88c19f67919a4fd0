"""app.bsky.graph.verification: a row of `verification`, news to its subject.

Its withdrawal is news as well, and both stay to be read: the AppView shows notifications of these
records although they are gone.
"""

from collections.abc import Mapping
from typing import Any

from rsky_pipeline.atproto.syntax import is_handle
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import (
    InvalidRecordError,
    Record,
    created_at,
    did,
    text,
)
from rsky_pipeline.indexer.collections.values import CollectionTable, Notification, Put, Rows


def _read(put: Put, record: Record) -> Rows:
    handle = text(record, "handle", 253)
    if not is_handle(handle):
        raise InvalidRecordError("invalid_handle", "handle is not a handle")
    name = text(record, "displayName", 1_000_000)
    main = (put.rkey, did(record, "subject"), handle, name, created_at(record))
    # A deletion in the same batch comes after it, in a segment of its own: both are news.
    return Rows(main=main, looks_at=(put.uri,))


def _notify(put: Put) -> list[Notification]:
    assert put.rows.main is not None
    return [Notification(put.rows.main[1], "verified", None, put.sort_at(put.rows.main[4]))]


def _withdraw(row: Mapping[str, Any], now: str) -> Notification:
    return Notification(row["subject"], "unverified", None, now)


COLLECTION = Collection(
    nsid="app.bsky.graph.verification",
    read=_read,
    table=CollectionTable(
        "verification",
        columns={
            "rkey": "varchar",
            "subject": "varchar",
            "handle": "varchar",
            "displayName": "varchar",
            "createdAt": "varchar",
        },
        unique=("subject", "creator"),
    ),
    notify=_notify,
    renotify=False,
    withdraw=_withdraw,
)
