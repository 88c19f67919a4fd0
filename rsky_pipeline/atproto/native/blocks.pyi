from collections.abc import Container

from rsky_pipeline.atproto.cid import Cid

def read_blocks(
    data: bytes, position: int, largest: int, check_hashes: bool
) -> dict[Cid, bytes] | None: ...
def find_wanted(
    data: bytes, position: int, largest: int, wanted: Container[bytes]
) -> dict[bytes, bytes] | None: ...
def record_json(block: bytes) -> bytes | None: ...
