"""A repo whose commit, tree and records match their hashes, and the errors of repos that do not.

https://atproto.com/specs/repository. The blocks come from a download (`Blocks`) or from a CAR file.
"""

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsky_pipeline.atproto.car import CarReader, read_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import Commit, parse_commit, verify_commit
from rsky_pipeline.atproto.errors import IncompleteTreeError, InvalidDataError
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.atproto.mst import walk
from rsky_pipeline.atproto.mst.load import BlockSource
from rsky_pipeline.repos.blocks import Blocks, Budget, DiskFullError

# A tree may refer to one block at many paths. Without a bound, a small CAR could expand to an
# unlimited number of events; the total is at most REPEATED_TIMES the CAR plus REPEATED_BYTES.
REPEATED_TIMES = 4
REPEATED_BYTES = 2 * 1024 * 1024
LISTED_PATHS = 50_000  # paths kept in memory; a larger tree is walked again
# A tree has about as many nodes as records; no honest account has 20 million.
MAX_FILE_BLOCKS = 50_000_000
# Blocks in memory, with their CIDs and paths, for a byte of a CAR of small records.
MEMORY_TIMES = 4
_PART_BYTES = 1024 * 1024

FailureKind = Literal["permanent", "transient", "rate_limited", "invalid"]
# Resolves a DID, bypassing the cache if True. Raises RepoError.
LookUp = Callable[[bool], Awaitable[DidDocument]]


BLOCKED = "blocked"  # the reason for a repo that operators leave out


