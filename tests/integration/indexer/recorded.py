"""The recorded official network as stream entries, and the rows that it must become."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    IdentityMessage,
    decode_frame,
)
from rsky_pipeline.streams.event import (
    AccountEvent,
    IdentityEvent,
    encode_event,
    encode_record_event,
)
from tests.data_frames import split_frames

Row = dict[str, Any]


@cache
def payloads(folder: Path, prefixes: tuple[str, ...]) -> tuple[bytes, ...]:
    """Return the recording's events in order, as the ingester writes them."""
    return tuple(_payloads(folder, prefixes))


def _payloads(folder: Path, prefixes: Sequence[str]) -> Iterator[bytes]:
    for raw in split_frames((folder / "firehose.frames").read_bytes(), ">I"):
        message = decode_frame(raw)
        match message:
            case CommitMessage():
                yield from _record_events(message, prefixes)
            case AccountMessage():
                event = AccountEvent(
                    message.seq, message.time, message.did, message.active, message.status
                )
                yield encode_event(event)
            case IdentityMessage():
                yield encode_event(
                    IdentityEvent(message.seq, message.time, message.did, message.handle)
                )
            case _:
                pass


def _record_events(message: CommitMessage, prefixes: Sequence[str]) -> Iterator[bytes]:
    blocks = read_car(message.blocks).blocks if message.blocks else {}
    for op in message.ops:
        collection, _, rkey = op.path.partition("/")
        if not collection.startswith(tuple(prefixes)):
            continue
        yield encode_record_event(
            op.action,
            seq=message.seq,
            time=message.time,
            did=message.did,
            commit=str(message.commit),
            rev=message.rev,
            collection=collection,
            rkey=rkey,
            cid=None if op.cid is None else str(op.cid),
            record=None if op.cid is None else cbor.decode(blocks[op.cid]),
        )


def expected_rows(folder: Path, table: str) -> list[Row]:
    """Return the official rows of a table."""
    path = folder / "appview-expected" / f"{table}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def refused_uris(folder: Path, without: Sequence[str] = ()) -> set[str]:
    """Return the records that the official indexer refused, but for those with such an error."""
    lines = (folder / "appview-errors.jsonl").read_text().splitlines()
    errors = [json.loads(line) for line in lines]
    return {item["uri"] for item in errors if not any(text in item["error"] for text in without)}
