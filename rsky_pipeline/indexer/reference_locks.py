"""Locks on records that others look at, so that two workers cannot miss each other's news.

A reply looks whether its parent is there, while another worker writes the parent and looks for
replies that wait: without a lock neither sees the other. Whoever looks takes a shared lock on the
uri, whoever writes or deletes the record an exclusive one. Both are taken after the locks on
accounts and in the order of their keys, so nobody waits in a circle. What turns out to be looked at
only later is locked without waiting, or the transaction begins again and locks it in order.
"""

from collections.abc import Collection as Some
from collections.abc import Iterable, Mapping
from zlib import crc32

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.database.errors import TransactionConflict
from rsky_pipeline.indexer.collections.shape import Collection, Put
from rsky_pipeline.indexer.plan import Operation
from rsky_pipeline.indexer.uris import collection_of

NAMESPACE = 0x72736B79  # first key of our advisory locks; "rsky"
EVERYTHING = -1  # second key: held shared by whoever locks uris, exclusively by who locks them all
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


class ReferencesBusy(TransactionConflict):
    """Another worker writes records that this transaction looks at and has not locked in order.

    Begin again with `uris` among what `lock_references` locks.
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
        """Tell whether nobody else can write the record before this transaction ends."""
        return self._everything or _key(uri) in self._keys

    def share(self, uris: Some[str]) -> None:
        """Lock further uris to look at them, without waiting. Raises ReferencesBusy.

        Each belongs to a reply of the batch, or to one that waited for a post of it.
        """
        wanted = {_key(uri) for uri in uris if not self.holds(uri)}
        if wanted:
            wanted |= {EVERYTHING} - self._keys
            refused = {row[0] for row in self._tx.query(_TRY, (sorted(wanted), NAMESPACE))}
            if refused:
                raise ReferencesBusy(frozenset(uris))
            self._keys |= wanted


def needs_locks(operation: Operation, collections: Mapping[str, Collection]) -> bool:
    """Tell whether an operation looks at records of others, or they may look at its record."""
    return collections[collection_of(operation.uri)].looked_at or (
        isinstance(operation, Put) and bool(operation.rows.looks_at)
    )


def lock_references(
    tx: Transaction,
    operations: Iterable[Operation],
    collections: Mapping[str, Collection],
    also: Iterable[str] = (),
) -> ReferenceLocks:
    """Lock what the operations look at and `also`, and those of them that others may look at."""
    exclusive: dict[int, bool] = {}
    for operation in operations:
        if collections[collection_of(operation.uri)].looked_at:
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
