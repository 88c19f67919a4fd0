"""CAR v1 files: a header with roots, then blocks in any order.

https://atproto.com/specs/repository#car-file-serialization
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from rsky_pipeline.atproto import cbor, compiled
from rsky_pipeline.atproto.cid import LENGTH, VALID_PREFIXES, Cid
from rsky_pipeline.atproto.errors import InvalidDataError

MAX_BLOCK = 1_048_576  # the largest record that the data model's limits allow
MAX_BLOCKS = 1_000_000  # of a CAR that is read as a whole
MAX_HEADER = 4_096
MAX_ROOTS = 16

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
                raise InvalidDataError("block_too_big", f"{length} bytes, {limit} are allowed")
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
        """Return the roots. Raises InvalidDataError if the CAR ended in the middle of something."""
        if self.roots is None or self._buffer:
            raise InvalidDataError("truncated_car", "the CAR ends within a block or its header")
        return self.roots


def read_car(
    data: bytes,
    *,
    max_block: int = MAX_BLOCK,
    max_blocks: int = MAX_BLOCKS,
    check_hashes: bool = True,
) -> Car:
    """Read a whole CAR that is in memory already. Raises InvalidDataError.

    `max_block` is in bytes. A block that occurs twice is kept once. Without `check_hashes` the
    caller must compare each block that it uses with its CID.
    """
    roots, position = _header(data)
    blocks = compiled.read_blocks(data, position, max_block + LENGTH, check_hashes)
    if blocks is None:
        blocks = _read_blocks(data, position, max_block, check_hashes)
    if len(blocks) > max_blocks:
        raise InvalidDataError("too_many_blocks", f"more than {max_blocks}")
    return Car(roots, blocks)


def _read_blocks(
    data: bytes, position: int, max_block: int, check_hashes: bool
) -> dict[Cid, bytes]:
    blocks: dict[Cid, bytes] = {}
    for name, start, end in _sections(data, position):
        if end > len(data):
            raise InvalidDataError("truncated_car", "the CAR ends within a block")
        length = end - start + LENGTH
        if name[:4] not in VALID_PREFIXES or not LENGTH <= length <= max_block + LENGTH:
            raise _bad_section(name, length, max_block)
        block = data[start:end]
        if check_hashes and sha256(block).digest() != name[4:]:
            raise InvalidDataError("hash_mismatch", f"block {Cid(name)}")
        blocks[Cid(name)] = block
    return blocks


def _sections(data: bytes, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the CID of each section, and where its block begins and ends, unchecked."""
    while position < len(data):
        length, start = _varint(data, position)
        if start < 0:
            raise InvalidDataError("truncated_car", "the CAR ends within a length")
        position = start + length
        yield data[start : start + LENGTH], start + LENGTH, position


def _header(data: bytes) -> tuple[tuple[Cid, ...], int]:
    """Return the roots, and the position of the first block."""
    # The header that every frame has, which a decoder takes as long for as for all the blocks.
    if data.startswith(_USUAL_START) and data.startswith(_USUAL_END, _USUAL_ROOT.stop):
        return (Cid.from_bytes(data[_USUAL_ROOT]),), _USUAL_SIZE
    length, position = _varint(data, 0)
    if position < 0 or position + length > len(data) or length > MAX_HEADER:
        raise InvalidDataError("invalid_car_header", "the header is cut off or too big")
    return _roots(data[position : position + length]), position + length


def usual_header(root: Cid) -> bytes:
    """Return the header of a CAR with one root, in its usual form."""
    return _USUAL_START + root + _USUAL_END


def _bad_section(name: bytes, length: int, max_block: int) -> InvalidDataError:
    if length - LENGTH > max_block:
        return InvalidDataError(
            "block_too_big", f"{length - LENGTH} bytes, {max_block} are allowed"
        )
    return InvalidDataError("invalid_cid", f"a block of {length} bytes named {name[:8].hex()}...")


def find_blocks(
    data: bytes, wanted: Collection[bytes]
) -> tuple[tuple[Cid, ...], dict[bytes, bytes]]:
    """Return the roots of a CAR and the blocks whose CIDs are wanted. Raises InvalidDataError.

    Everything else is stepped over, which is four times as fast as `read_car`. No hash is checked:
    compare each block that is used with its CID.
    """
    roots, position = _header(data)
    found = compiled.find_wanted(data, position, MAX_BLOCK + LENGTH, wanted)
    return roots, _find_blocks(data, position, wanted) if found is None else found


def _find_blocks(data: bytes, position: int, wanted: Collection[bytes]) -> dict[bytes, bytes]:
    blocks: dict[bytes, bytes] = {}
    for name, start, end in _sections(data, position):
        if name in wanted:
            length = end - start + LENGTH
            if not LENGTH <= length <= MAX_BLOCK + LENGTH:
                raise _bad_section(name, length, MAX_BLOCK)
            blocks[name] = data[start:end]
        position = end
    if position > len(data):
        raise InvalidDataError("truncated_car", "the CAR ends within a block")
    return blocks


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


def _block(section: bytes, check_hash: bool) -> tuple[Cid, bytes]:
    cid = Cid.from_bytes(section[:LENGTH])  # also refuses a section that is shorter
    data = section[LENGTH:]
    if check_hash and sha256(data).digest() != cid.digest:
        raise InvalidDataError("hash_mismatch", f"block {cid}")
    return cid, data
