"""CAR v1 files: a header with roots, then blocks in any order.

https://atproto.com/specs/repository#car-file-serialization
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import LENGTH, Cid
from rsky_pipeline.atproto.errors import InvalidData

MAX_BLOCK = 1_048_576  # the largest record that the data model's limits allow
MAX_HEADER = 4_096
MAX_ROOTS = 16


@dataclass(frozen=True, slots=True)
class Car:
    """The roots and all blocks of a CAR, by CID."""

    roots: tuple[Cid, ...]
    blocks: dict[Cid, bytes]


class CarReader:
    """Reads a CAR that arrives in pieces; nothing is allocated for what has not arrived.

    Every method raises InvalidData when the bytes break the format or a block does not have the
    hash that it is named by.
    """

    def __init__(self, *, check_hashes: bool = True) -> None:
        self._check_hashes = check_hashes
        self._buffer = bytearray()
        self.roots: tuple[Cid, ...] | None = None

    def feed(self, chunk: bytes) -> list[tuple[Cid, bytes]]:
        """Take more bytes and return the blocks that they complete."""
        buffer = self._buffer
        buffer += chunk
        blocks: list[tuple[Cid, bytes]] = []
        position = 0
        while True:
            length, start = _varint(buffer, position)
            if start < 0:
                break
            limit = MAX_HEADER if self.roots is None else MAX_BLOCK + LENGTH
            if length > limit:
                raise InvalidData("block_too_big", f"{length} bytes, {limit} are allowed")
            if len(buffer) - start < length:
                break
            section = bytes(buffer[start : start + length])
            position = start + length
            if self.roots is None:
                self.roots = _roots(section)
            else:
                blocks.append(_block(section, self._check_hashes))
        del buffer[:position]
        return blocks

    def finish(self) -> tuple[Cid, ...]:
        """Return the roots. Raises InvalidData if the CAR ended in the middle of something."""
        if self.roots is None or self._buffer:
            raise InvalidData("truncated_car", "the CAR ends within a block or its header")
        return self.roots


def read_car(data: bytes, *, check_hashes: bool = True) -> Car:
    """Read a whole CAR that is in memory already. Raises InvalidData."""
    length, position = _varint(data, 0)
    if position < 0 or position + length > len(data) or length > MAX_HEADER:
        raise InvalidData("invalid_car_header", "the header is cut off or too big")
    roots = _roots(data[position : position + length])
    position += length
    end = len(data)
    blocks: dict[Cid, bytes] = {}
    while position < end:
        length, start = _varint(data, position)
        position = start + length
        if start < 0 or position > end:
            raise InvalidData("truncated_car", "the CAR ends within a block")
        if length > MAX_BLOCK + LENGTH:
            raise InvalidData("block_too_big", f"{length} bytes")
        cid = Cid.from_bytes(data[start : start + LENGTH])
        block = data[start + LENGTH : position]
        if check_hashes and sha256(block).digest() != cid[4:]:
            raise InvalidData("hash_mismatch", f"block {cid}")
        blocks[cid] = block
    return Car(roots, blocks)


def write_car(roots: Iterable[Cid], blocks: Iterable[tuple[Cid, bytes]]) -> bytes:
    """Return a CAR with these roots and blocks, in the given order."""
    header = cbor.encode({"roots": list(roots), "version": 1})
    parts = [_encode_varint(len(header)), header]
    for cid, block in blocks:
        parts += (_encode_varint(LENGTH + len(block)), cid, block)
    return b"".join(parts)


def _varint(buffer: bytes | bytearray, position: int) -> tuple[int, int]:
    """Return a varint and the position after it, or a negative position if it is not all there."""
    value = 0
    for index in range(5):
        if position + index >= len(buffer):
            return 0, -1
        byte = buffer[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index:
                raise InvalidData("invalid_varint", "a length is not in its shortest form")
            return value, position + index + 1
    raise InvalidData("invalid_varint", "a length has more than 5 bytes")


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _roots(header: bytes) -> tuple[Cid, ...]:
    value = cbor.decode(header)
    if not isinstance(value, dict) or value.get("version") != 1:
        raise InvalidData("invalid_car_header", "not a version 1 header")
    roots = value.get("roots")
    if not isinstance(roots, list) or not 1 <= len(roots) <= MAX_ROOTS:
        raise InvalidData("invalid_car_header", "the roots are missing or too many")
    if not all(isinstance(root, Cid) for root in roots):
        raise InvalidData("invalid_car_header", "a root is not a CID")
    return tuple(roots)


def _block(section: bytes, check_hash: bool) -> tuple[Cid, bytes]:
    cid = Cid.from_bytes(section[:LENGTH])
    data = section[LENGTH:]
    if check_hash and sha256(data).digest() != cid.digest:
        raise InvalidData("hash_mismatch", f"block {cid}")
    return cid, data
