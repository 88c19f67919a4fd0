"""A fetched repo to the events of its records; no I/O."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import Commit, parse_commit
from rsky_pipeline.atproto.dagjson import record_to_json
from rsky_pipeline.atproto.errors import IncompleteTreeError, InvalidDataError
from rsky_pipeline.atproto.mst import walk
from rsky_pipeline.atproto.mst.load import BlockSource
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
# One block may stand at many paths, which must not make a small CAR into endless events.
REPEATED = 4  # times the size of the CAR
LISTED = 50_000  # records of a repo whose paths are kept; the tree of a larger one is walked again


@dataclass(frozen=True, slots=True)
class Repo:
    """A repo: its commit, and all blocks of its CAR, their hashes checked."""

    root: Cid
    commit: Commit
    blocks: BlockSource
    host: str = ""  # the PDS that it is from
    size: int = 0  # bytes of the CAR


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some records of a repo, ready to be appended."""

    entries: list[Entry]
    filtered: int = 0
    unreadable: int = 0
    is_last: bool = False


class Paths:
    """The paths and CIDs of a tree that was walked as a whole: nothing of it is missing."""

    def __init__(self, repo: Repo, listed: list[tuple[str, Cid]] | None, count: int) -> None:
        self._repo = repo
        self._listed = listed
        self.count = count

    def __iter__(self) -> Iterator[tuple[str, Cid]]:
        """Yield them in the order of the tree: ascending bytes."""
        if self._listed is not None:
            return iter(self._listed)
        return walk(self._repo.blocks, self._repo.commit.data)


@dataclass(frozen=True, slots=True)
class PathsOnly:
    """The same without the CIDs."""

    paths: Paths

    def __iter__(self) -> Iterator[str]:
        """Yield the paths, ascending."""
        return (path for path, _ in self.paths)


def open_repo(
    roots: tuple[Cid, ...], blocks: BlockSource, did: str, host: str = "", size: int = 0
) -> Repo:
    """Read the commit of a fetched repo and check that it is this account's.

    Raises RepoFailed.
    """
    block = blocks.get(roots[0])
    if block is None:
        raise RepoFailed("invalid", "incomplete", "the CAR does not hold its root", host=host)
    try:
        commit = parse_commit(block)
    except InvalidDataError as error:
        raise RepoFailed("invalid", "invalid_commit", str(error), host=host) from error
    if commit.did != did:
        message = f"the repo is {commit.did}'s, not {did}'s"
        raise RepoFailed("invalid", "wrong_did", message, host=host)
    return Repo(roots[0], commit, blocks, host, size)


def list_paths(repo: Repo) -> Paths:
    """Walk the whole tree and make sure that every record is there.

    Raises RepoFailed: an incomplete tree is a failure, never a short repo.
    """
    listed: list[tuple[str, Cid]] | None = []
    count, blocks, room = 0, repo.blocks, REPEATED * repo.size + CHUNK_BYTES
    try:
        for path, cid in walk(blocks, repo.commit.data):
            block = blocks.get(cid)
            if block is None:
                raise IncompleteTreeError(f"record {path[:200]}")
            count += 1
            room -= len(block)
            if room < 0:
                raise InvalidDataError(
                    "repeated_records", "the same records stand at too many paths"
                )
            if listed is not None:
                listed.append((path, cid))
                if count > LISTED:
                    listed = None
    except IncompleteTreeError as error:
        raise RepoFailed("invalid", "incomplete", str(error), host=repo.host) from error
    except InvalidDataError as error:
        raise RepoFailed("invalid", "invalid_tree", str(error), host=repo.host) from error
    return Paths(repo, listed, count)


def creates(
    repo: Repo, paths: Iterable[tuple[str, Cid]], collections: tuple[str, ...], time: str
) -> Iterator[Chunk]:
    """Yield the create events of all records in the wanted collections."""
    prefixes = path_prefixes(collections)
    encode = _Encoder(repo, time)
    entries: list[Entry] = []
    size = filtered = unreadable = 0
    for path, cid in paths:
        if not path.startswith(prefixes):
            filtered += 1
            continue
        payload = encode.create(path, cid)
        if payload is None:
            unreadable += 1
            continue
        entries.append(Entry(FIREHOSE_BACKFILL, EVENT_FIELD, payload))
        size += len(payload)
        if len(entries) >= CHUNK_RECORDS or size >= CHUNK_BYTES:
            yield Chunk(entries, filtered, unreadable)
            entries, size, filtered, unreadable = [], 0, 0, 0
    yield Chunk(entries, filtered, unreadable, is_last=True)


def deletes(repo: Repo, gone: Sequence[str], time: str) -> Chunk:
    """Return the delete events of paths that the signed tree does not hold."""
    encode = _Encoder(repo, time)
    return Chunk([Entry(FIREHOSE_BACKFILL, EVENT_FIELD, encode.delete(path)) for path in gone])


def closing_entry(repo: Repo, time: str) -> Entry:
    """Return the event that says that all records and deletions of the repo are queued."""
    did, rev = repo.commit.did, repo.commit.rev
    event = RepoEvent(HISTORICAL_SEQ, time, did, str(repo.root), rev, complete=True)
    return Entry(FIREHOSE_BACKFILL, EVENT_FIELD, encode_event(event))


class _Encoder:
    def __init__(self, repo: Repo, time: str) -> None:
        self._repo = repo
        self._time = time
        self._commit = str(repo.root)

    def create(self, path: str, cid: Cid) -> bytes | None:
        """Return the event of a record; None if it cannot be read, which costs nothing else."""
        collection, _, rkey = path.partition("/")
        block = self._repo.blocks.get(cid)
        assert block is not None, "list_paths has seen it"
        try:
            return encode_record_event(
                "create", seq=HISTORICAL_SEQ, time=self._time, did=self._repo.commit.did,
                commit=self._commit, rev=self._repo.commit.rev, collection=collection, rkey=rkey,
                cid=str(cid), record=orjson.Fragment(record_to_json(block)),
            )  # fmt: skip
        except InvalidDataError:
            return None

    def delete(self, path: str) -> bytes:
        collection, _, rkey = path.partition("/")
        return encode_record_event(
            "delete", seq=HISTORICAL_SEQ, time=self._time, did=self._repo.commit.did,
            commit=self._commit, rev=self._repo.commit.rev, collection=collection, rkey=rkey,
        )  # fmt: skip
