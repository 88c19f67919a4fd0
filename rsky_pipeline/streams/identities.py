"""Documents of accounts that the roles share, so that the directory is asked once for each.

A new account is looked up by the ingester (its key), the backfiller (its host) and the indexer (its
handle), mostly within a minute. Whoever asks the directory leaves the answer in Redis for the
others. Only documents of did:plc are there: those of did:web come from strangers' hosts. Failures
and absence are not, nor does anybody who asks by force read from there.

`rsky_pipeline:identities` is a hash; when it is full it becomes `rsky_pipeline:identities:before`,
and the one of that name goes. Times are those of the server of Redis, whose one clock orders them:
a document has the time right before the directory was asked, and that an account was forgotten is
noted with its time, so that a slow answer from before cannot come back.

Nothing rests on it: while Redis is away, everybody asks the directory.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import orjson
import trio

from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.runtime.coalescer import Coalescer
from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.commands import Argument
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.names import IDENTITIES

MAX_SHARED = 32_768  # in a hash, of which there are two: 16 MB as a rule, 40 MB at most
SHARED_SECONDS = 3_600.0  # for which a document is shared, and a hash outlives its last write
MAX_SHARED_BYTES = 512  # of a document; usual ones have 200
TIMEOUT_SECONDS = 2.0  # of the connection: the directory answers as well
AWAY_SECONDS = 5.0  # for which Redis is not asked after a failure
GATHER_SECONDS = 0.1  # there are identity events all the time
MAX_UNSENT = 10_000
# What is to be written of a DID: its document and the time of it, None where it was forgotten.
_Write = tuple[int, bytes] | None
_PACKED = 1  # the form of packed documents


class SharedAnswer(NamedTuple):
    """A document that the roles share, None for none; `time` is of their common clock, in ms."""

    time: int
    document: DidDocument | None
    age: float  # seconds since the directory was asked for it


class SharedIdentities:
    """The documents that all workers share. `run` sends what was put and forgotten.

    `failed` is called for every error of the store.
    """

    def __init__(self, redis_url: str, worker: str, failed: Callable[[StoreError], object]) -> None:
        connection = partial(
            connect, redis_url, name=f"{worker}-identities", timeout_seconds=TIMEOUT_SECONDS
        )
        self._link = Link(connection, purpose="identities", failed=failed)
        self._unsent: dict[str, _Write] = {}
        self._changed = trio.Event()
        self._away_until = 0.0
        self._looks: Coalescer[str, SharedAnswer | None] = Coalescer(self._look)

    async def find(self, did: str) -> SharedAnswer | None:
        """Return the document that is shared, and the time for `put`; None while Redis is away."""
        if trio.current_time() < self._away_until:
            return None
        return await self._looks.call(did)

    def put(self, document: DidDocument, time: int) -> None:
        """Share an answer of the directory, which was asked after `find` had returned this time."""
        packed = _pack(document)
        if len(packed) <= MAX_SHARED_BYTES:
            self._unsent.setdefault(document.did, (time, packed))  # unless it was forgotten since
            self._send_soon()

    def forget(self, did: str) -> None:
        """Let nobody find an answer of the directory from before now."""
        self._unsent[did] = None
        self._send_soon()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._changed.wait()
            await trio.sleep(max(GATHER_SECONDS, self._away_until - trio.current_time()))
            self._changed = trio.Event()
            await self.send()

    async def send(self) -> None:
        """Write what was put and forgotten."""
        await self._look(())

    def close(self) -> None:
        """Close the connection. Must not be called while anything else runs."""
        self._link.close()

    def _send_soon(self) -> None:
        self._changed.set()
        while len(self._unsent) > MAX_UNSENT:  # while Redis is away
            del self._unsent[next(iter(self._unsent))]

    async def _look(self, dids: Sequence[str]) -> list[SharedAnswer | None]:
        """Write what was put and forgotten, then read."""
        writes, self._unsent = self._unsent, {}
        found = await self._link.attempt(lambda store: _carry_out(store, writes, dids))
        if found is None:
            self._unsent = writes | self._unsent
            self._changed.set()
            self._away_until = trio.current_time() + AWAY_SECONDS
            return [None] * len(dids)
        return [*found]


def _carry_out(store: Store, writes: dict[str, _Write], dids: Sequence[str]) -> list[SharedAnswer]:
    arguments: list[Argument] = [int(SHARED_SECONDS * 1000), MAX_SHARED, len(writes)]
    for did, write in writes.items():
        time, packed = ("", b"") if write is None else write
        arguments += [did, time, packed]
    now, *found = store.script("identities", IDENTITIES, [*arguments, *dids])
    return [
        _answer(int(now), did, time, packed)
        for did, time, packed in zip(dids, found[::2], found[1::2], strict=True)
    ]


def _answer(now: int, did: str, time: bytes, packed: bytes) -> SharedAnswer:
    try:
        document = _unpack(packed, did) if packed else None
    except InvalidDataError:  # of another version
        document = None
    return SharedAnswer(now, document, (now - int(time)) / 1000 if document else 0.0)


def _pack(document: DidDocument) -> bytes:
    key, label_key = (
        key and [key.curve, key.point.hex()] for key in (document.signing_key, document.label_key)
    )
    return orjson.dumps([_PACKED, document.handle, document.pds, key, document.labeler, label_key])


def _unpack(packed: bytes, did: str) -> DidDocument:
    """Read a packed document of a DID. Raises InvalidDataError if it is none."""
    try:
        form, handle, pds, key, labeler, label_key = orjson.loads(packed)
        texts = (handle, pds, labeler)
        if form != _PACKED or not all(text is None or isinstance(text, str) for text in texts):
            raise ValueError(form)
        keys = [each and PublicKey(each[0], bytes.fromhex(each[1])) for each in (key, label_key)]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InvalidDataError("did_document", f"not a packed document of {did[:100]}") from error
    return DidDocument(did, handle, pds, keys[0], labeler, keys[1])
