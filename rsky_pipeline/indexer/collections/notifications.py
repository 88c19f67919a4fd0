"""Notifications of a batch: removed with their record, written for records that are really new.

History that the backfiller brings notifies nobody. When one record takes the place of another (a
duplicate is promoted, an older like arrives late, a post is edited) it notifies as the other did.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.values import Notification, Put

_DELETE = 'DELETE FROM notification WHERE "recordUri" = ANY(%b::text[]) RETURNING "recordUri"'
# Muted threads are filtered as officially: by the root of the post that the notification is
# about. One that is not there yet may be a root. The first condition spares the lookups as long as
# nobody mutes anything.
_IS_UNMUTED = """
WHERE NOT EXISTS (SELECT FROM thread_mute)
   OR NOT EXISTS (
        SELECT FROM thread_mute m WHERE m."mutedByDid" = n.did AND m."rootUri" = COALESCE(
            (SELECT p."replyRoot" FROM post p WHERE p.uri = n."reasonSubject"), n."reasonSubject"))
"""
_INSERT = f"""
INSERT INTO notification
    (did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt")
SELECT n.* FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
    %b::text[]) AS n(did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt")
{_IS_UNMUTED}
"""
# Some databases have an index that keeps recipient, record and reason unique.
_INSERT_UNIQUE = f"{_INSERT} ON CONFLICT DO NOTHING"
_UNMUTED = f"""
SELECT n.place FROM unnest(%b::integer[], %b::text[], %b::text[])
    AS n(place, did, "reasonSubject")
{_IS_UNMUTED}
"""


@dataclass(slots=True)
class BatchNotifications:
    """The notifications that one batch removes and adds."""

    removed: dict[str, None] = field(default_factory=dict)  # uris of records
    replaced: dict[str, set[str]] = field(default_factory=dict)  # uri -> uris that it replaces
    inheriting: set[str] = field(default_factory=set)
    added: list[tuple[Put, Notification]] = field(default_factory=list)

    def remove(self, uris: Iterable[str]) -> None:
        """Remove the notifications of these records."""
        self.removed.update(dict.fromkeys(uris))

    def replace(self, uri: str, previous: str, *, inherits: bool) -> None:
        """Remove the notifications of a record that another one replaces.

        One that inherits is not news of its own: it notifies only if the previous one did.
        """
        if inherits:
            self.inheriting.add(uri)
        self.replaced.setdefault(uri, set()).add(previous)
        self.removed[previous] = None

    def all_replaced(self) -> set[str]:
        """Return the uris of records that another one replaces."""
        return {uri for previous in self.replaced.values() for uri in previous}

    def add(self, put: Put, notification: Notification) -> None:
        """Notify somebody of a record, unless it turns out to be history."""
        self.added.append((put, notification))

    def leave(self, uris: Set[str]) -> None:
        """Neither remove nor add notifications of these records."""
        for uri in uris:
            self.removed.pop(uri, None)
        self.added = [(put, one) for put, one in self.added if put.uri not in uris]

    def write(self, tx: Transaction) -> int:
        """Perform the removals, then the insertions; return how many rows were inserted."""
        notified: set[str] = set()
        if self.removed:
            notified = {row[0] for row in tx.query(_DELETE, (sorted(self.removed),))}
        rows = [
            (one.did, put.uri, put.cid, put.did, one.reason, one.reason_subject, one.sort_at)
            for put, one in self.added
            if not (put.historical or put.uri in self.inheriting)
            or not notified.isdisjoint({put.uri, *self.replaced.get(put.uri, ())})
        ]
        if not rows:
            return 0
        sql = _INSERT_UNIQUE if tx.forms.unique_notifications else _INSERT
        return tx.execute(sql, [list(column) for column in zip(*rows, strict=True)])


def without_muted(
    tx: Transaction, found: Sequence[tuple[Put, Notification]]
) -> list[tuple[Put, Notification]]:
    """Return those notifications that their recipients have not muted."""
    if not found:
        return []
    dids = [one.did for _, one in found]
    subjects = [one.reason_subject for _, one in found]
    places = tx.query(_UNMUTED, (list(range(len(found))), dids, subjects))
    return [found[place] for (place,) in sorted(places)]
