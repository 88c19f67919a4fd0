"""Locks on records that others look at, so that two workers cannot miss each other's news.

A reply looks whether its parent is there, while another worker writes the parent and looks for
replies that wait: without a lock neither sees the other. Whoever looks takes a shared lock on the
uri, whoever writes or deletes the record an exclusive one. Both are taken after the locks on
accounts and in the order of their keys, so nobody waits in a circle.
"""

from collections.abc import Iterable, Mapping
from zlib import crc32

from rsky_pipeline.database.connection import Transaction
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


def lock_references(
    tx: Transaction, operations: Iterable[Operation], collections: Mapping[str, Collection]
) -> None:
    """Lock what the operations look at, and those of them that others may look at."""
    exclusive: dict[int, bool] = {}
    for operation in operations:
        if collections[collection_of(operation.uri)].looked_at:
            exclusive[_key(operation.uri)] = True
        if isinstance(operation, Put):
            for uri in operation.rows.looks_at:
                exclusive.setdefault(_key(uri), False)
    if not exclusive:
        return
    if len(exclusive) > MAX_LOCKS:
        exclusive = {EVERYTHING: True}
    else:
        exclusive[EVERYTHING] = False
    keys = sorted(exclusive)
    tx.query(_LOCK, (NAMESPACE, NAMESPACE, keys, [exclusive[key] for key in keys]))


def _key(uri: str) -> int:
    return crc32(uri.encode()) & 0x7FFFFFFF
