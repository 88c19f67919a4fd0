"""The blocks of one repo: in memory while they fit, then in a temporary file.

All repos in flight share one budget of bytes in memory and one of bytes on disk. A repo moves to
disk when the memory budget is exhausted, and fails when the disk budget is exhausted too: to be
tried again if other repos use it, for good if it would not fit alone.

The file is unlinked, so a killed worker leaves nothing behind. Its index (16 bytes per block) is
mapped from a second file: it costs page cache, not memory.
"""

import mmap
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from typing import IO

import trio

from rsky_pipeline.atproto.cid import LENGTH, Cid

# A block costs about this much beside its bytes: its key, object headers, its dict entry, and its
# path once the tree is listed.
BLOCK_OVERHEAD = 450
GRANT_BYTES = 256 * 1024  # of the memory budget that are taken at once
_FIRST_SLOTS = 1 << 16
_SLOT = Struct("<QQ")  # a part of the digest, and 1 + the position in the file; 0 is free
_HEAD = Struct("<I")  # the length of a block, before its CID
_MASK = (1 << 64) - 1


class DiskFullError(Exception):
    """The disk budget or the file system has no room for another block."""


class RepoTooBigError(Exception):
    """The blocks of this one repo do not fit into the whole disk budget."""


class Budget:
    """A byte budget; `admit` serves in order, so that small requests cannot starve a large one."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._turn = trio.Lock()
        self._freed = trio.Event()

    async def admit(self, size: int) -> int:
        """Wait for `size` bytes (all of the budget if it is larger); return how many were taken."""
        size = min(size, self.total)
        async with self._turn:
            while self.used + size > self.total:
                await self._freed.wait()
            self.used += size
        return size

    def grow(self, size: int) -> bool:
        """Take more bytes without waiting; returns False, taking nothing, if too few are free."""
        if self.used + size > self.total:
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """Return bytes."""
        self.used -= size
        self._freed.set()
        self._freed = trio.Event()


class Blocks:
    """A set of blocks by CID, for one writer and then one reader. Close it."""

    def __init__(self, memory: Budget, disk: Budget, folder: Path) -> None:
        self._memory = memory
        self._disk = disk
        self._folder = folder
        self._granted = 0
        self._held = 0
        self._blocks: dict[Cid, bytes] = {}
        self._file: _BlockFile | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the blocks are in a file."""
        return self._file is not None

    def __len__(self) -> int:
        return len(self._blocks) if self._file is None else self._file.count

    def __contains__(self, cid: object) -> bool:
        return isinstance(cid, Cid) and self.get(cid) is not None

    def get(self, cid: Cid, /) -> bytes | None:
        """Return a block, or None."""
        return self._blocks.get(cid) if self._file is None else self._file.get(cid)

    def admitted(self, size: int) -> None:
        """Take ownership of bytes that the caller got from the memory budget for this set."""
        self._granted += size

    def keep(self, found: list[tuple[Cid, bytes]], size: int) -> bool:
        """Add blocks of a part of `size` bytes in memory; returns False, adding nothing, if they
        do not fit or earlier ones are on disk already."""
        self._held += size + len(found) * BLOCK_OVERHEAD
        while self._file is None and self._held > self._granted:
            if not self._memory.grow(GRANT_BYTES):
                return False
            self._granted += GRANT_BYTES
        if self._file is None:
            self._blocks.update(found)
        return self._file is None

    def add(self, pairs: Iterable[tuple[Cid, bytes]]) -> None:
        """Add blocks, in memory or to the file. Raises DiskFullError and RepoTooBigError."""
        if self._file is None:
            self._blocks.update(pairs)
        else:
            self._file.add(pairs)

    def move_to_disk(self) -> None:
        """Write the blocks to a file; later blocks go there too.

        Raises DiskFullError and RepoTooBigError.
        """
        file = _BlockFile(self._disk, self._folder)
        try:
            file.add(self._blocks.items())
        except BaseException:
            file.close()
            raise
        self._file = file
        self._blocks = {}

    def release_memory(self) -> None:
        """Return memory to the budget, after a move to disk or at the end."""
        self._memory.give_back(self._granted)
        self._granted = 0

    def close(self) -> None:
        """Drop the blocks and return all budgets; the set is empty afterwards, and usable."""
        self._blocks = {}
        self._held = 0
        if self._file is not None:
            self._file.close()
            self._file = None
        self.release_memory()


