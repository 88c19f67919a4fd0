"""The compiled readers, where they could be built: the one place where the form is chosen.

A function of `native` reads well-formed input of the usual form, and returns None or False for
everything else; its Python counterpart, which calls it by `compiled.NAME`, then reads that and
names the error. Without a C compiler all of them accept nothing, so that Python reads everything,
slower. To write another pair:

- Write the Python first: it has the whole rule, and alone decides what is refused, and why.
- The compiled form may leave over what is rare, but must not accept more, or return another value.
- Limits and letters of both stand in `rules`; the compiled form's own bounds are named USUAL_.
- Compare both on generated and on damaged input, as tests/unit/atproto/test_compiled.py does.
- Use it where a profile shows the Python; an exception inside must become None.
"""

from typing import TYPE_CHECKING

__all__ = [
    "commit_events", "find_wanted", "is_plc", "is_usual_cid", "is_usual_datetime", "is_usual_rkey",
    "is_usual_uri", "read_blocks", "read_commit", "read_node", "record_json", "tid_value",
    "undo_changes", "verify_all",
]  # fmt: skip

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
        globals().update(dict.fromkeys(__all__, lambda *_: None))
