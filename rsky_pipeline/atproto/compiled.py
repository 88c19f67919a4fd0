"""The compiled readers, where they could be built.

They read well-formed input of the usual form, and return None or False for everything else, which
their Python counterparts then read. Without a C compiler they accept nothing, and everything works,
slower.
"""

from typing import TYPE_CHECKING

try:
    from rsky_pipeline.atproto.native.blocks import (
        commit_events,
        find_wanted,
        read_blocks,
        record_json,
    )
    from rsky_pipeline.atproto.native.frames import (
        is_plc,
        is_usual_cid,
        is_usual_datetime,
        is_usual_rkey,
        is_usual_uri,
        read_commit,
        tid_value,
    )
    from rsky_pipeline.atproto.native.signatures import verify_all
    from rsky_pipeline.atproto.native.trees import read_node, undo_changes

    COMPILED = True
except ImportError:
    COMPILED = False

    if not TYPE_CHECKING:

        def _accept_nothing(*_: object) -> None:
            pass

        commit_events = find_wanted = read_blocks = read_commit = read_node = _accept_nothing
        record_json = tid_value = undo_changes = verify_all = _accept_nothing
        is_plc = is_usual_cid = is_usual_datetime = is_usual_rkey = is_usual_uri = _accept_nothing

__all__ = [
    "COMPILED",
    "commit_events",
    "find_wanted",
    "is_plc",
    "is_usual_cid",
    "is_usual_datetime",
    "is_usual_rkey",
    "is_usual_uri",
    "read_blocks",
    "read_commit",
    "read_node",
    "record_json",
    "tid_value",
    "undo_changes",
    "verify_all",
]