class RepoError(Exception):
    """A repo could not be fetched or verified; `reason` is a stable code, safe as a metric label.

    `permanent`: a retry fails until the account changes. `transient`: the host or the network
    failed. `rate_limited`: the host asked for a pause, which is not a failure. `invalid`: the bytes
    are not this account's complete repo. `retry_after` is in seconds; `host` is the PDS, if known.

    `of_host`: it says nothing about this repo, since the host (or the directory) fails for others
    as well. `mark` is the same for failures of which each confirms the one before: for most reasons
    the reason.
    """

    def __init__(
        self, kind: FailureKind, reason: str, message: str, retry_after: float | None = None,
        host: str = "", *, of_host: bool = False, mark: str = "",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.retry_after = retry_after
        self.host = host
        self.of_host = of_host
        self.mark = "host" if of_host else mark or reason


@dataclass(frozen=True, slots=True)
class Repo:
    """A repo: its commit and all blocks of its CAR, with verified hashes."""

    root: Cid
    commit: Commit
    blocks: BlockSource
    host: str = ""  # the PDS that served it
    size: int = 0  # bytes of the CAR


@dataclass(frozen=True, slots=True)
class RepoPaths:
    """The paths and CIDs of a repo's complete tree; every record block is present."""

    repo: Repo
    count: int
    listed: list[tuple[str, Cid]] | None  # None: too many to keep

    def __iter__(self) -> Iterator[tuple[str, Cid]]:
        """Yield paths and CIDs in tree order: ascending bytes."""
        if self.listed is not None:
            return iter(self.listed)
        return walk(self.repo.blocks, self.repo.commit.data)


def open_repo(
    roots: tuple[Cid, ...], blocks: BlockSource, did: str | None, host: str = "", size: int = 0
) -> Repo:
    """Read the commit of a repo and check its DID (`did` None accepts any account).

    Raises RepoError.
    """
    block = blocks.get(roots[0])
    if block is None:
        raise RepoError("invalid", "incomplete", "the CAR does not hold its root", host=host)
    try:
        commit = parse_commit(block)
    except InvalidDataError as error:
        reason = "invalid_rev" if error.reason == "invalid_rev" else "invalid_commit"
        raise RepoError("invalid", reason, str(error), host=host) from error
    if did is not None and commit.did != did:
        message = f"the repo belongs to {commit.did}, not to {did}"
        raise RepoError("invalid", "wrong_did", message, host=host)
    return Repo(roots[0], commit, blocks, host, size)


def list_paths(repo: Repo) -> RepoPaths:
    """Walk the whole tree and check that every record block is present.

    Raises RepoError for an incomplete tree: taken for a short repo, it would delete the records
    that are missing from it.
    """
    listed: list[tuple[str, Cid]] | None = []
    count, blocks, room = 0, repo.blocks, REPEATED_TIMES * repo.size + REPEATED_BYTES
    try:
        for path, cid in walk(blocks, repo.commit.data):
            block = blocks.get(cid)
            if block is None:
                raise IncompleteTreeError(f"record {path[:200]}")
            count += 1
            room -= len(block)
            if room < 0:
                raise InvalidDataError("repeated_records", "too many paths share the same records")
            if listed is not None:
                listed.append((path, cid))
                if count > LISTED_PATHS:
                    listed = None
    except IncompleteTreeError as error:
        raise RepoError("invalid", "incomplete", str(error), host=repo.host) from error
    except InvalidDataError as error:
        raise RepoError("invalid", "invalid_tree", str(error), host=repo.host) from error
    return RepoPaths(repo, count, listed)


def read_car_file(path: str, max_bytes: int, memory_bytes: int) -> RepoPaths:
    """Read a repo from a CAR file and verify hashes and completeness.

    The blocks of one that would need more memory than `memory_bytes` are in a temporary file, a
    `Blocks`, which the caller closes. The DID comes from the commit itself: only the signature
    proves it. Raises RepoError.
    """
    try:
        size = Path(path).stat().st_size
        if size > max_bytes:
            message = f"{size:,} bytes exceed the limit of {max_bytes:,} (--max-car-mb)"
            raise RepoError("invalid", "too_big", message)
        if size * MEMORY_TIMES > memory_bytes:
            roots, blocks = _read_to_disk(path, max_bytes)
        else:
            car = read_car(Path(path).read_bytes(), max_blocks=MAX_FILE_BLOCKS)
            roots, blocks = car.roots, car.blocks
    except OSError as error:
        raise RepoError("transient", "unreadable", f"{error.strerror or error}") from error
    except InvalidDataError as error:
        raise RepoError("invalid", "invalid_car", str(error)) from error
    return list_paths(open_repo(roots, blocks, None, size=size))


def _read_to_disk(path: str, max_bytes: int) -> tuple[tuple[Cid, ...], BlockSource]:
    """Return roots and blocks of a CAR file, the blocks in a temporary file (TMPDIR says where).

    Raises OSError, InvalidDataError and RepoError.
    """
    blocks = Blocks(Budget(0), Budget(2 * max_bytes), Path(tempfile.gettempdir()))
    reader = CarReader()
    try:
        blocks.move_to_disk()
        with open(path, "rb") as file:
            while part := file.read(_PART_BYTES):
                blocks.add(reader.feed(part))
                if len(blocks) > MAX_FILE_BLOCKS:
                    raise InvalidDataError("too_many_blocks", f"more than {MAX_FILE_BLOCKS}")
        return reader.finish(), blocks
    except DiskFullError as error:
        raise RepoError("transient", "disk_full", str(error)) from error
    except BaseException:
        blocks.close()
        raise


async def check_signature(
    commit: Commit,
    document: DidDocument,
    look_up: LookUp,
    retry_after: float | None = None,
    host: str = "",
) -> None:
    """Verify a commit with its account's key; on failure, once more with a fresh DID document.

    The cached document may predate a key rotation, so a mismatch counts only against a fresh one.
    Raises RepoError. Its `retry_after` is the earliest time at which a forced look-up returns
    another document: an attempt before that would fail on the same document.
    """
    key = document.signing_key
    if key is None or not verify_commit(commit, key):
        key = (await look_up(True)).signing_key
        if key is None or not verify_commit(commit, key):
            reason = "no_key" if key is None else "bad_signature"
            message = "the commit is not signed with the account's key"
            raise RepoError("invalid", reason, message, retry_after, host)
