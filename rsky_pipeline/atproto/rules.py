"""Rules that the Python readers and the compiled ones share: limits, letters, the layer of a key.

It imports nothing of ours, so that the compiled modules can import it.
"""

import string
from hashlib import sha256

MAX_BLOCK = 1_048_576  # bytes; the largest record that the data model's limits allow
MAX_COMMIT_BLOCKS = 2_000_000  # bytes
MAX_OPS = 200
MAX_KEY = 1_024  # bytes of a key in a tree
MAX_ENTRIES = 10_000  # of a node in a tree
MAX_RKEY = 512
KEY_LETTERS = f"{string.ascii_letters}{string.digits}._~:-"  # of record keys and collections

_SMALL_LAYERS = bytes((8 - first.bit_length()) // 2 for first in range(256))


def layer_of(key: bytes) -> int:
    """Return the layer of a key in a tree: pairs of leading zero bits of its SHA-256."""
    digest = sha256(key).digest()
    if digest[0]:
        return _SMALL_LAYERS[digest[0]]
    return (256 - int.from_bytes(digest, "big").bit_length()) // 2
