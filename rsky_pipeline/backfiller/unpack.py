"""A fetched repo to the events of its records; no I/O."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import Commit, parse_commit
from rsky_pipeline.atproto.errors import IncompleteTree, InvalidData
from rsky_pipeline.atproto.mst import walk
from rsky_pipeline.atproto.syntax import split_path
from rsky_pipeline.backfiller.outcome import RepoFailed
from rsky_pipeline.configuration.selection import path_prefixes
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


def chunks(
    repo: Repo, collections: tuple[str, ...], time: str, deleted: Sequence[str] = ()
) -> Iterator[Chunk]:
    """Yield the create events of all records in the wanted collections.

    Of the paths in `deleted`, those that the tree does not hold yield delete events: the signed
    tree proves that they are gone. The whole tree is walked before the first chunk, so that an
    incomplete one yields nothing. Raises RepoFailed.
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
    prefixes = path_prefixes(collections)
    entries = [_delete(repo, path, time) for path in _proven_deletions(deleted, paths)]
    size = filtered = unreadable = 0
    for path, cid in paths:
        if not path.startswith(prefixes):
            filtered += 1
            continue
        payload = _create(repo, path, cid, time)
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


def _proven_deletions(deleted: Sequence[str], paths: Sequence[tuple[str, Cid]]) -> list[str]:
    if not deleted:
        return []
    held = {path for path, _ in paths}
    return [path for path in deleted if path not in held and split_path(path) is not None]


def _delete(repo: Repo, path: str, time: str) -> Entry:
    collection, _, rkey = path.partition("/")
    payload = encode_record_event(
        "delete",
        seq=HISTORICAL_SEQ,
        time=time,
        did=repo.commit.did,
        commit=str(repo.root),
        rev=repo.commit.rev,
        collection=collection,
        rkey=rkey,
    )
    return Entry(FIREHOSE_BACKFILL, EVENT_FIELD, payload)


def _create(repo: Repo, path: str, cid: Cid, time: str) -> bytes | None:
    collection, _, rkey = path.partition("/")
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
