"""What operators leave out at run time, as the ingester reads it, which has no database.

`rsky_pipeline:selection:GROUP` is a hash: a version, and the content as JSON. An indexer of the
group writes it when it is another one than that of its database (`indexer.upkeep`), and so do the
commands that change it. A key that is missing says nothing: Redis has lost it.
"""

import logging

import orjson

from rsky_pipeline.configuration.selection import Selection
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.connection import Store

_throttled = ThrottledLog(logging.getLogger(__name__), 600.0)
SELECTION = "rsky_pipeline:selection:"
_VERSION, _CONTENT = "version", "content"


def published_version(store: Store, group: str) -> int | None:
    """Return the version that is published; None for none, or one that cannot be read."""
    text = store.call("HGET", SELECTION + group, _VERSION)
    return int(text) if text is not None and text.isdigit() and len(text) < 20 else None


def publish_selection(store: Store, group: str, selection: Selection) -> None:
    """Publish what is left out."""
    content = orjson.dumps(
        {
            "accounts": sorted(selection.accounts), "hosts": sorted(selection.hosts),
            "collections": list(selection.collections),
        }
    )  # fmt: skip
    store.call(
        "HSET", SELECTION + group, _VERSION, selection.version, _CONTENT, content
    )  # one command: both or none


def read_selection(store: Store, group: str, known: Selection) -> Selection:
    """Return what is published; the known one where that is it, is missing or cannot be read."""
    version = published_version(store, group)
    if version is None or version == known.version:
        return known
    number, content = store.call("HMGET", SELECTION + group, _VERSION, _CONTENT)
    try:
        body = orjson.loads(content or b"")
        lists = [body[name] for name in ("accounts", "hosts", "collections")]
        if not all(isinstance(item, str) for each in lists for item in each):
            raise ValueError("an item is no text")
        return Selection(int(number), frozenset(lists[0]), frozenset(lists[1]), tuple(lists[2]))
    except (ValueError, TypeError, KeyError) as error:
        _throttled.error("list of blocks in Redis cannot be read", error=error)
        return known
