"""Streams as producers fill them, and consumers of theirs."""

from collections.abc import Sequence

from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.event import (
    EVENT_FIELD,
    RepoEvent,
    encode_event,
    encode_record_event,
)
from tests.consumers import GroupReader

DID = "did:plc:w4xbfzo7kqfes5zb7r6qv3rw"
TIME = "2026-11-26T10:00:00.000Z"
CID = "bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454"
LIVE = "firehose_live"
_BASE = 1_700_000_000_000_000  # microseconds of the first rev


def post(number: int, text: str = "type repo") -> bytes:
    """Return a create event; its text holds what a polluting entry looks like."""
    return encode_record_event(
        "create", seq=number, time=TIME, did=DID, commit=CID, rev=tid_from(_BASE + number),
        collection="app.bsky.feed.post", rkey=str(number), cid=CID,
        record={"$type": "app.bsky.feed.post", "text": f'{text} "type":"repo"', "createdAt": TIME},
    )  # fmt: skip


def commit(number: int) -> bytes:
    """Return what polluted the live stream."""
    return encode_event(RepoEvent(number, TIME, DID, CID, tid_from(_BASE + number)))


def fill(store: Store, payloads: Sequence[bytes], stream: str = LIVE) -> None:
    """Append entries."""
    append(store, [Entry(stream, EVENT_FIELD, payload) for payload in payloads])


def left(store: Store, stream: str = LIVE) -> list[bytes]:
    """Return the payloads that are still there."""
    return [body[1] for _, body in store.call("XRANGE", stream, "-", "+")]


def consumer(
    store: Store, name: str = "c", group: str = "firehose_group", stream: str = LIVE
) -> GroupReader:
    """Return a consumer whose group exists."""
    reader = GroupReader(store, stream, group, name)
    reader.ensure()
    return reader


def phantoms(store: Store, stream: str = LIVE, group: str = "firehose_group") -> int:
    """Return how many pending entries have no body."""
    rows = store.call("XPENDING", stream, group, "-", "+", 10_000)
    return sum(not store.call("XRANGE", stream, row[0], row[0]) for row in rows)
