"""Events of a network of any size, made one by one: event `n` follows from `n` alone.

The simulator keeps a repo for each account, which is right where commits are read, and too much for
millions of rows. Here a subject is an earlier event, found by its number, so that nothing is kept.
Accounts and subjects are chosen at random, unevenly, as on the network: a few accounts write most,
a few posts get most likes, and new ones more than old ones.
"""

import base64
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.streams.event import encode_record_event

FIRST_MICROS = 1_735_700_000_000_000  # of event 0; one event a millisecond
SHARE_DELETED, SHARE_REPEATED, SHARE_GATES = 0.05, 0.01, 0.002
SHARE_REPLIES, SHARE_IMAGES = 0.4, 0.25  # of posts
_SKEW = 3  # exponents of uniform numbers: an author's, and a subject's age
_AGE = 4
_MASK = 2**64 - 1
_NEAR = 400  # events in which a post is found, whatever the number is
_KINDS = (mix.LIKE, mix.POST, mix.REPOST, mix.FOLLOW, mix.BLOCK, mix.PROFILE)
_WORDS = (
    "coffee", "release", "notes", "heron", "pond", "winter", "synth", "book", "night", "bus",
    "recipe", "regrets", "comma", "again", "Grüße", "今日", "🦋",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Create:
    """A record is created by an event of this number."""

    number: int
    account: int
    collection: str
    rkey: str


class Traffic:
    """The events of so many accounts. The same seed gives the same events."""

    def __init__(self, accounts: int, seed: int = 1) -> None:
        self.accounts = accounts
        self._key = seed << 40
        self.did = functools.cache(self._did)
        total = sum(mix.RECORDS[kind] for kind in _KINDS)
        bounds, reached = [], 0.0
        for kind in _KINDS:
            reached += mix.RECORDS[kind] / total
            bounds.append((reached, kind))
        self._bounds = tuple(bounds)

    def _did(self, account: int) -> str:
        """Return an account's DID; neighbours in number are not neighbours in an index."""
        digest = hashlib.blake2b(b"%d %d" % (self._key, account), digest_size=15).digest()
        return "did:plc:" + base64.b32encode(digest).decode().lower()

    def events(self, first: int, count: int, *, historical: bool) -> Iterator[bytes]:
        """Yield entries of a firehose stream; one is historical that creates a record."""
        for number in range(first, first + count):
            yield self.event(number, historical=historical)

    def event(self, number: int, *, historical: bool = False) -> bytes:
        """Return an event as a stream has it: a deletion, a duplicate, a gate or a new record."""
        chance = _Chance(self._key, number)
        what = chance.next()
        if not historical and what < SHARE_DELETED and number > _NEAR:
            gone = self._create(int(number * chance.next()))
            return self._encode(number, gone, "delete", None, historical)
        what -= SHARE_DELETED
        if 0 <= what < SHARE_REPEATED and number > _NEAR:
            # The same account once more, about the same subject.
            before = self._create(number - 1 - int(number * chance.next() ** _AGE))
            again = Create(number, before.account, before.collection, _rkey(number))
            return self._encode(number, again, "create", self._record(before), historical)
        what -= SHARE_REPEATED
        if 0 <= what < SHARE_GATES and number > _NEAR:
            post = self._post(number - 1 - int(number * chance.next() ** _AGE))
            gate = Create(number, post.account, mix.THREAD_GATE, post.rkey)
            allowed = [{"$type": f"{mix.THREAD_GATE}#mentionRule"}]
            record = {"$type": mix.THREAD_GATE, "post": self._uri(post), "allow": allowed,
                      "createdAt": time_text(number)}  # fmt: skip
            return self._encode(number, gate, "create", record, historical)
        made = self._create(number)
        return self._encode(number, made, "create", self._record(made), historical)

    def _create(self, number: int) -> Create:
        """Return the record that an event creates where it does nothing rarer."""
        collection = self._collection(number)
        account = int(self.accounts * _Chance(self._key, number, 2).next() ** _SKEW)
        rkey = "self" if collection == mix.PROFILE else _rkey(number)
        return Create(number, account, collection, rkey)

    def _collection(self, number: int) -> str:
        kind = _Chance(self._key, number, 1).next()
        return next((name for bound, name in self._bounds if kind < bound), mix.LIKE)

    def _post(self, number: int) -> Create:
        """Return the last post before, or the first one."""
        for before in range(number, max(0, number - _NEAR), -1):
            if self._collection(before) == mix.POST:
                return self._create(before)
        return Create(0, 0, mix.POST, _rkey(0))

    def _record(self, made: Create) -> dict[str, Any]:
        number, chance = made.number, _Chance(self._key, made.number, 3)
        record: dict[str, Any] = {"$type": made.collection, "createdAt": time_text(number)}
        match made.collection:
            case mix.LIKE | mix.REPOST:
                post = self._post(number - 1 - int(number * chance.next() ** _AGE))
                record["subject"] = self._reference(post)
            case mix.FOLLOW | mix.BLOCK:
                record["subject"] = self.did(int(self.accounts * chance.next() ** _SKEW))
            case mix.PROFILE:
                record |= {"displayName": f"Account {made.account}", "description": chance.text(9)}
            case mix.POST:
                record |= {"text": chance.text(14), "langs": ["en"]}
                if number > _NEAR and chance.next() < SHARE_REPLIES:
                    parent = self._post(number - 1 - int(number * chance.next() ** _AGE))
                    root = self._post(parent.number - 1 - int(200 * chance.next()))
                    record["reply"] = {"parent": self._reference(parent),
                                       "root": self._reference(root)}  # fmt: skip
                elif chance.next() < SHARE_IMAGES:
                    record["embed"] = {"$type": "app.bsky.embed.images", "images": [_image(number)]}
        return record

    def _uri(self, made: Create) -> str:
        return f"at://{self.did(made.account)}/{made.collection}/{made.rkey}"

    def _reference(self, made: Create) -> dict[str, str]:
        uri = self._uri(made)
        return {"uri": uri, "cid": str(Cid.of(uri.encode()))}

    def _encode(
        self, number: int, made: Create, action: Any, record: object, historical: bool
    ) -> bytes:
        uri = self._uri(made)
        return encode_record_event(
            action, seq=-1 if historical else number, time=time_text(number),
            did=self.did(made.account), commit=str(Cid.of(b"commit%d" % number)),
            rev=_rkey(number), collection=made.collection, rkey=made.rkey,
            cid=None if action == "delete" else str(Cid.of(uri.encode())), record=record,
        )  # fmt: skip


class _Chance:
    """Uniform numbers that follow from a key, a number and a purpose (splitmix64)."""

    __slots__ = ("_state",)

    def __init__(self, key: int, number: int, purpose: int = 0) -> None:
        self._state = (key + number * 4 + purpose) * 0xD1342543DE82EF95 & _MASK

    def bits(self) -> int:
        """Return 64 of them."""
        self._state = state = self._state + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        return state ^ state >> 31

    def next(self) -> float:
        """Return one of [0, 1)."""
        return (self.bits() >> 11) / 2**53

    def text(self, words: int) -> str:
        """Return up to 16 words."""
        bits = self.bits()
        return " ".join(_WORDS[(bits >> 4 * at) % 16] for at in range(words))


def _rkey(number: int) -> str:
    return tid_from(FIRST_MICROS + number * 1_000)


def time_text(number: int) -> str:
    """Return when an event happens."""
    return format_utc(datetime.fromtimestamp((FIRST_MICROS + number * 1_000) / 1e6, UTC))


def _image(number: int) -> dict[str, Any]:
    cid = str(Cid.of(b"image%d" % number))
    image = {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/jpeg", "size": 90_000}
    return {"image": image, "alt": ""}
