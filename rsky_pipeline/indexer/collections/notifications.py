"""Notifications of a batch: removed with their record, written only for what is really new.

History that the backfiller brings notifies nobody. When one record takes the place of another (a
duplicate is promoted, an older like arrives late, a post is edited) it notifies as the other did.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.values import Notification, Put

_DELETE = 'DELETE FROM notification WHERE "recordUri" = ANY(%b::text[]) RETURNING "recordUri"'
# Muted threads are filtered as officially: by the root of the post that the notification is
# about. One that is not there yet may be a root. The first condition spares the lookups as long as
# nobody mutes anything.
_INSERT = """
INSERT INTO notification
    (did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt")
SELECT n.* FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
    %b::text[]) AS n(did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt")
WHERE NOT EXISTS (SELECT FROM thread_mute)
   OR NOT EXISTS (
        SELECT FROM thread_mute m WHERE m."mutedByDid" = n.did AND m."rootUri" = COALESCE(
            (SELECT p."replyRoot" FROM post p WHERE p.uri = n."reasonSubject"), n."reasonSubject"))
"""


@dataclass(slots=True)
class BatchNotifications:
    """The notifications of one batch."""

    forgotten: dict[str, None] = field(default_factory=dict)
    successors: dict[str, set[str]] = field(default_factory=dict)  # uri -> uris it replaces
    heirs: set[str] = field(default_factory=set)
    told: list[tuple[Put, Notification]] = field(default_factory=list)

    def forget(self, uris: Iterable[str]) -> None:
        """Remove what these records told."""
        self.forgotten.update(dict.fromkeys(uris))

    def succeed(self, uri: str, previous: str, *, inherits: bool) -> None:
        """Note that a record stands where another one stood, which is forgotten.

        One that inherits is not news of its own: it notifies only if the other one did.
        """
        if inherits:
            self.heirs.add(uri)
        self.successors.setdefault(uri, set()).add(previous)
        self.forgotten[previous] = None

    def succeeded(self) -> set[str]:
        """Return the uris of records for which another one stands now."""
        return {uri for previous in self.successors.values() for uri in previous}

    def tell(self, put: Put, notification: Notification) -> None:
        """Notify somebody of a record, unless it turns out to be history."""
        self.told.append((put, notification))

    def write(self, tx: Transaction) -> int:
        """Perform the removals, then the insertions; return how many rows were inserted."""
        spoken: set[str] = set()
        if self.forgotten:
            spoken = {row[0] for row in tx.query(_DELETE, (sorted(self.forgotten),))}
        rows = [
            (told.did, put.uri, put.cid, put.did, told.reason, told.reason_subject, told.sort_at)
            for put, told in self.told
            if not (put.historical or put.uri in self.heirs)
            or not spoken.isdisjoint(self._before(put))
        ]
        if not rows:
            return 0
        return tx.execute(_INSERT, [list(column) for column in zip(*rows, strict=True)])

    def _before(self, put: Put) -> set[str]:
        return {put.uri, *self.successors.get(put.uri, ())}
