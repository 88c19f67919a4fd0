"""CAR v1 files: a header with roots, then blocks in any order.

https://atproto.com/specs/repository#car-file-serialization
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256

from rsky_pipeline.atproto import cbor, compiled
from rsky_pipeline.atproto.cid import LENGTH, VALID_PREFIXES, Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.rules import MAX_BLOCK

MAX_BLOCKS = 1_000_000  # of a CAR that is read as a whole
MAX_HEADER = 4_096
MAX_ROOTS = 16
_MAX_SECTION = LENGTH + MAX_BLOCK  # a block with its CID

_USUAL_START = b"\x3a\xa2eroots\x81\xd8\x2a\x58\x25\x00"
_USUAL_END = b"gversion\x01"
_USUAL_ROOT = slice(len(_USUAL_START), len(_USUAL_START) + LENGTH)
_USUAL_SIZE = _USUAL_ROOT.stop + len(_USUAL_END)


@dataclass(frozen=True, slots=True)
class Car:
    """The roots and all blocks of a CAR, by CID."""

    roots: tuple[Cid, ...]
    blocks: dict[Cid, bytes]


class CarReader:
    """Reads a CAR that arrives in pieces; nothing is allocated for what has not arrived.

    Every method raises InvalidDataError when the bytes break the format or a block does not have
    the hash that it is named by.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.roots: tuple[Cid, ...] | None = None

    def feed(self, chunk: bytes) -> list[tuple[Cid, bytes]]:
        """Take more bytes and return the blocks that they complete."""
        self._buffer += chunk
        position = 0
        if self.roots is None:
            length, start = _varint(self._buffer, 0)
            if length > MAX_HEADER:
                raise InvalidDataError("block_too_big", f"a header of {length} bytes")
            if start < 0 or len(self._buffer) - start < length:
                return []
            position = start + length
            self.roots = _roots(bytes(self._buffer[start:position]))
        blocks, position = _read_blocks(self._buffer, position)
        del self._buffer[:position]
        return blocks

    def finish(self) -> tuple[Cid, ...]:
        """Return the roots. Raises InvalidDataError if the CAR ended in the middle of something."""
        if self.roots is None or self._buffer:
            raise InvalidDataError("truncated_car", "the CAR ends within a block or its header")
        return self.roots


def read_car(data: bytes, *, max_blocks: int = MAX_BLOCKS) -> Car:
    """Read a whole CAR that is in memory already. Raises InvalidDataError.

    A block that occurs twice is kept once.
    """
    roots, position = _header(data)
    blocks = compiled.read_blocks(data, position)
    if blocks is None:
        found, end = _read_blocks(data, position)
        if end != len(data):
            raise InvalidDataError("truncated_car", "the CAR ends within a block")
        blocks = dict(found)
    if len(blocks) > max_blocks:
        raise InvalidDataError("too_many_blocks", f"more than {max_blocks}")
    return Car(roots, blocks)


def _read_blocks(data: bytes | bytearray, position: int) -> tuple[list[tuple[Cid, bytes]], int]:
    """Return the blocks that are complete, and the position after them."""
    blocks = []
    size = len(data)
    while position < size:
        length, start = _varint(data, position)
        if length > _MAX_SECTION:
            raise _too_big(length)
        end = start + length
        if start < 0 or end > size:
            break
        name = bytes(data[start : start + LENGTH])
        if length < LENGTH or name[:4] not in VALID_PREFIXES:
            raise InvalidDataError("invalid_cid", f"{length} bytes named {name[:8].hex()}...")
        block = bytes(data[start + LENGTH : end])
        if sha256(block).digest() != name[4:]:
            raise InvalidDataError("hash_mismatch", f"block {Cid(name)}")
        blocks.append((Cid(name), block))
        position = end
    return blocks, position


def _header(data: bytes) -> tuple[tuple[Cid, ...], int]:
    """Return the roots, and the position of the first block."""
    # The header that every frame has, which a decoder takes as long for as for all the blocks.
    if data.startswith(_USUAL_START) and data.startswith(_USUAL_END, _USUAL_ROOT.stop):
        return (Cid.from_bytes(data[_USUAL_ROOT]),), _USUAL_SIZE
    length, position = _varint(data, 0)
    if position < 0 or position + length > len(data) or length > MAX_HEADER:
        raise InvalidDataError("invalid_car_header", "the header is cut off or too big")
    return _roots(data[position : position + length]), position + length


def find_blocks(
    data: bytes, wanted: Collection[bytes]
) -> tuple[tuple[Cid, ...], dict[bytes, bytes]]:
    """Return the roots of a CAR and the blocks whose CIDs are wanted. Raises InvalidDataError.

    Everything else is stepped over. No hash is checked: compare each block that is used with its
    CID.
    """
    roots, position = _header(data)
    blocks: dict[bytes, bytes] = {}
    while position < len(data):
        length, start = _varint(data, position)
        if start < 0:
            break
        position = start + length
        name = data[start : start + LENGTH]
        if name in wanted:
            if length > _MAX_SECTION:
                raise _too_big(length)
            if length < LENGTH:
                raise InvalidDataError("invalid_cid", f"{length} bytes are too few")
            blocks[name] = data[start + LENGTH : position]
    if position != len(data):
        raise InvalidDataError("truncated_car", "the CAR ends within a block or its length")
    return roots, blocks


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
                raise InvalidDataError("invalid_varint", "a length is not in its shortest form")
            return value, position + index + 1
    raise InvalidDataError("invalid_varint", "a length has more than 5 bytes")


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _roots(header: bytes) -> tuple[Cid, ...]:
    root = header[len(_USUAL_START) - 1 : -len(_USUAL_END)]
    if header == _USUAL_START[1:] + root + _USUAL_END and len(root) == LENGTH:
        return (Cid.from_bytes(root),)  # nearly every repo: decoding takes far longer
    value = cbor.decode(header)
    if not isinstance(value, dict) or value.get("version") != 1:
        raise InvalidDataError("invalid_car_header", "not a version 1 header")
    roots = value.get("roots")
    if not isinstance(roots, list) or not 1 <= len(roots) <= MAX_ROOTS:
        raise InvalidDataError("invalid_car_header", "the roots are missing or too many")
    if not all(isinstance(root, Cid) for root in roots):
        raise InvalidDataError("invalid_car_header", "a root is not a CID")
    return tuple(roots)


def _too_big(length: int) -> InvalidDataError:
    return InvalidDataError("block_too_big", f"{length - LENGTH} bytes, {MAX_BLOCK} are allowed")
