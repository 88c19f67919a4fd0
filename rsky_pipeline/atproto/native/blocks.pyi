from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rsky_pipeline.atproto.cid import Cid

def read_blocks(data: bytes, position: int) -> dict[Cid, bytes] | None: ...
def find_wanted(
    data: bytes, position: int, wanted: Collection[bytes]
) -> dict[bytes, bytes] | None: ...
def record_json(block: bytes) -> bytes | None: ...
def commit_events(
    ops: Sequence[tuple[str, str, Cid | None, Cid | None]],
    source: Mapping[Any, bytes] | bytes,
    header: bytes,
    shared: bytes,
    most: int,
) -> list[bytes] | None: ...
