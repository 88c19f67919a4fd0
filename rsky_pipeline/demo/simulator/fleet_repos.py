"""Many small repos, each made when it is asked for and the same every time."""

from base64 import b32encode
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.mst import Tree

REV = "3lzzzzzzzzz2a"
_MOST_RECORDS = 14


@dataclass(frozen=True, slots=True)
class FleetAccount:
    """An account by its number; everything about it follows from that."""

    number: int

    @property
    def did(self) -> str:
        """Its DID."""
        digest = sha256(b"fleet%d" % self.number).digest()
        return "did:plc:" + b32encode(digest[:15]).decode().lower()

    @property
    def key(self) -> PrivateKey:
        """What it signs with."""
        return PrivateKey.from_seed("k256", b"fleet%d" % self.number)

    def records(self) -> dict[str, bytes]:
        """Return the blocks of its records by path."""
        count = 1 + self.number * 7919 % _MOST_RECORDS
        return {
            f"app.bsky.feed.like/{place:013d}": encode(
                {
                    "$type": "app.bsky.feed.like",
                    "subject": {
                        "uri": f"at://did:plc:{'a' * 24}/app.bsky.feed.post/{place:013d}",
                        "cid": str(Cid.of(b"%d" % place)),
                    },
                    "createdAt": f"2026-01-01T00:00:{place:02d}.000Z",
                }
            )
            for place in range(count)
        }

    def blocks(self, key: PrivateKey | None = None) -> tuple[Cid, dict[Cid, bytes]]:
        """Return root and blocks of its repo, signed with its own key or another."""
        records = self.records()
        tree = Tree.build({path: Cid.of(block) for path, block in records.items()})
        commit = sign_commit(self.did, REV, tree.root, None, key or self.key)
        root = Cid.of(commit)
        return root, {root: commit, **dict(tree.blocks())} | {
            Cid.of(block): block for block in records.values()
        }

    def car(self, key: PrivateKey | None = None) -> bytes:
        """Return its whole repo."""
        root, blocks = self.blocks(key)
        return write_car([root], blocks.items())

    def document(self, pds: str) -> dict[str, Any]:
        """Return its DID document."""
        return {
            "id": self.did,
            "alsoKnownAs": [f"at://fleet{self.number}.test"],
            "verificationMethod": [
                {
                    "id": f"{self.did}#atproto",
                    "type": "Multikey",
                    "controller": self.did,
                    "publicKeyMultibase": multibase(self.number),
                }
            ],
            "service": [
                {
                    "id": "#atproto_pds",
                    "type": "AtprotoPersonalDataServer",
                    "serviceEndpoint": pds,
                }
            ],
        }


@lru_cache(maxsize=10_000)
def multibase(number: int) -> str:
    """Return the public key of an account, which takes longest to make."""
    return FleetAccount(number).key.multibase
