"""Locks on records that others look at, so that two workers cannot miss each other's news.

A reply looks whether its parent is there, while another worker writes the parent and looks for
replies that wait: without a lock neither sees the other. Whoever looks takes a shared lock on the
uri, whoever writes or deletes the record an exclusive one.

Order keeps workers from waiting in a circle. All locks of a batch are taken before its
plan is made: first the rows of its accounts in the order of their DIDs (`accounts.actors`), then
the uris in the order of their keys, then nothing any more that another batch could hold and wait
for. A uri that turns out to be looked at only later (the parent of a reply that waited in the
database) comes too late for this order: it is locked without waiting, and where that fails, the
transaction is begun again with this uri among those that are locked in order.
"""

from collections.abc import Collection as Some
from collections.abc import Iterable, Set
from zlib import crc32

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.database.errors import TransactionConflictError
from rsky_pipeline.indexer.collections.values import Operation, Put, collection_of

NAMESPACE = 0x72736B79  # first key of our advisory locks; "rsky"
EVERYTHING = -1  # second key: held shared by whoever locks uris, exclusively by who locks them all
LABELS = -2  # second key: held by whoever writes labels
BSYNC = -3  # second key: held by whoever applies operations of bsync
MAX_LOCKS = 1_000  # the server's lock table is limited; a batch with more locks everything

_LOCK = """
SELECT CASE WHEN n.exclusive THEN pg_advisory_xact_lock(%s, n.key)::text
    ELSE pg_advisory_xact_lock_shared(%s, n.key)::text END
FROM unnest(%b::integer[], %b::boolean[]) AS n(key, exclusive)
"""
_TRY = """
SELECT n.key FROM unnest(%b::integer[]) AS n(key)
WHERE NOT pg_try_advisory_xact_lock_shared(%s, n.key)
"""


class ReferencesBusyError(TransactionConflictError):
    """Another worker writes records that this transaction looks at and has not locked in order.

    Begin again, with `uris` in `also` of `lock_references`.
    """

    def __init__(self, uris: frozenset[str]) -> None:
        super().__init__(f"{len(uris)} records are being written by another worker")
        self.uris = uris


class ReferenceLocks:
    """The locks that a transaction holds on uris."""

    def __init__(self, tx: Transaction, keys: Iterable[int], *, everything: bool = False) -> None:
        self._tx = tx
        self._keys = set(keys)
        self._everything = everything

    def holds(self, uri: str) -> bool:
        """Return whether nobody else can write the record before this transaction ends."""
        return self._everything or _key(uri) in self._keys

    def share(self, uris: Some[str]) -> None:
        """Lock further uris to look at them, without waiting. Raises ReferencesBusyError.

        Each belongs to a reply of the batch, or to one that waited for a post of it.
        """
        wanted = {_key(uri) for uri in uris if not self.holds(uri)}
        if wanted:
            wanted |= {EVERYTHING} - self._keys
            refused = {row[0] for row in self._tx.query(_TRY, (sorted(wanted), NAMESPACE))}
            if refused:
                raise ReferencesBusyError(frozenset(uris))
            self._keys |= wanted


def needs_locks(operation: Operation, looked_at: Set[str]) -> bool:
    """Return whether an operation looks at records of others, or they may look at its record."""
    return collection_of(operation.uri) in looked_at or (
        isinstance(operation, Put) and bool(operation.rows.looks_at)
    )


def lock_references(
    tx: Transaction,
    operations: Iterable[Operation],
    looked_at: Set[str],
    also: Iterable[str] = (),
) -> ReferenceLocks:
    """Lock the uris that operations look at and `also`, and the records that others may look at.

    `looked_at` are the collections of the latter.
    """
    exclusive: dict[int, bool] = {}
    for operation in operations:
        if collection_of(operation.uri) in looked_at:
            exclusive[_key(operation.uri)] = True
        if isinstance(operation, Put):
            for uri in operation.rows.looks_at:
                exclusive.setdefault(_key(uri), False)
    for uri in also:
        exclusive.setdefault(_key(uri), False)
    if not exclusive:
        return ReferenceLocks(tx, ())
    everything = len(exclusive) > MAX_LOCKS
    if everything:
        exclusive = {EVERYTHING: True}
    else:
        exclusive[EVERYTHING] = False
    keys = sorted(exclusive)
    tx.query(_LOCK, (NAMESPACE, NAMESPACE, keys, [exclusive[key] for key in keys]))
    return ReferenceLocks(tx, keys, everything=everything)


def _key(uri: str) -> int:
    return crc32(uri.encode()) & 0x7FFFFFFF
