"""Copying all keys of one server into another one by commands, whatever their versions.

Neither a file nor a replica goes from a newer version, or from Valkey, to an older Redis. Streams
keep the ids of their entries, the positions of their groups and the count of entries ever added.
What was delivered and not acknowledged is delivered again.
"""

from collections.abc import Callable, Iterator
from typing import Any

from rsky_pipeline.streams.commands import Argument
from rsky_pipeline.streams.connection import Store, text_of
from rsky_pipeline.streams.errors import StoreRejectedError

PAGE = 500
_FIRST = b"0-1"
_MOST = 2**64 - 1


class StoreNotEmptyError(StoreRejectedError):
    """The server that keys are copied to has some of them."""


def copy_keys(
    source: Store, target: Store, *, replace: bool, tell: Callable[[str], None]
) -> dict[str, int]:
    """Copy every key; return how many there are of each type.

    Raises StoreNotEmptyError if the target has one of them, unless they are to be replaced, and the
    other errors of this package. Nobody may write to either meanwhile; interrupted, it is repeated
    with `replace`.
    """
    keys = list(_keys(source))
    if not replace:
        for key in keys:
            if target.call("EXISTS", key):
                raise StoreNotEmptyError(
                    f"the server has {text_of(key)} already: --replace removes such keys first"
                )
    copied: dict[str, int] = {}
    for key in keys:
        kind = text_of(source.call("TYPE", key))
        if kind not in _COPIES:
            if kind == "none":  # expired since
                continue
            raise StoreRejectedError(f"{text_of(key)} is a {kind}, which cannot be copied")
        target.call("DEL", key)
        _COPIES[kind](source, target, key)
        left = int(source.call("PTTL", key))
        if left >= 0:
            target.call("PEXPIRE", key, max(left, 1))
        copied[kind] = copied.get(kind, 0) + 1
        if kind == "stream":
            tell(f"{text_of(key)}: {int(target.call('XLEN', key)):,} entries")
    return copied


def _keys(store: Store) -> Iterator[bytes]:
    seen: set[bytes] = set()
    cursor: Argument = 0
    while True:
        cursor, found = store.call("SCAN", cursor, "COUNT", PAGE)
        for key in found:
            if key not in seen:
                seen.add(key)
                yield key
        if int(cursor) == 0:
            return


def _copy_string(source: Store, target: Store, key: bytes) -> None:
    target.call("SET", key, source.call("GET", key))


def _copy_list(source: Store, target: Store, key: bytes) -> None:
    for start in range(0, int(source.call("LLEN", key)), PAGE):
        target.call("RPUSH", key, *source.call("LRANGE", key, start, start + PAGE - 1))


def _copy_hash(source: Store, target: Store, key: bytes) -> None:
    for page in _scanned(source, "HSCAN", key):
        target.call("HSET", key, *page)


def _copy_set(source: Store, target: Store, key: bytes) -> None:
    for page in _scanned(source, "SSCAN", key):
        target.call("SADD", key, *page)


def _copy_sorted_set(source: Store, target: Store, key: bytes) -> None:
    for page in _scanned(source, "ZSCAN", key):
        scores = zip(page[1::2], page[::2], strict=True)
        target.call("ZADD", key, *(each for pair in scores for each in pair))


def _scanned(store: Store, command: str, key: bytes) -> Iterator[list[bytes]]:
    cursor: Argument = 0
    while True:
        cursor, page = store.call(command, key, cursor, "COUNT", PAGE)
        if page:
            yield page
        if int(cursor) == 0:
            return


def _copy_stream(source: Store, target: Store, key: bytes) -> None:
    facts = _pairs(source.call("XINFO", "STREAM", key))
    begin: bytes = b"-"
    entries = False
    while page := source.call("XRANGE", key, begin, "+", "COUNT", PAGE):
        for id_, fields in page:
            target.call("XADD", key, id_, *fields)
        entries, begin = True, b"(" + page[-1][0]
    last = facts[b"last-generated-id"]
    if not entries:  # a stream is made by an entry
        target.call("XADD", key, _FIRST, "x", "x")
        target.call("XDEL", key, _FIRST)
    if last != b"0-0":
        added = facts.get(b"entries-added")
        _newer(
            target, ("XSETID", key, last),
            () if added is None
            else ("ENTRIESADDED", added, "MAXDELETEDID", facts[b"max-deleted-entry-id"]),
        )  # fmt: skip
    for row in source.call("XINFO", "GROUPS", key):
        group = _pairs(row)
        at = group[b"last-delivered-id"]
        read = group.get(b"entries-read")
        if int(group[b"pending"]):
            at, read = _before(source.call("XPENDING", key, group[b"name"])[1]), None
        create = ("XGROUP", "CREATE", key, group[b"name"], at)
        _newer(target, create, () if read is None else ("ENTRIESREAD", read))


def _newer(store: Store, command: tuple[Argument, ...], options: tuple[Argument, ...]) -> None:
    """Run a command with options of Redis 7.0, and without them on an older server."""
    try:
        store.call(*command, *options)
    except StoreRejectedError:
        if not options:
            raise
        store.call(*command)


def _before(entry: bytes) -> bytes:
    """Return the id before an id."""
    time, sequence = map(int, entry.split(b"-"))
    if sequence:
        return f"{time}-{sequence - 1}".encode()
    return f"{time - 1}-{_MOST}".encode() if time else b"0-0"


def _pairs(reply: list[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


_COPIES: dict[str, Callable[[Store, Store, bytes], None]] = {
    "string": _copy_string,
    "list": _copy_list,
    "hash": _copy_hash,
    "set": _copy_set,
    "zset": _copy_sorted_set,
    "stream": _copy_stream,
}
