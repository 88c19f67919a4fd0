"""Searching streams and dead letters for a record, newest first and within a limit."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from rsky_pipeline.operations.losses import moment
from rsky_pipeline.operations.trace.places import Buried, InRedis, InStream, Searched, Subject
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.dead_letters import find_dead_letter
from rsky_pipeline.streams.discard import discard
from rsky_pipeline.streams.names import REPO_STREAMS, STREAMS, dead_letters
from rsky_pipeline.streams.scan import StoredEntry, nature

LIMIT = 200_000  # entries of one stream
MAX_FOUND = 50  # entries of one stream that are reported
_PAGE = 1_000

Progress = Callable[[str], None]


def search(
    store: Store, subject: Subject, *, limit: int = LIMIT, on_progress: Progress = lambda _: None
) -> InRedis:
    """Look at the newest `limit` entries of every stream and its dead letters.

    Raises StoreUnavailable and StoreRejected.
    """
    entries: list[InStream] = []
    letters: list[Buried] = []
    searched: list[Searched] = []
    for stream in STREAMS:
        found, looked_at = _search_stream(store, stream, subject, limit, on_progress)
        entries += [_described(store, stream, entry) for entry in found]
        searched.append(looked_at)
        found, looked_at = _search_stream(store, dead_letters(stream), subject, limit, on_progress)
        letters += [_letter(store, stream, entry) for entry in found]
        searched.append(looked_at)
    return InRedis(tuple(entries), tuple(letters), tuple(searched))


def _search_stream(
    store: Store, stream: str, subject: Subject, limit: int, on_progress: Progress
) -> tuple[list[StoredEntry], Searched]:
    total = int(store.call("XLEN", stream))
    found: list[StoredEntry] = []
    looked_at = 0
    for page in _backwards(store, stream, min(limit, total)):
        looked_at += len(page)
        found += [entry for entry in page if _is_about(stream, entry.fields, subject)]
        if looked_at % (50 * _PAGE) == 0:
            on_progress(f"{stream}: {looked_at:,} of {total:,} entries searched")
        if len(found) >= MAX_FOUND:
            break
    return found[:MAX_FOUND], Searched(stream, looked_at, total)


def _backwards(store: Store, stream: str, most: int) -> Iterator[list[StoredEntry]]:
    end, left = "+", most
    while left > 0:
        reply = store.call("XREVRANGE", stream, end, "-", "COUNT", min(_PAGE, left))
        if not reply:
            return
        page = [
            StoredEntry(entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True)))
            for entry_id, flat in reply
        ]
        yield page
        left -= len(page)
        end = f"({page[-1].id}"


def _is_about(stream: str, fields: Mapping[bytes, bytes], subject: Subject) -> bool:
    """Tell whether an entry is about a record: a quick look at the bytes first."""
    did = subject.did.encode()
    for payload in fields.values():
        if did not in payload:
            continue
        body = _json(payload)
        if "labels" in body or "label" in body:
            return _has_label(body, subject)
        if body.get("did") != subject.did:
            continue
        if not subject.collection or stream.removesuffix("_dlq") in REPO_STREAMS:
            return True  # a job is about every record of its repo
        if (body.get("collection"), body.get("rkey")) == (subject.collection, subject.rkey):
            return True
    return False


def _has_label(body: dict[str, Any], subject: Subject) -> bool:
    labels = body.get("labels", [body.get("label")])
    return isinstance(labels, list) and any(
        isinstance(label, dict) and label.get("uri") in (subject.uri, subject.did)
        for label in labels
    )


def _described(store: Store, stream: str, entry: StoredEntry) -> InStream:
    body = next((_json(payload) for payload in entry.fields.values()), {})
    unfinished = {
        item.group: item.state for item in discard(store, stream, [entry.id], "look").unfinished
    }
    groups = {}
    for row in store.call("XINFO", "GROUPS", stream):
        name = dict(zip(row[::2], row[1::2], strict=True))[b"name"].decode()
        groups[name] = _holder(store, stream, name, entry.id, unfinished.get(name, "done"))
    rev = body.get("rev")
    kind = nature(entry.fields).kind
    return InStream(
        stream, entry.id, moment(entry.id), kind, rev if isinstance(rev, str) else "", groups
    )


def _holder(store: Store, stream: str, group: str, entry_id: str, state: str) -> str:
    if state != "pending":
        return state
    rows = store.call("XPENDING", stream, group, entry_id, entry_id, 1)
    if not rows:
        return "done"  # acknowledged since we looked
    _, consumer, idle, deliveries = rows[0]
    return f"pending with {consumer.decode()} for {idle / 1000:.0f} s, delivered {deliveries} times"


def _letter(store: Store, stream: str, entry: StoredEntry) -> Buried:
    letter = find_dead_letter(store, stream, entry.id)
    if letter is None:  # retried or dropped since we looked
        return Buried(stream, entry.id, moment(entry.id), "gone", "taken away meanwhile", 0)
    return Buried(stream, entry.id, moment(entry.id), letter.reason, letter.error, letter.attempts)


def _json(payload: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}
