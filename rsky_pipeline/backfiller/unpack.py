"""A fetched repo to the events of its records; no I/O."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import Commit, parse_commit
from rsky_pipeline.atproto.errors import IncompleteTree, InvalidData
from rsky_pipeline.atproto.mst import walk
from rsky_pipeline.backfiller.outcome import RepoFailed
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.event import (
    EVENT_FIELD,
    HISTORICAL_SEQ,
    RepoEvent,
    encode_event,
    encode_record_event,
)
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL

CHUNK_RECORDS = 500
CHUNK_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Repo:
    """A fetched repo: its commit and all blocks of its CAR, their hashes checked."""

    root: Cid
    commit: Commit
    blocks: Mapping[Cid, bytes]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some records of a repo, ready to be appended."""

    entries: list[Entry]
    filtered: int
    unreadable: int


def open_repo(roots: tuple[Cid, ...], blocks: Mapping[Cid, bytes], did: str) -> Repo:
    """Read the commit of a fetched repo and check that it is this account's.

    Raises RepoFailed.
    """
    block = blocks.get(roots[0])
    if block is None:
        raise RepoFailed("invalid", "incomplete", "the CAR does not hold its root")
    try:
        commit = parse_commit(block)
    except InvalidData as error:
        raise RepoFailed("invalid", "invalid_commit", str(error)) from error
    if commit.did != did:
        raise RepoFailed("invalid", "wrong_did", f"the repo is {commit.did}'s, not {did}'s")
    return Repo(roots[0], commit, blocks)


def chunks(repo: Repo, collections: tuple[str, ...], time: str) -> Iterator[Chunk]:
    """Yield the create events of all records in the wanted collections.

    The whole tree is walked before the first chunk, so that an incomplete one yields nothing.
    Raises RepoFailed.
    """
    try:
        paths = list(walk(repo.blocks, repo.commit.data))
    except IncompleteTree as error:
        raise RepoFailed("invalid", "incomplete", str(error)) from error
    except InvalidData as error:
        raise RepoFailed("invalid", "invalid_tree", str(error)) from error
    missing = next((path for path, cid in paths if cid not in repo.blocks), None)
    if missing is not None:
        raise RepoFailed("invalid", "incomplete", f"the record {missing[:200]} is missing")
    exact, prefixes = _wanted(collections)
    entries: list[Entry] = []
    size = filtered = unreadable = 0
    for path, cid in paths:
        collection, _, rkey = path.partition("/")
        if collection not in exact and not collection.startswith(prefixes):
            filtered += 1
            continue
        payload = _create(repo, collection, rkey, cid, time)
        if payload is None:
            unreadable += 1
            continue
        entries.append(Entry(FIREHOSE_BACKFILL, EVENT_FIELD, payload))
        size += len(payload)
        if len(entries) >= CHUNK_RECORDS or size >= CHUNK_BYTES:
            yield Chunk(entries, filtered, unreadable)
            entries, size, filtered, unreadable = [], 0, 0, 0
    yield Chunk(entries, filtered, unreadable)


def closing_entry(repo: Repo, time: str) -> Entry:
    """Return the event that says that all records of the repo are queued."""
    event = RepoEvent(HISTORICAL_SEQ, time, repo.commit.did, str(repo.root), repo.commit.rev)
    return Entry(FIREHOSE_BACKFILL, EVENT_FIELD, encode_event(event))


def _create(repo: Repo, collection: str, rkey: str, cid: Cid, time: str) -> bytes | None:
    try:
        return encode_record_event(
            "create",
            seq=HISTORICAL_SEQ,
            time=time,
            did=repo.commit.did,
            commit=str(repo.root),
            rev=repo.commit.rev,
            collection=collection,
            rkey=rkey,
            cid=str(cid),
            record=cbor.decode(repo.blocks[cid]),
        )
    except InvalidData:
        return None  # one bad record costs itself; the caller counts it


def _wanted(collections: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    exact = frozenset(item for item in collections if not item.endswith("."))
    return exact, tuple(item for item in collections if item.endswith("."))
