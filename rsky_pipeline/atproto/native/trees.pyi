from collections.abc import Mapping, Sequence

from rsky_pipeline.atproto.cid import Cid

def read_node(block: bytes) -> tuple[list[bytes], list[bytes], list[bytes | None]] | None: ...
def undo_changes(
    blocks: Mapping[Cid, bytes],
    root: bytes,
    changes: Sequence[tuple[bytes, bytes | None, bytes | None]],
) -> bytes | None: ...
