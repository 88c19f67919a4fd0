"""Reading single fields of many hashes in one call."""

from collections.abc import Sequence

from rsky_pipeline.streams.connection import Store

_AT_ONCE = 2_000  # the server does nothing else meanwhile


def read_fields(store: Store, where: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """Return the value of each field, given with its hash; b"" for what is not there.

    Raises StoreUnavailable and StoreRejected.
    """
    values: list[bytes] = []
    for start in range(0, len(where), _AT_ONCE):
        part = where[start : start + _AT_ONCE]
        keys = [key for key, _ in part]
        values += store.script("read_fields", keys, [field for _, field in part])
    return values
