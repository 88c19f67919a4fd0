"""Encodes the changes of a repo as `firehose_backfill` entries: creates, deletes, closing event."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.dagjson import record_to_json
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.configuration.selection import path_prefixes
from rsky_pipeline.repos.repo import Repo
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.event import (
    EVENT_FIELD,
    HISTORICAL_SEQ,
    RepoEvent,
    encode_event,
    encode_record_event,
)
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL

BATCH_RECORDS = 500
BATCH_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RepoBatch:
    """A batch of encoded changes of a repo."""

    entries: list[Entry]
    filtered: int = 0  # records of collections that the settings exclude
    unreadable: int = 0
    is_last: bool = False


def create_entries(
    repo: Repo, paths: Iterable[tuple[str, Cid]], selection: tuple[str, ...], time: str
) -> Iterator[RepoBatch]:
    """Yield the creates of all records in the wanted collections; the last batch may be empty."""
    prefixes = path_prefixes(selection)
    did, rev, commit = repo.commit.did, repo.commit.rev, str(repo.root)
    entries: list[Entry] = []
    size = filtered = unreadable = 0
    for path, cid in paths:
        if not path.startswith(prefixes):
            filtered += 1
            continue
        block = repo.blocks.get(cid)
        assert block is not None, "list_paths has seen it"
        collection, _, rkey = path.partition("/")
        try:
            payload = encode_record_event(
                "create", seq=HISTORICAL_SEQ, time=time, did=did, commit=commit, rev=rev,
                collection=collection, rkey=rkey, cid=str(cid),
                record=orjson.Fragment(record_to_json(block)),
            )  # fmt: skip
        except InvalidDataError:
            unreadable += 1
            continue
        entries.append(Entry(FIREHOSE_BACKFILL, EVENT_FIELD, payload))
        size += len(payload)
        if len(entries) >= BATCH_RECORDS or size >= BATCH_BYTES:
            yield RepoBatch(entries, filtered, unreadable)
            entries, size, filtered, unreadable = [], 0, 0, 0
    yield RepoBatch(entries, filtered, unreadable, is_last=True)


def delete_entries(repo: Repo, paths: Sequence[str], time: str) -> list[Entry]:
    """Return the deletions of paths that the signed tree does not hold."""
    commit = str(repo.root)
    return [Entry(FIREHOSE_BACKFILL, EVENT_FIELD, _delete(repo, path, commit, time))
            for path in paths]  # fmt: skip


def closing_entry(repo: Repo, time: str) -> Entry:
    """Return the event that sets the complete rev; append it after all changes of the repo."""
    did, rev = repo.commit.did, repo.commit.rev
    event = RepoEvent(HISTORICAL_SEQ, time, did, str(repo.root), rev, complete=True)
    return Entry(FIREHOSE_BACKFILL, EVENT_FIELD, encode_event(event))


def _delete(repo: Repo, path: str, commit: str, time: str) -> bytes:
    collection, _, rkey = path.partition("/")
    return encode_record_event(
        "delete", seq=HISTORICAL_SEQ, time=time, did=repo.commit.did, commit=commit,
        rev=repo.commit.rev, collection=collection, rkey=rkey,
    )  # fmt: skip