@contextmanager
def _disk_full(folder: Path) -> Iterator[None]:
    """Translate every failure of the file system: no bytes, no inodes, no descriptors."""
    try:
        yield
    except OSError as error:
        raise DiskFullError(f"{folder} cannot be written: {error.strerror or error}") from error


class _BlockFile:
    def __init__(self, budget: Budget, folder: Path) -> None:
        """Raises DiskFullError."""
        self._budget = budget
        self._granted = 0
        self._folder = folder
        self._end = 0
        self.count = 0
        # A secret multiplier: the author of the blocks cannot choose CIDs whose slots collide.
        self._secret = secrets.randbits(64) | 1
        self._shift = 64 - (_FIRST_SLOTS.bit_length() - 1)
        with _disk_full(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._slots = self._new_index(_FIRST_SLOTS)
            try:
                self._data: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            except OSError:
                self._slots.close()
                raise

    def add(self, pairs: Iterable[tuple[Cid, bytes]]) -> None:
        out: list[bytes] = []
        for cid, block in pairs:
            if 2 * self.count >= 1 << (64 - self._shift):
                with _disk_full(self._folder):
                    self._grow_index()
            if self._insert(int.from_bytes(cid[-8:], "little"), self._end + 1):
                out += (_HEAD.pack(len(block)), cid, block)
                self._end += _HEAD.size + LENGTH + len(block)
                self.count += 1
        data = b"".join(out)
        if self._granted + len(data) > self._budget.total:
            total = self._budget.total // (1024 * 1024)
            raise RepoTooBigError(f"the repo exceeds backfiller_disk_mb ({total} MB)")
        if not self._budget.grow(len(data)):
            raise DiskFullError("other repos use all of backfiller_disk_mb")
        self._granted += len(data)
        with _disk_full(self._folder):
            self._data.write(data)
            self._data.flush()  # what is buffered could fail when it is read

    def get(self, cid: Cid) -> bytes | None:
        position = self._find(int.from_bytes(cid[-8:], "little"))
        if not position:
            return None
        head = os.pread(self._data.fileno(), _HEAD.size + LENGTH + 1_024, position - 1)
        (length,) = _HEAD.unpack_from(head)
        start = _HEAD.size + LENGTH
        if head[_HEAD.size : start] != cid:
            return None  # another block with the same digest suffix
        if length <= len(head) - start:
            return head[start : start + length]
        return os.pread(self._data.fileno(), length, position - 1 + start)

    def close(self) -> None:
        self._slots.close()
        with suppress(
            OSError
        ):  # it is closed all the same; what is left in its buffer is of no use
            self._data.close()
        self._budget.give_back(self._granted)

    def _new_index(self, slots: int) -> mmap.mmap:
        with tempfile.TemporaryFile(dir=self._folder) as file:
            # Allocated, not only extended: where a page of a mapping has no room on the disk when
            # it is written to, the kernel ends the process (SIGBUS).
            os.posix_fallocate(file.fileno(), 0, slots * _SLOT.size)
            return mmap.mmap(file.fileno(), slots * _SLOT.size)

    def _grow_index(self) -> None:
        old = self._slots
        self._shift -= 1
        self._slots = self._new_index(1 << (64 - self._shift))
        with memoryview(old) as view:
            for key, position in _SLOT.iter_unpack(view):
                if position:
                    self._insert(key, position)
        old.close()

    def _insert(self, key: int, position: int) -> bool:
        mask = (1 << (64 - self._shift)) - 1
        place = ((key * self._secret) & _MASK) >> self._shift
        while True:
            found, taken = _SLOT.unpack_from(self._slots, place * _SLOT.size)
            if not taken:
                _SLOT.pack_into(self._slots, place * _SLOT.size, key, position)
                return True
            if found == key:
                return False
            place = (place + 1) & mask

    def _find(self, key: int) -> int:
        mask = (1 << (64 - self._shift)) - 1
        place = ((key * self._secret) & _MASK) >> self._shift
        while True:
            found, position = _SLOT.unpack_from(self._slots, place * _SLOT.size)
            if not position or found == key:
                return int(position)
            place = (place + 1) & mask
