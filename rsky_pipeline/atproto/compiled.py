"""The compiled readers, where they could be built: the one place where the form is chosen.

A function of `native` reads well-formed input of the usual form, and returns None or False for
everything else; its Python counterpart, which calls it by `compiled.NAME`, then reads that and
names the error. Without a C compiler all of them accept nothing, so that Python reads everything,
slower. The same holds where a compiled module is of other sources, as after `git pull` without
`make`: its functions may have other arguments than their callers pass. To write another pair:

- Write the Python first: it has the whole rule, and alone decides what is refused, and why.
- The compiled form may leave over what is rare, but must not accept more, or return another value.
- Limits and letters of both stand in `rules`; the compiled form's own bounds are named USUAL_.
- Compare both on generated and on damaged input, as tests/unit/atproto/test_compiled.py does.
- Use it where a profile shows the Python; an exception inside must become None.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from rsky_pipeline.atproto.native import MARK, digest_of

__all__ = [
    "digest", "is_plc", "is_usual_cid", "is_usual_datetime", "is_usual_rkey", "is_usual_uri",
    "load_key", "point_of", "prove", "read_blocks", "read_commit", "read_node", "record_json",
    "sign", "tid_value", "verify",
]  # fmt: skip


def are_stale(package: Path) -> bool:
    """Return whether a compiled module below `package` is of other sources than those beside it.

    Wheels and executable files hold no sources, so that nothing is stale in them. A module without
    a digest, as older versions built them, must not be older than its sources.
    """
    for source in (*package.glob("*/*.pyx"), *package.glob("*/native/*.pyx")):
        digest = digest_of(source)
        written = max(path.stat().st_mtime_ns for path in (source, *source.parent.glob("*.pxd")))
        for path in source.parent.glob(f"{source.stem}.*.so"):
            content = path.read_bytes()
            if digest in content:
                continue
            if MARK in content or path.stat().st_mtime_ns < written:
                return True
    return False


# Of all compiled modules of the package, also those outside of `atproto`.
STALE = are_stale(Path(__file__).parents[1])

try:
    if STALE:
        raise ImportError("the compiled readers are older than their source")
    from rsky_pipeline.atproto.native.blocks import read_blocks, record_json
    from rsky_pipeline.atproto.native.frames import (
        is_plc,
        is_usual_cid,
        is_usual_datetime,
        is_usual_rkey,
        is_usual_uri,
        read_commit,
        tid_value,
    )
    from rsky_pipeline.atproto.native.proofs import digest, load_key, point_of, prove, sign, verify
    from rsky_pipeline.atproto.native.trees import read_node

    COMPILED = True
except ImportError:
    COMPILED = False
    if not TYPE_CHECKING:
        globals().update(dict.fromkeys(__all__, lambda *_: None))
