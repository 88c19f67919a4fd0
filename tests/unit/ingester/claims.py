"""Frames whose commits are really signed, and what the tests put around the verifier."""

from collections.abc import Iterable

import trio
import trio.testing

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import Commit, parse_commit, sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey, PublicKey
from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.ingester.frames import PendingFrame

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
REV = "3mptbypluud2a"
TIME = "2026-07-04T14:38:08.999Z"
KEY = PrivateKey.from_seed("k256", b"a" * 32)
NEW_KEY = PrivateKey.from_seed("p256", b"b" * 32)


class Accounts:
    """A directory whose answers the test decides."""

    def __init__(self) -> None:
        self.keys: dict[str, PublicKey | Exception | None] = {DID: KEY.public}
        self.cached: dict[str, PublicKey | None] = {}
        self.hosts: dict[str, str] = {}
        self.lookups: list[tuple[str, bool]] = []
        self.slow: dict[str, trio.Event] = {}
        self.at_once = 0
        self.most_at_once = 0

    async def resolve(self, did: str, force: bool = False) -> DidDocument:
        self.lookups.append((did, force))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            if did in self.slow:
                await self.slow[did].wait()
            await trio.lowlevel.checkpoint()
        finally:
            self.at_once -= 1
        if force or did not in self.cached:
            answer = self.keys[did]
            if isinstance(answer, Exception):
                raise answer
            self.cached[did] = answer
        return DidDocument(did, None, self.hosts.get(did), self.cached[did])

    def forget(self, did: str) -> None:
        self.cached.pop(did, None)

    def known(self, did: str, force: bool = False) -> DidDocument | None:
        key = self.cached.get(did)
        return None if key is None else DidDocument(did, None, self.hosts.get(did), key)


class Written:
    """Stands where the writer stands, and keeps what it is given."""

    def __init__(self) -> None:
        self.frames: list[PendingFrame] = []
        self.closed = False

    def put(self, frames: Iterable[PendingFrame]) -> None:
        self.frames += frames

    @property
    def seqs(self) -> list[int | None]:
        return [frame.seq for frame in self.frames]


def claim(key: PrivateKey = KEY, did: str = DID) -> Commit:
    return parse_commit(sign_commit(did, REV, Cid.of(b"data"), key))


def frame(
    seq: int,
    did: str = DID,
    key: PrivateKey = KEY,
    padding: bytes = b"",
    since: str | None = None,
) -> bytes:
    """Return a commit frame whose commit is really signed; its tree is not in it."""
    record = encode({"$type": "app.bsky.feed.like", "seq": seq})
    rev = tid_from(1_783_000_000_000_000 + seq)
    root = sign_commit(did, rev, Cid.of(b"data"), key)
    body = {
        "seq": seq, "repo": did, "rev": rev, "since": since, "commit": Cid.of(root), "blobs": [],
        "blocks": write_car(
            [Cid.of(root)], [(Cid.of(block), block) for block in (root, record, padding)]
        ),
        "ops": [{"action": "create", "path": "app.bsky.feed.like/a", "cid": Cid.of(record)}],
        "time": TIME, "tooBig": False,
    }  # fmt: skip
    return encode_frame("#commit", body)


def identity(seq: int, did: str = DID) -> bytes:
    return encode_frame("#identity", {"seq": seq, "did": did, "time": TIME})
