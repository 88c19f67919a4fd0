"""Which words of a command are keys, and their names on a cluster: with one tag.

A script that moves a cursor with its entries can only touch keys of one hash slot, and a node only
runs it on slots of its own (https://valkey.io/topics/cluster-spec/#hash-tags). With the tag a
cluster is one server that moves between nodes, as behind sentinels; everything above `Store` uses
the names of `streams.names`, which are the keys on a single server.
"""

from collections.abc import Sequence
from typing import Any

from redis.crc import key_slot

Argument = str | bytes | int | float
TAG = "{rsky:0}"
SLOT = key_slot(TAG.encode())
# For scripts that store or return the name of a key: no name begins with a brace.
NAME_OF_KEY = "local function name_of(key) return string.match(key, '^{.-}(.+)$') or key end"
WITH_SUBCOMMANDS = frozenset({"XGROUP", "XINFO", "MEMORY", "CONFIG", "CLIENT", "SCRIPT"})
_WITHOUT_KEYS = frozenset({"PING", "TIME", "INFO", "CONFIG", "CLIENT", "ACL", "DBSIZE", "FLUSHDB"})
_OF_KEYS_ALONE = frozenset({"DEL", "UNLINK", "EXISTS"})


def with_tag(command: Sequence[Argument]) -> list[Argument]:
    """Return a command whose keys have the tag; a SCAN sees only such keys."""
    name, *rest = command
    if name in _WITHOUT_KEYS:
        return [*command]
    if name == "SCAN":
        if "MATCH" not in rest:
            return [name, *rest, "MATCH", f"{TAG}*"]
        places = slice(rest.index("MATCH") + 1, rest.index("MATCH") + 2)
    elif name == "XREADGROUP":
        first = rest.index("STREAMS") + 1
        places = slice(first, (first + len(rest)) // 2)
    elif name in _OF_KEYS_ALONE:
        places = slice(None)
    else:
        place = int(name in WITH_SUBCOMMANDS)
        places = slice(place, place + 1)
    rest[places] = tagged(rest[places])
    return [name, *rest]


def tagged(keys: Sequence[Argument]) -> list[Argument]:
    """Return the names of keys with the tag."""
    return [TAG.encode() + key if isinstance(key, bytes) else f"{TAG}{key}" for key in keys]


def without_tag(command: Sequence[Argument], reply: Any) -> Any:
    """Return the reply to a command with the names of keys as everything else uses them."""
    start = len(TAG)
    if command[0] == "SCAN":
        position, keys = reply
        return [position, [key[start:] for key in keys]]
    if command[0] == "XREADGROUP" and reply:
        return [[key[start:], entries] for key, entries in reply]
    return reply


def owner(slots: Sequence[Sequence[Any]], asked: tuple[str, int]) -> tuple[str, int] | None:
    """Return the address of the primary that holds the tag, by a reply to CLUSTER SLOTS.

    `asked` is the node that replied, which need not know its own name. None: nobody holds it.
    """
    for first, last, primary, *_ in slots:
        if first <= SLOT <= last:
            host, port = primary[:2]
            return (host.decode() if host and host != b"?" else asked[0]), int(port)
    return None
