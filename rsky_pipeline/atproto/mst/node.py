"""One node of a tree: its block, its layer, and the rules that a single node can break."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rsky_pipeline.atproto import cbor, compiled
from rsky_pipeline.atproto.cid import DAG_CBOR, Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.rules import KEY_LETTERS, MAX_ENTRIES, MAX_KEY

_PART = re.escape(KEY_LETTERS.encode())
_KEY = re.compile(rb"[%b]+/[%b]+" % (_PART, _PART))
_LINK = b"\xd8\x2a\x58\x25\x00"


@dataclass(slots=True, eq=False)
class Node:
    """A tree node: keys with their values, and the subtrees around them.

    `children` has one more element than `keys`. A child is None where there is nothing, the bytes
    of a CID where the subtree is known by its hash only, or a Node. Nodes are not changed once
    made, except that `block` and `cid` are filled in when they are first needed.
    """

    layer: int
    keys: tuple[bytes, ...]
    values: tuple[bytes, ...]
    children: "tuple[Node | bytes | None, ...]"
    block: bytes = b""
    cid: Cid | None = None
    source: "tuple[Node, int] | None" = None  # the node that this is a copy of but for one child

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it, as only in the tree of an empty repo."""
        return not self.keys and self.children == (None,)


@dataclass(slots=True)
class Content:
    """The content of a node's block: like a Node, but on a layer that is not yet known."""

    keys: list[bytes]
    values: list[bytes]
    children: list[bytes | None]


def is_key(key: bytes) -> bool:
    """Whether a key may stand in a tree: collection, slash, record key, of the allowed letters."""
    return len(key) <= MAX_KEY and _KEY.fullmatch(key) is not None


def parse_block(block: bytes) -> Content:
    """Read the block of a node. Raises InvalidDataError unless it is canonical and in order."""
    content = compiled.read_node(block)
    return _parse_anything(block) if content is None else Content(*content)


def write_block(
    keys: Sequence[bytes], values: Sequence[bytes], children: Sequence[bytes | None]
) -> bytes:
    """Return the block of a node; the children are given by their CIDs."""
    parts = [b"\xa2ae", _head(0x80, len(keys))]
    previous = b""
    for key, value, child in zip(keys, values, children[1:], strict=True):
        shared = shared_length(previous, key)
        suffix = key[shared:]
        parts += (
            b"\xa4ak", _head(0x40, len(suffix)), suffix, b"ap", _head(0x00, shared),
            b"at\xf6av" if child is None else b"at" + _LINK + child + b"av", _LINK, value,
        )  # fmt: skip
        previous = key
    parts.append(b"al\xf6" if children[0] is None else b"al" + _LINK + children[0])
    return b"".join(parts)


def replace_child(block: bytes, old: bytes, new: bytes) -> bytes:
    """Return the block of a node with another CID in place of a child's.

    Keys cannot hold the bytes of a link, and a record's link follows another letter, so that the
    child is found wherever it stands.
    """
    letter = b"at" if b"at" + _LINK + old in block else b"al"
    return block.replace(letter + _LINK + old, letter + _LINK + new, 1)


def shared_length(left: bytes, right: bytes) -> int:
    """Return how many bytes two keys have in common at their start."""
    size = min(len(left), len(right))
    difference = int.from_bytes(left[:size], "big") ^ int.from_bytes(right[:size], "big")
    return size - (difference.bit_length() + 7) // 8


def _head(kind: int, number: int) -> bytes:
    """Return the head of a CBOR item: its kind, and a length or number below 65,536."""
    if number < 24:
        return bytes((kind + number,))
    if number < 256:
        return bytes((kind + 24, number))
    return bytes((kind + 25,)) + number.to_bytes(2, "big")


def _parse_anything(block: bytes) -> Content:
    value = cbor.decode_strict(block)
    if not isinstance(value, dict) or value.keys() != {"e", "l"} or type(value["e"]) is not list:
        raise InvalidDataError("mst_node", "a node is malformed")
    if len(value["e"]) > MAX_ENTRIES:
        raise InvalidDataError("mst_node", f"a node has {len(value['e'])} entries")
    content = Content([], [], [_link(value["l"])])
    key = b""
    for entry in value["e"]:
        key, record, child = _entry(entry, key)
        content.keys.append(key)
        content.values.append(record)
        content.children.append(child)
    return content


def _entry(entry: object, previous: bytes) -> tuple[bytes, Cid, Cid | None]:
    if not isinstance(entry, dict) or entry.keys() != {"k", "p", "t", "v"}:
        raise InvalidDataError("mst_node", "an entry is malformed")
    shared, suffix, record = entry["p"], entry["k"], entry["v"]
    if type(shared) is not int or type(suffix) is not bytes or not isinstance(record, Cid):
        raise InvalidDataError("mst_node", "an entry is malformed")
    if not 0 <= shared <= len(previous):
        raise InvalidDataError("mst_prefix", "a prefix is longer than the key before")
    key = previous[:shared] + suffix
    if not is_key(key):
        raise InvalidDataError("mst_key", "a key is not collection/rkey")
    if key <= previous:
        raise InvalidDataError("mst_order", "keys do not ascend within a node")
    if shared != shared_length(previous, key):
        raise InvalidDataError("mst_prefix", "a prefix is not as long as possible")
    return key, record, _link(entry["t"])


def _link(value: object) -> Cid | None:
    if value is None:
        return None
    if not isinstance(value, Cid) or value.codec != DAG_CBOR:
        raise InvalidDataError("mst_node", "a link to a node is malformed")
    return value
