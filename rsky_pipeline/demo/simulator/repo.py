"""A repo on its host: records, tree, and the commits that change them.

Each commit carries the fields of Sync 1.1, so that a consumer can check its signature, its place in
the chain and, by undoing its operations, that they are all that happened.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.mst import Change, Tree

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Write:
    """A write of one record: its new content, or None to delete it."""

    path: str
    record: Record | None


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it is: its block, and when (microseconds) it was published."""

    cid: Cid
    block: bytes
    published: int


class SimulatedRepo:
    """The repo of one account, complete and in memory."""

    def __init__(self, did: str, key: PrivateKey) -> None:
        self._did = did
        self._key = key
        self._tree = Tree()
        self._records: dict[str, StoredRecord] = {}
        self._paths: list[str] = []  # for drawing one at random
        self._places: dict[str, int] = {}
        self.rev = ""
        self.commit = b""

    @property
    def head(self) -> Cid | None:
        """The CID of the newest commit, None before the first."""
        return Cid.of(self.commit) if self.commit else None

    @property
    def data(self) -> Cid:
        """The root of the tree."""
        return self._tree.root

    def use_key(self, key: PrivateKey) -> None:
        """Sign with another key from the next commit on."""
        self._key = key

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, path: str) -> bool:
        return path in self._records

    def items(self) -> Iterator[tuple[str, StoredRecord]]:
        """Yield every record with its path."""
        yield from self._records.items()

    def stored(self, path: str) -> StoredRecord | None:
        """Return a record."""
        return self._records.get(path)

    def draw(self, choose: random.Random) -> str | None:
        """Return the path of any record, None of an empty repo."""
        return self._paths[choose.randrange(len(self._paths))] if self._paths else None

    def load(self, writes: Iterable[Write], rev: str, published: int) -> None:
        """Fill an empty repo at once, as if all had been written before anybody listened."""
        for write in writes:
            if write.record is not None:
                self._store(write.path, encode(write.record), published)
        self._tree = Tree.build({path: item.cid for path, item in self._records.items()})
        self._tree.take_new_blocks()
        self._sign(rev)

    def apply(self, writes: Sequence[Write], rev: str, published: int) -> dict[str, Any]:
        """Commit writes to distinct paths; return the fields of the `#commit` message."""
        since, before = self.rev or None, self._tree.root if self.rev else None
        changes: list[Change] = []
        ops: list[dict[str, Any]] = []
        blocks: list[tuple[Cid, bytes]] = []
        for write in writes:
            old = self._records.get(write.path)
            previous = {"prev": old.cid} if old else {}
            cid = None
            if write.record is None:
                self._forget(write.path)
                action = "delete"
            else:
                block = encode(write.record)
                cid = self._store(write.path, block, published)
                blocks.append((cid, block))
                action = "update" if old else "create"
            changes.append(Change(write.path, cid, old.cid if old else None))
            ops.append({"action": action, "path": write.path, "cid": cid, **previous})
        nodes = self._tree.apply(changes)
        root = self._sign(rev)
        car = write_car([root], [(root, self.commit), *nodes.items(), *dict(blocks).items()])
        chain = {"prevData": before} if before else {}
        return {
            "repo": self._did, "rev": rev, "since": since, "commit": root, "blocks": car,
            "ops": ops, "blobs": [], "tooBig": False, "rebase": False, **chain,
        }  # fmt: skip

    def announce(self, rev: str) -> dict[str, Any]:
        """Sign the same content again; return the fields of the `#sync` message."""
        root = self._sign(rev)
        return {"did": self._did, "rev": rev, "blocks": write_car([root], [(root, self.commit)])}

    def car(self) -> bytes:
        """Return the whole repo, as getRepo does."""
        root = Cid.of(self.commit)
        records = {item.cid: item.block for item in self._records.values()}
        return write_car([root], [(root, self.commit), *self._tree.blocks(), *records.items()])

    def _sign(self, rev: str) -> Cid:
        self.commit = sign_commit(self._did, rev, self._tree.root, self._key)
        self.rev = rev
        return Cid.of(self.commit)

    def _store(self, path: str, block: bytes, published: int) -> Cid:
        cid = Cid.of(block)
        if path not in self._places:
            self._places[path] = len(self._paths)
            self._paths.append(path)
        self._records[path] = StoredRecord(cid, block, published)
        return cid

    def _forget(self, path: str) -> None:
        del self._records[path]
        place, last = self._places.pop(path), self._paths.pop()
        if last != path:
            self._paths[place] = last
            self._places[last] = place
